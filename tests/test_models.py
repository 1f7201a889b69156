"""Laws of every model: dtypes, recomputation in the backward pass, and meshes of explicit axes as
`jax.make_mesh` makes them, in anybody's script."""

import re
from functools import cache, partial

import jax
import jax.extend
import jax.numpy as jnp
import models
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm import generate
from lm.decoding import beam, rules, speculative

# Two that stand for the ways in which models are written are quick. Variants of a class, what takes
# long to trace, and what most of them compute are a measure.
QUICK = {"gpt", "cnn"}
VARIANTS = {"electra", "mean_classifier", "wide_resnet", "deit", "seq2seq"}
VARIANTS |= {"rnn_classifier", "window"}
VARIANTS |= {"clip", "siglip"}
LARGE = {"efficientnet_lite", "mobilenet", "inception"}
WAYS = {"gpt": {"scan": True}, "t5": {"scan": True}}
WIDE = {"inception"}  # 96 batch norms over four rows: in float32, gradients lose five digits
AXES = ("data", "fsdp")
MEASURE = pytest.mark.measure("models"), pytest.mark.slow  # compiled as users' programs are


def over(quick: set[str], slow: set[str]) -> list:
    mark = lambda name: () if name in quick else pytest.mark.slow if name in slow else MEASURE
    return [pytest.param(name, marks=mark(name)) for name in models.MODELS]


TRACED = over(QUICK, models.MODELS.keys() - VARIANTS - LARGE)
COMPUTED, PARTED = over(set(), {"cnn"}), over(set(), {"gpt", "cnn"})


@pytest.fixture(autouse=True)
def in_haste(request):
    """A measure compiles as users' programs are compiled: in haste, some gradients of a maximum
    over rows that are split are 0 / 0 on a CPU, whatever the kind of axes."""
    if request.node.get_closest_marker("measure") is None:
        request.getfixturevalue("compiled_in_haste")


@cache
def made(name: str, wide: bool = False):
    """(model, its variables, its inputs); `wide` ones compute in float64."""
    model, inputs = models.MODELS[name]
    variables = models.variables(model, inputs)
    if wide:
        model, variables = model.clone(dtype="float64"), jax.tree.map(np.float64, variables)
    return model.clone(**WAYS.get(name, {})), variables, inputs


@cache
def computed(name: str) -> models.Step:
    """The step on one device, without recomputation."""
    model, variables, inputs = made(name, name in WIDE)
    return jax.device_get(jax.jit(partial(models.step, model))(variables, inputs))


def assert_close(found, expected, share: float = 1e-5):
    """Each array to a share of its norm, and of the largest, where its own is but rounding."""
    largest = max(np.linalg.norm(leaf) for leaf in jax.tree.leaves(expected))
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        norm = np.linalg.norm(other)
        assert np.linalg.norm(np.asarray(one) - other) <= share * (norm + 3e-2 * largest)


def explicit() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 2), AXES, devices=jax.devices()[:4])


def placed(mesh, values, *axes):
    return jax.device_put(values, NamedSharding(mesh, P(*axes)))


def by_batch(mesh, values):
    return placed(mesh, values, AXES)


@cache
def traced(name: str, **way) -> jax.extend.core.ClosedJaxpr:
    """The step of a model in which these fields differ, on a mesh of explicit axes."""
    model, inputs = models.MODELS[name]
    model, mesh = model.clone(**WAYS.get(name, {}), **way), explicit()

    def place(values, *axes):
        sharding = NamedSharding(mesh, P(*axes))
        struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return jax.tree.map(struct, values)

    variables = place(shapes(name))
    with jax.set_mesh(mesh):
        return jax.make_jaxpr(partial(models.step, model))(variables, place(inputs, AXES))


@cache
def shapes(name: str, **way) -> dict:
    """The variables of a model, in the abstract."""
    model, inputs = models.MODELS[name]
    return jax.eval_shape(model.clone(**way).init, jax.random.key(0), *inputs)


def products(text: str) -> list[str]:
    """The lines of a jaxpr that multiply matrices or convolve."""
    return [line for line in text.splitlines() if re.search("= (conv|dot)_general", line)]


# ------------------------------------------------------------------------------------------- dtype


@pytest.mark.parametrize("name", TRACED)
def test_dtype_is_of_the_computation_alone(name):
    assert shapes(name, dtype="bfloat16", remat="dots") == shapes(name)
    assert {x.dtype for x in jax.tree.leaves(shapes(name))} == {jnp.dtype("float32")}
    step = traced(name, dtype="bfloat16", remat="dots")
    assert {x.dtype for x in step.out_avals} == {jnp.dtype("float32")}
    lines = products(str(step))
    assert sum("bf16[" in line for line in lines) >= len(lines) / 3
    assert "bf16[" not in str(traced(name))


@pytest.mark.parametrize("name", COMPUTED)
def test_bfloat16_is_near_and_float32_the_same(name):
    model, variables, inputs = made(name)
    values = lambda **way: jax.jit(model.clone(**way).apply)(variables, *inputs)
    default, near = values(), values(dtype="bfloat16")
    for one, other in zip(jax.tree.leaves(near), jax.tree.leaves(default), strict=True):
        assert 0 < np.linalg.norm(one - other) < 0.1 * np.linalg.norm(other)
    assert_close(values(dtype="float32"), default, 0)


# ------------------------------------------------------------------------------------------- remat


@pytest.mark.parametrize("name", TRACED)
def test_recomputation_is_of_blocks(name):
    none, block = str(traced(name)), str(traced(name, remat="block"))
    dots = str(traced(name, dtype="bfloat16", remat="dots"))
    assert ["= remat" in text for text in (none, dots, block)] == [False, True, True]
    # Attention maps are products with batch dimensions, which "dots" recomputes.
    assert len(products(block)) > len(products(dots)) >= len(products(none))


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("remat", ["block", pytest.param("dots", marks=MEASURE)])
def test_recomputation_changes_no_number(name, remat):
    model, variables, inputs = made(name, name in WIDE)
    model = model.clone(remat=remat)
    with jax.enable_x64(name in WIDE):
        found = jax.jit(partial(models.step, model))(variables, inputs)
        assert_close(found, computed(name), 1e-10 if name in WIDE else 1e-5)


# ------------------------------------------------------------------------------------------- axes


@pytest.mark.parametrize("name", TRACED)
def test_explicit_axes_keep_rows_apart_and_gradients_together(name):
    _, *outputs = traced(name).out_avals
    count = len(jax.tree.leaves(shapes(name)["params"]))
    assert all(x.shape[0] == models.ROWS and x.sharding.spec[0] == AXES for x in outputs[:1])
    assert all(not any(x.sharding.spec) for x in outputs[-count:])


@pytest.mark.parametrize("name", PARTED)
def test_explicit_axes_change_no_number(name):
    model, variables, inputs = made(name, name in WIDE)
    mesh = explicit()
    with jax.enable_x64(name in WIDE):
        with jax.set_mesh(mesh):
            arguments = placed(mesh, variables), by_batch(mesh, inputs)
            found = jax.jit(partial(models.step, model))(*arguments)
        assert_close(found, computed(name), 1e-10 if name in WIDE else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["drawn", "beams", "drafted"])
def test_generation_with_explicit_axes_writes_the_same(way):
    """A draft of its own reads several positions at once, which "dynamic" wavelengths forbid."""
    model, variables, _ = made("gpt" if way == "drafted" else "llama")
    prompts, lengths = models.TOKENS[:, :4], np.array([3, 4, 2, 1], np.int32)
    key, ruled = jax.random.key(3), {"forbidden": [[3], [4, 5]], "min_tokens": 2, "end": 7}

    def write(params, *rows):
        if way == "drawn":
            cuts = {"temperature": 0.7, "top_k": 8, "top_p": 0.9}
            return generate.generate(model, params, *rows, key, steps=4, **cuts)
        if way == "beams":
            made_rules = rules.make(repetition_penalty=1.3, **ruled)
            sizes = {"steps": 4, "beams": 3, "best": 2}
            return beam.generate(model, params, *rows, **sizes, end=7, rules=made_rules)
        pair = model, params, model, params
        return speculative.generate(*pair, *rows, key, steps=4, ahead=2, temperature=0.7)

    expected = write(variables["params"], prompts, lengths)
    mesh = explicit()
    with jax.set_mesh(mesh):
        params, rows = placed(mesh, variables["params"]), by_batch(mesh, (prompts, lengths))
        found = write(params, *rows)
    assert np.array_equal(found.tokens, expected.tokens)
