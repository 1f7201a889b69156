"""Decisions read from a run's log: which checkpoints are best, and whether to stop early.

Pure functions of the lines of a log, so that a resumed run decides the same.
"""

import math
import re
from collections.abc import Iterable

import numpy as np

from common.errors import require


def parse_best(where: str, text: str) -> tuple[int, str] | None:
    """'max eval/valid/accuracy' -> (1, 'eval/valid/accuracy'); '' -> None. Raises `BadInput`."""
    if not text:
        return None
    matched = re.fullmatch(r"(max|min) +(\S.*)", text)
    require(matched is not None, f"{where}: {text!r}; write 'max eval/valid/accuracy' or 'min …'")
    return (1 if matched[1] == "max" else -1), matched[2]


def best_steps(best: tuple[int, str] | None, history: Iterable[dict]) -> list[int]:
    """The steps that log the key, best first; ties go to the earlier step."""
    if best is None:
        return []
    sign, key = best
    scores = [
        (-sign * line[key], line["step"]) for line in history if np.isfinite(number(line.get(key)))
    ]
    return [step for _, step in sorted(scores)]


def number(value) -> float:
    """A logged value as a number; NaN if it is not one."""
    return value if isinstance(value, (int, float)) else float("nan")


def why_stop(
    history: list[dict], *, metric: str = "", patience: int = 5, min_delta: float = 0.0
) -> str:
    """Early stopping: why to stop, or "" to go on. A pure function of the log, so that a resumed
    run decides the same.

    Args:
      history: the lines of the log.
      metric: the key of the log to watch: "max eval/valid/accuracy" or "min eval/valid/loss"; ""
        never stops.
      patience: stop after this many values in a row that do not improve on the best so far.
      min_delta: an improvement must exceed this difference from the best value so far.
    """
    require(patience > 0, f"config.train.stop.patience: {patience} is not positive")
    require(min_delta >= 0, f"config.train.stop.min_delta: {min_delta} is negative")
    parsed = parse_best("config.train.stop.metric", metric)
    if parsed is None:
        return ""
    sign, key = parsed
    best, at, waited = -np.inf, None, 0
    for line in history:
        if key in line:
            score = sign * number(line[key])
            score = -np.inf if np.isnan(score) else score
            improves = score > best + min_delta
            best, at, waited = (score, line["step"], 0) if improves else (best, at, waited + 1)
    if waited < patience:
        return ""
    values = "value" if waited == 1 else f"{waited} values"
    if at is None:
        return f"{key} is not a finite number in its last {values}"
    verb, beyond = ("risen", "above") if sign > 0 else ("fallen", "below")
    margin = f" by more than {min_delta:g}" if min_delta else ""
    reference = f"{beyond} {sign * best:.6g} (step {at})"
    return f"{key} has not {verb}{margin} {reference} in its last {values}"


def metric_keys(config: dict) -> dict[str, str]:
    """{config key: the log key it names}, for those that are set."""
    texts = {
        "config.checkpoint.best": config["checkpoint"]["best"],
        "config.train.stop.metric": config["train"]["stop"]["metric"],
    }
    return {where: metric_key(text) for where, text in texts.items() if text}


def metric_key(text: str) -> str:
    """'max eval/valid/accuracy', or without 'max', -> 'eval/valid/accuracy'. The name of an
    evaluator may have spaces."""
    return re.sub(r"^(max|min) +", "", text)


def last_speeds(history: list[dict]) -> dict[str, float]:
    """Examples a second, tokens a second and MFU, of the last line that logs speed."""
    line = next((line for line in reversed(history) if line.get("time/examples_per_second")), {})
    names = ("examples_per_second", "tokens_per_second", "mfu")
    return {name: line[f"time/{name}"] for name in names if f"time/{name}" in line}


def last_values(history: list[dict], step: int) -> dict:
    """{evaluator: {metric: value}} of the lines of `step`."""
    values: dict[str, dict] = {}
    for line in history:
        if line["step"] == step:
            for key, value in line.items():
                if key.startswith("eval/"):
                    _, name, metric = key.split("/", 2)
                    values.setdefault(name, {})[metric] = value
    return values


# ---------------------------------------------------------------------------------------- missing


def missing(
    history: list[dict], step: int, log_every: int, starts: list[dict]
) -> tuple[int, str] | None:
    """The first line that a run certainly logged up to `step`, and that its log lacks.

    Args:
      history: the lines of the log.
      step: of the checkpoint, before which everything due was logged.
      log_every: steps between lines of training, or 0 if that is not known.
      starts: the records of environment.json; what they do not tell is not asked for.

    Returns:
      (its step, "training" or "evaluation NAME"), or None.
    """
    configs = [c if isinstance(c := start.get("config"), dict) else {} for start in starts]
    known = lambda value: value if isinstance(value, int | str) else None
    told = lambda records, key: {known(record.get(key)) for record in records}
    totals = told(starts, "steps")
    bare = {line["step"] for line in history if line.keys() == {"step"}}  # without a result
    trained = _steps_with(history, "train/")
    texts = told(configs, "train.log_every")
    n = log_every or _interval(texts, trained, totals)
    absent = [(at, "training") for at in _due(n, step) if at not in trained]
    for key in configs[-1] if configs else ():
        _, name, *rest = (*key.split("."), "", "")
        if key.startswith("evals.") and rest[:1] == ["every"]:
            done = _steps_with(history, f"eval/{name}/")
            n = _interval(told(configs, key), done, totals)
            # Those of the checkpoint's own step may come after it: the run resumes with them.
            absent += [(s, f"evaluation {name}") for s in _due(n, step - 1) if s not in done | bare]
    return min(absent, default=None, key=lambda line: line[0])


def _steps_with(history: list[dict], prefix: str) -> set[int]:
    return {line["step"] for line in history if any(key.startswith(prefix) for key in line)}


def _due(interval: int | None, step: int) -> range:
    return range(interval, step + 1, interval) if interval else range(0)


def _interval(texts: set, done: set[int], totals: set) -> int | None:
    """The steps between two lines, or a multiple of them; None where that is not certain.

    Args:
      texts: the durations that the run's starts have set.
      done: the steps that have such a line.
      totals: the last steps of the starts, which are evaluated whatever the interval.
    """
    text = next(iter(texts)) if len(texts) == 1 else None
    if not isinstance(text, str) or ("%" in text and len(totals) != 1):
        return None
    exact = re.fullmatch(r"(\d+) steps?", text)
    if exact:
        return int(exact[1])
    inner = sorted(done - totals)[:-1]  # the last one may be that of early stopping
    if len(inner) < 2:
        return None
    common = math.gcd(*inner)
    return common if 2 * len(inner) > inner[-1] // common else None
