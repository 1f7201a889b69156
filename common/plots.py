"""Figures, drawn with Matplotlib (the extra `plots`), that no global state knows of.

histories = [workdir.read_log("runs/small-0")]
plots.learning_curves({"small": histories}, "eval/test/accuracy").savefig("curves.png")
"""

from collections.abc import Sequence

import numpy as np

from common.config import BadInput


def figure(width: float, height: float):
    """An empty Matplotlib figure, its sides in inches.

    Raises:
      BadInput: if Matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadInput(
            "pictures need matplotlib, which is missing: pip install -e '.[plots]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def curve(history: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """(minutes f64[n], values f64[n]) of a key of the log; time is read off the lines around."""
    clock = [(line["step"], line["time/seconds"]) for line in history if "time/seconds" in line]
    found = [(line["step"], line[key]) for line in history if key in line]
    if not clock or not found:
        return np.zeros(0), np.zeros(0)
    steps, seconds = np.array(clock, float).T
    at, values = np.array(found, float).T
    return np.interp(at, steps, seconds) / 60, values


def learning_curves(runs: dict[str, Sequence[Sequence[dict]]], key: str):
    """A key of the log against minutes: a line a run, one colour a name.

    Args:
      runs: {name: the logs of its seeds}.
      key: "eval/test/accuracy".

    Returns:
      A Matplotlib figure.

    Raises:
      BadInput: if Matplotlib is missing.
    """
    drawn = figure(7.5, 4.5)
    axes = drawn.subplots()
    finals = []
    for i, (name, histories) in enumerate(runs.items()):
        for j, history in enumerate(histories):
            minutes, values = curve(history, key)
            label = name if j == 0 else None
            axes.plot(minutes, values, ".-", color=f"C{i}", lw=1, ms=3, alpha=0.8, label=label)
            finals += list(values[len(values) // 2 :])
    if "accuracy" in key and finals:  # the first epochs would squeeze all others together
        axes.set_ylim(min(finals) - 0.02, max(finals) + 0.005)
    axes.set_xlabel("minutes")
    axes.set_ylabel(key)
    axes.grid(alpha=0.3)
    axes.legend()
    return drawn
