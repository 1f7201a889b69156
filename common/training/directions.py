"""Update directions: optax transformations without a learning rate, one function each.

`config.optim.name` picks one, whose keyword arguments are the section `optim.direction`. A new
optimizer is a function here and a row in `DIRECTIONS`; all share clipping, decay, schedules and
freezing (`common.training.optim`).
"""

from collections.abc import Callable

import optax
from optax import contrib

from common import tree
from common.errors import choice


def sgd(*, momentum: float | None = None, nesterov: bool = False):
    """The gradient, or its running sum with `momentum` (Polyak; Nesterov as in Sutskever et al.
    2013).

    Args:
      momentum: decay of the running sum of gradients; None is plain gradient descent.
      nesterov: whether the step looks one momentum step ahead (Nesterov).
    """
    return optax.identity() if momentum is None else optax.trace(momentum, nesterov)


def adamw(
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    nesterov: bool = False,
):
    """Adam (Kingma & Ba 2015; nesterov: Dozat 2016).

    Args:
      b1: decay of the first moment, the mean of gradients.
      b2: decay of the second moment, the mean of squared gradients.
      eps: added to the root of the second moment.
      eps_root: added to the second moment under the root.
      nesterov: whether the first moment looks one step ahead (NAdam).
    """
    return optax.scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov)


def lion(*, b1: float = 0.9, b2: float = 0.99):
    """Sign of interpolated momentum (Chen et al. 2023).

    Args:
      b1: weight of the momentum in the direction, against the gradient.
      b2: decay of the momentum.
    """
    return optax.scale_by_lion(b1, b2)


def rmsprop(*, decay: float = 0.9, eps: float = 1e-8):
    """Gradient divided by its running root mean square (Hinton 2012).

    Args:
      decay: decay of the running mean of squared gradients.
      eps: added to the root of that mean.
    """
    return optax.scale_by_rms(decay, eps)


def adafactor(
    *,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    clipping_threshold: float = 1.0,
    momentum: float | None = None,
    multiply_by_parameter_scale: bool = True,
):
    """Factored second moments (Shazeer & Stern 2018).

    Args:
      min_dim_size_to_factor: matrices with a smaller side keep full, unfactored moments.
      decay_rate: exponent of the schedule for the second moments' decay.
      clipping_threshold: largest root mean square of an update.
      momentum: decay of a running sum of updates; None is no momentum.
      multiply_by_parameter_scale: whether to scale updates by the size of the parameters.
    """
    # A rate of -1 keeps the sign of the gradient: `make_optimizer` multiplies by minus the true
    # rate.
    return optax.adafactor(
        -1.0,
        min_dim_size_to_factor=min_dim_size_to_factor,
        decay_rate=decay_rate,
        clipping_threshold=clipping_threshold,
        momentum=momentum,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
    )


def _muon_dimensions(params):
    """Matrices and convolutions (HWIO) are orthogonalised as [inputs, outputs]; embeddings, whose
    rows are looked up one by one, and the rest go to Adam."""

    def numbers(path, p):
        if p.ndim < 2 or path.split("/")[-1] == "embedding":
            return None
        return contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1)

    return tree.map_paths(numbers, params)


def muon(
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
):
    """Orthogonalised momentum for matrices and convolutions, Adam for embeddings and the rest
    (Jordan et al. 2024).

    Args:
      beta: decay of the momentum.
      nesterov: whether the momentum looks one step ahead.
      ns_steps: Newton-Schulz iterations that orthogonalise a matrix.
      adam_b1: decay of Adam's first moment, for the parameters that Adam updates.
      adam_b2: decay of Adam's second moment, for the parameters that Adam updates.
    """
    return contrib.muon(
        -1.0,
        beta=beta,
        nesterov=nesterov,
        ns_steps=ns_steps,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        muon_weight_dimension_numbers=_muon_dimensions,
    )


def schedule_free(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_lr_power: float = 2.0
):
    """Schedule-free AdamW (Defazio et al. 2024): `make_optimizer` wraps this base, whose own
    momentum is off.

    Args:
      b1: where gradients are taken, between the iterate (0) and the average of iterates (1).
      b2: decay of the second moment, the mean of squared gradients.
      eps: added to the root of the second moment.
      weight_lr_power: exponent of the learning rate in the weights of the average.
    """
    del b1, weight_lr_power  # used by the wrapper
    return optax.scale_by_adam(0.0, b2, eps)


DIRECTIONS: dict[str, Callable] = {
    "sgd": sgd,
    "adamw": adamw,
    "lamb": adamw,  # with a trust ratio after the weight decay (You et al. 2020): `_transform`
    "lion": lion,
    "rmsprop": rmsprop,
    "adafactor": adafactor,
    "muon": muon,
    "schedule_free": schedule_free,
}


def direction(name: str) -> Callable:
    """The function that `optim.direction` feeds. Raises `BadInput` for an unknown name."""
    return DIRECTIONS[choice("config.optim.name", name, DIRECTIONS)]
