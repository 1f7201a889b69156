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

from common import cli, tree
from common.errors import BadInput, require
from common.reports import plots, report
from common.runs import log


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("workdirs", nargs="+", help="runs, or folders of runs")
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
        plots.figure(1, 1)  # what is missing is said first
    require((args.png or ".png").endswith(".png"), f"--png: {args.png} does not end in .png")
    runs, left_out = report.find_runs(args.workdirs)
    found = report.compare(runs, args.metric, args.select, left_out)
    print(FORMATS[args.format](found), end="")
    # What is no table stays out of the way of the programs that read one.
    to = sys.stdout if args.format == "text" else sys.stderr
    for line in report.notes(found) if args.format == "csv" else ():
        print(line, file=to)
    drawn = pictures(found, args.x) if args.png or args.html else {}
    for name, (what, picture) in drawn.items() if args.png else ():
        file = args.png if name == "curves" else f"{args.png[:-4]}-{name}.png"
        _write("--png", file, picture)
        print(f"{file}: {what}", file=to)
    if args.html:
        _write("--html", args.html, page(found, drawn).encode())
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
    """'-0.0123 [-0.0200, -0.0046]', or why that says nothing; 'best' for None."""
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


def cells(found: report.RunReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(header, rows) of the table."""
    rows = []
    for row in found.rows:
        known = report.facts(row.runs)
        seconds = [f"{limit(known['seconds']):.0f}" for limit in (min, max)]
        cell = {"runs": row.name, "seeds": ", ".join(map(str, row.values))}
        cell[found.metric] = mean_text(row.values)
        cell[found.select] = mean_text(row.selecting)  # the same cell if it is the same key
        if len(found.rows) > 1:
            cell["against the best"] = difference_text(row.difference)
        cell["parameters"] = f"{known['parameters']:,}"
        cell["seconds"] = " to ".join(dict.fromkeys(seconds))
        on = ("hardware", "jax", "commit")
        cell |= {name: ", ".join(known[name]) or "unknown" for name in on}
        rows.append(cell)
    return tuple(rows[0]), [tuple(row.values()) for row in rows]


def as_text(found: report.RunReport) -> str:
    """Aligned columns, and the notes."""
    return tree.table_text(*cells(found)) + "".join(f"{line}\n" for line in report.notes(found))


def as_markdown(found: report.RunReport) -> str:
    """A table of GitHub's, and the notes as a list."""
    header, rows = cells(found)
    quoted = lambda text: re.sub(r"([\\|<*`\[\]])", r"\\\1", text)
    lines = [[quoted(cell) for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return table + "".join(f"\n- {quoted(line)}" for line in report.notes(found)) + "\n"


def as_json(found: report.RunReport) -> str:
    """Everything, with the numbers as they are."""
    said = {"metric": found.metric, "select": found.select, "rows": records(found)}
    said |= {"notes": report.notes(found), "left_out": found.left_out}
    return json.dumps(log.encode(said), indent=1) + "\n"


def as_csv(found: report.RunReport) -> str:
    """A line a run; what is its row's is the same in all of its lines."""
    lines = []
    for row, record in zip(found.rows, records(found), strict=True):
        against = record["against_the_best"] or {}
        for run in row.runs:
            known = report.facts([run])
            line = {"name": row.name, "best": record["best"], "seed": run.seed}
            line[found.metric] = row.values[run.seed]
            line[found.select] = row.selecting[run.seed]
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


def records(found: report.RunReport) -> list[dict]:
    """The rows as plain values."""
    rows = []
    for i, row in enumerate(found.rows):
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
        settings = report.settings_of(row.runs[0], found.varied)
        about = {"name": row.name, "best": i == 0, "settings": settings, "seeds": list(row.values)}
        paths = [run.path for run in row.runs]
        last = {"paths": paths, "command": command(row.runs[0])}
        rows.append(about | numbers | report.facts(row.runs) | last)
    return rows


def command(run: report.FinishedRun) -> str:
    """What to type to have a run again; "" if that is not known."""
    return shlex.join(["python", *run.environment[-1]["command"]]) if run.environment else ""


FORMATS = {"text": as_text, "markdown": as_markdown, "csv": as_csv, "json": as_json}


# ---------------------------------------------------------------------------------------- pictures


def pictures(found: report.RunReport, x: str = "minutes") -> dict[str, tuple[str, bytes]]:
    """{name: (what it shows, PNG)}; `x` is that of the learning curves."""
    metric, rows, keys = found.metric, found.rows, found.varied
    runs = {row.name: [run.history for run in row.runs] for row in rows}
    what = f"learning curves: {metric} against {x}"
    figures = {"curves": (what, plots.learning_curves(runs, metric, x))}
    if keys:
        each = [
            (report.settings_of(run, keys), row.values[run.seed])
            for row in rows
            for run in row.runs
        ]
        what = f"hyperparameters: {metric} against each; a dot a run, a line their means"
        figures["against"] = what, plots.against(*zip(*each, strict=True), metric)
        settings = [report.settings_of(row.runs[0], keys) for row in rows]
        means = [report.spread(row.values.values())[0] for row in rows]
        what = f"parallel coordinates: the hyperparameters and {metric}, which is the colour"
        figures["parallel"] = what, plots.parallel(settings, means, metric)

    best = rows[0].runs[0].history
    for key in sorted({key for line in best for key in line if key.endswith("/reliability")}):
        table = next(line[key] for line in reversed(best) if key in line)
        evaluator = key.split("/")[1]
        what = f"reliability of {evaluator}, of the best row's first seed"
        figures[f"reliability-{evaluator}"] = what, plots.reliability(table, evaluator)

    def png(figure) -> bytes:
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=120)
        return picture.getvalue()

    return {name: (what, png(figure)) for name, (what, figure) in figures.items()}


STYLE = """
body { font: 15px/1.5 sans-serif; margin: 24px; color: #222; background: #fff }
table { border-collapse: collapse; font-size: 13px }
th, td { border-bottom: 1px solid #ccc; padding: 4px 10px; text-align: left }
tbody tr:first-child { background: #eef6ee }
img { display: block; max-width: 100% }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: 8px }
"""


def page(found: report.RunReport, drawn: dict[str, tuple[str, bytes]]) -> str:
    """The report as one HTML page that needs no other file.

    Args:
      found: the report.
      drawn: of `pictures`.
    """
    header, rows = cells(found)
    title = escape(f"Report: {found.metric}")
    row = lambda tag, texts: "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts)
    table = "".join(f"<tr>{row('td', texts)}</tr>\n" for texts in rows)
    images = "".join(
        f"<h2>{escape(what[0].upper() + what[1:])}</h2>\n"
        f'<img alt="{escape(what)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">\n'
        for what, png in drawn.values()
    )
    commands = "".join(
        f"<h3>{escape(row.name)}</h3>\n<pre>{escape(command(row.runs[0]))}</pre>\n"
        for row in found.rows
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
{"".join(f"<p>{escape(line)}</p>" for line in report.notes(found))}
{images}<h2>Commands, of the first seed</h2>
{commands}</body>
</html>
"""


if __name__ == "__main__":
    cli.exit(main)
