"""Filling masks: the tokens that a masked language model predicts in place of mask tokens.

Letters: R rows, L positions, P queried positions, V vocabulary, k guesses.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common.errors import require
from lm.data.tokenizer import TextFacts

MASK = "[MASK]"  # how users may write a mask token, whatever the tokenizer calls it


class Filled(NamedTuple):
    """A text with its masks filled.

    Attributes:
      text: with the most likely token in each mask.
      guesses: the most likely tokens of each mask, with their probabilities: [(str, float)].
    """

    text: str
    guesses: list[list[tuple[str, float]]]


def guesses(logits, k: int):
    """The k most likely tokens at each position: (ids i32[R, P, k], probabilities f32[R, P, k]).

    Args:
      logits: f32[R, P, V].
      k: number of tokens.
    """
    top, ids = jax.lax.top_k(logits, k)
    return ids, jnp.exp(top - jax.nn.logsumexp(logits, axis=-1, keepdims=True))


def sentence(tokenizer, tokens, at: int, guess: int, probability: float, around: int = 16) -> str:
    """One line: the text around a position, the guess in brackets, and whether it is right.

    Args:
      tokenizer: a `tokenizers.Tokenizer`.
      tokens: i32[L], with the true token at the position.
      at: the position.
      guess: the predicted token.
      probability: of the guess.
      around: tokens shown on either side.
    """
    text = lambda ids: tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
    before, after = tokens[max(at - around, 0) : at], tokens[at + 1 : at + 1 + around]
    piece, true = tokenizer.id_to_token(int(guess)), tokenizer.id_to_token(int(tokens[at]))
    verdict = "right" if guess == tokens[at] else f"it was {true!r}"
    return f"… {text(before)} [{piece}] {text(after)} …  ({probability:.0%}, {verdict})"


def fill(
    model: nn.Module, params, facts: TextFacts, texts: Sequence[str], k: int = 5
) -> list[Filled]:
    """Fills the masks of texts, all masks of a text at once.

    Args:
      model: called as `lm.mlm` calls it.
      params: its parameters.
      facts: of `lm.data.tokenizer`.
      texts: each with at least one [MASK], or mask token of the tokenizer.
      k: guesses per mask.

    Raises:
      BadInput: if a text has no mask or is too long for the model, or k is out of range.
    """
    tokenizer, special, size = facts.tokenizer, facts.special, facts.vocab_size
    require(0 < k <= size, f"top: {k} is not in [1, {size}], the size of the vocabulary")
    mask = tokenizer.id_to_token(special["mask"])
    rows, picked = [], []
    for text in texts:
        ids = tokenizer.encode(text.replace(MASK, mask), add_special_tokens=False).ids
        masked = special["mask"] in ids
        require(masked, f"text: {text!r} has no {MASK}; write one in place of a word")
        rows.append(np.array([*facts.begin, *ids, *facts.end]))
        picked.append(np.flatnonzero(rows[-1] == special["mask"]))
    length, most = max(map(len, rows)), max(map(len, picked))
    available = model.max_length if getattr(model, "positions", None) == "learned" else length
    require(
        length <= available,
        f"text: {length} tokens, and the model has {available} positions; write a shorter one",
    )
    tokens, segments = (np.zeros((len(rows), length), np.int32) for _ in range(2))
    places = np.zeros((len(rows), most), np.int32)
    for i, (row, at) in enumerate(zip(rows, picked, strict=True)):
        tokens[i, : len(row)], segments[i, : len(row)], places[i, : len(at)] = row, 1, at
    ids, shares = jax.device_get(_guesses(model, params, tokens, segments, places, k))
    filled = []
    for row, at, best, confidences in zip(rows, picked, ids, shares, strict=True):
        row[at] = best[: len(at), 0]
        inner = row[len(facts.begin) : len(row) - len(facts.end)]
        text = tokenizer.decode(inner.tolist(), skip_special_tokens=False)
        names = [[tokenizer.id_to_token(i) for i in each] for each in best[: len(at)].tolist()]
        pairs = zip(names, confidences.tolist(), strict=False)  # padding follows the last mask
        filled.append(Filled(text, [list(zip(*pair, strict=True)) for pair in pairs]))
    return filled


@partial(jax.jit, static_argnames=("model", "k"))
def _guesses(model, params, tokens, segments, picked, k: int):
    outputs = model.apply({"params": params}, tokens, segments, None, picked)
    # A model with a next-sentence head returns two outputs.
    return guesses(outputs[0] if isinstance(outputs, tuple) else outputs, k)
