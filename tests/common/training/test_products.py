"""Gradients on a mesh that divides over all of its axes: right where kernels are gathered, refused
where they are not."""

from collections.abc import Callable

import flax.linen as nn
import jax
import pytest
from helpers import DIGITS, load

from common.errors import BadInput
from common.laws import checks, measure
from common.nn.layers import identity
from vision import cnn

TWO = {"model.hidden": "(64, 64)"}  # the second layer's input is divided over `tensor`
THREE_AXES = 2, 2, 2


def flax_dense(width, names=None, constrain=None, **options):
    return nn.Dense(width, **options)


@pytest.mark.slow
def test_two_dense_layers_are_the_same_on_three_axes(compiled_in_haste):
    checks.mesh_changes_nothing(load(f"{DIGITS}:mlp", **TWO), [THREE_AXES])


@pytest.mark.parametrize("way", ["none", "block"])
def test_a_kernel_used_as_it_is_stored_is_refused_on_three_axes(way, monkeypatch):
    monkeypatch.setattr(cnn, "Dense", flax_dense)
    config = load(f"{DIGITS}:mlp", **TWO, **{"model.remat": way})
    with pytest.raises(BadInput, match="a wrong gradient of dense_0/kernel, dense_1/kernel, which"):
        measure.on_mesh(config, THREE_AXES)
    measure.on_mesh(config, (2, 1, 4))


class Scanned(nn.Module):
    """Layers in a scan, whose kernels are cast, transposed and multiplied in a branch."""

    num_classes: int
    constrain: Callable = identity
    PARTITION = ((r"stack", (None, "mlp", "embed")), (r"head/kernel", (None, None)))

    @nn.compact
    def __call__(self, images, train=False):
        x = images.reshape(len(images), -1)
        stack = self.param("stack", nn.initializers.normal(), (3, 64, 64)).astype("bfloat16")
        twice = lambda x: jax.nn.relu(x + x)
        body = lambda x, kernel: (jax.lax.cond(x.sum() > 0, lambda: x @ kernel.T, lambda: x), 0)
        x = jax.lax.scan(jax.checkpoint(body), twice(x.astype("bfloat16")), stack)[0]
        return nn.Dense(self.num_classes, name="head")(x.astype("float32"))


def test_it_is_seen_through_casts_scans_and_branches():
    config = load(f"{DIGITS}:mlp", **{"model.module": f"{__name__}:Scanned"})
    with pytest.raises(BadInput, match="a wrong gradient of stack, which"):
        measure.on_mesh(config, THREE_AXES)
