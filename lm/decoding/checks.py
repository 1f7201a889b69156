"""What decoding refuses before it begins: models that cannot write, settings out of range, prompts
without room behind them."""

import flax.linen as nn
import jax
import numpy as np

from common.errors import require


def check_model(model: nn.Module) -> None:
    """Raises `BadInput` unless a model can generate."""
    require(
        hasattr(model, "decode") and hasattr(model, "empty_cache"),
        f"config.model.module: {type(model).__name__} cannot generate: it has no decode and "
        "empty_cache, as lm.gpt:GPT has",
    )


def check_settings(
    steps: int, temperature=None, top_k: int | None = None, top_p=None, min_p=None
) -> None:
    """Raises `BadInput` if a setting of `generate` is out of range."""
    require(steps > 0, f"tokens: {steps} is not a positive number of tokens to write")
    require(top_k is None or top_k > 0, f"top-k: {top_k} is not positive")
    _check("temperature", temperature, lambda t: t >= 0, "is no number of at least 0")
    _check("top-p", top_p, lambda p: 0 < p <= 1, "is not in (0, 1]")
    _check("min-p", min_p, lambda p: 0 <= p <= 1, "is not in [0, 1]")


def check_room(model: nn.Module, length: int, steps: int) -> None:
    """Raises `BadInput` if a model has too few positions for `steps` tokens after a prompt of this
    length."""
    left = room(model, length)
    require(
        left is None or steps <= left,
        f"tokens: {steps} after a prompt of {length}, and the model has "
        f"{getattr(model, 'max_length', 0)} positions; write "
        + (f"{left} or fewer" if left and left > 0 else "a shorter prompt"),
    )


def check_prompts(model: nn.Module, prompts, lengths, steps: int) -> None:
    """Raises `BadInput` if a prompt is empty, or a model has too few positions behind them; lengths
    that are traced cannot be checked."""
    if not isinstance(lengths, jax.core.Tracer):
        check_room(model, prompts.shape[1], steps)
        _check("prompt", lengths, lambda n: n > 0, "tokens leave nothing to continue")


def room(model: nn.Module, length):
    """How many tokens a model can write after a prompt of `length`, or prompts of several; None is
    no limit."""
    bounded = getattr(model, "positions", None) == "learned"
    return model.max_length - length if bounded else None


def _check(name: str, value, holds, wrong: str) -> None:
    """Raises `BadInput` for a number out of range; traced ones cannot be checked."""
    if value is None or isinstance(value, jax.core.Tracer):
        return
    for number in np.ravel(value).tolist():
        require(holds(number), f"{name}: {number} {wrong}")
