"""ConvNeXt: published sizes, FLOPs, names of activations, and what it refuses; agreement with
`transformers` is in tests/common/weights/test_parity.py."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import tree
from common.errors import BadInput
from common.nn import flops
from common.nn.layers import identity
from vision.convnext import SIZES, Block, ConvNeXt

B, K = 3, 5
SMALL = ConvNeXt(K, stages=(2, 1), widths=(8, 12), dtype="bfloat16")
IMAGES = np.random.default_rng(0).normal(size=(B, 37, 30, 3)).astype(np.float32)


def shapes(model, images=IMAGES):
    return jax.eval_shape(model.init, jax.random.key(0), images)


@pytest.mark.parametrize(("size", "count"), [("tiny", 28_589_128), ("xlarge", 350_196_968)])
def test_the_sizes_have_their_parameters(size, count):
    """28.6M and 350M in the paper's table 1; of equal blocks one is counted."""
    one = ConvNeXt(1000, **SIZES[size] | {"stages": (1, 1, 1, 1)})
    params = tree.flatten(shapes(one, np.zeros((1, 32, 32, 3)))["params"])
    block = lambda i: tree.count({p: x for p, x in params.items() if f"stage_{i}_" in p})
    more = sum((n - 1) * block(i) for i, n in enumerate(SIZES[size]["stages"]))
    assert tree.count(params) + more == count


def test_the_sizes_have_their_flops():
    """Billions of multiply-adds, to the digits of the paper's table 1."""
    published = {"tiny": 4.5, "small": 8.7, "base": 15.4, "large": 34.4, "xlarge": 60.9}
    flops_of = lambda size: ConvNeXt(1000, **SIZES[size]).flops((224, 224, 3))
    assert {size: round(flops_of(size) / 2e9, 1) for size in SIZES} == published


def test_flops_and_the_partition_are_of_this_model():
    variables = shapes(SMALL)
    traced = jax.make_jaxpr(lambda v: SMALL.apply(v, IMAGES))(variables)
    assert SMALL.flops(IMAGES.shape[1:]) * B == flops.traced(traced.jaxpr)
    leaves = tree.flatten(variables["params"])
    tree.check_table("", SMALL.PARTITION, leaves, [p for p, x in leaves.items() if x.ndim > 1])
    for path, x in leaves.items():
        axes = tree.lookup(SMALL.PARTITION, path)
        assert axes is None or len(axes) == x.ndim
    assert leaves["stage_0_block_1/depthwise/kernel"].shape == (7, 7, 1, 8)


def test_intermediates_and_precision():
    run = lambda v: SMALL.apply(v, IMAGES, mutable=["intermediates"])
    logits, found = jax.eval_shape(run, shapes(SMALL))
    assert (logits.shape, logits.dtype) == ((B, K), jnp.float32)
    assert {name: (x.shape[1:], x.dtype) for name, (x,) in found["intermediates"].items()} == {
        "stem_output": ((9, 7, 8), jnp.bfloat16),  # rows that fill no patch are dropped
        "stage_0": ((9, 7, 8), jnp.bfloat16),
        "stage_1": ((4, 3, 12), jnp.bfloat16),
        "features": ((12,), jnp.float32),
    }
    assert {x.dtype for x in jax.tree.leaves(shapes(SMALL))} == {jnp.dtype("float32")}


def test_a_branch_is_dropped_in_training_only():
    """Of every row at a rate of one, of none at zero."""
    x = np.random.default_rng(1).normal(size=(2, 3, 3, 4)).astype(np.float32)
    norm = lambda name: nn.LayerNorm(name=name)
    block = lambda rate: Block("relu", 1.0, rate, None, identity, norm)
    shapes_ = jax.eval_shape(block(None).init, jax.random.key(0), x)
    variables = jax.tree.map(lambda s: np.full(s.shape, 0.1, np.float32), shapes_)

    @jax.jit
    def run(rate):
        outputs = lambda rate, train: block(rate).apply(
            variables, x, train, rngs={"dropout": jax.random.key(1)}
        )
        return outputs(rate, True), outputs(rate, False)

    (skipped, whole), (kept, again) = run(1.0), run(0.0)
    assert not np.allclose(whole, x)
    np.testing.assert_array_equal(skipped, x)
    np.testing.assert_allclose(kept, whole, rtol=1e-6)
    np.testing.assert_array_equal(again, whole)


def test_the_rate_grows_with_depth():
    rates = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, Block):
            rates.append(context.module.drop_path)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes(SMALL.clone(drop_path=0.4))
    np.testing.assert_allclose(rates, [0.0, 0.2, 0.4])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stages": (1,)}, "a positive number of blocks and a width for each stage"),
        ({"widths": (8, 0)}, "a positive number of blocks and a width for each stage"),
        ({"patch_size": 0}, "patch_size: 0 is not positive"),
        ({"patch_size": 16}, "37 x 30 pixels are too small .* which need 32"),
    ],
)
def test_fields_that_make_no_model(fields, message):
    with pytest.raises(BadInput, match=message):
        shapes(SMALL.clone(**fields))
