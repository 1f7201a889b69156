"""EfficientNet-Lite: sizes, agreement with torch, stochastic depth, and the published weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import predict, tree
from common.data import fetch
from common.errors import BadInput
from common.nn import flops
from vision.efficientnet_lite import RESOLUTIONS, SIZES, Block, EfficientNetLite
from vision.pretrained import WEIGHTS

B, K = 4, 5
# Both blocks of stage 1 and that of stage 4 are of stride 1; the latter is added to its input.
SMALL = EfficientNetLite(K, stages=(1, 2, 1, 1, 1, 1, 1), widths=(8, 8, 16, 8, 8, 16, 8))
IMAGES = np.random.default_rng(0).normal(size=(B, 37, 42, 3)).astype(np.float32)


def shapes(model, images=IMAGES) -> dict:
    return jax.eval_shape(model.init, jax.random.key(0), images)


def random(model, images=IMAGES) -> dict:
    """Variables of a model, all random; kernels as large as they begin, variances positive."""
    rng = np.random.default_rng(1)

    def value(path, x):
        if path.endswith("kernel"):
            return rng.normal(size=x.shape) * np.sqrt(2 / np.prod(x.shape[:-1]))
        return rng.uniform(0.5, 1.5, x.shape) * (1 if path.endswith(("scale", "var")) else 0.3)

    return tree.map_paths(lambda path, x: value(path, x).astype(np.float32), shapes(model, images))


# ------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("size", "count", "multiply_adds"),
    [
        ("lite0", 4_652_008, 385_187_552),  # 4.7M and 407M by Liu 2020, who counts norms as well
        ("lite1", 5_416_680, 600_185_232),
        ("lite2", 6_092_072, 859_736_272),
        ("lite3", 8_197_096, 1_383_321_872),
        ("lite4", 13_006_568, 2_553_034_336),
    ],
)
def test_the_sizes_have_their_parameters_and_flops(size, count, multiply_adds):
    model, side = EfficientNetLite(**SIZES[size], num_classes=1000), RESOLUTIONS[size]
    assert tree.count(shapes(model, np.zeros((1, 32, 32, 3)))["params"]) == count
    assert model.flops((side, side, 3)) == 2 * multiply_adds


def test_flops_and_the_partition_are_of_this_model():
    variables = shapes(SMALL)
    traced = jax.make_jaxpr(lambda v: SMALL.apply(v, IMAGES))(variables)
    assert SMALL.flops(IMAGES.shape[1:]) * B == flops.traced(traced.jaxpr)
    assert type(SMALL.flops(IMAGES.shape[1:])) is int
    leaves = tree.flatten(variables["params"])
    tree.check_table("", SMALL.PARTITION, leaves, [p for p, x in leaves.items() if x.ndim > 1])
    for path, x in leaves.items():
        axes = tree.lookup(SMALL.PARTITION, path)
        assert axes is None or len(axes) == x.ndim


def test_intermediates_and_precision():
    model = SMALL.clone(dtype="bfloat16")
    run = lambda v: model.apply(v, IMAGES, mutable=["intermediates"])
    logits, found = jax.eval_shape(run, shapes(model))
    assert logits.shape == (B, K)
    assert logits.dtype == jnp.float32
    features = found["intermediates"].pop("features")[0]
    assert (features.shape, features.dtype) == ((B, 1280), jnp.float32)
    assert {name: (x.shape[1:], x.dtype) for name, (x,) in found["intermediates"].items()} == {
        "stem_output": ((19, 21, 32), jnp.bfloat16),
        "stage_0": ((19, 21, 8), jnp.bfloat16),
        "stage_1": ((10, 11, 8), jnp.bfloat16),
        "stage_2": ((5, 6, 16), jnp.bfloat16),
        "stage_3": ((3, 3, 8), jnp.bfloat16),
        "stage_4": ((3, 3, 8), jnp.bfloat16),
        "stage_5": ((2, 2, 16), jnp.bfloat16),
        "stage_6": ((2, 2, 8), jnp.bfloat16),
        "top_output": ((2, 2, 1280), jnp.bfloat16),
    }
    assert {x.dtype for x in jax.tree.leaves(shapes(model))} == {jnp.dtype("float32")}


def test_stages_and_widths_have_to_fit():
    for fields in ({"stages": (1, 2)}, {"widths": (8,) * 8}, {"stages": (1, 0, 1, 1, 1, 1, 1)}):
        with pytest.raises(BadInput, match="7 positive numbers"):
            shapes(SMALL.clone(**fields))


# --------------------------------------------------------------------------------------- agreement


def ours(variables, gradients: bool) -> dict:
    """Logits of inference and training, new statistics, and gradients in training, in float64."""

    def objective(params, stats, images):
        logits, new = SMALL.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.square(logits).sum(), (logits, new)

    def run(variables, images):
        train = jax.grad(objective, has_aux=True) if gradients else objective
        found, (logits, new) = train(variables["params"], variables["batch_stats"], images)
        found = {"params": found} if gradients else {}
        return found | {"inference": SMALL.apply(variables, images), "training": logits, **new}

    with jax.enable_x64(True):
        variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
        found = jax.jit(run)(variables, IMAGES.astype(np.float64))
        return jax.tree.map(np.asarray, found)


def theirs(torch, variables) -> dict:
    """The same by a network written in torch."""
    f = torch.nn.functional
    tensors = {k: torch.tensor(x).double() for k, x in tree.flatten(variables).items()}
    params = {k: x.requires_grad_() for k, x in tensors.items() if k.startswith("params")}
    new = {}

    def convolve(path, x, train, stride=1, groups=1, active=True):
        kernel = params[f"params/{path}/kernel"].permute(3, 2, 0, 1)
        sizes = zip(x.shape[2:], kernel.shape[2:], strict=True)
        missing = [max(0, (-(-n // stride) - 1) * stride + k - n) for n, k in sizes]
        top, left = (n // 2 for n in missing)  # the odd one goes to the bottom and the right
        x = f.pad(x, (left, missing[1] - left, top, missing[0] - top))
        x = f.conv2d(x, kernel, stride=stride, groups=groups)
        stats = [tensors[f"batch_stats/{path}_norm/{name}"] for name in ("mean", "var")]
        if train:
            old, stats = stats, [x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)]
            for name, before, now in zip(("mean", "var"), old, stats, strict=True):
                new[f"{path}_norm/{name}"] = (0.99 * before + 0.01 * now).detach().numpy()
        scale, bias = (params[f"params/{path}_norm/{name}"] for name in ("scale", "bias"))
        mean, deviation = stats[0], torch.sqrt(stats[1] + 1e-3)
        x = (x - mean[:, None, None]) / deviation[:, None, None]
        x = x * scale[:, None, None] + bias[:, None, None]
        return f.relu6(x) if active else x

    def block(path, x, train, kernel, stride, expansion):
        y, inside = x, x.shape[1] * expansion
        if expansion > 1:
            y = convolve(f"{path}/expand", y, train)
        assert params[f"params/{path}/depthwise/kernel"].shape == (kernel, kernel, 1, inside)
        y = convolve(f"{path}/depthwise", y, train, stride, inside)
        y = convolve(f"{path}/project", y, train, active=False)
        return x + y if stride == 1 and x.shape == y.shape else y

    def run(train):
        x = torch.tensor(IMAGES).double().permute(0, 3, 1, 2)
        x = convolve("stem", x, train, 2)
        for i, fields in enumerate(
            [(3, 1, 1), (3, 2, 6), (3, 1, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6)]
        ):
            x = block(f"block_{i}", x, train, *fields)
        x = convolve("top", x, train).mean((2, 3))
        return x @ params["params/head/kernel"] + params["params/head/bias"]

    inference, training = run(False), run(True)
    torch.square(training).sum().backward()
    return {
        "inference": inference.detach().numpy(),
        "training": training.detach().numpy(),
        "params": tree.unflatten({k: x.grad.numpy() for k, x in params.items()})["params"],
        "batch_stats": tree.unflatten(new),
    }


def distance(a, b, floor: float = 0.0) -> float:
    """The norm of a - b relative to that of b, or to `floor` if that is larger."""
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), floor)


@pytest.mark.parametrize("gradients", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_agreement_with_a_network_written_in_torch(gradients):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    variables = random(SMALL)
    found, expected = ours(variables, gradients), theirs(torch, variables)
    slopes = tree.flatten(expected["params"])
    # Some are zero but for rounding: those of biases that the next norm takes away.
    floor = 1e-6 * np.sqrt(sum(np.square(g).sum() for g in slopes.values()))
    if not gradients:
        del expected["params"]
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    found = tree.flatten(found)
    for path, x in tree.flatten(expected).items():
        least = floor if path.startswith("params") else 0.0
        assert distance(found[path], x, least) < 1e-7, path


# -------------------------------------------------------------------------------- stochastic depth


def test_a_branch_is_dropped_by_row_and_what_is_kept_grows():
    rows = 2000
    x = np.random.default_rng(2).normal(size=(rows, 2, 1, 8)).astype(np.float32)
    block = lambda rate: Block(3, 1, 1, 8, rate)
    variables = random(block(None), x)

    @jax.jit
    def branch(rate, key):
        rngs, mutable = {"dropout": key}, ["batch_stats"]
        return block(rate).apply(variables, x, True, rngs=rngs, mutable=mutable)[0] - x

    whole = block(None).apply(variables, x, True, mutable=["batch_stats"])[0] - x
    for rate in (0.25, 0.6):  # one program: the rate is traced
        found = np.asarray(branch(rate, jax.random.key(0)))
        dropped = ~found.any((1, 2, 3))
        assert abs(dropped.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / rows)
        kept = np.asarray(whole)[~dropped] / (1 - rate)
        np.testing.assert_allclose(found[~dropped], kept, rtol=1e-4, atol=1e-4)
    assert not np.array_equal(branch(0.6, jax.random.key(1)), found)
    without = block(None).apply(variables, x)
    np.testing.assert_array_equal(block(0.6).apply(variables, x), without)


def test_the_rate_grows_with_depth():
    rates = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, Block):
            rates.append(context.module.drop_path)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes(SMALL.clone(drop_path=0.4))
    np.testing.assert_allclose(rates, 0.4 * np.arange(8) / 8)


# ------------------------------------------------------------------------------------- real weights


@pytest.mark.slow
def test_the_published_weights_know_a_cup_and_a_cat():
    data = pytest.importorskip("skimage").data
    try:
        folder = fetch.weights("efficientnet_lite0", WEIGHTS)
    except BadInput as error:
        pytest.skip(f"efficientnet_lite0 cannot be had: {error}")
    coffee, chelsea = predict.load(folder).predict([data.coffee(), data.chelsea()])
    assert coffee["class"] == "967"  # espresso
    assert coffee["probability"] == pytest.approx(0.951, abs=0.002)
    # Tabby, tiger cat, Egyptian cat.
    assert {*list(chelsea["probabilities"])[:3]} == {"281", "282", "285"}
