"""Filling masks: the tokens that a masked language model predicts in place of mask tokens.

Letters: R rows, L positions, P queried positions, V vocabulary, k guesses.
"""

import jax
import jax.numpy as jnp

MASK = "[MASK]"  # how users may write a mask token, whatever the tokenizer calls it


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
