"""The whitening convolution whitens; training leaves it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIGITS, load

from common.laws import measure
from common.nn import flops
from common.training import program
from vision import airbench


def smooth_images(count: int = 200) -> np.ndarray:
    """f32[count, 12, 11, 2] whose neighbouring pixels are alike."""
    noise = np.random.default_rng(0).normal(size=(count, 13, 12, 2)).astype(np.float32)
    return noise[:, 1:, 1:] + noise[:, :-1, 1:] + noise[:, 1:, :-1]


def test_patches_come_out_uncorrelated_with_variance_one():
    images = smooth_images()
    kernel = airbench.whitening_filters(images, 3, epsilon=0.0)
    assert kernel.shape == (3, 3, 2, 36)
    numbers = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=numbers)
    rows = np.asarray(out).reshape(-1, 36)
    np.testing.assert_array_equal(rows[:, :18], -rows[:, 18:])
    moments = rows[:, :18].T @ rows[:, :18] / len(rows)
    np.testing.assert_allclose(moments, np.eye(18), atol=1e-3)
    before = images.reshape(-1, 2).T @ images.reshape(-1, 2) / images[..., 0].size
    assert abs(before[0, 0] - 1) > 0.5  # it was not so at first


def test_the_model_has_the_flops_that_it_says_and_names_what_it_computes():
    model = airbench.Airbench(5, widths=(6, 8), whitening=2)
    images = jnp.asarray(smooth_images(3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    apply = lambda v: model.apply(v, images, mutable=["intermediates"])
    traced = jax.make_jaxpr(apply)(variables)
    assert model.flops((12, 11, 2)) * 3 == flops.traced(traced.jaxpr)
    _, found = jax.eval_shape(apply, variables)
    shapes = {name: leaf.shape for name, (leaf,) in found["intermediates"].items()}
    assert shapes == {
        "stem": (3, 12, 11, 16),
        "block_0": (3, 6, 5, 6),
        "block_1": (3, 3, 2, 8),
        "features": (3, 8),
    }


def test_filters_are_fitted_unless_they_are_to_be_learned():
    images, params = smooth_images(8), {"whitening": {"kernel": np.zeros((2, 2, 2, 16))}}
    fitted = airbench.Airbench(5, whitening=2).fitted(params, images)
    assert fitted["whitening"]["kernel"].any()
    assert airbench.Airbench(5, whitening=2, fit=False).fitted(params, images) == params


@pytest.mark.slow
def test_training_begins_with_whitening_filters_and_leaves_them():
    config = load(
        DIGITS,
        **{
            "model.module": "vision.airbench:Airbench",
            "model.widths": (8,),
            "optim.name": "sgd",
            "optim.freeze": ("whitening/kernel",),
            "augment.flip": "alternating",
            "evals.test.views": "flip_shift",
        },
    )
    made = program.prepare(config, jax.devices()[:1])
    losses, state = measure.train_losses(made, 2)
    images = made.task.sources["train"].read(np.arange(1000))["image"].astype(np.float32) / 255
    facts = made.task.sources["train"].facts
    expected = airbench.whitening_filters((images - facts.mean) / facts.std, 3)
    np.testing.assert_allclose(state.params["whitening"]["kernel"], expected, rtol=1e-3, atol=1e-3)
    assert np.isfinite(losses).all()
