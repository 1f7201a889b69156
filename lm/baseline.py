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
    counts, ids = np.array(facts.counts, np.float64), facts.special
    if ids["mask"] is None:  # <|endoftext|> is at both ends of a document; one is predicted
        counts[ids["end"]] /= 2
    counts += 1
    if not special:
        counts[[i for i in ids.values() if i is not None]] = 1e-9
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
