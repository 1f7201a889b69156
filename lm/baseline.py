"""The unigram baseline, which ignores context: the least that a language model must beat.

Letters: V vocabulary.
"""

import jax.numpy as jnp
import numpy as np

from common.task import Terms
from lm.data.tokenizer import TextFacts


def unigram(facts: TextFacts, special: bool) -> np.ndarray:
    """f32[V]: log frequency of each token in the training text, with one added to every count.

    Args:
      facts: of the set.
      special: whether special tokens are among the targets.
    """
    counts = np.array(facts.counts, np.float64)
    if facts.document_begin:  # a document's first token is not predicted, but may also end it
        first, frame = facts.begin[0], (*facts.begin, *facts.end)
        counts[first] *= 1 - 1 / frame.count(first)
    counts += 1
    if not special:
        counts[facts.special_ids] = 1e-9
    return np.log(counts / counts.sum()).astype(np.float32)


def terms(log_shares, targets, valid) -> Terms:
    """{"unigram_loss", "unigram_accuracy"} as (sum, weight), on the same targets as a model.

    Args:
      log_shares: f32[V], from `unigram`.
      targets: i32[N].
      valid: f32[N].
    """
    table = jnp.asarray(log_shares)
    weight = valid.sum()
    correct = (targets == jnp.argmax(table)).astype(jnp.float32)
    return {
        "unigram_loss": (-(table[targets] * valid).sum(), weight),
        "unigram_accuracy": ((correct * valid).sum(), weight),
    }
