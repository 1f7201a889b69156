"""What a model of words without context reaches: the least that a language model must beat.

Letters: V vocabulary.
"""

import jax.numpy as jnp
import numpy as np

from common.task import Terms
from lm.data.tokenizer import TextFacts


def unigram(facts: TextFacts, special: bool) -> np.ndarray:
    """f32[V]: log of each token's share of the training text, one added to every count.

    Args:
      facts: of the set.
      special: whether special tokens are among what is predicted.
    """
    counts, ids = np.array(facts.counts, np.float64), facts.special
    if ids["mask"] is None:  # <|endoftext|> stands on either side of a document; one is predicted
        counts[ids["end"]] /= 2
    counts += 1
    if not special:
        counts[[i for i in ids.values() if i is not None]] = 1e-9
    return np.log(counts / counts.sum()).astype(np.float32)


def terms(log_shares, targets, valid) -> Terms:
    """{"unigram_loss", "unigram_accuracy"} as (sum, weight), on the very targets of a model.

    Args:
      log_shares: f32[V], from `unigram`.
      targets: i32[N].
      valid: f32[N].
    """
    table = jnp.asarray(log_shares)
    weight = valid.sum()
    right = (targets == jnp.argmax(table)).astype(jnp.float32)
    return {
        "unigram_loss": (-(table[targets] * valid).sum(), weight),
        "unigram_accuracy": ((right * valid).sum(), weight),
    }
