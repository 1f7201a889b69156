"""Learning-rate schedules as unit shapes: factors between 0 and 1 that multiply the peak rate."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp

from common.errors import require

Schedule = Literal["constant", "linear", "cosine", "rsqrt", "wsd"]


def unit_shape(
    schedule: Schedule, step, total_steps: int, warmup_steps: int, decay_steps: int | None, final
):
    """The schedule's factor of the rate at `step`, between 0 and 1: f32[].

    The warmup rises linearly and ends at 1 with step `warmup_steps - 1`, so that no step is wasted
    on a rate of zero. `linear` and `cosine` fall from there to `final` at `total_steps`; `wsd`
    (warmup-stable-decay, Hu et al. 2024) falls linearly over the last `decay_steps`; `rsqrt` falls
    as 1 / sqrt(step) after the warmup (Vaswani et al. 2017), with the tail of `wsd` if
    `decay_steps` is given.
    """
    step = jnp.asarray(step, jnp.float32)
    remaining = max(total_steps - warmup_steps, 1)
    done = jnp.clip((step - warmup_steps) / remaining, 0.0, 1.0)
    fall = jnp.float32(0.0)
    scale = jnp.float32(1.0)
    if schedule == "linear":
        fall = done
    elif schedule == "cosine":
        fall = 0.5 - 0.5 * jnp.cos(jnp.pi * done)
    elif schedule == "rsqrt":
        timescale = max(warmup_steps, 1)
        scale = jnp.sqrt(timescale / jnp.maximum(step + 1, timescale))
    if decay_steps is not None:
        fall = jnp.clip((step - (total_steps - decay_steps)) / max(decay_steps, 1), 0.0, 1.0)
    warm = jnp.minimum((step + 1) / max(warmup_steps, 1), 1.0)
    return warm * scale * (1.0 - fall * (1.0 - final))


def schedule_steps(
    total_steps: int, to_steps: Callable, schedule: str, warmup: str, decay: str | None, final
) -> tuple[int, int | None]:
    """(warmup steps, steps of the tail or None). Raises `BadInput` for incompatible
    settings."""
    warmup_steps = to_steps(warmup, "config.optim.warmup")
    require(
        warmup_steps <= total_steps,
        f"config.optim.warmup: {warmup!r} is longer than the run of {total_steps} steps",
    )
    require(
        schedule != "wsd" or decay is not None, "config.optim.decay: required by 'wsd', e.g. '20%'"
    )
    if decay is None:
        if isinstance(final, float) and schedule in ("constant", "rsqrt"):
            require(final == 0, f"config.optim.final: {schedule!r} does not fall to a final rate")
        return warmup_steps, None
    require(
        schedule in ("wsd", "rsqrt"),
        f"config.optim.decay: schedule {schedule!r} has no final decay; only 'wsd' and 'rsqrt' do",
    )
    decay_steps = to_steps(decay, "config.optim.decay")
    require(
        warmup_steps + decay_steps <= total_steps,
        f"config.optim.decay: {decay!r} plus the warmup exceeds the run of {total_steps} steps",
    )
    return warmup_steps, decay_steps
