"""InceptionV3 against Keras' own, its second head against torch, sizes, and what it refuses."""

import functools
import importlib.util
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT

from common import tree
from common.errors import BadInput
from common.nn import flops
from vision import inception
from vision.inception import Branch, InceptionV3

B, K = 3, 5
# Neither square nor the least: at the end two positions are left, and rows are not columns.
SHAPE = (75, 107, 3)


@functools.cache
def shapes(model, shape=SHAPE) -> dict:
    return jax.eval_shape(model.init, jax.random.key(0), np.zeros((B, *shape)))


def random(outline: dict) -> dict:
    """Variables, all random; kernels as large as He et al. 2015 begin, variances positive."""
    rng = np.random.default_rng(0)

    def value(path, x):
        if path.endswith("kernel"):
            return rng.normal(size=x.shape) * np.sqrt(2 / np.prod(x.shape[:-1]))
        return rng.uniform(0.5, 1.5, x.shape) if path.endswith("var") else rng.normal(size=x.shape)

    return tree.map_paths(value, outline)


# ------------------------------------------------------------------------------------------- sizes


def test_parameters_are_those_of_keras_and_torchvision():
    main, both = (shapes(InceptionV3(1000, auxiliary=auxiliary)) for auxiliary in (False, True))
    assert tree.count(main["params"]) == 23_817_352
    assert tree.count(main) == 23_851_784
    # Torchvision's norms have scales as well, as many as biases.
    biases = {k: x for k, x in tree.flatten(both["params"]).items() if k.endswith("norm/bias")}
    assert tree.count(both["params"]) + tree.count(biases) == 27_161_264
    assert "auxiliary" not in both
    leaves = tree.flatten(both["params"])
    table = InceptionV3.PARTITION
    tree.check_table("", table, leaves, [path for path, x in leaves.items() if x.ndim > 1])
    for path, x in leaves.items():
        axes = tree.lookup(table, path)
        assert axes is None or len(axes) == x.ndim


def test_inception_takes_the_paper_s_multiply_adds():
    assert InceptionV3(1000).flops((299, 299, 3)) == 2 * 5_713_216_096  # "5 billion"


def test_smaller_images_are_refused():
    for shape in ((74, 75, 3), (300, 40, 1)):
        with pytest.raises(BadInput, match="at least 75x75"):
            shapes(InceptionV3(K), shape)
        with pytest.raises(BadInput, match="at least 75x75"):
            InceptionV3(K).flops(shape)


def traced(call, *arguments):
    """What a program returns, in shapes, and its FLOPs."""
    program, found = jax.make_jaxpr(call, return_shape=True)(*arguments)
    return found, flops.traced(program.jaxpr)


def test_intermediates_precision_and_flops():
    model = InceptionV3(K, dtype="bfloat16")
    images = np.zeros((B, 299, 299, 3), np.float32)
    variables = shapes(model)
    run = lambda v: model.apply(v, images, mutable=["intermediates"])
    (logits, found), count = traced(run, variables)
    assert (logits.shape, logits.dtype) == ((B, K), jnp.float32)
    assert model.flops((299, 299, 3)) * B == count
    assert type(model.flops((299, 299, 3))) is int
    found = found["intermediates"]
    assert (found["features"][0].shape, found["features"][0].dtype) == ((B, 2048), jnp.float32)
    assert found["mixed_10"][0].dtype == jnp.bfloat16
    # Szegedy et al. 2016, table 1.
    expected = dict.fromkeys(["mixed_0"], (35, 256)) | dict.fromkeys(
        ["mixed_1", "mixed_2"], (35, 288)
    )
    expected |= {f"mixed_{i}": (17, 768) for i in range(3, 8)}
    expected |= {"stem_output": (35, 192), "mixed_8": (8, 1280)}
    expected |= {"mixed_9": (8, 2048), "mixed_10": (8, 2048)}
    del found["features"]
    assert {k: x.shape for k, (x,) in found.items()} == {
        k: (B, side, side, channels) for k, (side, channels) in expected.items()
    }
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


# --------------------------------------------------------------------------------- the second head


def test_the_second_head_runs_in_training_for_those_who_ask():
    model, images = InceptionV3(K), np.zeros((B, *SHAPE), np.float32)
    variables = shapes(model)

    def run(train, *mutable):
        call = lambda v: model.apply(v, images, train, mutable=list(mutable))
        (logits, found), count = traced(call, variables)
        assert logits.shape == (B, K)
        return count, found

    inference, found = run(False, "auxiliary", "intermediates")
    assert "auxiliary" not in found
    alone, found = run(True, "batch_stats")
    assert alone == inference == B * model.flops(SHAPE)
    assert jax.tree.map(lambda x: x.shape, found) == jax.tree.map(
        lambda x: x.shape, {"batch_stats": variables["batch_stats"]}
    )
    both, found = run(True, "auxiliary", "batch_stats")
    assert [x.shape for x in jax.tree.leaves(found["auxiliary"])] == [(B, K)]
    assert both > alone
    # The parameters are those of large images.
    assert jax.tree.map(lambda x: x.shape, variables) == jax.tree.map(
        lambda x: x.shape, shapes(model, (299, 310, 3))
    )


@pytest.mark.parametrize("size", [(17, 17), (21, 18)])
def test_the_second_head_is_the_paper_s(size):
    """In torch: mean of 5x5 at every third position, 1x1, 5x5 without padding."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    f = torch.nn.functional
    branch = Branch(inception._auxiliary(*size), None)
    images = np.random.default_rng(1).normal(size=(2, *size, 4))
    outline = jax.eval_shape(branch.init, jax.random.key(0), images)
    variables = random(outline)
    x = f.avg_pool2d(torch.tensor(images).permute(0, 3, 1, 2), 5, 3)
    for i in range(2):
        kernel = torch.tensor(variables["params"][f"conv_{i}"]["kernel"]).permute(3, 2, 0, 1)
        stats = variables["batch_stats"][f"conv_{i}_norm"]
        bias = torch.tensor(variables["params"][f"conv_{i}_norm"]["bias"])
        mean, var = (torch.tensor(stats[name]) for name in ("mean", "var"))
        x = f.batch_norm(f.conv2d(x, kernel), mean, var, None, bias, eps=1e-3).relu()
    with jax.enable_x64(True):
        found = jax.jit(branch.apply)(variables, images)
    assert found.shape == (2, (size[0] - 5) // 3 - 3, (size[1] - 5) // 3 - 3, 768)
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2), x, rtol=1e-7, atol=1e-7)


# ------------------------------------------------------------------------------------------- Keras


def in_order(variables: dict) -> list[str]:
    """The paths of all variables in the order in which Keras makes them."""
    leaves = ["kernel", "bias", "mean", "var"]

    def place(path):
        module, leaf = path.split("/", 1)[1].rsplit("/", 1)
        part = ["stem", "mixed", "head"].index(re.match("[a-z]+", module)[0])
        numbers = [int(number) for number in re.findall(r"\d+", module)]
        return part, numbers, module.endswith("norm"), leaves.index(leaf)

    return sorted(tree.flatten(variables), key=place)


def ours(model, variables, images, weights) -> dict:
    """Logits of inference and training, new statistics, and gradients in training, in float64."""

    def objective(params, stats, images):
        logits, new = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        return (logits * weights).sum(), (logits, new)

    def run(variables, images):
        parts = variables["params"], variables["batch_stats"]
        gradients, (logits, new) = jax.grad(objective, has_aux=True)(*parts, images)
        inference = model.apply(variables, images)
        return {"inference": inference, "training": logits, "params": gradients, **new}

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(run)(variables, images))


def distance(a, b, floor: float = 0.0) -> float:
    """The norm of a - b relative to that of b, or to `floor` if that is larger."""
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), floor)


@pytest.mark.slow
def test_agreement_with_keras(tmp_path):
    if importlib.util.find_spec("keras") is None:
        pytest.skip("keras is not installed")
    model, rng = InceptionV3(K, auxiliary=False), np.random.default_rng(2)
    variables = random(shapes(model))
    images, weights = rng.normal(size=(B, *SHAPE)), rng.normal(size=(B, K))
    paths, flat = in_order(variables), tree.flatten(variables)
    arrays = {str(i): flat[path] for i, path in enumerate(paths)}
    np.savez(tmp_path / "given.npz", images=images, weights=weights, **arrays)
    files = tmp_path / "given.npz", tmp_path / "found.npz"
    script = ROOT / "tests/support/process_keras.py"
    done = subprocess.run([sys.executable, script, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = dict(np.load(tmp_path / "found.npz"))
    found = tree.flatten(ours(model, variables, images, weights))
    assert found.keys() == {"inference", "training", *paths}
    names = {path: str(i) for i, path in enumerate(paths)}
    slopes = [expected[name] for path, name in names.items() if path.startswith("params")]
    floor = 1e-6 * np.sqrt(sum(np.square(x).sum() for x in slopes))
    errors = {
        path: distance(x, expected[names.get(path, path)], floor if path in names else 0)
        for path, x in found.items()
    }
    assert max(errors.values()) < 1e-7, errors
