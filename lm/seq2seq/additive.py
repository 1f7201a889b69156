"""A recurrent layer that looks at a memory, with additive attention (Bahdanau et al. 2015).

Letters: B batch, S positions of the memory, L positions, P width of a state, X width of the memory,
A width of the attention's scores.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.nn import cells
from common.nn.cells import ACTIVATIONS, CELLS
from common.nn.layers import Dense
from common.nn.recurrent import Recurrent, uniform
from common.nn.scan import row_functions, scan

# Logical names of the kernels that a layer with attention has beside those of any layer.
ATTENTION_NAMES = {"key": ("embed", None), "query": ("embed", None), "context": ("embed", None)}


class EncodedSource(NamedTuple):
    """What an encoder made of a source.

    Attributes:
      outputs: [B, S, X]; without attention None.
      keys: [B, S, A], of the outputs; without attention None.
      start: a tuple over the decoder's layers of states, each leaf [B, S, ...], of which one
        position in a segment counts: that at which the encoder has read all of it.
    """

    outputs: jax.Array | None
    keys: jax.Array | None
    start: tuple


class AttentionRecurrent(Recurrent):
    """A layer that looks at a memory: with additive attention by the state before a step it takes a
    mean of the memory, a further input of the step."""

    def setup(self):
        """Creates the layer, `query`, `context` and `score`."""
        super().setup()
        init = uniform(self.width**-0.5)
        dense = partial(
            Dense, use_bias=False, dtype=self.dtype, kernel_init=init, constrain=self.constrain
        )
        self.query = dense(self.width, names=ATTENTION_NAMES["query"])
        columns = CELLS[self.cell].gates * self.width
        self.context = dense(columns, names=ATTENTION_NAMES["context"])
        self.score = self.param("score", init, (self.width,), jnp.float32)

    def __call__(self, x, segments, state, fresh, memory: EncodedSource, source_segments):
        """Returns (states of all positions, contexts [B, L, X]).

        Args:
          x, segments, state, fresh: as in `Recurrent`; segments are no option.
          memory: with outputs and keys.
          source_segments: i32[B, S].
        """
        inputs, state = self.begin(x, state)
        layers = {"recurrent": self.recurrent, "query": self.query, "context": self.context}
        if self.projection_width is not None:
            layers["projection"] = self.projection
        if self.is_initializing():
            states = {"projection": jnp.zeros((1, self.width)), "context": memory.outputs[:1, 0]}
            for name, layer in layers.items():
                layer(states.get(name, state[0][:1]))
        functions, params = row_functions(layers)
        same = segments[:, :, None] == source_segments[:, None, :]
        xs = {"inputs": inputs, "seen": same.swapaxes(0, 1)}
        xs |= cells.beginnings(segments, fresh) if fresh is not None else {}
        update = partial(CELLS[self.cell].update, activation=ACTIVATIONS[self.activation])
        pin = lambda leaf: self.constrain(leaf, "batch", None)

        def step(apply, fixed, state, x):
            outputs, keys, score = fixed
            state = cells.begun(state, x)
            features = jnp.tanh(apply("query", state[0])[:, None] + keys)
            wide = jnp.promote_types(features.dtype, jnp.float32)
            scores = jnp.einsum("bsa,a->bs", features, score, preferred_element_type=wide)
            scores = jnp.where(x["seen"], scores, jnp.finfo(wide).min / 2)
            shares = jax.nn.softmax(scores, axis=-1).astype(outputs.dtype)
            context = jnp.einsum("bs,bsx->bx", shares, outputs)
            inputs = x["inputs"] + apply("context", context)
            hidden, *others = update(inputs, apply("recurrent", state[0]), state)
            if "projection" in functions:
                hidden = apply("projection", hidden)
            state = jax.tree.map(pin, (hidden, *others))
            return state, (state, context)

        fixed = memory.outputs, memory.keys, self.score.astype(inputs.dtype)
        _, result = scan(step, functions, params, fixed, state, xs)
        return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), result)
