"""A model without its zero heads and hidden units says what it said with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIGITS, exit_code, load, result

from common import tree
from common.compress import shrink
from common.errors import BadInput
from common.runs import log
from common.training import saved, train
from common.training.program import prepare
from vision import vit

FIELDS = {
    "image_size": 4,
    "patch_size": 2,
    "width": 8,
    "layers": 2,
    "heads": 4,
    "kv_heads": None,
    "head_width": None,
    "hidden": 6,
}


def with_zeros(params):
    """Heads 1 and 2 of the first block and 0 and 2 of the second are zero, and hidden units."""
    flat = {p: np.array(x) for p, x in tree.flatten(params).items()}
    for block, heads, units in ((0, (1, 2), (5,)), (1, (0, 2), (0, 3))):
        for head in heads:
            flat[f"block_{block}/attention/out/kernel"][2 * head : 2 * head + 2] = 0
        flat[f"block_{block}/mlp/down/kernel"][list(units)] = 0
    return tree.unflatten(flat)


@pytest.mark.slow
def test_outputs_are_those_with_the_zeros(compiled_in_haste):
    build = lambda fields: vit.ViT(num_classes=3, **fields)
    images = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    noise = lambda p: p + 0.1 * jnp.sin(jnp.arange(p.size, dtype=jnp.float32)).reshape(p.shape)
    params = jax.jit(build(FIELDS).init)(jax.random.key(0), images)["params"]
    params = with_zeros(jax.tree.map(noise, params))
    made = shrink.shrunk(FIELDS, params)
    assert made.cut == {"heads": 2, "hidden": 1}
    smaller = {k: made.fields[k] for k in ("heads", "head_width", "hidden")}
    assert smaller == {"heads": 2, "head_width": 2, "hidden": 5}
    before, after = (
        jax.jit(build(fields).apply)({"params": values}, images)
        for fields, values in ((FIELDS, params), (made.fields, made.params))
    )
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)
    with pytest.raises(BadInput, match="nothing to cut"):
        shrink.shrunk(made.fields, jax.tree.map(np.ones_like, made.params))


def test_grouped_heads_are_cut_with_their_keys():
    model = {"heads": 4, "kv_heads": 2, "head_width": 3, "width": 5}
    shapes = {"query": (5, 12), "key": (5, 6), "value": (5, 6), "out": (12, 5)}
    rng = np.random.default_rng(0)
    attention = {k: {"kernel": rng.normal(size=s)} for k, s in shapes.items()}
    attention["out"]["kernel"][:6] = 0
    made = shrink.shrunk(model, {"block_0": {"attention": attention}})
    assert made.fields == model | {"heads": 2, "kv_heads": 1}
    after = made.params["block_0"]["attention"]
    np.testing.assert_array_equal(after["query"]["kernel"], attention["query"]["kernel"][:, 6:])
    np.testing.assert_array_equal(after["key"]["kernel"], attention["key"]["kernel"][:, 3:])
    np.testing.assert_array_equal(after["out"]["kernel"], attention["out"]["kernel"][6:])


@pytest.mark.slow
def test_a_pruned_run_becomes_a_smaller_run(tmp_path, compiled_in_haste):
    keys = {f"model.{k}": v for k, v in FIELDS.items() if v is not None} | {
        "model.module": "vision.vit:ViT",
        "model.image_size": 8,
        "model.layers": 1,
        "train.duration": "6 steps",
        "train.log_every": "1 steps",
        "train.average": 0.9,
        "compress.prune.kind": "magnitude",
        "compress.prune.sparsity": 0.5,
        "compress.prune.structure": "heads",
    }
    config = load(f"{DIGITS}:cnn", **keys)
    before, after = tmp_path / "before", tmp_path / "after"
    trained = train.run(config, before, show=False)
    logged = [line["train/sparsity"] for line in log.read_lines(before) if "train/loss" in line]
    assert logged == sorted(logged)
    assert trained["sparsity"] == result(before)["sparsity"] == logged[-1] == 0.5
    with saved.opened(config, before) as (_, state, _):
        masks = tree.flatten(state.opt_state["masks"])
        for params in (state.params, state.average["params"]):
            for path, mask in masks.items():
                assert np.all(np.asarray(tree.flatten(params)[path])[~np.asarray(mask)] == 0)
    assert exit_code("shrink", "--workdir", str(before), "--to", str(after)) == 0
    made = result(after)
    assert made["parameters"] < trained["parameters"]
    assert made["eval"]["test"]["loss"] == pytest.approx(trained["eval"]["test"]["loss"], rel=1e-5)
    assert saved.evaluate_run(after)["eval"]["test"] == made["eval"]["test"]
    keys |= {"init.path": str(after), "init.adopt": True}
    keys |= {"compress.prune.kind": "", "train.average": None}
    smaller = load(f"{DIGITS}:cnn", **keys)
    assert prepare(smaller, jax.devices()[:1]).config["model"]["heads"] == 2
    assert exit_code("shrink", "--workdir", str(after), "--to", str(tmp_path / "more")) == 2
