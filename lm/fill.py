"""Filling masks: what a masked language model would put in the place of a mask token.

Letters: R rows, L positions, P positions asked about, V vocabulary, k guesses.
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

MASK = "[MASK]"  # how a user writes a mask token, whatever the tokenizer calls it


class Filled(NamedTuple):
    """A text whose masks have been guessed.

    Attributes:
      text: with the likeliest token in each mask.
      guesses: for each mask the likeliest tokens and their probabilities, [(str, float)].
    """

    text: str
    guesses: list[list[tuple[str, float]]]


def guesses(logits, k: int):
    """The k likeliest tokens at some positions: (ids i32[R, P, k], probabilities f32[R, P, k]).

    Args:
      logits: f32[R, P, V].
      k: how many.
    """
    top, ids = jax.lax.top_k(logits, k)
    return ids, jnp.exp(top - jax.nn.logsumexp(logits, axis=-1, keepdims=True))


def sentence(tokenizer, tokens, at: int, guess: int, probability: float, around: int = 16) -> str:
    """One line: the text around a position, with the guess in brackets, and whether it is right.

    Args:
      tokenizer: a `tokenizers.Tokenizer`.
      tokens: i32[L], with the true token at the position.
      at: the position.
      guess: the token guessed, and
      probability: how sure the model was.
      around: tokens shown on either side.
    """
    text = lambda ids: tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
    before, behind = tokens[max(at - around, 0) : at], tokens[at + 1 : at + 1 + around]
    piece, true = tokenizer.id_to_token(int(guess)), tokenizer.id_to_token(int(tokens[at]))
    verdict = "right" if guess == tokens[at] else f"it was {true!r}"
    return f"… {text(before)} [{piece}] {text(behind)} …  ({probability:.0%}, {verdict})"


def fill(
    model: nn.Module, params, facts: TextFacts, texts: Sequence[str], k: int = 5
) -> list[Filled]:
    """Guesses the masks of texts, all masks of a text at once.

    Args:
      model: called as `lm.mlm` calls it.
      params: its parameters.
      facts: of `lm.data.tokenizer`.
      texts: each with one [MASK] at least.
      k: guesses a mask.

    Raises:
      BadInput: if a text has no mask or is too long for the model, or k is out of range.
    """
    tokenizer, special, size = facts.tokenizer, facts.special, facts.vocab_size
    require(0 < k <= size, f"top: {k} is not in [1, {size}], the tokens that there are")
    mask = tokenizer.id_to_token(special["mask"])
    rows, picked = [], []
    for text in texts:
        require(MASK in text, f"text: {text!r} has no {MASK}; write one in the place of a word")
        ids = tokenizer.encode(text.replace(MASK, mask), add_special_tokens=False).ids
        rows.append(np.array([special["cls"], *ids, special["sep"]]))
        picked.append(np.flatnonzero(rows[-1] == special["mask"]))
    length, most = max(map(len, rows)), max(map(len, picked))
    have = model.max_length if getattr(model, "positions", None) == "learned" else length
    require(
        length <= have,
        f"text: {length} tokens, and the model has {have} positions; write a shorter one",
    )
    tokens, segments = (np.zeros((len(rows), length), np.int32) for _ in range(2))
    places = np.zeros((len(rows), most), np.int32)
    for i, (row, at) in enumerate(zip(rows, picked, strict=True)):
        tokens[i, : len(row)], segments[i, : len(row)], places[i, : len(at)] = row, 1, at
    ids, shares = jax.device_get(_guesses(model, params, tokens, segments, places, k))
    found = []
    for row, at, its, sure in zip(rows, picked, ids, shares, strict=True):
        row[at] = its[: len(at), 0]
        text = tokenizer.decode(row[1:-1].tolist(), skip_special_tokens=False)
        names = [[tokenizer.id_to_token(i) for i in each] for each in its[: len(at)].tolist()]
        pairs = zip(names, sure.tolist(), strict=False)  # behind the last mask there is padding
        found.append(Filled(text, [list(zip(*pair, strict=True)) for pair in pairs]))
    return found


@partial(jax.jit, static_argnames=("model", "k"))
def _guesses(model, params, tokens, segments, picked, k: int):
    found = model.apply({"params": params}, tokens, segments, None, picked)
    return guesses(found[0] if isinstance(found, tuple) else found, k)  # with a next-sentence head
