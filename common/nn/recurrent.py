"""Recurrent layers: LSTM (Hochreiter & Schmidhuber 1997), GRU (Cho et al. 2014) and the plain cell
(Elman 1990), of `common.nn.cells`.

A layer multiplies its inputs by one kernel for the whole sequence, and then runs over time with the
recurrent product alone (`common.nn.scan`).

Rows may hold several sequences and padding: where the segment changes, the state is zero again, in
either direction, so that a sequence knows nothing of what lies beside it.

Letters: B batch, L positions, D width of the inputs, H width of the cell, P width of the outputs (H
without a projection), G gates.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.errors import brief, require
from common.nn import cells
from common.nn.cells import ACTIVATIONS, CELLS, CellName, State
from common.nn.layers import (
    MOST_LAYERS,
    Dense,
    Dropout,
    Dtype,
    Names,
    Remat,
    identity,
    partition_rows,
    recomputed,
    wanted,
)
from common.nn.scan import row_functions, scan
from common.task import Table

# Logical names of the kernels of a layer. The products of a step are small, and each needs all of
# the state before it: devices along `tensor` repeat them.
NAMES: dict[str, Names] = {
    "input": ("embed", None),
    "recurrent": ("embed", None),
    "projection": ("embed", None),
}


class Recurrent(nn.Module):
    """One layer in one direction.

    Attributes:
      width: H.
      cell: the kind of cell.
      projection_width: P, to which the hidden state is projected (Sak et al. 2014); None is H.
      activation: of the plain cell.
      reverse: whether it runs from the end to the start.
      truncation: gradients do not pass from a position that is a multiple of this to the one
        before; None lets them pass everywhere.
      dtype: of the computation; None is that of the parameters.
      constrain: pins the sharding of activations.
    """

    width: int
    cell: CellName = "lstm"
    projection_width: int | None = None
    activation: Literal["tanh", "relu"] = "tanh"
    reverse: bool = False
    truncation: int | None = None
    dtype: Dtype | None = None
    constrain: Callable = identity

    def setup(self):
        """Creates `input`, `recurrent` and, if it projects, `projection`."""
        # As torch begins: all within 1 / sqrt(H).
        init = uniform(self.width**-0.5)
        dense = partial(Dense, dtype=self.dtype, kernel_init=init, constrain=self.constrain)
        columns = CELLS[self.cell].gates * self.width
        self.input = dense(columns, names=NAMES["input"])
        self.recurrent = dense(columns, names=NAMES["recurrent"])
        if self.projection_width is not None:
            names = NAMES["projection"]
            self.projection = dense(self.projection_width, use_bias=False, names=names)

    @property
    def out_width(self) -> int:
        """P."""
        return self.width if self.projection_width is None else self.projection_width

    def begin(self, x, state: State | None):
        """(the inputs' part of the gates, [L, B, G H]; the state before the first position)."""
        inputs = self.constrain(self.input(x), "batch", None, None).swapaxes(0, 1)
        if state is None:
            state = cells.zero_state(self.cell, self.width, self.out_width, x, inputs.dtype)
        return inputs, state

    def __call__(self, x, segments=None, state: State | None = None, fresh: State | None = None):
        """States of all positions, each leaf [B, L, ...]; the first is the output, [B, L, P].

        Args:
          x: [B, L, D].
          segments: i32[B, L] or None; where one begins, the state is `fresh`.
          state: before the first position (after the last one, in reverse); None is zero.
          fresh: leaves [B, L, ...], of which those count at which a segment begins; None is zero.
        """
        inputs, state = self.begin(x, state)
        if self.is_initializing():
            projected = self.recurrent(state[0])
            if self.projection_width is not None:
                self.projection(projected[:, : self.width])
        layers = {"recurrent": self.recurrent}
        if self.projection_width is not None:
            layers["projection"] = self.projection
        functions, params = row_functions(layers)
        xs = {"inputs": inputs}
        if segments is not None:
            xs |= cells.beginnings(segments, fresh, self.reverse)
        if self.truncation is not None:
            index = jnp.arange(x.shape[1]) + self.reverse
            xs["cut"] = index % self.truncation == 0
        update = partial(CELLS[self.cell].update, activation=ACTIVATIONS[self.activation])
        pin = lambda leaf: self.constrain(leaf, "batch", None)

        def step(apply, fixed, state, x):
            state = cells.begun(state, x)
            if "cut" in x:
                stop = lambda leaf: jnp.where(x["cut"], jax.lax.stop_gradient(leaf), leaf)
                state = jax.tree.map(stop, state)
            hidden, *others = update(x["inputs"], apply("recurrent", state[0]), state)
            if "projection" in functions:
                hidden = apply("projection", hidden)
            state = jax.tree.map(pin, (hidden, *others))
            return state, state

        _, states = scan(step, functions, params, (), state, xs, self.reverse)
        return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), states)


def uniform(bound: float) -> Callable:
    """An initializer: U(-bound, bound)."""
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class Layer(nn.Module):
    """A layer in one direction or both, whose outputs are then side by side.

    Attributes:
      make: (reverse, name) -> `Recurrent`.
      bidirectional: whether there is a direction from the end to the start.
    """

    make: Callable[..., nn.Module]
    bidirectional: bool

    @nn.compact
    def __call__(self, x, segments=None, state: State | None = None):
        """Returns ([B, L, P] or [B, L, 2 P], states of the direction forward, of all positions);
        arguments as in `Recurrent`."""
        states = self.make(reverse=False, name="forward")(x, segments, state)
        if not self.bidirectional:
            return states[0], states
        back = self.make(reverse=True, name="backward")(x, segments)
        return jnp.concatenate([states[0], back[0]], axis=-1), states


class RecurrentStack(nn.Module):
    """Base class of recurrent models here: their fields and stack of layers.

    Attributes:
      width: H, the width of the cell, in each direction.
      layers: number of layers.
      cell: "lstm", "gru" (as in cuDNN and torch, where the reset gate multiplies the product), or
        "rnn", the plain cell.
      projection_width: P, to which an LSTM's hidden state is projected in each direction (Sak et
        al. 2014); None is H, without a projection.
      activation: of the plain cell.
      bidirectional: whether each layer also runs from the end to the start (Schuster & Paliwal
        1997).
      dropout: rate on embeddings and between layers, as Zaremba et al. 2014 have it; None is none.
        May be traced.
      init_std: standard deviation of embeddings at initialisation.
      dtype: dtype of the computation; None is that of the parameters.
      remat: what the backward pass recomputes to save memory: "none", all but the matrix products
        ("dots"), or each layer from its input ("block").
      constrain: pins activations to a mesh (`common.devices.mesh.constrainer`).
    """

    width: int = 512
    layers: int = 2
    cell: CellName = "lstm"
    projection_width: int | None = None
    activation: Literal["tanh", "relu"] = "tanh"
    bidirectional: bool = False
    dropout: float | None = None
    init_std: float = 0.02
    dtype: Dtype | None = None
    remat: Remat = "none"
    constrain: Callable = identity

    def setup(self):
        """Creates `block_0`, …"""
        self._check()
        block = recomputed(Layer, self.remat)
        for i in range(self.layers):
            setattr(self, f"block_{i}", block(self.make_layer, self.bidirectional))
        self.layer_dropout = Dropout(self.dropout)

    def _check(self):
        sizes = {"width": self.width, "layers": self.layers}
        if self.projection_width is not None:
            sizes["projection_width"] = self.projection_width
        for name, size in sizes.items():
            require(size > 0, f"config.model.{name}: {size} is not positive")
        require(self.layers <= MOST_LAYERS, f"config.model.layers: {self.layers} is too many")
        for name, value, known in (
            ("cell", self.cell, CELLS),
            ("activation", self.activation, ACTIVATIONS),
        ):
            text = f"config.model.{name}: {brief(value)} is not one of {', '.join(known)}"
            require(value in known, text)
        require(
            self.projection_width is None or CELLS[self.cell].has_cell,
            f"config.model.projection_width: only LSTMs project their states; with cell="
            f"{self.cell!r}, set it to None",
        )

    @nn.nowrap
    def layer_options(self) -> dict:
        """Additional fields of `Recurrent`, set by a subclass."""
        return {}

    @nn.nowrap
    def make_layer(self, **where) -> nn.Module:
        """One direction of a layer of this model."""
        return Recurrent(
            width=self.width,
            cell=self.cell,
            projection_width=self.projection_width,
            activation=self.activation,
            dtype=self.dtype,
            constrain=self.constrain,
            **self.layer_options(),
            **where,
        )

    @property
    def state_width(self) -> int:
        """P."""
        return self.width if self.projection_width is None else self.projection_width

    @property
    def out_width(self) -> int:
        """The width of a layer's outputs: P, or 2 P in both directions."""
        return self.state_width * (2 if self.bidirectional else 1)

    def stack(self, x, segments=None, train: bool = False, states: tuple | None = None):
        """Runs the layers: [B, L, D] -> ([B, L, P or 2 P], states of each layer's direction
        forward, of all positions).

        Args:
          x: [B, L, D], embedded.
          segments: i32[B, L] or None: a segment begins with a zero state.
          train: whether dropout is active.
          states: of each layer before the first position; None is zero.
        """
        kept = []
        for i in range(self.layers):
            x = self.layer_dropout(x, train) if i else x
            state = None if states is None else states[i]
            x, own = getattr(self, f"block_{i}")(x, segments, state)
            x = self.constrain(x, "batch", None, None)
            kept.append(own)
            if wanted(self):
                self.sow("intermediates", f"hidden_{i}", x)
        return x, tuple(kept)

    @nn.nowrap
    def stack_flops(self, length: int, inputs: int) -> int:
        """FLOPs of the layers' forward pass on one row of L = `length` positions of width D =
        `inputs`: matrix multiplications only, two a multiply-add. Needs no parameters."""
        columns = CELLS[self.cell].gates * self.width
        total = 0
        for i in range(self.layers):
            kernels = columns * ((self.out_width if i else inputs) + self.state_width)
            if self.projection_width is not None:
                kernels += self.width * self.projection_width
            total += kernels * (2 if self.bidirectional else 1)
        return 2 * length * total

    @property
    def partition_rows(self) -> Table:
        """The rows of the layers; a model adds those of its embeddings and heads."""
        names = dict(NAMES)
        if self.projection_width is None:
            del names["projection"]
        directions = "(forward|backward)" if self.bidirectional else "forward"
        return partition_rows(directions, names)
