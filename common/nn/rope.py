"""Positions as waves: sinusoids, rotary positions, and the ways to stretch rotary wavelengths
beyond the length that a model was trained on.

A way to stretch them is a tuple: the name of a function below, then its numbers in the order of its
arguments, of which the last may be left out where they have defaults. () is none.

    ("linear", 4.0)
    ("dynamic", 2.0, 4096)
    ("yarn", 4.0, 32768, 32.0, 1.0, None, True)
    ("llama3", 8.0, 1.0, 4.0, 8192)
    ("longrope", 4096, 1.19, (1.0, 1.1, …), (1.0, 4.2, …))

All agree with `transformers.modeling_rope_utils`, except that a length is counted for each segment
and not for the batch: packing, padding and the other rows change nothing.

Letters: B batch, L positions, H heads, K width of a head, R columns of a head that are rotated.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from common.errors import brief, choice, require


def sinusoids(positions, width: int, dtype=jnp.float32, halves: bool = False):
    """[..., D]: sines in even columns, cosines in odd ones (Vaswani et al. 2017).

    Args:
      positions: i32[...].
      width: D, even.
      dtype: of the result.
      halves: all sines before all cosines instead, as in Marian (Junczys-Dowmunt et al. 2018).
    """
    frequencies = 10000.0 ** (-jnp.arange(0, width, 2, dtype=dtype) / width)
    angles = positions[..., None].astype(dtype) * frequencies
    waves = jnp.sin(angles), jnp.cos(angles)
    if halves:
        return jnp.concatenate(waves, axis=-1)
    return jnp.stack(waves, axis=-1).reshape(*positions.shape, width)


def rotate(x, positions, theta, scaling: tuple = (), columns: int | None = None):
    """Rotary position embedding (Su et al. 2021): [B, L, H, K]. Pairs column i with i + R/2, as
    Llama does.

    Args:
      x: [B, L, H, K].
      positions: i32[B, L]; they count up within a segment.
      theta: base of the wavelengths; may be traced.
      scaling: how wavelengths are stretched, see the module; () leaves them. `check` has seen it.
      columns: R, even, how many columns are rotated, the first ones; None is all.
    """
    columns = x.shape[-1] if columns is None else columns
    half = columns // 2
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    base = Base(
        jnp.asarray(theta, dtype),
        jnp.arange(half, dtype=dtype) / half,
        segment_lengths(positions) if scaling else None,
    )
    frequencies, amplitude = base.frequencies(), 1.0
    if scaling:
        frequencies, amplitude = SCALINGS[scaling[0]](base, *scaling[1:])
    angles = (positions[:, :, None].astype(dtype) * frequencies)[:, :, None]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    if amplitude != 1.0:
        sin, cos = sin * amplitude, cos * amplitude
    a, b, rest = x[..., :half], x[..., half:columns], x[..., columns:]
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    return rotated if columns == x.shape[-1] else jnp.concatenate([rotated, rest], axis=-1)


def segment_lengths(positions):
    """i32[B, L]: the length of the segment that each position belongs to, up to its last position
    here; with a cache, that counts the positions in the cache as well.

    Args:
      positions: i32[B, L]; a segment ends where they stop counting up.
    """
    ends = jnp.concatenate(
        [positions[:, 1:] <= positions[:, :-1], jnp.ones_like(positions[:, :1], bool)], axis=1
    )
    last = positions.shape[1] - 1
    index = jnp.where(ends, jnp.arange(last + 1, dtype=jnp.int32), last)
    if isinstance(last, int):
        index = jax.lax.cummin(index, axis=1, reverse=True)
    else:  # as in `attention.places`
        later = jnp.arange(last + 1)[:, None] <= jnp.arange(last + 1)
        index = jnp.where(later, index[:, None, :], last).min(axis=2)
    return jnp.take_along_axis(positions, index, axis=1) + 1


# ------------------------------------------------------------------------------------- wavelengths


class Base(NamedTuple):
    """What the frequencies of rotary positions are made from.

    Attributes:
      theta: scalar, f32 or wider.
      exponents: [R/2], from 0 up to 1, exclusive.
      lengths: i32[B, L], see `segment_lengths`.
    """

    theta: jax.Array
    exponents: jax.Array
    lengths: jax.Array | None

    def frequencies(self):
        """[R/2]: radians a position, from 1 down."""
        return self.theta**-self.exponents


def linear(base: Base, factor: float):
    """Position interpolation (Chen et al. 2023): every wavelength is `factor` times as long.

    Here and below, returns (frequencies [R/2] or [B, L, R/2], amplitude of the rotation).
    """
    return base.frequencies() / factor, 1.0


def dynamic(base: Base, factor: float, original_length: int):
    """NTK-aware interpolation (bloc97 2023; in Peng et al. 2024): beyond the original length theta
    grows with the length of the segment, so that the longest wavelength grows as `linear` would
    have it and the shortest stays."""
    columns = 2 * len(base.exponents)
    lengths = jnp.maximum(base.lengths, original_length)[:, :, None].astype(base.theta.dtype)
    growth = factor * lengths / original_length - (factor - 1)
    theta = base.theta * growth ** (columns / (columns - 2))
    return theta**-base.exponents, 1.0


def yarn(
    base: Base,
    factor: float,
    original_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    attention_factor: float | None = None,
    truncate: bool = True,
):
    """YaRN (Peng et al. 2024): wavelengths with more than `beta_fast` turns in the original length
    stay, those with fewer than `beta_slow` are `factor` times as long, a ramp lies between.

    Args:
      base: see `Base`.
      factor, original_length, beta_fast, beta_slow: as above.
      attention_factor: amplitude; None is `yarn_attention_factor(factor)`.
      truncate: whether the ramp begins and ends at whole columns.
    """
    half = len(base.exponents)
    column = lambda turns: (
        half * math.log(original_length / (turns * 2 * math.pi)) / jnp.log(base.theta)
    )
    low, high = column(beta_fast), column(beta_slow)
    if truncate:
        low, high = jnp.floor(low), jnp.ceil(high)
    low, high = jnp.maximum(low, 0), jnp.minimum(high, 2 * half - 1)
    high = jnp.where(low == high, high + 0.001, high)
    ramp = jnp.clip((jnp.arange(half, dtype=base.theta.dtype) - low) / (high - low), 0, 1)
    frequencies = base.frequencies()
    amplitude = yarn_attention_factor(factor) if attention_factor is None else attention_factor
    return frequencies / factor * ramp + frequencies * (1 - ramp), amplitude


def yarn_attention_factor(
    factor: float, mscale: float | None = None, mscale_all_dim: float | None = None
) -> float:
    """The amplitude that YaRN recommends; with both others, DeepSeek's ratio (DeepSeek-AI 2024)."""
    if factor <= 1:
        return 1.0
    scale = lambda weight: 0.1 * weight * math.log(factor) + 1.0
    both = mscale and mscale_all_dim
    return scale(mscale) / scale(mscale_all_dim) if both else scale(1.0)


def llama3(base: Base, factor: float, low: float, high: float, original_length: int):
    """Llama 3.1 (Grattafiori et al. 2024): wavelengths with more than `high` turns in the original
    length stay, those with fewer than `low` are `factor` times as long, a blend lies between."""
    frequencies = base.frequencies()
    turns = original_length * frequencies / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / factor), 1.0


def longrope(
    base: Base,
    original_length: int,
    attention_factor: float,
    short_factors: tuple[float, ...],
    long_factors: tuple[float, ...],
):
    """LongRoPE (Ding et al. 2024): every wavelength has a factor of its own, another one in
    segments beyond the original length.

    Args:
      base: see `Base`.
      original_length: the longest segment with the short factors.
      attention_factor: amplitude; see `longrope_attention_factor`.
      short_factors, long_factors: R/2 numbers each.
    """
    long = (base.lengths > original_length)[:, :, None]
    wide = lambda factors: jnp.asarray(factors, base.theta.dtype)
    factors = jnp.where(long, wide(long_factors), wide(short_factors))
    return base.frequencies() / factors, attention_factor


def longrope_attention_factor(factor: float, original_length: int) -> float:
    """The amplitude that LongRoPE recommends for `factor` times the original length."""
    return math.sqrt(1 + math.log(factor) / math.log(original_length)) if factor > 1 else 1.0


SCALINGS: dict[str, Callable] = {f.__name__: f for f in (linear, dynamic, yarn, llama3, longrope)}

# What the numbers of a scaling may be, by annotation.
KINDS: dict[Any, str] = {
    float: "a positive number",
    int: "a positive integer",
    bool: "True or False",
    float | None: "a positive number or None",
    tuple[float, ...]: "a tuple of positive numbers",
}


def check(where: str, scaling: tuple, columns: int) -> None:
    """Raises `BadInput` unless `scaling` is one for R = `columns`; `where` names it."""
    require(isinstance(scaling, tuple), f"{where}: {brief(scaling)} is not a tuple")
    if not scaling:
        return
    name, *numbers = scaling
    function = SCALINGS[choice(where, name, SCALINGS)]
    arguments = list(inspect.signature(function).parameters.values())[1:]
    required = sum(a.default is a.empty for a in arguments)
    form = ", ".join((repr(name), *(a.name for a in arguments)))
    require(
        required <= len(numbers) <= len(arguments),
        f"{where}: {brief(scaling)} has {len(numbers)} numbers; expected ({form})",
    )
    values = {a.name: a.default for a in arguments}
    for argument, value in zip(arguments, numbers, strict=False):
        kind = argument.annotation
        require(
            _fits(value, kind),
            f"{where}: {argument.name} of {name!r}: {brief(value)} is not {KINDS[kind]}",
        )
        values[argument.name] = value
    if name == "dynamic":
        require(columns > 2, f"{where}: 'dynamic' needs more than 2 rotary columns a head")
    if name == "yarn":
        fast, slow = values["beta_fast"], values["beta_slow"]
        require(fast >= slow, f"{where}: beta_fast of 'yarn', {fast}, is below beta_slow, {slow}")
    if name == "llama3":
        low, high = values["low"], values["high"]
        require(low < high, f"{where}: low of 'llama3', {low}, is not below high, {high}")
    if name == "longrope":
        for key in ("short_factors", "long_factors"):
            count = len(values[key])
            require(
                count == columns // 2,
                f"{where}: {key} of 'longrope': {count} numbers; heads have {columns // 2} "
                "wavelengths",
            )


def _fits(value: Any, kind: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind == tuple[float, ...]:
        return isinstance(value, tuple) and all(_fits(v, float) for v in value)
    if value is None:
        return kind == float | None
    number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf
