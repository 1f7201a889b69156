"""The models stand alone, and are the networks that they say they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import tree
from common.errors import BadInput
from vision import cnn


def test_the_classic_network_has_its_parameters():
    shapes = jax.eval_shape(cnn.CNN(10).init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))[
        "params"
    ]
    assert {p: leaf.shape for p, leaf in tree.flatten(shapes).items() if "kernel" in p} == {
        "conv_0/kernel": (3, 3, 1, 32),
        "conv_1/kernel": (3, 3, 32, 64),
        "dense_0/kernel": (1600, 64),
        "head/kernel": (64, 10),
    }
    assert tree.count(shapes) == 121_930


def test_agreement_with_a_network_written_in_numpy():
    model = cnn.CNN(num_classes=5, widths=(3, 4), hidden=(6,))
    images = jax.random.normal(jax.random.key(0), (2, 14, 13, 2))
    params = jax.jit(model.init)(jax.random.key(1), images)["params"]
    params = jax.tree.map(lambda p: p + 0.1, params)
    x = np.asarray(images, np.float64)
    for i in range(2):
        kernel = np.asarray(params[f"conv_{i}"]["kernel"], np.float64)
        height, width = x.shape[1] - 2, x.shape[2] - 2
        y = np.zeros((2, height, width, kernel.shape[-1]))
        for dy in range(3):
            for dx in range(3):
                y += x[:, dy : dy + height, dx : dx + width] @ kernel[dy, dx]
        y = np.maximum(y + np.asarray(params[f"conv_{i}"]["bias"]), 0)
        height, width = height // 2, width // 2
        y = y[:, : 2 * height, : 2 * width].reshape(2, height, 2, width, 2, -1)
        x = y.max(axis=(2, 4))
    x = x.reshape(2, -1)
    x = np.maximum(x @ np.asarray(params["dense_0"]["kernel"]) + params["dense_0"]["bias"], 0)
    x = x @ np.asarray(params["head"]["kernel"]) + params["head"]["bias"]
    logits = jax.jit(model.apply)({"params": params}, images)
    np.testing.assert_allclose(logits, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", [cnn.CNN(3, padding="SAME"), cnn.MLP(3, hidden=(8, 8))])
def test_rows_do_not_interact_and_their_order_does_not_matter(model):
    images = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))
    params = jax.jit(model.init)(jax.random.key(1), images)
    apply = jax.jit(model.apply)
    logits = apply(params, images)
    np.testing.assert_allclose(apply(params, images[::-1]), logits[::-1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(apply(params, images[2:3]), logits[2:3], rtol=1e-5, atol=1e-5)


def test_dropout_acts_in_training_alone():
    model = cnn.MLP(3, dropout=0.5)
    images = jax.random.normal(jax.random.key(0), (6, 8, 8, 1))
    params = jax.jit(model.init)(jax.random.key(1), images)
    run = jax.jit(
        lambda train, key: model.apply(
            params, images, train=train, rngs={"dropout": jax.random.key(key)}
        ),
        static_argnums=0,
    )
    np.testing.assert_array_equal(run(False, 0), run(False, 1))
    assert not np.array_equal(run(True, 0), run(True, 1))


def test_activations_pass_the_constraint():
    seen = []

    def constrain(x, *names):
        seen.append((x.ndim, names))
        return x

    model = cnn.CNN(3, padding="SAME", constrain=constrain)
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    dense = [(2, (None, "mlp")), (2, ("batch", "mlp"))]  # the kernel, gathered, and the layer
    assert seen == [(4, ("batch", None, None, None))] * 2 + dense


@pytest.mark.parametrize(
    ("fields", "least"),
    [({}, 10), ({"padding": "SAME"}, 4), ({"widths": (4,)}, 4), ({"kernel": 5}, 16)],
)
def test_images_that_are_too_small_are_refused_with_the_least_size(fields, least):
    model = cnn.CNN(num_classes=2, **fields)
    init = lambda side: jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 1)))
    assert init(least)
    with pytest.raises(BadInput, match=f"need {least} x {least}; give fewer widths"):
        init(least - 1)
