"""ResNet and Wide ResNet: sizes of the papers, agreement with torch, and how they begin."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import tree
from common.errors import BadInput
from common.nn import flops
from vision import resnet, weights
from vision.resnet import ResNet

K = 5
SMALL = {"num_classes": K, "stages": (2, 1), "stem_width": 8}
BASIC = ResNet(**SMALL, block="basic", widths=(8, 12))
BOTTLENECK = ResNet(**SMALL, block="bottleneck", widths=(16, 24))
WIDE = ResNet(**SMALL, block="basic", widths=(8, 16), stem="small", preactivation=True)
MODELS = {
    "basic": BASIC,
    "bottleneck": BOTTLENECK,
    "wide": WIDE,
    "wide bottleneck": BOTTLENECK.clone(stem="small", preactivation=True),
    "one stage": ResNet(K, stages=(1,), widths=(64,), block="basic"),
}
IMAGES = np.random.default_rng(0).normal(size=(4, 37, 30, 3)).astype(np.float32)
LABELS = np.arange(len(IMAGES)) % K


def shapes(model, images=IMAGES):
    return jax.eval_shape(model.init, jax.random.key(0), images)


def random(model, seed: int = 0) -> dict:
    """Variables of a model, all numbers random, variances positive."""
    rng = np.random.default_rng(seed)
    value = lambda path, x: (
        rng.uniform(0.5, 1.5, x.shape)
        * (1 if path.endswith(("scale", "var")) else rng.choice([-0.3, 0.3], x.shape))
    )
    return tree.map_paths(lambda path, x: value(path, x).astype(np.float32), shapes(model))


# ------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("size", "classes", "count"),
    [
        ("resnet18", 1000, 11_689_512),
        ("resnet34", 1000, 21_797_672),
        ("resnet50", 1000, 25_557_032),
        ("resnet101", 1000, 44_549_160),
        ("resnet152", 1000, 60_192_808),
        ("wrn_40_2", 10, 2_243_546),  # 2.2M, 11.0M and 36.5M in the paper
        ("wrn_16_8", 10, 10_961_370),
        ("wrn_28_10", 10, 36_479_194),
    ],
)
def test_the_sizes_have_their_parameters(size, classes, count):
    model = ResNet(**resnet.SIZES[size], num_classes=classes)
    assert tree.count(shapes(model, np.zeros((1, 32, 32, 3)))["params"]) == count


@pytest.mark.parametrize("name", MODELS)
def test_flops_and_the_partition_are_of_this_model(name):
    model = MODELS[name]
    variables = shapes(model)
    traced = jax.make_jaxpr(lambda v: model.apply(v, IMAGES))(variables)
    assert model.flops(IMAGES.shape[1:]) * len(IMAGES) == flops.traced(traced.jaxpr)
    assert type(model.flops(IMAGES.shape[1:])) is int
    leaves = tree.flatten(variables["params"])
    tree.check_table("", model.PARTITION, leaves, [p for p, x in leaves.items() if x.ndim > 1])
    for path, x in leaves.items():
        axes = tree.lookup(model.PARTITION, path)
        assert axes is None or len(axes) == x.ndim


def test_resnet50_takes_the_paper_s_multiply_adds():
    # He et al. count 3.8e9; the stride in the 3x3 adds 0.3e9.
    assert ResNet(1000).flops((224, 224, 3)) == 2 * 4_089_184_256


# --------------------------------------------------------------------------------------- agreement


@pytest.fixture(scope="module")
def torch():
    found = pytest.importorskip("torch")
    found.set_num_threads(1)
    return found


@pytest.fixture(scope="module")
def transformers(torch):
    os.environ["HF_HUB_OFFLINE"] = "1"
    return pytest.importorskip("transformers")


def ours(model, variables, images) -> dict:
    """Logits of inference and training, new statistics, and gradients in training, in float64."""

    def objective(params, stats, images):
        logits, new = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        picked = jax.nn.log_softmax(logits)[np.arange(len(images)), LABELS[: len(images)]]
        return -picked.mean(), (logits, new)

    def run(variables, images):
        parts = variables["params"], variables["batch_stats"]
        gradients, (logits, new) = jax.grad(objective, has_aux=True)(*parts, images)
        found = {"inference": model.apply(variables, images), "training": logits}
        return found | {"params": gradients, **new}

    with jax.enable_x64(True):
        variables = jax.tree.map(np.float64, variables)
        return jax.tree.map(np.asarray, jax.jit(run)(variables, images.astype(np.float64)))


def distance(a, b, floor: float = 0.0) -> float:
    """The norm of a - b relative to that of b, or to `floor` if that is larger."""
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), floor, 1e-30)


def agree(torch, transformers, tmp_path, images, **settings):
    """Compares with their model; all parameters and statistics are random."""
    config = transformers.ResNetConfig(**settings)
    torch.manual_seed(0)
    reference = transformers.ResNetForImageClassification(config).eval()
    with torch.no_grad():
        for name, x in (*reference.named_parameters(), *reference.named_buffers()):
            if x.is_floating_point():
                positive = x.ndim == 1 and name.endswith(("weight", "running_var"))
                x.copy_(torch.rand(x.shape) + 0.5 if positive else x + 0.1 * torch.randn(x.shape))
    reference.save_pretrained(tmp_path)
    model, variables = ResNet(**weights.sizes(tmp_path)), weights.pretrained(tmp_path)
    found = ours(model, variables, images)

    reference, counts = reference.double(), {}
    inputs = torch.tensor(images).double().permute(0, 3, 1, 2)
    assert distance(found["inference"], reference(inputs).logits.detach().numpy()) < 1e-7
    old = {k: x.numpy().copy() for k, x in reference.named_buffers()}
    for name, module in reference.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            count = lambda _, x, __, name=name: counts.update({name: x[0][:, 0].numel()})
            module.register_forward_hook(count)
    logits = reference.train()(inputs).logits
    assert distance(found["training"], logits.detach().numpy()) < 1e-7
    torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS[: len(images)])).backward()

    gradients = {k: p.grad.numpy() for k, p in reference.named_parameters()}
    mine = weights.export(model, {"params": found["params"]})
    assert mine.keys() == gradients.keys()
    floor = 1e-6 * np.sqrt(sum(np.sum(np.square(g)) for g in gradients.values()))
    errors = {k: distance(mine[k], gradients[k], floor) for k in gradients}
    assert max(errors.values()) < 1e-7, errors

    new = {k: x.numpy() for k, x in reference.named_buffers()}
    mine = weights.export(model, {"batch_stats": found["batch_stats"]})
    assert mine.keys() == new.keys()
    for name, n in counts.items():
        mean, var = f"{name}.running_mean", f"{name}.running_var"
        assert distance(mine[mean], new[mean]) < 1e-7
        # Torch keeps the unbiased variance, though it too normalises by the biased one.
        unbiased = 0.9 * old[var] + (mine[var] - 0.9 * old[var]) * n / (n - 1)
        assert distance(unbiased, new[var]) < 1e-7
        assert distance(mine[var], new[var]) > 1e-5


@pytest.mark.parametrize("name", ["basic", pytest.param("bottleneck", marks=pytest.mark.slow)])
def test_agreement_with_transformers(name, torch, transformers, tmp_path):
    model = MODELS[name]
    sizes = {"embedding_size": 8, "depths": model.stages, "hidden_sizes": model.widths}
    sizes |= {"layer_type": model.block, "num_labels": K}
    agree(torch, transformers, tmp_path, IMAGES, **sizes)


@pytest.mark.slow
def test_agreement_of_resnet50(torch, transformers, tmp_path):
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3))
    agree(torch, transformers, tmp_path, images, num_labels=1000)


@pytest.mark.slow
def test_agreement_of_wide_resnet_with_one_written_in_torch(torch):
    f, variables = torch.nn.functional, random(WIDE)
    found = ours(WIDE, variables, IMAGES)
    tensors = {k: torch.tensor(x).double() for k, x in tree.flatten(variables).items()}
    params = {k: x.requires_grad_() for k, x in tensors.items() if k.startswith("params")}

    def convolve(path, x, stride=1):
        kernel = params[f"params/{path}/kernel"].permute(3, 2, 0, 1)
        return f.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def active(path, x, train):
        mean, var = (tensors[f"batch_stats/{path}/{name}"].clone() for name in ("mean", "var"))
        scale, bias = (params[f"params/{path}/{name}"] for name in ("scale", "bias"))
        return f.batch_norm(x, mean, var, scale, bias, train, eps=1e-5).relu()

    def run(x, train):
        x = convolve("stem", x)
        for stage, blocks in enumerate(WIDE.stages):
            for i in range(blocks):
                path, stride = f"stage_{stage}_block_{i}", 2 if stage and not i else 1
                y = active(f"{path}/norm_0", x, train)
                x = convolve(f"{path}/shortcut", y, stride) if stage and not i else x
                y = active(f"{path}/norm_1", convolve(f"{path}/conv_0", y, stride), train)
                x = x + convolve(f"{path}/conv_1", y)
        x = active("final_norm", x, train).mean((2, 3))
        return x @ params["params/head/kernel"] + params["params/head/bias"]

    inputs = torch.tensor(IMAGES).double().permute(0, 3, 1, 2)
    assert distance(found["inference"], run(inputs, False).detach().numpy()) < 1e-7
    logits = run(inputs, True)
    assert distance(found["training"], logits.detach().numpy()) < 1e-7
    f.cross_entropy(logits, torch.tensor(LABELS)).backward()
    mine = tree.flatten({"params": found["params"]})
    assert mine.keys() == params.keys()
    for path, parameter in params.items():
        assert distance(mine[path], parameter.grad.numpy()) < 1e-7, path


# ---------------------------------------------------------------------------------------- behaviour


@pytest.mark.parametrize("name", ["basic", "bottleneck"])
def test_at_first_blocks_are_their_shortcuts(name):
    """So the depth makes no difference: what is computed is that of one block a stage."""
    deep = MODELS[name].clone(stages=(3, 2))
    shallow = deep.clone(stages=(1, 1))
    variables, wanted = tree.flatten(random(deep)), tree.flatten(shapes(shallow))
    # Random numbers of any kind do for the kernels, which take long to compile.
    norms = lambda key: {
        k: x for k, x in tree.flatten(deep.init(key, IMAGES)).items() if "norm" in k
    }
    variables |= jax.jit(norms)(jax.random.key(0))
    fewer = {k: x for k, x in variables.items() if k in wanted}

    @jax.jit
    def run(variables, images):
        pair = zip((deep, shallow), variables, strict=True)
        wanted = ["intermediates", "batch_stats"]
        return [m.apply(tree.unflatten(v), images, True, mutable=wanted) for m, v in pair]

    (logits, found), (expected, other) = run([variables, fewer], IMAGES[:, :16, :16])
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    found, other = found["intermediates"], other["intermediates"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, other)
    if name == "basic":  # the first stage has no projection
        np.testing.assert_array_equal(found["stage_0"], found["stem_output"])
    assert np.ptp(found["stage_1"]) > 0


def test_intermediates_and_gradients_with_respect_to_them():
    model = BASIC.clone(stages=(1, 1))
    variables = random(model)
    _, found = jax.eval_shape(
        lambda v: model.apply(v, IMAGES, mutable=["intermediates"]), variables
    )
    sizes = {name: x.shape for name, (x,) in found["intermediates"].items()}
    assert sizes == {
        "stem_output": (4, 10, 8, 8),
        "stage_0": (4, 10, 8, 8),
        "stage_1": (4, 5, 4, 12),
        "features": (4, 12),
    }

    def logit(perturbations):
        logits = model.apply(wide | {"perturbations": perturbations}, IMAGES.astype(np.float64))
        return logits[:, 2].sum()

    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, variables)
        rng = np.random.default_rng(1)
        steps = {name: rng.normal(size=shape) for name, shape in sizes.items()}
        gradients = jax.jit(jax.grad(logit))(jax.tree.map(np.zeros_like, steps))
        column = wide["params"]["head"]["kernel"][:, 2]
        np.testing.assert_allclose(gradients["features"], np.tile(column, (4, 1)))
        by_hand = np.broadcast_to(column / (5 * 4), sizes["stage_1"])
        np.testing.assert_allclose(gradients["stage_1"], by_hand)
        moved = jax.jit(lambda far: logit(jax.tree.map(jnp.multiply, far, steps)))
        for name, step in steps.items():
            # So small a step crosses no kink of ReLU.
            ahead, back = ({n: e * (n == name) for n in steps} for e in (1e-7, -1e-7))
            slope = (moved(ahead) - moved(back)) / 2e-7
            np.testing.assert_allclose(slope, np.sum(gradients[name] * step), rtol=1e-4)


def test_dropout_is_in_front_of_the_last_convolution_and_in_training_alone():
    model = WIDE.clone(stages=(1,), widths=(16,))
    variables = random(model)
    without = tree.map_paths(lambda p, x: x * ("conv_1" not in p), variables)

    @jax.jit
    def run(variables, rate):
        call = lambda train: model.clone(dropout=rate).apply(
            variables, IMAGES, train, rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"]
        )[0]
        return call(False), call(True)

    inference, training = run(variables, 0.0)
    plain, other = run(variables, 0.5)
    np.testing.assert_array_equal(plain, inference)
    assert not np.allclose(other, training, rtol=0.01)
    np.testing.assert_array_equal(run(variables, 1.0)[1], run(without, 0.0)[1])


def test_bfloat16_is_of_the_computation_alone():
    narrow = BOTTLENECK.clone(dtype="bfloat16")
    variables = shapes(narrow)
    wanted = ["intermediates", "batch_stats"]
    run = lambda variables: narrow.apply(variables, IMAGES, True, mutable=wanted)
    logits, found = jax.eval_shape(run, variables)
    kept = variables, found["batch_stats"], logits, found["intermediates"].pop("features")
    assert {x.dtype for x in jax.tree.leaves(kept)} == {jnp.dtype("float32")}
    computed = jax.tree.leaves(found["intermediates"])
    assert [x.dtype for x in computed] == 3 * [jnp.dtype("bfloat16")]


@pytest.mark.parametrize("name", ["basic", "wide"])
def test_activations_pass_the_constraint(name):
    seen = []
    constrain = lambda x, *names: seen.append(names) or x
    shapes(MODELS[name].clone(constrain=constrain))
    blocks = [("batch", None, None, None)] * (1 + sum(SMALL["stages"]))
    assert [names for names in seen if "batch" in names] == blocks


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (8, 16, 32)}, r"config\.model\.stages: .* a width for each stage"),
        ({"stages": (2, 0)}, r"config\.model\.stages: .* a positive number of blocks"),
        ({"block": "bottleneck", "widths": (8, 10)}, r"config\.model\.widths: .* of four"),
    ],
)
def test_sizes_that_make_no_network(fields, message):
    with pytest.raises(BadInput, match=message):
        shapes(BASIC.clone(**fields))
