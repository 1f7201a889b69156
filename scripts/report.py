"""Compare finished runs: python scripts/report.py W… [--png curves.png] [--html report.html]

W is a run's workdir, or a folder of them such as a sweep's; unfinished runs are listed and left
out. Prints a row for each config: the mean and standard deviation over its seeds of the last value
of `--metric`, parameters, seconds, hardware, and the commit. Runs share a row if they differ only
in the seed, or in placement and logging. A row is named after its first workdir, without a trailing
number (`cnn-0`: `cnn`), and in a folder after the keys that differ.

The best row, by `--select`, comes first. The others are compared with it: the mean difference over
the seeds that both have, and its 95% interval by Student's t, paired by seed. Intervals are for
single comparisons: they are not corrected for multiple comparisons.

    --metric    'max eval/test/f2': a key of the log; common ones need no 'max' or 'min'
    --select    'max eval/valid/f2'; by default the metric of the evaluator `valid` if there is one,
                else the metric itself
    --format    text, markdown; csv (one line per run) and json hold the numbers of every seed
    --png       plots the metric against minutes (or --x steps), a curve per run, to curves.png;
                if runs differ in hyperparameters, also the metric against each to
                curves-against.png and parallel coordinates to curves-parallel.png (needs `plots`)
    --html      one page with the table, the plots and the commands (needs the extra `plots`)
"""

import base64
import csv
import io
import json
import re
import shlex
import sys
from html import escape

from etils import epath

import _checkout  # noqa: F401
from common import cli, tree
from common.errors import BadInput, require
from common.reports import plots, report
from common.runs import log, place


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("workdirs", type=place.folder, nargs="+", help="runs, or folders of runs")
    parser.add_argument("--metric", default="eval/test/accuracy", help="key of the log to compare")
    parser.add_argument("--select", default="", help="metric that decides the best row")
    parser.add_argument("--format", default="text", choices=FORMATS, help="format of the table")
    parser.add_argument("--png", help="file to plot the metric to")
    parser.add_argument(
        "--x", default="minutes", choices=("minutes", "steps"), help="x axis of the plot"
    )
    parser.add_argument("--html", help="file to write a page to")
    args = parser.parse_args(argv)
    if args.png or args.html:
        plots.figure(1, 1)  # without Matplotlib, fail before reading runs
    require((args.png or ".png").endswith(".png"), f"--png: {args.png} does not end in .png")
    runs, left_out = report.find_runs(args.workdirs)
    result = report.compare(runs, args.metric, args.select, left_out)
    print(FORMATS[args.format](result), end="")
    # Programs read the other formats: messages stay out of their stdout.
    to = sys.stdout if args.format == "text" else sys.stderr
    for line in report.notes(result) if args.format == "csv" else ():
        print(line, file=to)
    drawn = pictures(result, args.x) if args.png or args.html else {}
    for name, (caption, picture) in drawn.items() if args.png else ():
        file = args.png if name == "curves" else f"{args.png[:-4]}-{name}.png"
        _write("--png", file, picture)
        print(f"{file}: {caption}", file=to)
    if args.html:
        _write("--html", args.html, page(result, drawn).encode())
        print(f"{args.html}: the report", file=to)
    return 0


def _write(flag: str, path: str, contents: bytes) -> None:
    try:
        epath.Path(path).write_bytes(contents)
    except OSError as error:
        raise BadInput(f"{flag}: {path}: {error.strerror or error}") from error


# ------------------------------------------------------------------------------------------- table


def short(value: float, sign: str = "") -> str:
    """0.9506; with sign="+", +0.9506."""
    return f"{value:{sign}.4f}" if value == 0 or abs(value) >= 1e-4 else f"{value:{sign}.1e}"


def mean_text(values: dict[int, float]) -> str:
    """'0.9506 ± 0.0028' of {seed: value}."""
    mean, deviation = report.spread(values.values())
    return short(mean) + ("" if deviation is None else f" ± {short(deviation)}")


def difference_text(difference: report.Difference | None) -> str:
    """'-0.0123 [-0.0200, -0.0046]', or why that is inconclusive; 'best' for None."""
    if difference is None:
        return "best"
    seeds, mean, low, high = difference
    if not seeds:
        return "no seed in common: not distinguishable"
    if len(seeds) == 1:
        return f"{short(mean, '+')}, one seed: not distinguishable"
    if low is None:
        return f"{short(mean, '+')} with each seed, no spread: not distinguishable"
    interval = f"{short(mean, '+')} [{short(low, '+')}, {short(high, '+')}]"
    return interval if difference.distinguishable else f"{interval}: not distinguishable"


def cells(result: report.RunReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(header, rows) of the table."""
    rows = []
    for row in result.rows:
        known = report.facts(row.runs)
        seconds = [f"{limit(known['seconds']):.0f}" for limit in (min, max)]
        cell = {"runs": row.name, "seeds": ", ".join(map(str, row.values))}
        cell[result.metric] = mean_text(row.values)
        cell[result.select] = mean_text(row.selecting)  # the same cell if it is the same key
        if len(result.rows) > 1:
            cell["against the best"] = difference_text(row.difference)
        cell["parameters"] = f"{known['parameters']:,}"
        cell["seconds"] = " to ".join(dict.fromkeys(seconds))
        on = ("hardware", "jax", "commit")
        cell |= {name: ", ".join(known[name]) or "unknown" for name in on}
        rows.append(cell)
    return tuple(rows[0]), [tuple(row.values()) for row in rows]


def as_text(result: report.RunReport) -> str:
    """Aligned columns, then the notes."""
    return tree.table_text(*cells(result)) + "".join(f"{line}\n" for line in report.notes(result))


def as_markdown(result: report.RunReport) -> str:
    """A GitHub table, then the notes as a list."""
    header, rows = cells(result)
    quoted = lambda text: re.sub(r"([\\|<*`\[\]])", r"\\\1", text)
    lines = [[quoted(cell) for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return table + "".join(f"\n- {quoted(line)}" for line in report.notes(result)) + "\n"


def as_json(result: report.RunReport) -> str:
    """Everything, with unrounded numbers."""
    document = {"metric": result.metric, "select": result.select, "rows": records(result)}
    document |= {"notes": report.notes(result), "left_out": result.left_out}
    return json.dumps(log.encode(document), indent=1) + "\n"


def as_csv(result: report.RunReport) -> str:
    """A line per run; a row's own values are repeated in all of its lines."""
    lines = []
    for row, record in zip(result.rows, records(result), strict=True):
        against = record["against_the_best"] or {}
        for run in row.runs:
            known = report.facts([run])
            line = {"name": row.name, "best": record["best"], "seed": run.seed}
            line[result.metric] = row.values[run.seed]
            line[result.select] = row.selecting[run.seed]
            line |= {"mean": record["mean"], "std": record["std"]}
            for key in ("mean", "low", "high", "distinguishable"):
                line[f"against_the_best_{key}"] = against.get(key)
            line |= {"parameters": known["parameters"], "seconds": known["seconds"][0]}
            line |= {name: ", ".join(known[name]) for name in ("hardware", "jax", "commit")}
            lines.append(line | {"path": run.path} | record["settings"])
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def records(result: report.RunReport) -> list[dict]:
    """The rows as plain values."""
    rows = []
    for i, row in enumerate(result.rows):
        mean, std = report.spread(row.values.values())
        against = row.difference
        if against is not None:
            against = against._asdict() | {"distinguishable": against.distinguishable}
        numbers = {
            "values": list(row.values.values()),
            "mean": mean,
            "std": std,
            "selecting": list(row.selecting.values()),
            "against_the_best": against,
        }
        settings = report.settings_of(row.runs[0], result.varied)
        about = {"name": row.name, "best": i == 0, "settings": settings, "seeds": list(row.values)}
        paths = [run.path for run in row.runs]
        last = {"paths": paths, "command": command(row.runs[0])}
        rows.append(about | numbers | report.facts(row.runs) | last)
    return rows


def command(run: report.FinishedRun) -> str:
    """The command that repeats a run; "" if it is unknown."""
    return (
        shlex.join(["python", *map(str, run.environment[-1]["command"])]) if run.environment else ""
    )


FORMATS = {"text": as_text, "markdown": as_markdown, "csv": as_csv, "json": as_json}


# ---------------------------------------------------------------------------------------- pictures


def pictures(result: report.RunReport, x: str = "minutes") -> dict[str, tuple[str, bytes]]:
    """{name: (caption, PNG)}; `x` is the x axis of the learning curves."""
    metric, rows, keys = result.metric, result.rows, result.varied
    runs = {row.name: [run.history for run in row.runs] for row in rows}
    caption = f"learning curves: {metric} against {x}"
    figures = {"curves": (caption, plots.learning_curves(runs, metric, x))}
    if keys:
        points = [
            (report.settings_of(run, keys), row.values[run.seed])
            for row in rows
            for run in row.runs
        ]
        caption = f"hyperparameters: {metric} against each; a dot per run, a line for their means"
        figures["against"] = caption, plots.against(*zip(*points, strict=True), metric)
        settings = [report.settings_of(row.runs[0], keys) for row in rows]
        means = [report.spread(row.values.values())[0] for row in rows]
        caption = f"parallel coordinates: the hyperparameters and {metric}, which is the colour"
        figures["parallel"] = caption, plots.parallel(settings, means, metric)

    best = rows[0].runs[0].history
    for key in sorted({key for line in best for key in line if key.endswith("/reliability")}):
        table = next(line[key] for line in reversed(best) if key in line)
        evaluator = key.split("/")[1]
        caption = f"reliability of {evaluator}, of the best row's first seed"
        figures[f"reliability-{evaluator}"] = caption, plots.reliability(table, evaluator)

    def png(figure) -> bytes:
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120)
        return picture.getvalue()

    return {name: (caption, png(figure)) for name, (caption, figure) in figures.items()}


STYLE = """
body { font: 15px/1.5 sans-serif; margin: 24px; color: #222; background: #fff }
table { border-collapse: collapse; font-size: 13px }
th, td { border-bottom: 1px solid #ccc; padding: 4px 10px; text-align: left }
tbody tr:first-child { background: #eef6ee }
img { display: block; max-width: 100% }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: 8px }
"""


def page(result: report.RunReport, drawn: dict[str, tuple[str, bytes]]) -> str:
    """The report as one self-contained HTML page.

    Args:
      result: the rows, from `report.compare`.
      drawn: from `pictures`.
    """
    header, rows = cells(result)
    title = escape(f"Report: {result.metric}")
    row = lambda tag, texts: "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)
    table = "".join(f"<tr>{row('td', texts)}</tr>\n" for texts in rows)
    images = "".join(
        f"<h2>{escape(caption[0].upper() + caption[1:])}</h2>\n"
        f'<img alt="{escape(caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}">\n'
        for caption, png in drawn.values()
    )
    commands = "".join(
        f"<h3>{escape(row.name)}</h3>\n<pre>{escape(command(row.runs[0]))}</pre>\n"
        for row in result.rows
    )
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>
<body>
<h1>{title}</h1>
<table>
<thead><tr>{row("th", header)}</tr></thead>
<tbody>
{table}</tbody>
</table>
{"".join(f"<p>{escape(line)}</p>" for line in report.notes(result))}
{images}<h2>Commands of the first seed</h2>
{commands}</body>
</html>
"""


if __name__ == "__main__":
    cli.exit(main)
