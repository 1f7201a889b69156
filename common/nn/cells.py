"""Recurrent cells, in the conventions of cuDNN and torch, and their states.

Letters: B batch, L positions, T positions of a cache, H width of the cell, P width of the hidden
state (H without a projection), G gates.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from common.nn.layers import repeated

CellName = Literal["lstm", "gru", "rnn"]
State = tuple[jax.Array, ...]  # (hidden [B, P],) or, of an LSTM, (hidden [B, P], cell [B, H])


@jax.custom_vjp
def _lstm_state(gates, cell):
    """(hidden, cell) of the gates' preactivations. By hand, as less is kept for the gradient."""
    return _lstm_forward(gates, cell)[0]


def _lstm_forward(gates, cell):
    # The sigmoid by way of tanh, so that one function is computed of the whole: faster on CPU.
    half = jnp.repeat(jnp.array([0.5, 0.5, 1, 0.5], gates.dtype), cell.shape[-1])
    i, f, g, o = jnp.split(jnp.tanh(gates * half), 4, axis=-1)
    i, f, o = (0.5 * x + 0.5 for x in (i, f, o))
    new = f * cell + i * g
    squashed = jnp.tanh(new)
    return ((o * squashed).astype(gates.dtype), new), (i, f, g, o, cell, squashed)


def _lstm_backward(residuals, cotangents):
    i, f, g, o, cell, squashed = residuals
    of_hidden, of_cell = cotangents
    of_cell = of_cell + of_hidden * o * (1 - squashed * squashed)
    gates = of_cell * g * i * (1 - i), of_cell * cell * f * (1 - f), of_cell * i * (1 - g * g)
    gates = *gates, of_hidden * squashed * o * (1 - o)
    return jnp.concatenate(gates, axis=-1).astype(i.dtype), of_cell * f


_lstm_state.defvjp(_lstm_forward, _lstm_backward)


def _lstm(inputs, recurrent, state: State, activation: Callable) -> State:
    del activation
    return _lstm_state(inputs + recurrent, state[1])


def _gru(inputs, recurrent, state: State, activation: Callable) -> State:
    """The reset gate multiplies after the product, so that there is one product a step."""
    del activation
    size = state[0].shape[-1]
    r, z = jnp.split(
        jax.nn.sigmoid(inputs[..., : 2 * size] + recurrent[..., : 2 * size]), 2, axis=-1
    )
    new = jnp.tanh(inputs[..., 2 * size :] + r * recurrent[..., 2 * size :])
    return (new + z * (state[0] - new),)


def _rnn(inputs, recurrent, state: State, activation: Callable) -> State:
    return (activation(inputs + recurrent),)


class Cell(NamedTuple):
    """A kind of cell.

    Attributes:
      gates: G, the columns of a kernel over H.
      update: (inputs [B, G H], recurrent [B, G H], state, activation) -> state.
      has_cell: whether the state has a part beside the hidden one.
    """

    gates: int
    update: Callable
    has_cell: bool = False


CELLS = {"lstm": Cell(4, _lstm, True), "gru": Cell(3, _gru), "rnn": Cell(1, _rnn)}
ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


def zero_state(kind: str, width: int, projected: int, rows, dtype) -> State:
    """The state before the first position, of as many rows as `rows` [B, ...] has, and split over
    devices as they are. The cell of an LSTM is f32 or wider."""
    zeros = lambda size, dtype: repeated(jnp.zeros((), dtype), rows, (rows.shape[0], size))
    if not CELLS[kind].has_cell:
        return (zeros(projected, dtype),)
    return zeros(projected, dtype), zeros(width, jnp.promote_types(dtype, jnp.float32))


def starts(segments, reverse: bool = False):
    """bool[B, L]: whether a position is the first of its segment, or, in reverse, the last."""
    changes = segments[:, 1:] != segments[:, :-1]
    edge = jnp.ones_like(segments[:, :1], bool)
    return jnp.concatenate([changes, edge] if reverse else [edge, changes], axis=1)


def beginnings(segments, fresh: State | None = None, reverse: bool = False) -> dict:
    """What the steps of a scan read, [L, B, ...], for `begun`; arguments as in `Recurrent`."""
    xs = {"starts": starts(segments, reverse).swapaxes(0, 1)[:, :, None]}
    if fresh is not None:
        xs["fresh"] = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), fresh)
    return xs


def begun(state: State, x: dict) -> State:
    """The state before a step: a fresh one where a segment begins."""
    if "starts" not in x:
        return state
    fresh = x.get("fresh") or (0,) * len(state)
    choose = lambda old, new: jnp.where(x["starts"], new, old).astype(old.dtype)
    return tuple(map(choose, state, fresh))


# ------------------------------------------------------------------------------------ for decoding


class States(NamedTuple):
    """The states after the positions so far, passed in and returned updated: with all of them, a
    row can go on from any of its positions.

    Attributes:
      hidden: a tuple over layers of [B, T + 1, P]; at 0 that before the first position.
      cells: a tuple over layers of [B, T + 1, H], of LSTMs; else ().
      length: i32[B], the number of positions that each row holds; what is beyond is not read.
    """

    hidden: tuple
    cells: tuple
    length: jax.Array


def empty_states(
    kind: str, layers: int, width: int, projected: int, rows: int, length: int, dtype
) -> States:
    """An empty cache: so many rows, with room for T = `length` positions."""
    zeros = lambda size, dtype: tuple(
        jnp.zeros((rows, length + 1, size), dtype) for _ in range(layers)
    )
    cells = ()
    if CELLS[kind].has_cell:
        cells = zeros(width, jnp.promote_types(dtype, jnp.float32))
    return States(zeros(projected, dtype), cells, jnp.zeros(rows, jnp.int32))


def latest(cache: States) -> tuple[State, ...]:
    """The state of each layer after the last position that a row holds."""
    read = lambda x: jnp.take_along_axis(x, cache.length[:, None, None], axis=1)[:, 0]
    parts = (cache.hidden, cache.cells) if cache.cells else (cache.hidden,)
    return tuple(tuple(map(read, state)) for state in zip(*parts, strict=True))


def extended(cache: States, states: tuple[State, ...]) -> States:
    """The cache with the states of L further positions, each layer's [B, L, ...]."""
    write = jax.vmap(partial(jax.lax.dynamic_update_slice_in_dim, axis=0))
    add = lambda old, new: write(old, new.astype(old.dtype), cache.length + 1)
    parts = tuple(zip(*states, strict=True))
    hidden = tuple(map(add, cache.hidden, parts[0]))
    cells = tuple(map(add, cache.cells, parts[1])) if cache.cells else ()
    return States(hidden, cells, cache.length + states[0][0].shape[1])
