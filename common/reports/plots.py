"""Figures, drawn with Matplotlib (the extra `plots`) without its global state.

histories = [log.read_lines("runs/small-0")]
plots.learning_curves({"small": histories}, "eval/test/accuracy").savefig("curves.png")
plots.against([{"optim.lr": 0.1}, {"optim.lr": 0.2}], [0.7, 0.8], "accuracy").savefig("rates.png")
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from common.errors import BadInput
from common.reports import curves

FEW = 10  # Matplotlib's number of distinct colours


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


def learning_curves(
    runs: dict[str, Sequence[Sequence[dict]]],
    key: str,
    x: str = "steps",
    epoch_steps: float | None = None,
    sign: int = 0,
):
    """A log key against time: one line per run, one colour per name.

    With more than ten names, colour encodes the mean of the last values, and only the first five
    are named. The axis leaves out the first steps and diverged runs (`curves.window`).

    Args:
      runs: {name: the logs of its seeds}, the best first.
      key: "eval/test/accuracy".
      x: "steps", "minutes", which depend on what else the machine did, or "epochs".
      epoch_steps: steps of an epoch.
      sign: 1 if more of the key is better, -1 if less is, 0 if that is unknown.

    Returns:
      A Matplotlib figure.

    Raises:
      BadInput: if Matplotlib is missing.
    """
    drawn = figure(7.5, 4.5)
    axes = drawn.subplots()
    of_names = {name: [curves.of(history, key) for history in runs[name]] for name in runs}
    means = [np.mean([curve.values[-1] for curve in of_seeds if len(curve.values)] or [np.nan])
             for of_seeds in of_names.values()]  # fmt: skip
    many = len(runs) > FEW
    scale = _colours(drawn, axes, means, key) if many else None
    legend = []
    for i, (name, of_seeds) in enumerate(of_names.items()):
        colour = scale.to_rgba(means[i]) if scale else f"C{i}"
        for j, curve in enumerate(of_seeds):
            at = curves.along(curve, x, epoch_steps)
            (line,) = axes.plot(at, curve.values, ".-", color=colour, lw=1, ms=3, alpha=0.8)
            if j == 0 and (i < 5 or not many):
                legend.append((line, plain(name)))
    axes.set_ylim(curves.window([c.values for of in of_names.values() for c in of], sign))
    axes.set_xlabel(x)
    axes.set_ylabel(plain(key))
    axes.grid(alpha=0.3)
    title = "the best five" if many else None
    lines, names = [line for line, _ in legend], [name for _, name in legend]
    axes.legend(lines, names, fontsize=8, title=title)
    return drawn


def plain(text: str) -> str:
    """A name or a value as Matplotlib draws it to the letter: it would typeset what stands between
    dollars, leave a name that begins with an underscore out of a legend, and fail on lone
    surrogates."""
    text = "".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$")
    return f"\N{ZERO WIDTH SPACE}{text}" if text.startswith("_") else text


def _colours(drawn, axes, values: Sequence[float], name: str):
    """A colour scale over `values`, with its bar beside `axes`; `to_rgba` maps a value to its
    colour."""
    scale = axes.scatter([], [], c=[], cmap="viridis")
    scale.set_clim(np.nanmin(values), np.nanmax(values))
    drawn.colorbar(scale, ax=axes, label=plain(name))
    return scale


# ---------------------------------------------------------------------------------- hyperparameters


def label(value: Any, exact: bool = False) -> str:
    """A config value in few characters: 0.0003, (64,64), None. Floats have four digits unless
    `exact`."""
    if isinstance(value, tuple):
        return f"({','.join(label(part, exact) for part in value)})"
    return f"{value:.4g}" if isinstance(value, float) and not exact else str(value)


class Positions(NamedTuple):
    """Positions of a hyperparameter's values on an axis.

    Attributes:
      at: f64[n].
      log: whether the axis is logarithmic.
      names: labels of the positions 0, 1, … if the values are categories, else None.
    """

    at: np.ndarray
    log: bool
    names: list[str] | None


def positions(values: Sequence) -> Positions:
    """Positions of values on an axis. Numbers keep their value, on a log axis if they are positive
    and span more than a factor of 10; everything else is a category."""

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
    """A metric against each hyperparameter: one panel each, one dot per run, and, where values are
    few or repeat, a line through their means.

    Args:
      settings: {hyperparameter: value} of each run, all with the same keys.
      values: the metric of each run.
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
        distinct = np.unique(at)
        if len(distinct) <= max(FEW, len(at) // 2):  # with more, the line would only zigzag
            means = [values[at == position].mean() for position in distinct]
            axes.plot(distinct, means, "-", color="C0", lw=1)
        if log:
            axes.set_xscale("log")
        elif not names:
            axes.locator_params("x", nbins=5)
        else:
            shown = range(len(names)) if len(names) <= 12 else ()
            rotation = {"rotation": 20, "ha": "right"} if sum(map(len, names)) > 24 else {}
            axes.set_xticks(shown, [plain(_cut(names[i])) for i in shown], **rotation)
        axes.set_xlabel(plain(key))
        axes.grid(alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel(plain(metric))
    return drawn


def costs(costs: dict[str, dict[str, float]], values: dict[str, float], metric: str):
    """A metric against each cost: one panel each, a dot for each row.

    Args:
      costs: {row: {what: number}}, all with the same keys.
      values: {row: the metric}.
      metric: its name.

    Returns:
      A Matplotlib figure.

    Raises:
      BadInput: if Matplotlib is missing.
    """
    keys = list(next(iter(costs.values())))
    drawn = figure(4 * len(keys), 4)
    grid = drawn.subplots(1, len(keys), squeeze=False, sharey=True)[0]
    for axes, key in zip(grid, keys, strict=True):
        for number, (name, of_row) in enumerate(costs.items()):
            label = plain(_cut(name))
            axes.plot(of_row[key], values[name], "o", color=f"C{number % 10}", label=label)
        axes.set_xlabel(plain(key))
        axes.grid(alpha=0.3)
    grid[0].set_ylabel(plain(metric))
    drawn.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return drawn


def parallel(settings: Sequence[dict[str, Any]], values: Sequence[float], metric: str):
    """Parallel coordinates (Inselberg 1985): one axis per hyperparameter and one for the metric,
    which also sets the colour; one line per configuration.

    Args:
      settings: {hyperparameter: value} of each configuration, all with the same keys; the first
        ones are drawn on top.
      values: the metric of each configuration.
      metric: its name.

    Returns:
      A Matplotlib figure.

    Raises:
      BadInput: if Matplotlib is missing.
    """
    columns = {key: [row[key] for row in settings] for key in settings[0]} | {metric: values}
    drawn = figure(min(3 + 1.5 * len(columns), 9), 4.5)
    axes = drawn.subplots()
    scale = _colours(drawn, axes, values, metric)
    heights = []
    for i, column in enumerate(columns.values()):
        at, ticks = heights_of(positions(column))
        heights.append(at)
        axes.axvline(i, color="black", lw=0.8)
        for height, text in ticks:
            box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
            axes.text(
                i + 0.03, height, plain(_cut(text)), fontsize=8, va="center", bbox=box, zorder=3
            )
    for line, value in reversed(list(zip(np.transpose(heights), values, strict=True))):
        axes.plot(line, color=scale.to_rgba(value), lw=1.5, alpha=0.8)
    rotation = {"rotation": 20, "ha": "right"} if sum(map(len, columns)) > 60 else {}
    axes.set_xticks(range(len(columns)), map(plain, columns), **rotation)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 0.7)
    for side in axes.spines.values():
        side.set_visible(False)
    return drawn


def heights_of(column: Positions) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """(f64[n] in [0, 1], [(height, label) of each tick]): a tick per value, or five if there are
    more than six."""
    at = np.log(column.at) if column.log else column.at
    low, span = at.min(), (at.max() - at.min()) or 1.0
    ticks = np.unique(at)
    if len(ticks) > 6:
        ticks = np.linspace(at.min(), at.max(), 5)
        ticks = np.unique(np.rint(ticks)) if column.names else ticks
    tick_values = np.exp(ticks) if column.log else ticks
    labels = [column.names[int(x)] if column.names else f"{x:.4g}" for x in tick_values]
    return (at - low) / span, list(zip((ticks - low) / span, labels, strict=True))


def _cut(text: str, length: int = 16) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


# ------------------------------------------------------------------------------------- calibration


def reliability(table, name: str):
    """A reliability diagram (DeGroot & Fienberg 1983): accuracy against confidence, one bar per
    bin, above the number of predictions in each bin.

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
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"{plain(name)}: ECE {ece:.4f}")
    upper.legend(fontsize=8, loc="upper left")
    lower.bar(edges, counts, 1 / bins, align="edge", edgecolor="white")
    lower.set(xlabel="confidence", ylabel="predictions")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return drawn
