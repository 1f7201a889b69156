"""Blocks: which layers have biases, and what a subclass may vary from one to the next."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, load

from common import config as configs
from common import tree
from common.errors import BadInput
from common.nn.transformer import SequenceTransformer
from common.sections import parameters
from lm import bert, gpt

SMALL = {"vocab_size": 200, "width": 32, "layers": 2, "heads": 4, "hidden": 48, "max_length": 32}
QWEN = SMALL | gpt.LLAMA | {"head_width": 6, "rope_scaling": ("yarn", 4.0, 16)}
NORMS = ("attention_norm", "mlp_norm", "final_norm")
TOKENS = jax.random.randint(jax.random.key(7), (3, 12), 5, 200)


@pytest.mark.parametrize(
    ("bias", "layers"),
    [
        (True, {"query", "key", "value", "out", "up", "down", *NORMS}),
        (False, set()),
        ("qkv", {"query", "key", "value"}),
        ("attention", {"query", "key", "value", "out"}),
        ("mlp", {"up", "down"}),
    ],
)
def test_biases_are_where_they_are_wanted(bias, layers):
    def biased(model):
        shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
        paths = [path.split("/") for path in tree.flatten(shapes)]
        return {path[-2] for path in paths if path[-1] == "bias"}, "head_bias" in shapes

    assert biased(gpt.GPT(**SMALL | {"bias": bias})) == (layers, False)
    found, head = biased(bert.Bert(**SMALL | {"bias": bias, "embedding_width": 20}))
    heads = {"head_dense", "head_norm", "embedding_norm", "embedding_projection"}
    expected = layers - {"final_norm"}
    assert head == (bias is True)
    assert found == (expected | heads if bias is True else expected)


def test_a_config_sets_the_biases_and_the_wavelengths():
    llama = f"{ROOT}/configs/lm/gpt_sotu.py:llama"
    bias = lambda **change: load(llama, **change)["model"]["bias"]
    assert bias() is False
    for text, value in (("True", True), ("true", True), ("0", False), ("qkv", "qkv")):
        assert bias(**{"model.bias": text}) == value
        assert type(bias(**{"model.bias": text})) is type(value)
    assert (
        load(f"{ROOT}/configs/lm/bert_sotu.py", **{"model.bias": "mlp"})["model"]["bias"] == "mlp"
    )
    with pytest.raises(BadInput, match="model.bias: 'kqv' is not bool or one of 'qkv'"):
        bias(**{"model.bias": "kqv"})
    with pytest.raises(BadInput, match="model.bias: cannot be None"):
        bias(**{"model.bias": None})
    nested = ("longrope", 64, 1.0, (1.0, 2.0), (3.0, 4.5))
    changed = load(llama, **{"model.rope_scaling": nested})["model"]
    assert changed["rope_scaling"] == nested
    assert configs.from_json(configs.to_json(changed)) == changed


def test_a_sequence_model_has_no_more_than_25_keys():
    assert len(parameters(SequenceTransformer)) <= 25


class Alternating(gpt.GPT, kw_only=True):
    """Every second block sees all, with longer wavelengths (Gemma 3); the others a window."""

    def attention_options(self, index):
        local = {} if index % 2 else {"window": 2, "theta": 10.0, "rope_scaling": ()}
        return super().attention_options(index) | local


def test_a_subclass_varies_its_blocks():
    fields = QWEN | {"layers": 4}
    bound = Alternating(**fields).bind({"params": {}})
    options = [getattr(bound, f"block_{i}").attention.keywords for i in range(4)]
    assert [one["window"] for one in options] == [2, None, 2, None]
    assert [one["theta"] for one in options] == [10.0, 10000.0, 10.0, 10000.0]
    with pytest.raises(BadInput, match="model.scan: .* the blocks of this model differ"):
        jax.eval_shape(Alternating(**fields, scan=True).init, jax.random.key(0), TOKENS)
    with pytest.raises(BadInput, match="'rotary' pairs columns, but their number is odd"):
        jax.eval_shape(Alternating(**fields | {"head_width": 5}).init, jax.random.key(0), TOKENS)


class Scaled(gpt.GPT, kw_only=True):
    def block_options(self, index):
        return {"layer_scale": 0.5}


@pytest.mark.slow
def test_a_scale_multiplies_what_its_branch_adds():
    fields = SMALL | {"layers": 1}
    params = jax.jit(Scaled(**fields).init)(jax.random.key(0), TOKENS)["params"]
    block = params["block_0"]
    for branch, last in (("attention", "out"), ("mlp", "down")):
        assert np.array_equal(block[f"{branch}_scale"], np.full(32, 0.5))
        scale = block[f"{branch}_scale"] = jnp.linspace(-1, 2, 32)
        block[branch][last]["bias"] = jnp.linspace(0, 1, 32)
        scaled = {last: {k: v * scale for k, v in block[branch][last].items()}}
        block |= {f"scaled_{branch}": block[branch] | scaled}
    plain = block | {branch: block[f"scaled_{branch}"] for branch in ("attention", "mlp")}
    found = jax.jit(Scaled(**fields).apply)({"params": params}, TOKENS)
    expected = jax.jit(gpt.GPT(**fields).apply)({"params": params | {"block_0": plain}}, TOKENS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
