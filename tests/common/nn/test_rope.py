"""Stretched rotary wavelengths against `transformers`, and the laws of rotary positions."""

import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.errors import BadInput
from common.nn import rope

ORIGINAL = 16
SHORT, LONG = (1.0, 1.1, 1.3, 1.7, 2.5), (1.0, 2.0, 5.0, 9.0, 12.0)
TIMES = {"original_max_position_embeddings": ORIGINAL}
YARN = TIMES | {"rope_type": "yarn", "factor": 4.0}
LONGROPE = TIMES | {"rope_type": "longrope", "short_factor": [*SHORT], "long_factor": [*LONG]}
LLAMA3 = {"low_freq_factor": 0.5, "high_freq_factor": 2.0}
# Name: (their parameters, ours). Heads have 10 columns.
FORMS = {
    "default": ({"rope_type": "default"}, ()),
    "linear": ({"rope_type": "linear", "factor": 3.0}, ("linear", 3.0)),
    "some columns": (
        {"rope_type": "linear", "factor": 3.0, "partial_rotary_factor": 0.6},
        ("linear", 3.0),
    ),
    "dynamic": ({"rope_type": "dynamic", "factor": 3.0}, ("dynamic", 3.0, ORIGINAL)),
    "yarn": (YARN, ("yarn", 4.0, ORIGINAL)),
    "yarn, all": (
        YARN | {"beta_fast": 2.0, "beta_slow": 0.3, "attention_factor": 1.3, "truncate": False},
        ("yarn", 4.0, ORIGINAL, 2.0, 0.3, 1.3, False),
    ),
    "yarn, mscale": (
        YARN | {"mscale": 0.7, "mscale_all_dim": 1.9, "beta_fast": 2.0},
        ("yarn", 4.0, ORIGINAL, 2.0, 1.0, rope.yarn_attention_factor(4.0, 0.7, 1.9)),
    ),
    "yarn, no ramp": (
        YARN | {"beta_fast": 1.0, "truncate": False},
        ("yarn", 4.0, ORIGINAL, 1.0, 1.0, None, False),
    ),
    "llama3": (
        TIMES | LLAMA3 | {"rope_type": "llama3", "factor": 8.0},
        ("llama3", 8.0, 0.5, 2.0, ORIGINAL),
    ),
    "longrope": (
        LONGROPE | {"factor": 4.0},
        ("longrope", ORIGINAL, rope.longrope_attention_factor(4.0, ORIGINAL), SHORT, LONG),
    ),
    "longrope, told": (
        LONGROPE | {"factor": 4.0, "attention_factor": 0.8},
        ("longrope", ORIGINAL, 0.8, SHORT, LONG),
    ),
}


def waves(positions, scaling, columns=None, dtype=np.float32):
    """(cosines, sines) of the angles by which `rotate` turns."""
    x = np.zeros((*positions.shape, 1, 10), dtype)
    half = (columns or 10) // 2
    x[..., :half] = 1
    turn = jax.jit(lambda x, at: rope.rotate(x, at, 50.0, scaling, columns)[:, :, 0])
    turned = np.asarray(turn(x, positions))
    return turned[..., :half], turned[..., half : 2 * half]


@pytest.fixture
def rotary(monkeypatch):
    """(parameters, L) -> their cosines and sines, [1, L, 10]. They compute in float32 whatever they
    are given; here they find float64 under that name."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers import modeling_rope_utils
    from transformers.models.llama import modeling_llama

    wide = vars(torch) | {"float32": torch.float64, "float": torch.float64}
    for module in (modeling_llama, modeling_rope_utils):
        monkeypatch.setattr(module, "torch", types.SimpleNamespace(**wide))
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)

    def waves(parameters, length):
        sizes = {"head_dim": 10, "max_position_embeddings": ORIGINAL}
        parameters = parameters | {"rope_theta": 50.0}
        config = transformers.LlamaConfig(**sizes, rope_parameters=parameters)
        embedding = modeling_llama.LlamaRotaryEmbedding(config)
        return embedding(torch.zeros(1).double(), torch.arange(length)[None])

    torch.set_default_dtype(torch.float64)
    yield lambda *arguments: [x.numpy() for x in waves(*arguments)]
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", FORMS)
def test_wavelengths_are_those_of_transformers(name, rotary):
    """Also beyond the original length, and in a second segment, which has a length of its own."""
    parameters, scaling = FORMS[name]

    columns = int(10 * parameters.get("partial_rotary_factor", 1))
    places = np.concatenate([np.arange(40), np.arange(7)])[None]
    with jax.enable_x64(True):
        found = waves(places, scaling, columns, np.float64)
    rope.check("scaling", scaling, columns)
    for ours, *theirs in zip(found, rotary(parameters, 40), rotary(parameters, 7), strict=True):
        expected = np.concatenate(theirs, axis=1)[..., : columns // 2]
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, expected, atol=1e-12, rtol=0)


def test_rotary_products_know_distances_alone():
    x = jax.random.normal(jax.random.key(0), (1, 6, 2, 8))
    at = jnp.arange(6)[None]
    rotated = lambda start: rope.rotate(x, at + start, 10000.0, ("yarn", 4.0, 8))
    products = jax.jit(lambda start: jnp.einsum("blhk,bshk->bhls", *[rotated(start)] * 2))
    np.testing.assert_allclose(products(0), products(11), atol=1e-4)
    assert np.array_equal(rope.rotate(x, at, 10000.0)[:, 0], x[:, 0])


def test_columns_that_are_not_rotated_stay():
    x = jax.random.normal(jax.random.key(0), (1, 6, 2, 10))
    at = jnp.arange(6)[None]
    rotate = jax.jit(rope.rotate, static_argnames="columns")
    found = rotate(x, at, 50.0, columns=4)
    assert np.array_equal(found[..., 4:], x[..., 4:])
    assert np.array_equal(found[..., :4], rotate(x[..., :4], at, 50.0))


def test_a_segment_has_a_length_of_its_own():
    places = jnp.array([[0, 1, 2, 0, 1, 0, 0], [0, 0, 0, 1, 2, 3, 4], [5, 6, 7, 8, 9, 10, 11]])
    assert rope.segment_lengths(places).tolist() == [
        [3, 3, 3, 2, 2, 1, 1],
        [1, 1, 5, 5, 5, 5, 5],
        [12] * 7,
    ]


def test_sinusoids_are_those_of_the_paper():
    found = rope.sinusoids(jnp.array([0, 3]), 6)
    assert np.array_equal(found[0], [0, 1, 0, 1, 0, 1])
    angles = [3 / 10000 ** (2 * i / 6) for i in range(3)]
    expected = np.stack([np.sin(angles), np.cos(angles)], axis=1).reshape(-1)
    np.testing.assert_allclose(found[1], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ("linear", "'linear' is not a tuple"),
        (("yarm", 4.0), "unknown 'yarm'; did you mean 'yarn'"),
        ((4.0,), "unknown 4.0"),
        (("linear",), r"has 0 numbers; expected \('linear', factor\)"),
        (("linear", 2.0, 16), r"has 2 numbers; expected \('linear', factor\)"),
        (("linear", 0.0), "factor of 'linear': 0.0 is not a positive number"),
        (("linear", "2"), "factor of 'linear': '2' is not a positive number"),
        (("linear", True), "factor of 'linear': True is not a positive number"),
        (("linear", float("nan")), "factor of 'linear': nan is not a positive number"),
        (("dynamic", 2.0, 16.5), "original_length of 'dynamic': 16.5 is not a positive integer"),
        (("yarn", None, 16), "factor of 'yarn': None is not a positive number"),
        (("yarn", 4.0, 16, 32.0, 1.0, None, 1), "truncate of 'yarn': 1 is not True or False"),
        (("yarn", 4.0, 16, 1.0, 2.0), "beta_fast of 'yarn', 1.0, is below beta_slow, 2.0"),
        (("llama3", 8.0, 4.0, 4.0, 16), "low of 'llama3', 4.0, is not below high, 4.0"),
        (("longrope", 16, 1.0, 2.0, LONG), "short_factors of 'longrope': 2.0 is not a tuple"),
        (("longrope", 16, 1.0, SHORT, LONG[1:]), "long_factors of 'longrope': 4 numbers; heads"),
    ],
)
def test_a_scaling_that_cannot_be_is_one_line(scaling, message):
    with pytest.raises(BadInput, match=message) as error:
        rope.check("config.model.rope_scaling", scaling, 10)
    assert str(error.value).startswith("config.model.rope_scaling: ")
    assert "\n" not in str(error.value)
