"""Exact evaluation over a finite set, and the evaluators that a config names.

No example is dropped, none is counted twice.

Each batch is summed on the device, and the sums are added up on the host in float64; the host
fetches a batch's sums while the next batch runs. `finish` computes metrics that are not means.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

from common import imports
from common.config import EVALUATOR_KEYS
from common.errors import require
from common.losses import ratio
from common.sections import Selected, call, parameters
from common.task import EvalContext, Evaluator, Source, Terms

LOOKED_AT = 256  # rows among which mistakes are looked for


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


def collecting_evaluator(source: Source, rows: Callable, finish: Callable, *, batch_size: int):
    """An evaluator for metrics of all rows together, such as those of a ranking.

    Each process holds what `rows` returns for the whole set in host memory.

    Args:
      source: the set.
      rows: (params, extra, batch, key) -> {name: [B, ...]}, among them the batch's `valid`; jitted
        here, once.
      finish: {name: np[N, ...], in the order of the set} -> {name: float | str | ndarray}.
      batch_size: rows at a time.

    Returns:
      EvalContext -> the result of `finish`.
    """

    compiled = on_every_process(rows)

    def run(context: EvalContext) -> dict:
        parts: list[dict[str, np.ndarray]] = []
        previous = None
        for batch in context.batches(source, batch_size):
            current = compiled(context.params, context.extra, batch, context.key)
            parts += _valid_rows(previous)
            previous = current
        parts += _valid_rows(previous)
        return finish({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})

    return run


def on_every_process(rows: Callable) -> Callable:
    """`rows`, jitted: every process gets all of them, as only whole arrays can be fetched. To be
    called where `jax.set_mesh` holds."""
    return jax.jit(lambda *args: jax.lax.with_sharding_constraint(rows(*args), PartitionSpec()))


def spread(size: int, most: int) -> np.ndarray:
    """u32[n]: at most so many rows of a set of `size`, evenly spaced."""
    count = min(most, size)
    return (np.arange(count) * size // max(count, 1)).astype(np.uint32)


def _valid_rows(outputs: dict | None) -> list[dict[str, np.ndarray]]:
    if outputs is None:
        return []
    outputs = jax.device_get(outputs)
    valid = outputs.pop("valid") > 0
    return [{name: array[valid] for name, array in outputs.items()}]


def add(totals: dict, terms: Terms | None) -> dict:
    """Adds a batch's Terms, or None, to float64 totals."""
    if terms is None:
        return totals
    terms = jax.tree.map(lambda x: np.asarray(x, np.float64), jax.device_get(terms))
    if not totals:
        return terms
    return {n: (totals[n][0] + s, totals[n][1] + w) for n, (s, w) in terms.items()}


# ---------------------------------------------------------------------------------------- mistakes


class Mistakes(NamedTuple):
    """Rows that a classifier gets wrong, the least likely label first.

    Attributes:
      rows: {name: np[n, ...]}, as the set reads them.
      labels, guesses: i32[n], true and predicted class.
      confidence: f32[n], the probability of the guess.
    """

    rows: dict
    labels: np.ndarray
    guesses: np.ndarray
    confidence: np.ndarray

    def captions(self, classes: Sequence[str]) -> list[str]:
        """'cat as dog, 93%' of each row."""
        each = zip(self.labels, self.guesses, self.confidence, strict=True)
        return [f"{classes[a]} as {classes[b]}, {share:.0%}" for a, b, share in each]


def gravest_mistakes(source: Source, logits: Callable, most: int = 8) -> Callable:
    """EvalContext -> Mistakes among `LOOKED_AT` rows of a set, evenly spaced.

    Args:
      source: the set, with `label` i32[].
      logits: (params, extra, batch, key) -> f32[B, K].
      most: how many are kept.
    """
    at = spread(source.size, LOOKED_AT)
    count = len(at)

    predict = on_every_process(lambda *args: jax.nn.softmax(logits(*args)))

    def run(context: EvalContext) -> Mistakes:
        rows = source.read(at)
        batch = rows | {"index": at, "valid": np.ones(count, np.float32)}
        shares = jax.device_get(predict(context.params, context.extra, batch, context.key))
        labels, guesses = rows["label"], shares.argmax(axis=1)
        wrong = np.flatnonzero(guesses != labels)
        wrong = wrong[np.argsort(shares[wrong, labels[wrong]], kind="stable")][:most]
        rows = {name: array[wrong] for name, array in rows.items()}
        return Mistakes(rows, labels[wrong], guesses[wrong], shares[wrong, guesses[wrong]])

    return run


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
