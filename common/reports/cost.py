"""What the predictions of runs cost: bytes of parameters, and time on this machine, beside one
another. For runs of one task that were made smaller or faster in different ways."""

import statistics
import time
from collections.abc import Sequence

import jax

from common import predict
from common.predict import BATCH

ROUNDS = 15
# As columns of a table and axes of plots.
MEGABYTES, ALONE, BATCHED = "MB", "ms alone", f"ms each of {BATCH}"


def of_runs(workdirs: Sequence[str], example: str) -> list[dict[str, float]]:
    """What the runs' parameters and predictions come to.

    Args:
      workdirs: of the runs, whose predictions are timed in turn, so that what else the machine does
        slows all of them.
      example: an input of them, as scripts/predict.py takes it: a text, or the path of a picture.

    Returns:
      For each run {MEGABYTES: of its parameters and statistics; ALONE, BATCHED: median
      milliseconds for an input alone, and for each of a full batch, from the raw input to its
      result}.

    Raises:
      BadInput: if a run predicts nothing, or nothing from this input.
    """
    loaded = [predict.load(workdir) for workdir in workdirs]
    counts = {ALONE: 1, BATCHED: BATCH}
    times: list[dict[str, list[float]]] = [{name: [] for name in counts} for _ in loaded]
    for number in range(ROUNDS + 1):  # the first compiles
        for model, own in zip(loaded, times, strict=True):
            for name, count in counts.items():
                begun = time.perf_counter()
                model.predict([example] * count)
                if number:
                    own[name].append((time.perf_counter() - begun) / count * 1e3)
    return [
        {MEGABYTES: megabytes(model.variables)}
        | {name: statistics.median(taken) for name, taken in own.items()}
        for model, own in zip(loaded, times, strict=True)
    ]


def megabytes(variables: dict) -> float:
    """Of the arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(variables)) / 1e6
