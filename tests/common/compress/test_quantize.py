"""Quantized kernels and activations: their integers, gradients and storage, and runs with them."""

import functools
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from helpers import DIGITS, exit_code, load

from common import predict, tree
from common.compress import quantize, rounding
from common.errors import BadInput
from common.laws import checks as laws
from common.nn.layers import Dense, TiedEmbedding, product
from common.runs import workdir
from common.training import saved, train
from common.training.derived import quantize_run

RNG = np.random.default_rng(0)
SCHEMES = [
    {"weights": "int8"},
    {"weights": "int4"},
    {"weights": "int8", "activations": "int8"},
    {"weights": "int4", "activations": "int8"},
]


def applied(model, how="training", **keys):
    return quantize.applied(model, {"compress": {"quantize": {"how": how, **keys}}})


def scheme(**keys):
    return quantize.of({"compress": {"quantize": {"how": "after", **keys}}})


class Two(nn.Module):
    """A convolution and a dense layer."""

    PARTITION = ((r"conv/kernel", (None, None, None, None)), (r"head/kernel", (None, None)))

    @nn.compact
    def __call__(self, x, train=False):
        """f32[B, 5, 5, 3] -> f32[B, 7]."""
        x = nn.relu(nn.Conv(8, (3, 3), padding="VALID", name="conv")(x))
        return Dense(7, name="head")(x.reshape(len(x), -1))


IMAGES = RNG.normal(size=(4, 5, 5, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def two():
    """Random parameters of `Two`."""
    shapes = jax.eval_shape(Two().init, jax.random.key(0), IMAGES)["params"]
    return jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), shapes)


# ------------------------------------------------------------------------------------- the numbers


def by_numpy(x, most: int, axes: tuple[int, ...]):
    """(integers, scales): symmetric, the largest along `axes` becoming the largest integer."""
    x = np.asarray(x, np.float32)
    scale = np.abs(x).max(axis=axes, keepdims=True) / np.float32(most * 1023 / 1024)
    return np.clip(np.rint(x / scale), -most, most).astype(np.int64), scale


def two_by_numpy(params, keys: dict):
    """What `Two` computes when quantized: int64 products of the integers."""
    most = 127 if keys["weights"] == "int8" else 7

    def multiplied(rows, kernel):
        q, s = by_numpy(kernel, most, (0,))
        if "activations" not in keys:
            return rows @ (q * s.astype(np.float64))
        r, t = rows
        return (r @ q) * t.astype(np.float64) * s

    def quantized(x):
        return x if "activations" not in keys else by_numpy(x, 127, tuple(range(1, x.ndim)))

    patches = lambda x: np.stack(
        [x[:, i : i + 3, j : j + 3].reshape(4, -1) for i in range(3) for j in range(3)], axis=1
    )
    x = quantized(IMAGES)
    x = (patches(x[0]), x[1].reshape(4, 1, 1)) if "activations" in keys else patches(x)
    kernel = np.asarray(params["conv"]["kernel"]).reshape(27, 8)
    x = np.maximum(multiplied(x, kernel) + params["conv"]["bias"], 0).reshape(4, 72)
    return multiplied(quantized(x), params["head"]["kernel"]) + params["head"]["bias"]


@pytest.mark.parametrize(
    "keys",
    [SCHEMES[0], *(pytest.param(k, marks=pytest.mark.slow) for k in SCHEMES[1:3]), SCHEMES[3]],
)
def test_products_are_those_of_the_integers(two, keys):
    wanted = two_by_numpy(two, keys)
    aware = jax.jit(applied(Two(), **keys).apply)({"params": two}, IMAGES)
    np.testing.assert_allclose(aware, wanted, rtol=2e-5, atol=2e-4)
    plain = jax.jit(Two().apply)({"params": two}, IMAGES)
    assert np.abs(aware - plain).max() > 0.01  # it does something
    after = applied(Two(), "after", **keys)
    stored = jax.jit(partial(quantize.stored, scheme(**keys)))(two)
    outputs = jax.jit(after.apply)({"params": stored}, IMAGES)
    np.testing.assert_allclose(outputs, aware, rtol=2e-5, atol=2e-4)
    shapes = jax.eval_shape(after.init, jax.random.key(0), IMAGES)["params"]
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), shapes, stored)
    assert all(jax.tree.leaves(same))


def test_integers_multiply_integers(two):
    keys = {"weights": "int8", "activations": "int8"}
    stored, after = quantize.stored(scheme(**keys), two), applied(Two(), "after", **keys)
    program = str(jax.make_jaxpr(after.apply)({"params": stored}, IMAGES))
    assert program.count("preferred_element_type=int32") == 2
    # The kernels as floats are there for whoever looks at them, and nothing does.
    assert program.count("preferred_element_type=float32") == 0


def test_a_gradient_is_that_of_the_rounded_model(two):
    aware = applied(Two(), weights="int4")
    rounded = jax.jit(
        partial(
            jax.tree.map,
            lambda x: rounding.rounded(x, "int4", x.ndim - 1) if x.ndim > 1 else x,
        )
    )(two)
    loss = lambda model, params: jnp.sin(model.apply({"params": params}, IMAGES)).sum()
    ours = jax.jit(jax.grad(partial(loss, aware)))(two)
    wanted = jax.jit(jax.grad(partial(loss, Two())))(rounded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5), ours, wanted)


@pytest.mark.slow
def test_inputs_have_the_same_gradient_in_training_and_after(two):
    keys = {"weights": "int8", "activations": "int8"}
    loss = lambda model: lambda x, params: jnp.sin(model.apply({"params": params}, x)).sum()
    aware, after = applied(Two(), **keys), applied(Two(), "after", **keys)
    wanted = jax.jit(jax.grad(loss(aware)))(IMAGES, two)
    ours = jax.jit(jax.grad(loss(after)))(IMAGES, quantize.stored(scheme(**keys), two))
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(ours, wanted, rtol=1e-4, atol=1e-3)


def test_the_gradient_of_rounding_is_the_identity():
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    x[1] = 0
    rounded = lambda x: rounding.rounded(x, "int8", 0)
    value, gradient = jax.jit(lambda x: (rounded(x), jax.vjp(rounded, x)[1](x)[0]))(x)
    np.testing.assert_array_equal(gradient, x)
    assert not np.asarray(value[1]).any()
    q, s = by_numpy(x[::2], 127, (1,))
    np.testing.assert_allclose(value[::2], q * s, rtol=1e-6)
    assert jax.eval_shape(rounded, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(4, 3), (5, 3), (3, 3, 1, 2), (1, 1)])
def test_four_bits_take_four_bits(shape):
    x = {"kernel": jnp.asarray(RNG.normal(size=shape), jnp.float32)}
    stored = jax.jit(partial(quantize.stored, scheme(weights="int4")))(x)["kernel"]
    (key,) = {*stored} - {"scale"}
    assert stored[key].nbytes == -(-shape[0] // 2) * np.prod(shape[1:])
    opened, _ = jax.jit(quantize._opened)({"kernel": stored})
    q, s = by_numpy(x["kernel"], 7, tuple(range(len(shape) - 1)))
    np.testing.assert_allclose(opened["kernel"], q * s, rtol=1e-6)


# ------------------------------------------------------------------------------------ what is seen


def test_without_a_scheme_nothing_changes():
    model = Two()
    assert quantize.applied(model, {}) is model
    assert quantize.applied(model, {"compress": {"quantize": {"weights": ""}}}) is model
    for dtype in ("float32", "bfloat16"):
        factors = jnp.zeros((2, 3), dtype), jnp.zeros((3, 4), dtype)
        same = jax.make_jaxpr(product)(*factors), jax.make_jaxpr(lambda a, b: a @ b)(*factors)
        assert str(same[0]) == str(same[1])


QUICK = "bert", "llama", "cnn", "airbench"


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in models.MODELS]
)
def test_every_kernel_of_every_model_is_seen(name):
    model, inputs = models.MODELS[name]
    after = applied(model, "after", weights="int8", activations="int8")
    params = jax.eval_shape(after.init, jax.random.key(0), *inputs)["params"]
    for path, leaf in tree.flatten(params).items():
        assert (leaf.dtype == jnp.int8) == path.endswith("kernel/int8")
    wanted = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    assert set(tree.flatten(wanted)) == {p.removesuffix("/int8") for p in tree.flatten(params)} - {
        p for p in tree.flatten(params) if p.endswith("kernel/scale")
    }


jitted = jax.jit(product)


class Hidden(nn.Module):
    """Two products that cannot be seen, and one that can."""

    PARTITION = ()

    @nn.compact
    def __call__(self, x):
        """f32[B, 4] -> f32[B, 4]."""
        ones = nn.initializers.ones
        x = nn.Dense(4, name="seen")(x) @ self.param("kernel", ones, (4, 4))
        return jitted(x, self.param("other_kernel", ones, (4, 4)))


def test_a_named_parameter_that_would_stay_float_is_an_error():
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    key = jax.random.key(0)
    init = lambda **keys: jax.eval_shape(applied(Hidden(), weights="int8", **keys).init, key, x)
    with pytest.raises(BadInput, match="other_kernel would stay float, 1 of 1"):
        init(paths="other_kernel")
    with pytest.raises(BadInput, match="'none' matches no parameter; one of them is kernel"):
        init(paths="none")
    for keys in ({}, {"activations": "int8"}):
        with pytest.raises(BadInput, match=r"kernel would stay float, 1 of 2"):
            init(**keys)
    with pytest.raises(BadInput, match="kernel and 2 more would stay float, 3 of 4"):
        init(paths=".*")
    for wrong, keys in {
        "set .*weights as well": {"activations": "int8"},
        r"paths: '\(' is not a regular": {"weights": "int8", "paths": "("},
    }.items():
        with pytest.raises(BadInput, match=wrong):
            applied(Hidden(), **keys)
    # What was traced for a quantized model is not used again for another.
    params, x = Hidden().init(key, x), x[:2]
    keys = {"weights": "int8", "activations": "int8", "paths": "seen/kernel|other_kernel"}
    quantized = applied(Hidden(), **keys).apply(params, x)
    dense = params["params"]["seen"]
    wanted = (x @ dense["kernel"] + dense["bias"]) @ np.ones((4, 4)) @ np.ones((4, 4))
    np.testing.assert_allclose(Hidden().apply(params, x), wanted, rtol=1e-5)
    assert np.abs(quantized - wanted).max() > 1e-3


@pytest.mark.slow
def test_tied_logits_can_be_named_and_lookups_cannot():
    class Tied(nn.Module):
        def setup(self):
            self.tokens = TiedEmbedding(10, 6)

        def __call__(self, tokens):
            return self.tokens.logits(self.tokens(tokens))

    tokens = np.arange(8).reshape(2, 4)
    keys = {"weights": "int8", "paths": ".*embedding"}
    after = applied(Tied(), "after", **keys)

    @jax.jit
    def compared(key):
        params = Tied().init(key, tokens)["params"]
        stored = after.init(key, tokens)
        return Tied().apply({"params": params}, tokens), stored, after.apply(stored, tokens)

    wanted, stored, outputs = compared(jax.random.key(0))
    assert stored["params"]["tokens"]["embedding"]["scale"].shape == (128,)  # one a row
    np.testing.assert_allclose(outputs, wanted, atol=2e-5)
    with pytest.raises(BadInput, match="would stay float, 1 of 1"):
        jax.eval_shape(applied(nn.Embed(4, 4), **keys).init, jax.random.key(0), tokens)


def test_an_extra_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(BadInput, match=r"qwix is missing: pip install -e '\.\[quantize\]'"):
        applied(Two(), weights="int8")


def test_a_backend_without_such_integers_is_an_error(monkeypatch):
    from common.compress import products

    def unable(*factors):
        raise NotImplementedError("no s8 here\nat all")

    monkeypatch.setattr(products.qwix, "dot_general", unable)
    products.check_backend.cache_clear()
    with pytest.raises(BadInput, match=r"\(cpu\) has no products of int8: no s8 here"):
        applied(Two(), weights="int8", activations="int8")


# -------------------------------------------------------------------------------------------- runs

MLP = {"model.hidden": "(16,)", "train.batch_size": 64, "model.dropout": None}
BOTH = {"compress.quantize.weights": "int8", "compress.quantize.activations": "int8"}


@pytest.mark.slow
def test_training_with_rounding_resumes_exactly():
    laws.resume_is_exact(load(f"{DIGITS}:mlp", **MLP, **BOTH), 2, jax.devices()[:1])


@pytest.mark.slow
def test_no_mesh_changes_training_with_rounding():
    made = load(f"{DIGITS}:mlp", **MLP, **BOTH)
    laws.mesh_changes_nothing(made, [(8, 1, 1), (2, 2, 2)], steps=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """() -> the workdir of a short run with an average; (keys) -> of one that rounds."""

    @functools.cache
    def run(keys: tuple = ()):
        folder = tmp_path_factory.mktemp("trained") / "run"
        keys = {f"compress.quantize.{key}": value for key, value in keys}
        keys |= {"train.duration": "60 steps", "train.average": 0.9, "optim.lr": 3e-3}
        train.run(load(f"{DIGITS}:mlp", **MLP, **keys), folder, show=False)
        return folder

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("aware", "keys"), [(False, SCHEMES[0]), (True, SCHEMES[3])])
def test_a_quantized_run_is_a_run(trained, aware, keys, tmp_path):
    trained, to = trained(tuple(keys.items()) if aware else ()), tmp_path / "quantized"
    told = quantize_run(trained, to, show=False, **keys)
    assert told["before"] == saved.evaluate_run(trained)["eval"]
    again = saved.evaluate_run(to)
    assert again == {"step": 60, "eval": told["after"]}
    assert workdir.load_result(to)["eval"] == told["after"]
    wide, narrow = told["before"]["test"], told["after"]["test"]
    assert wide["loss"] == pytest.approx(narrow["loss"], rel=1e-5 if aware else 1e-2)
    assert aware or wide["loss"] != narrow["loss"]

    loaded = predict.load(to)
    config = saved.read_config(to)
    test = saved.prepare(config).task.sources["test"]
    rows = test.read(np.arange(test.size, dtype=np.uint32))
    options = predict.options_of(loaded.predictor, {})
    outputs = loaded.predictor.apply(
        loaded.variables["params"], {}, {"image": rows["image"]}, options
    )
    hits = np.asarray(outputs["logits"]).argmax(axis=1)
    assert np.mean(hits == rows["label"]) == pytest.approx(narrow["accuracy"])

    kernels = lambda folder: {
        path: leaf.dtype.itemsize * np.prod(leaf.shape)
        for path, leaf in _saved(folder).items()
        if "kernel" in path and not path.endswith("scale")
    }
    smaller = 4 if keys["weights"] == "int8" else 8
    assert sum(kernels(trained).values()) == smaller * sum(kernels(to).values())
    with pytest.raises(BadInput, match="trains no further"):
        train.run(config, to, show=False)
    with pytest.raises(BadInput, match="already"):
        quantize_run(to, tmp_path / "again", show=False)
    with pytest.raises(BadInput, match="holds a run"):
        quantize_run(trained, to, show=False)


def _saved(folder) -> dict:
    """{path: shape and dtype} of the parameters in the last checkpoint of a run."""
    with saved.reading(folder) as checkpoints:
        step = checkpoints.steps()[-1]
        shapes = checkpoints.shapes(step)
    return {path: leaf for path, leaf in shapes.items() if path.startswith("params/")}


def test_another_scheme_than_that_of_training_is_said(caplog):
    aware, after = (quantize.scheme(weights="int4", how=how) for how in ("training", "after"))
    quantize.say_differing(aware, after)
    quantize.say_differing(quantize.scheme(), after)
    assert caplog.messages == []
    quantize.say_differing(aware, quantize.scheme(weights="int8", how="after"))
    assert "trained with the rounding of --weights 'int4' --paths '(.*/)?kernel'" in caplog.text


@pytest.mark.slow
def test_a_refused_scheme_leaves_nothing(trained, tmp_path, capsys):
    to = tmp_path / "quantized"
    words = "--workdir", str(trained()), "--to", str(to), "--paths", "nothing"
    assert exit_code("quantize", *words) == 2
    assert "matches no parameter" in capsys.readouterr().err
    assert not to.exists()
    begins = load(f"{DIGITS}:mlp", **{"compress.quantize.weights": "int8"})
    begins["compress"]["quantize"]["how"] = "after"
    with pytest.raises(BadInput, match="what scripts/quantize.py makes"):
        train.run(begins, to, show=False)
    assert not to.exists()
