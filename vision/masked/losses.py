"""The loss of reconstructions, over hidden patches alone.

Letters: B batch, H height, W width, C channels; p side of a patch; N patches, V visible.
"""

import flax.linen as nn
import jax.numpy as jnp

from common import losses
from common.task import Terms
from vision.masked.mae import is_visible


def errors(model: nn.Module, images, predicted, visible):
    """Of each image, over its hidden patches: (mean squared error f32[B], that of predicting 0).

    Args:
      model: has `targets`.
      images: f32[B, H, W, C].
      predicted: f32[B, N, p p C].
      visible: i32[B, V].
    """
    targets, hidden = model.targets(images), ~is_visible(visible, predicted.shape[1])
    mean = lambda x: jnp.mean(x**2, axis=-1).mean(axis=-1, where=hidden)
    return mean(predicted - targets), mean(targets)


def explained(error: float, baseline: float) -> float:
    """The share of the baseline's error that predictions do not make; arguments as of `errors`."""
    return 1 - error / max(baseline, 1e-6)


def reconstruction(model: nn.Module, images, predicted, visible, valid) -> Terms:
    """{"loss", "baseline"}: the squared error of hidden pixels (He et al. 2022), and that of
    predicting 0, which is the mean of each patch if targets are normalised by patch.

    Args:
      model, images, predicted, visible: as in `errors`.
      valid: f32[B].
    """
    error, baseline = errors(model, images, predicted, visible)
    return {"loss": losses.weighted(error, valid), "baseline": losses.weighted(baseline, valid)}
