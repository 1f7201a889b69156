"""Exact evaluation over a finite set: no example is dropped, none is counted twice.

Each batch is summed on the device, and the sums are added up on the host in float64; the host
fetches a batch's sums while the next batch runs. `finish` computes metrics that are not means.
"""

from collections.abc import Callable

import jax
import numpy as np

from common.losses import ratio
from common.task import EvalContext, Source, Terms


def mean_evaluator(source: Source, terms: Callable, finish: Callable = ratio, *, batch_size: int):
    """The standard evaluator: sums Terms over a set, then applies `finish` to the totals.

    Args:
      source: the set.
      terms: (params, extra, batch, key) -> Terms; jitted here, once.
      finish: {name: (sum f64[...], weight f64)} -> {name: float | str | ndarray}.
      batch_size: rows at a time; affects the result only by rounding.

    Returns:
      EvalContext -> the result of `finish`.
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
    """Adds a batch's Terms, or None, to float64 totals."""
    if terms is None:
        return totals
    terms = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(terms))
    if not totals:
        return terms
    return {n: (totals[n][0] + s, totals[n][1] + w) for n, (s, w) in terms.items()}
