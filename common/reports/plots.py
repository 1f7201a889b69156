"""Figures, drawn with Matplotlib (the extra `plots`), that no global state knows of.

histories = [workdir.read_log("runs/small-0")]
plots.learning_curves({"small": histories}, "eval/test/accuracy").savefig("curves.png")
plots.against([{"optim.lr": 0.1}, {"optim.lr": 0.2}], [0.7, 0.8], "accuracy").savefig("rates.png")
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from common.errors import BadInput

FEW = 10  # as many colours as Matplotlib tells apart


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


# ------------------------------------------------------------------------------------------ curves


def curve(history: Sequence[dict], key: str, x: str = "minutes") -> tuple[np.ndarray, np.ndarray]:
    """(x f64[n], values f64[n]) of a key of the log; x are "steps", or "minutes", which are read
    off the lines around."""
    clock = [(line["step"], line["time/seconds"]) for line in history if "time/seconds" in line]
    found = [(line["step"], line[key]) for line in history if key in line]
    if not clock or not found:
        return np.zeros(0), np.zeros(0)
    steps, seconds = np.array(clock, float).T
    at, values = np.array(found, float).T
    return (at if x == "steps" else np.interp(at, steps, seconds) / 60), values


def learning_curves(runs: dict[str, Sequence[Sequence[dict]]], key: str, x: str = "minutes"):
    """A key of the log against minutes or steps: a line a run, one colour a name.

    Of more than ten names, the colour is the mean of the last values, and the first five are named.

    Args:
      runs: {name: the logs of its seeds}, the best first.
      key: "eval/test/accuracy".
      x: "minutes", or "steps", which know nothing of what else the machine did.

    Returns:
      A Matplotlib figure.

    Raises:
      BadInput: if Matplotlib is missing.
    """
    drawn = figure(7.5, 4.5)
    axes = drawn.subplots()
    curves = {name: [curve(history, key, x) for history in runs[name]] for name in runs}
    means = [np.mean([values[-1] for _, values in found if len(values)] or [np.nan])
             for found in curves.values()]  # fmt: skip
    many = len(runs) > FEW
    scale = _colours(drawn, axes, means, key) if many else None
    rest = []
    for i, (name, found) in enumerate(curves.items()):
        colour = scale.to_rgba(means[i]) if scale else f"C{i}"
        for j, (at, values) in enumerate(found):
            label = name if j == 0 and (i < 5 or not many) else None
            axes.plot(at, values, ".-", color=colour, lw=1, ms=3, alpha=0.8, label=label)
            rest += list(values[len(values) // 2 :])
    if "accuracy" in key and rest:  # the first epochs would squeeze all others together
        axes.set_ylim(np.nanmin(rest) - 0.02, np.nanmax(rest) + 0.005)
    axes.set_xlabel(x)
    axes.set_ylabel(key)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, title="the best five" if many else None)
    return drawn


def _colours(drawn, axes, values: Sequence[float], name: str):
    """A scale of colours over `values` with its bar beside `axes`; `to_rgba` is a value's."""
    scale = axes.scatter([], [], c=[], cmap="viridis")
    scale.set_clim(np.nanmin(values), np.nanmax(values))
    drawn.colorbar(scale, ax=axes, label=name)
    return scale


# ---------------------------------------------------------------------------------- hyperparameters


def label(value: Any, exact: bool = False) -> str:
    """A value of a config in few letters: 0.0003, (64,64), None. Numbers have four digits unless
    `exact`."""
    if isinstance(value, tuple):
        return f"({','.join(label(part, exact) for part in value)})"
    return f"{value:.4g}" if isinstance(value, float) and not exact else str(value)


class Positions(NamedTuple):
    """Where the values of a hyperparameter stand on an axis.

    Attributes:
      at: f64[n].
      log: whether the axis is logarithmic.
      names: of the positions 0, 1, … if the values are categories, else None.
    """

    at: np.ndarray
    log: bool
    names: list[str] | None


def positions(values: Sequence) -> Positions:
    """Numbers stand where they are, on a logarithmic axis if they are positive and span more than a
    factor of 10; everything else is a category."""

    def is_number(value):
        return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)

    if all(map(is_number, values)):
        at = np.array(values, float)
        return Positions(at, bool(0 < 10 * at.min() < at.max()), None)

    def order(value):  # "5 epochs" before "10 epochs"
        parts = enumerate(re.split(r"(\d+)", str(value)))
        return (0, value) if is_number(value) else (1, [int(x) if i % 2 else x for i, x in parts])

    names = list(dict.fromkeys(label(value) for value in sorted(values, key=order)))
    return Positions(np.array([names.index(label(v)) for v in values], float), False, names)


def against(settings: Sequence[dict[str, Any]], values: Sequence[float], metric: str):
    """A metric against each hyperparameter: a panel each, a dot a run, and where values are few or
    come again, a line through their means.

    Args:
      settings: {hyperparameter: value} of each run, all with the same keys.
      values: of the metric, of each run.
      metric: its name.

    Returns:
      A Matplotlib figure.

    Raises:
      BadInput: if Matplotlib is missing.
    """
    keys, values = list(settings[0]), np.array(values, float)
    across = min(len(keys), 3)
    down = math.ceil(len(keys) / across)
    drawn = figure(max(4.5, 2.8 * across), 3 * down)
    grid = drawn.subplots(down, across, squeeze=False, sharey=True)
    for axes in grid.ravel()[len(keys) :]:
        axes.set_axis_off()
    for axes, key in zip(grid.ravel(), keys, strict=False):
        at, log, names = positions([of_run[key] for of_run in settings])
        axes.plot(at, values, ".", color="C0", alpha=0.6)
        places = np.unique(at)
        if len(places) <= max(FEW, len(at) // 2):  # others would be no line but a zigzag
            means = [values[at == place].mean() for place in places]
            axes.plot(places, means, "-", color="C0", lw=1)
        if log:
            axes.set_xscale("log")
        elif not names:
            axes.locator_params("x", nbins=5)
        else:
            few = range(len(names)) if len(names) <= 12 else ()
            turned = {"rotation": 20, "ha": "right"} if sum(map(len, names)) > 24 else {}
            axes.set_xticks(few, [_cut(names[i]) for i in few], **turned)
        axes.set_xlabel(key)
        axes.grid(alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel(metric)
    return drawn


def parallel(settings: Sequence[dict[str, Any]], values: Sequence[float], metric: str):
    """Parallel coordinates (Inselberg 1985): an axis a hyperparameter, and one of the metric, which
    is the colour as well; a line a configuration.

    Args:
      settings: {hyperparameter: value} of each configuration, all with the same keys; the first
        ones are drawn above the others.
      values: of the metric, of each configuration.
      metric: its name.

    Returns:
      A Matplotlib figure.

    Raises:
      BadInput: if Matplotlib is missing.
    """
    columns = {key: [each[key] for each in settings] for key in settings[0]} | {metric: values}
    drawn = figure(min(3 + 1.5 * len(columns), 9), 4.5)
    axes = drawn.subplots()
    scale = _colours(drawn, axes, values, metric)
    heights = []
    for i, column in enumerate(columns.values()):
        at, ticks = _height(positions(column))
        heights.append(at)
        axes.axvline(i, color="black", lw=0.8)
        for height, text in ticks:
            box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
            axes.text(i + 0.03, height, _cut(text), fontsize=8, va="center", bbox=box, zorder=3)
    for line, value in reversed(list(zip(np.transpose(heights), values, strict=True))):
        axes.plot(line, color=scale.to_rgba(value), lw=1.5, alpha=0.8)
    turned = {"rotation": 20, "ha": "right"} if sum(map(len, columns)) > 60 else {}
    axes.set_xticks(range(len(columns)), columns, **turned)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 0.7)
    for side in axes.spines.values():
        side.set_visible(False)
    return drawn


def _height(column: Positions) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """(f64[n] in [0, 1], [(height, text) of a mark]): a mark a value, or five where there are
    more than six."""
    at = np.log(column.at) if column.log else column.at
    low, span = at.min(), (at.max() - at.min()) or 1.0
    marks = np.unique(at)
    if len(marks) > 6:
        marks = np.linspace(at.min(), at.max(), 5)
        marks = np.unique(np.rint(marks)) if column.names else marks
    texts = np.exp(marks) if column.log else marks
    named = [column.names[int(x)] if column.names else f"{x:.4g}" for x in texts]
    return (at - low) / span, list(zip((marks - low) / span, named, strict=True))


# ------------------------------------------------------------------------------------- calibration


def reliability(table, name: str):
    """A reliability diagram (DeGroot & Fienberg 1983): accuracy against confidence, a bar a bin,
    and below how many predictions each bin holds.

    Args:
      table: f64[3, M]: predictions, mean confidence and accuracy of each bin, as
        `common.evaluators.calibration` logs them.
      name: of the evaluator, for the title.

    Returns:
      A Matplotlib figure.

    Raises:
      BadInput: if Matplotlib is missing.
    """
    counts, confidence, accuracy = np.array(table, float)
    bins = len(counts)
    edges, filled = np.arange(bins) / bins, counts > 0
    ece = np.sum(counts * np.abs(accuracy - confidence)) / max(counts.sum(), 1)
    drawn = figure(5, 5.5)
    upper, lower = drawn.subplots(2, sharex=True, height_ratios=(3, 1))
    upper.bar(edges[filled], accuracy[filled], 1 / bins, align="edge", edgecolor="white")
    upper.plot(confidence[filled], accuracy[filled], "o-", color="C1", ms=4, lw=1, label="observed")
    upper.plot([0, 1], [0, 1], "--", color="black", lw=1, label="perfectly calibrated")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"{name}: ECE {ece:.4f}")
    upper.legend(fontsize=8, loc="upper left")
    lower.bar(edges, counts, 1 / bins, align="edge", edgecolor="white")
    lower.set(xlabel="confidence", ylabel="predictions")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return drawn


def _cut(text: str, length: int = 16) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
