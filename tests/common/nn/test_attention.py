"""The plain attention against jax's; kernels that are told what may be seen against the plain one,
which is shown it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.devices import mesh
from common.errors import BadInput
from common.nn import attention, flops, kernels, rope

SEGMENTS = jnp.asarray(np.repeat([1, 2, 0], [60, 50, 18]), jnp.int32)[None].repeat(2, axis=0)


def module(**fields) -> attention.Attention:
    return attention.Attention(heads=4, kv_heads=2, bias=False, **fields)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("causal", "window", "segments"),
    [(True, 30, SEGMENTS), (True, None, None), (False, None, SEGMENTS), (False, 20, None)],
)
def test_splash_is_the_plain_map(causal, window, segments):
    """Outputs and gradients, with fewer key heads than heads, on one device and divided over
    four."""
    x = jax.random.normal(jax.random.key(0), (2, 128, 64))
    positions = jnp.broadcast_to(jnp.arange(128), (2, 128))
    plain = module(causal=causal, window=window)
    params = jax.jit(plain.init, static_argnums=4)(jax.random.key(1), x, positions, segments, False)

    def value(model):
        def loss(params, x):
            y, _ = model.apply(params, x, positions, segments, False)
            return (y**2).sum(), y

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, x)

    expected = value(plain)
    layout = mesh.make_layout(data=2, fsdp=1, tensor=2, devices=jax.devices()[:4])
    for constrain in (attention.identity, mesh.constrainer(layout)):
        found = value(
            module(causal=causal, window=window, implementation="splash", constrain=constrain)
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, expected
        )


@pytest.mark.parametrize(
    ("causal", "window", "segments"),
    [
        (True, None, None),
        (False, None, None),
        (True, 30, None),
        (False, 20, SEGMENTS),
        (True, 20, SEGMENTS),
        (False, 30, None),
    ],
)
def test_the_plain_one_is_jaxs(causal, window, segments):
    sizes = (2, 128, 4, 16), (2, 128, 2, 16), (2, 128, 2, 16)
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(*pair) for pair in zip(keys, sizes, strict=True)]
    same = None if segments is None else segments[:, None, :, None] == segments[:, None, None]
    expected = jax.nn.dot_product_attention(
        *arrays,
        mask=same,
        is_causal=causal,
        local_window_size=window and (window - 1, 0 if causal else window - 1),
    )
    found = attention.plain(*arrays, attention.visibility(128, causal, window, segments))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    mask, told = attention.for_cudnn(128, causal, window, segments)
    found = kernels.cudnn(*arrays, mask, **told, by="xla")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_some_columns_of_a_head_are_rotated():
    x = jax.random.normal(jax.random.key(0), (1, 6, 20))
    positions = jnp.arange(6)[None]
    model = module(head_width=10, theta=50.0, rotary_width=4)

    @jax.jit
    def maps(key):
        params = model.init(key, x, positions, None, False)["params"]
        call = model.apply({"params": params}, x, positions, None, False, mutable=["intermediates"])
        query, key = ((x @ params[n]["kernel"]).reshape(1, 6, -1, 10) for n in ("query", "key"))
        turned = [
            rope.rotate(y, positions, 50.0, columns=4) for y in (query, key.repeat(2, axis=2))
        ]
        expected = attention.attention_map(*(y.swapaxes(1, 2) for y in turned), None)
        return call[1]["intermediates"]["attention"][0], expected

    np.testing.assert_allclose(*maps(jax.random.key(1)), rtol=1e-5)


def test_splash_counts_as_the_plain_one():
    """FLOPs as traced: about those of the plain map (it computes the map again behind), and on a
    mesh those of all devices."""
    x, positions = jnp.zeros((4, 512, 64)), jnp.broadcast_to(jnp.arange(512), (4, 512))
    layout = mesh.make_layout(data=2, fsdp=1, tensor=2, devices=jax.devices()[:4])

    def counted(**fields):
        model = module(**fields)
        params = jax.eval_shape(model.init, jax.random.key(0), x, positions, None, False)
        apply = lambda params: model.apply(params, x, positions, None, False)[0]
        return flops.traced(jax.make_jaxpr(apply)(params).jaxpr)

    alone = counted(implementation="splash")
    assert alone == pytest.approx(counted(), rel=0.05)
    assert counted(implementation="splash", constrain=mesh.constrainer(layout)) == alone


def test_splash_needs_whole_tiles():
    x = jnp.zeros((1, 100, 64))
    model = module(implementation="splash")
    positions = jnp.arange(100)[None]
    inputs = x, positions, None, False
    params = jax.eval_shape(lambda key: model.init(key, *inputs), jax.random.key(0))
    with pytest.raises(BadInput, match="a multiple of 128 positions, not 100"):
        jax.eval_shape(lambda params: model.apply(params, *inputs), params)
