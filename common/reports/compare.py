"""Compares two runs: whether they are the same, where they diverge, and what differs around them.

    comparison = compare.runs("runs/a", "runs/b")
    print(comparison.verdict, comparison.parted, comparison.causes)

A run's log holds digests of its state, by module, at every line of training, so that two runs can
be compared step by step after their checkpoints are gone.
"""

import itertools
import math
from typing import NamedTuple

from etils import epath

from common import config
from common.errors import require
from common.runs import log, workdir
from common.runs.history import number
from common.training.saved import read_config

IDENTICAL, EQUAL, DIFFERENT = "bit-identical", "equal within tolerance", "different"
# Keys of environment.json that do not affect a result, or are compared separately.
ASIDE = ("command", "code", "data", "config", "steps", "kept")
FEW = 4  # files of code that are named
NO_DIGESTS = "the logs share no step with digests"


class Comparison(NamedTuple):
    """How two runs compare.

    Attributes:
      verdict: "bit-identical", "equal within tolerance" or "different".
      parted: where their states diverge, in one line; "" if they do not.
      causes: differences in config, data and environment, one per line.
      largest: the largest relative difference among the metrics of the last evaluation and the last
        loss, and its key; (0.0, "") if there is none, (inf, "") if there is nothing to compare.
    """

    verdict: str
    parted: str
    causes: list[str]
    largest: tuple[float, str]


def runs(a, b, tolerance: float = 1e-3) -> Comparison:
    """Compares two runs by the contents of their workdirs.

    Args:
      a, b: workdirs.
      tolerance: of relative differences; see `Comparison.largest`.

    Raises:
      BadInput: if one of them is not a run.
    """
    logs = log.read_lines(a), log.read_lines(b)
    for folder, lines in zip((a, b), logs, strict=True):
        require(bool(lines), f"{folder}: its log is empty")
    results = [workdir.read_result(epath.Path(folder)) or {} for folder in (a, b)]
    parted, largest = first_difference(*logs), largest_difference(*logs)
    digests = {result.get("digest") for result in results}
    ends = {lines[-1]["step"] for lines in logs} | {result.get("steps") for result in results}
    if parted in ("", NO_DIGESTS) and None not in digests and len(digests) == len(ends) == 1:
        verdict = IDENTICAL
    else:
        verdict = EQUAL if largest[0] <= tolerance else DIFFERENT
    lines = causes(a, b)
    if verdict != IDENTICAL and not lines and not any(map(_code, (a, b))):
        lines = ["the code may differ: neither run has recorded its own"]
    return Comparison(verdict, parted, lines, largest)


def _code(folder) -> dict | None:
    """{file: digest} of the code at a run's last start; None where that is not recorded."""
    starts = workdir.read_starts(folder)
    return starts[-1].get("code") if starts else None


def first_difference(a: list[dict], b: list[dict]) -> str:
    """Where the states of two runs diverge, by the digests in their logs; "" if they do not."""
    states = [{x["step"]: x["digests"] for x in lines if "digests" in x} for lines in (a, b)]
    steps = sorted(states[0].keys() & states[1].keys())
    if not steps:
        return NO_DIGESTS
    last_equal = None
    for step in steps:
        x, y = states[0][step], states[1][step]
        differ = [name for name in x.keys() | y.keys() if x.get(name) != y.get(name)]
        if differ:
            differ.sort(key=lambda name: (not name.startswith("params"), name))
            up_to = "at" if last_equal is None else f"the same up to step {last_equal}; at"
            more = f", and {len(differ) - 6} more" if len(differ) > 6 else ""
            return f"{up_to} step {step} these differ: {', '.join(differ[:6])}{more}"
        last_equal = step
    return ""


def largest_difference(a: list[dict], b: list[dict]) -> tuple[float, str]:
    """(relative difference, key) among the metrics of the last evaluation and the last loss; it is
    infinite where only one of them has a number, or there is nothing to compare."""
    x, y = ({k: v for line in lines for k, v in line.items()} for lines in (a, b))
    keys = [key for key in x | y if key.startswith("eval/") or key == "train/loss"]
    numbers = [(number(x.get(key)), number(y.get(key)), key) for key in keys]
    differences = [
        (_relative(*both), key) for *both, key in numbers if not all(map(math.isnan, both))
    ]
    worst = max(differences, default=(math.inf, ""))
    return worst if worst[0] else (0.0, "")


def _relative(x: float, y: float) -> float:
    if math.isnan(x) or math.isnan(y):
        return math.inf
    return abs(x - y) / max(abs(x), abs(y), 1e-12) if x != y else 0.0


def causes(a, b) -> list[str]:
    """What may make two runs differ: config, data, versions, machine; one per line, the likeliest
    to matter first."""
    starts = [workdir.read_starts(folder) for folder in (a, b)]
    settings = [read_config(folder) for folder in (a, b)]
    lines = [f"config.{line}" for line in _lines(*settings)]
    for folder, now, known in zip((a, b), settings, starts, strict=True):
        if known and "config" in known[-1]:
            then = config.from_json(config.to_json(known[-1]["config"]))
            lines += [
                f"config.{key} of {folder} was {was} when it ran; its config.json now has {saved}"
                for key, (was, saved) in config.differing(then, now).items()
                if key in config.flatten(then)  # other keys are newer than the run
            ]
    if not all(starts):
        return [*lines, "environment.json of one run is missing"]
    for folder, known in zip((a, b), starts, strict=True):
        for before, after in itertools.pairwise(known):
            differ = code_lines(before, after) + _lines(_place(before), _place(after))
            lines += [f"between two starts of {folder}: {line}" for line in differ]
    x, y = (known[-1] for known in starts)
    lines += list(map(workdir.called, _lines(x["data"], y["data"])))
    return list(dict.fromkeys(lines + code_lines(x, y) + _lines(_place(x), _place(y))))


def code_lines(x: dict, y: dict) -> list[str]:
    """The files of code in which two starts differ, in at most one line; a start of a version that
    recorded none is a difference, two are not."""
    if ("code" in x) != ("code" in y):
        return ["code: recorded by one start, not by the other"]
    differ = _differing_files(x.get("code", {}), y.get("code", {}))
    if not differ:
        return []
    more = f", and {len(differ) - FEW} more files" if len(differ) > FEW else ""
    return [f"code {', '.join(differ[:FEW])}{more}"]


def _differing_files(x: dict, y: dict) -> list[str]:
    get = lambda files, name: files.get(name, "not there")
    names = [name for name in sorted(x.keys() | y.keys()) if x.get(name) != y.get(name)]
    return [f"{name}: {get(x, name)} and {get(y, name)}" for name in names]


def _place(start: dict) -> dict:
    """The facts about a start in environment.json that a result may depend on: its machine,
    versions, and the config keys that may change between two starts."""
    facts = {key: value for key, value in start.items() if key not in ASIDE}
    settings = start.get("config", {})
    return facts | {f"config.{k}": v for k, v in settings.items() if k.startswith("train.duration")}


def _lines(x: dict, y: dict) -> list[str]:
    return [f"{key}: {in_x} and {in_y}" for key, (in_x, in_y) in config.differing(x, y).items()]


def comparison_text(comparison: Comparison) -> str:
    """A comparison as text."""
    lines = [comparison.verdict]
    if comparison.parted:
        lines.append(f"states: {comparison.parted}")
    if comparison.largest[1]:
        amount, key = comparison.largest
        how = f"by a relative {amount:.2g}" if math.isfinite(amount) else "one is not a number"
        lines.append(f"numbers: {key} differs most, {how}")
    lines += [f"differs: {line}" for line in comparison.causes]
    if comparison.verdict != IDENTICAL and not comparison.causes:
        lines.append(
            "nothing differs in config, data and environment: the program is not deterministic"
        )
    return "\n".join(lines) + "\n"
