"""Exact evaluation over a finite set, and the evaluators that a config names.

No example is dropped, none is counted twice.

Each batch is summed on the device, and the sums are added up on the host in float64; the host
fetches a batch's sums while the next batch runs. `finish` computes metrics that are not means.
"""

import inspect
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import PartitionSpec

from common import imports
from common.config import EVALUATOR_KEYS
from common.errors import require
from common.losses import ratio
from common.sections import Selected, call, parameters
from common.task import EvalContext, Evaluator, Source, Terms


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


def row_evaluator(source: Source, outputs: Callable, finish: Callable, *, batch_size: int):
    """`mean_evaluator` for metrics of several rows together: it also gathers something small of
    every row, such as predicted classes.

    Args:
      source: the set.
      outputs: (params, extra, batch, key) -> (Terms, {name: [B, ...]}); jitted here, once.
      finish: ({name: (sum f64[...], weight f64)}, {name: np[N, ...], in the order of the set}) ->
        {name: float | str | ndarray}.
      batch_size: rows at a time; affects the result only by rounding.

    Returns:
      EvalContext -> the result of `finish`.
    """

    @jax.jit
    def compiled(params, extra, batch, key):
        terms, rows = outputs(params, extra, batch, key)
        rows = rows, batch["index"], batch["valid"]
        # On every device, so that each process has all rows.
        return terms, jax.lax.with_sharding_constraint(rows, PartitionSpec())

    def run(context: EvalContext) -> dict:
        totals: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        gathered: dict[str, np.ndarray] = {}
        previous = None

        def fetch(totals, made):
            if made is None:
                return totals
            rows, index, valid = jax.device_get(made[1])
            for name, values in rows.items():
                if name not in gathered:
                    gathered[name] = np.zeros((source.size, *values.shape[1:]), values.dtype)
                gathered[name][index[valid > 0]] = values[valid > 0]
            return add(totals, made[0])

        for batch in context.batches(source, batch_size):
            current = compiled(context.params, context.extra, batch, context.key)
            totals = fetch(totals, previous)
            previous = current
        return finish(fetch(totals, previous), gathered)

    return run


def add(totals: dict, terms: Terms | None) -> dict:
    """Adds a batch's Terms, or None, to float64 totals."""
    if terms is None:
        return totals
    terms = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(terms))
    if not totals:
        return terms
    return {n: (totals[n][0] + s, totals[n][1] + w) for n, (s, w) in terms.items()}


# ------------------------------------------------------------------------------------------- kinds


def sections(config, usual: Callable) -> dict[str, Selected]:
    """{"evals.NAME": what the section feeds}, for the `sections` of a task.

    The key `kind` is the import path of a module with a function `evaluator`, such as
    `common.evaluators.calibration`; "" is the task's usual evaluator. A new kind is a new file, in
    anybody's package: `evaluator(source, OUTPUTS…, *, split, every, batch_size, …) -> Evaluator`,
    where OUTPUTS are names of functions that the task offers (its call of `evaluators`).

    Args:
      config: the config, as far as it is there.
      usual: the task's own evaluator, with the same signature.

    Raises:
      BadInput: if there is no such kind.
    """
    functions = {}
    for name, section in (config.get("evals") or {}).items():
        kind = (
            section.get("kind") if hasattr(section, "get") else None
        )  # else `complete` refuses it
        function = _kind(f"config.evals.{name}.kind", kind) if kind else usual
        functions[f"evals.{name}"] = Selected("kind", "", function)
    return functions


def _kind(where: str, path: str) -> Callable:
    module = imports.module(where, path, "common.evaluators.calibration")
    function = getattr(module, "evaluator", None)
    hint = imports.hidden(path)
    require(callable(function), f"{where}: {path!r} has no function `evaluator`{hint}")
    lacking = [key for key in EVALUATOR_KEYS if key not in parameters(function)]
    require(not lacking, f"{where}: {path!r}: `evaluator` has no keyword {', '.join(lacking)}")
    imports.say_hidden(where, path)
    return function


def evaluators(
    config: dict, usual: Callable, sources: dict[str, Source], **outputs: Callable
) -> dict[str, Evaluator]:
    """The evaluators of a config, for `Task.evaluators`.

    Args:
      config: nested dict.
      usual: the task's own evaluator.
      sources: of the task.
      outputs: functions of the task that evaluators may take, by the names of their positional
        parameters after `source`: `logits` of a classifier, for example.

    Raises:
      BadInput: if an evaluator asks for what the task does not offer.
    """
    made = {}
    for name, section in config.get("evals", {}).items():
        where = f"config.evals.{name}.kind"
        function = _kind(where, section["kind"]) if section.get("kind") else usual
        _, *wanted = (
            key
            for key, parameter in inspect.signature(function).parameters.items()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        )
        lacking = [key for key in wanted if key not in outputs]
        require(
            not lacking,
            f"{where}: {section.get('kind')!r} needs {', '.join(lacking)}, and {config['task']} "
            f"offers {', '.join(outputs)}",
        )
        made[name] = call(function, section, sources[name], *(outputs[key] for key in wanted))
    return made
