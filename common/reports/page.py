"""A report as one HTML page that needs no network: the table, and plots that can be hovered and
zoomed.

Python decides what is plotted and on which axes; `plot.js` and `page.js` draw it from the numbers
in the page, as SVG of the size of the window. Names and values from configs reach the page as
escaped text alone.
"""

import importlib.resources
import json
import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from common.reports import curves, plots, reading, report, statistics

# Nothing is fetched and nothing is sent, whatever a name holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
FIRST = 6  # plots of curves that are open
MOST_OPEN = 12  # commands that are shown at once
MOST_POINTS, FEWEST = 40_000, 60  # points of all the curves of a plot, and of each at least


def html(
    title: str,
    header: Sequence[str],
    cells: Sequence[Sequence[str]],
    notes: Sequence[str],
    left_out: dict[str, str],
    commands: dict[str, str],
    data: dict,
) -> str:
    """The page.

    Args:
      title: of the page.
      header, cells: the table, a line for each row of the report.
      notes: the lines below it.
      left_out: {path: reason} of the runs that are not in it.
      commands: {name of a row: the command that repeats its first run}.
      data: from `plotted`.
    """
    row = lambda tag, texts: "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)
    lines = "".join(
        f'<tr data-row="{i}">{row("td", texts)}</tr>\n' for i, texts in enumerate(cells)
    )
    listed = "".join(
        f"<h3>{escape(name)}</h3>\n<pre>{escape(command)}</pre>\n"
        for name, command in commands.items()
    )
    reasons = "".join(
        f"<li>{escape(_folder(path))}: {escape(reason)}</li>\n" for path, reason in left_out.items()
    )
    count = f"{len(left_out)} runs are" if len(left_out) > 1 else "1 run is"
    apart = f"<details open><summary>{count} not in the table</summary>"
    apart = f'{apart}<ul class="left-out">\n{reasons}</ul></details>' if left_out else ""
    own = importlib.resources.files("common.reports")
    style, plot, page = (own.joinpath(f).read_text() for f in ("page.css", "plot.js", "page.js"))
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title><style>
{style}</style></head>
<body>
<h1>{escape(title)}</h1>
<div class="wide"><table>
<thead><tr>{row("th", header)}</tr></thead>
<tbody>
{lines}</tbody>
</table></div>
{"".join(f"<p>{escape(line)}</p>" for line in notes)}
{apart}
<noscript><p>The plots are drawn by JavaScript; report.py --png draws them to files.</p></noscript>
<div id="plots"></div>
<h2>Commands of the first runs</h2>
<details{" open" if len(commands) <= MOST_OPEN else ""}><summary>rows: {len(commands)}</summary>
{listed}</details>
<script type="application/json" id="data">{_json(data)}</script>
<script>
(() => {{
"use strict";
{plot}
{page}}})();
</script>
</body>
</html>
"""


def _json(value: Any) -> str:
    """JSON that cannot end the element that holds it; numbers that are not finite are null."""

    def plain(item):
        if isinstance(item, dict):
            return {key: plain(part) for key, part in item.items()}
        if isinstance(item, list | tuple | np.ndarray):
            return [plain(part) for part in item]
        if isinstance(item, float | np.floating):
            return float(f"{item:.7g}") if math.isfinite(item) else None
        return int(item) if isinstance(item, np.integer) else item

    text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


# --------------------------------------------------------------------------------- what is plotted


def plotted(result: report.RunReport, x: str = "steps") -> dict:
    """Everything that the page draws, as JSON values.

    Args:
      result: the rows, from `report.compare`.
      x: the axis that the curves begin with.
    """
    # Runs that are left out may have diverged: their curves are shown, too.
    left_out = [
        (path, reason, reading.history_of(path)) for path, reason in result.left_out.items()
    ]
    left_out = [entry for entry in left_out if entry[2]]
    spans = [
        curves.epoch_steps(row.runs[0].config, row.runs[0].result.get("steps", 0))
        for row in result.rows
    ]
    rows = [{"name": row.name, "epoch": span} for row, span in zip(result.rows, spans, strict=True)]
    rows += [
        {"name": _folder(path), "left_out": reason, "epoch": None} for path, reason, _ in left_out
    ]
    axes = [name for name in curves.X if name != "epochs" or all(spans)]
    logs = [[(_label(run), run.history) for run in row.runs] for row in result.rows]
    logs += [[("", history)] for _, _, history in left_out]
    known = statistics.signs(row.runs[0].config.get("task", "") for row in result.rows)
    histories = [history for members in logs for _, history in members]
    keys = curves.keys(histories, [result.metric, result.select])
    return {
        "rows": rows,
        "axes": axes,
        "axis": x if x in axes else "steps",
        "first": FIRST,
        "curves": [_curves(key, logs, len(result.rows), known) for key in keys],
        "dots": _against(result),
        "parallel": _parallel(result),
        "reliability": _reliability(result),
    }


def _folder(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _label(run: reading.FinishedRun) -> str:
    """'seed 0', 'seed 0, fold 1/5'."""
    member = run.member
    fold = isinstance(member, statistics.Fold)
    return f"seed {run.seed}" + (f", fold {member.number}/{member.count}" if fold else "")


def _curves(key: str, logs: list, kept: int, signs: dict[str, int]) -> dict:
    """A plot of a key: a line for each run, and a band for each row of several; the first `kept`
    rows decide the axis."""
    sign, _ = statistics.wanted("", key, signs)
    of_rows = [[(name, curves.of(history, key)) for name, history in members] for members in logs]
    lines, bands = [], []
    most = max(FEWEST, min(curves.MOST_POINTS, MOST_POINTS // max(1, sum(map(len, of_rows)))))
    for row, members in enumerate(of_rows):
        for name, curve in members:
            if len(curve.steps):
                thin = curves.thinned(curve, most)
                lines.append({"row": row, "run": name, "points": _points(*thin)})
        mean = curves.band([curve for _, curve in members])
        if mean is not None:
            thin = curves.thinned(mean.curve, most)
            at = np.isin(mean.curve.steps, thin.steps)
            rows = zip(*thin, mean.low[at], mean.high[at], strict=True)
            bands.append({"row": row, "points": [list(numbers) for numbers in rows]})
    flat = [
        (row, name, curve.values) for row, members in enumerate(of_rows) for name, curve in members
    ]
    drawn = [values for row, _, values in flat if row < kept and len(values)]
    flat = [entry for entry in flat if len(entry[2])]
    low, high = curves.window(drawn or [values for _, _, values in flat], sign)
    away = [
        {"row": row, "run": name, "end": values[-1]}
        for row, name, values in flat
        if not low <= values[-1] <= high
    ]
    return {
        "key": key,
        "window": (low, high),
        "lines": lines,
        "bands": bands,
        "away": away,
    }


def _points(steps, minutes, values) -> list[list[float]]:
    return [list(point) for point in zip(steps, minutes, values, strict=True)]


def _against(result: report.RunReport) -> list[dict]:
    """A plot for each hyperparameter that differs, and for what predictions cost: the metric of
    each run against it."""
    rows = [(i, run) for i, row in enumerate(result.rows) for run in row.runs]
    values = [row.values[run.member] for row in result.rows for run in row.runs]
    columns = report.columns(result)
    panels = []
    for key, column in columns.items():
        column = plots.positions(column)
        low, high = curves.window([np.array([value]) for value in values])
        points = [
            {"row": i, "run": _label(run), "at": [at, value], "away": not low <= value <= high}
            for (i, run), at, value in zip(rows, column.at, values, strict=True)
        ]
        panel = {"key": key, "log": column.log, "names": column.names, "points": points}
        panels.append(panel | {"metric": result.metric, "window": (low, high)})
    return panels


def _parallel(result: report.RunReport) -> dict | None:
    """Parallel coordinates: an axis for each hyperparameter that differs, and for the metric."""
    if not result.varied:
        return None
    columns = {
        key: [reading.settings_of(row.runs[0], [key])[key] for row in result.rows]
        for key in result.varied
    }
    columns[result.metric] = [report.average(row.values)[0] for row in result.rows]
    axes, lines = [], []
    for key, column in columns.items():
        at, ticks = plots.heights_of(plots.positions(column))
        axes.append({"key": key, "ticks": ticks})
        lines.append(at)
    return {"axes": axes, "lines": np.transpose(lines)}


def _reliability(result: report.RunReport) -> list[dict]:
    """A reliability diagram for each evaluator of calibration, of the best row's first run."""
    best = result.rows[0].runs[0].history
    diagrams = []
    for key in sorted({key for line in best for key in line if key.endswith("/reliability")}):
        table = np.array(next(line[key] for line in reversed(best) if key in line), float)
        filled = np.transpose(table)[table[0] > 0]
        diagrams.append({"name": key.split("/")[1], "bins": filled})
    return diagrams
