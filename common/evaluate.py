"""Exact evaluation over a finite set: no example is dropped, none is counted twice.

Sums are made on the device, a batch at a time, and added up on the host in float64; the host
fetches a batch's sums while the next batch runs. What a mean cannot say is left to `finish`.
"""

from collections.abc import Callable

import jax
import numpy as np

from common.losses import ratio
from common.task import EvalContext, Source, Terms


def mean_evaluator(source: Source, terms: Callable, finish: Callable = ratio, *, batch_size: int):
    """The usual evaluator: adds Terms up over a set, then `finish(totals)`.

    Args:
      source: the set.
      terms: (params, extra, batch, key) -> Terms; jitted here, once.
      finish: {name: (sum f64[...], weight f64)} -> {name: float | str | ndarray}.
      batch_size: rows at a time; the result depends on it by rounding only.

    Returns:
      EvalContext -> finish's result.
    """
    compiled = jax.jit(terms)

    def run(context: EvalContext) -> dict:
        totals: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        previous: Terms | None = None
        for batch in context.batches(source, batch_size):
            current = compiled(context.params, context.extra, batch, context.key)
            totals = add(totals, previous)
            previous = current
        return finish(add(totals, previous))

    return run


def add(totals: dict, terms: Terms | None) -> dict:
    """Float64 totals with one more batch of Terms; None is none."""
    if terms is None:
        return totals
    terms = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(terms))
    if not totals:
        return terms
    return {n: (totals[n][0] + s, totals[n][1] + w) for n, (s, w) in terms.items()}
