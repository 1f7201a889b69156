"""The metrics by which a run decides (early stopping, the best checkpoint), checked before its
first step: a key that is never logged, or is no number, would never decide anything."""

import itertools
import logging

import numpy as np

from common.devices import agreement
from common.errors import choice, require
from common.runs import files, log
from common.runs.history import metric_keys
from common.training.loop import eval_context
from common.training.program import Program
from common.training.step import TrainState


def check(program: Program, state: TrainState | None, folder) -> None:
    """Checks that the evaluators report the metrics that the config names.

    An evaluator's metrics are known once it has run: those that are named run on their first batch
    and, where that lacks the metric, on the whole set. `program` has checked metrics of training.

    Args:
      program: the run's program; its mesh must be set.
      state: that of step 0; None if the run resumes, and then metrics in its log are taken as they
        are.
      folder: the workdir; nothing is written.

    Raises:
      BadInput: for a metric that an evaluator does not report, or that is no number.
    """
    keys = {w: key for w, key in metric_keys(program.config).items() if key.startswith("eval/")}
    if state is None and keys:
        keys = _not_logged(keys, files.absolute(folder))
    if not keys:
        return
    state = program.create(program.hypers) if state is None else state
    for where, key in keys.items():
        name = key.split("/")[1]
        for most in (1, None):
            try:
                values = _evaluate(program, state, name, most)
            except Exception as error:  # whatever an evaluator cannot do with so little
                logging.warning("%s: %s is not checked: %s: %s", where, key, name, error)
                break
            if key in values or most is None:
                _check_number(where, key, values)
                break


def _not_logged(keys: dict[str, str], folder) -> dict[str, str]:
    """The keys that are no numbers in the log of the run, as far as all processes see it."""
    lines = log.tail(folder)
    logged = [key for key in keys.values() if any(_is_number(line.get(key)) for line in lines)]
    everywhere = set.intersection(*map(set, agreement.gather(logged)))
    return {where: key for where, key in keys.items() if key not in everywhere}


def _evaluate(program: Program, state: TrainState, name: str, most: int | None) -> dict:
    """{log key: value} of an evaluator, from its first `most` batches."""
    context = eval_context(program, state, 0)
    batches = context.batches
    few = lambda source, size: itertools.islice(batches(source, size), most)
    values = program.task.evaluators[name].run(context._replace(batches=few))
    return {f"eval/{name}/{metric}": value for metric, value in values.items()}


def _is_number(value) -> bool:
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "biuf"


def _check_number(where: str, key: str, values: dict) -> None:
    numbers = [name for name, value in values.items() if _is_number(value)]
    others = key in values and key not in numbers
    require(
        not others,
        f"{where}: {key!r} is {'text' if isinstance(values.get(key), str) else 'no single number'},"
        f" which never improves; the numbers are {', '.join(numbers) or 'none'}",
    )
    choice(where, key, numbers)
