"""Compare finished runs: python scripts/report.py W… [--html report.html] [--png curves.png]

W is a run's workdir, or a folder of them such as a sweep's; unfinished runs are listed and left
out. Prints a row for each config: the mean and standard deviation over its seeds of the last value
of `--metric`, parameters, seconds, hardware, and the commit. Runs share a row if they differ only
in the seed, in the fold of a cross-validation, or in placement and logging. A row is named after
its first workdir, without a trailing number (`cnn-0`: `cnn`), and in a folder after the keys that
differ.

The best row, by `--select`, comes first. The others are compared with it: the mean difference over
the seeds that both have, and its 95% interval by Student's t, paired by seed. Intervals are for
single comparisons: they are not corrected for multiple comparisons. Rows of folds are averaged and
compared over folds, with the interval of Nadeau & Bengio (2003).

    --metric    'max eval/test/f2': a key of the log; common ones need no 'max' or 'min'
    --select    'max eval/valid/f2'; by default the metric of the evaluator `valid` if there is one,
                else the metric itself
    --format    text, markdown; csv (one line per run) and json hold the numbers of every seed
    --html      one page with the table, curves of everything that was logged (diverged runs are
                named, and do not flatten the others), the metric against each hyperparameter, and
                the commands; plots can be hovered and zoomed, and need no network
    --png       plots the metric against --x steps (or epochs, minutes), a curve per run, to
                curves.png; if runs differ in hyperparameters, also the metric against each to
                curves-against.png and parallel coordinates to curves-parallel.png (needs `plots`)
    --cost      an input, as predict.py takes it: the predictions of each row's first run are timed
                with it, in turn; columns and plots show megabytes of parameters, and milliseconds
                for one input and for each of a batch of 64, for runs that were quantized, pruned
                or distilled; with --png, in curves-cost.png
"""

import csv
import io
import json
import re
import shlex
import sys

from etils import epath

import _checkout  # noqa: F401
from common import cli, tree
from common.errors import BadInput, require
from common.reports import cost, curves, page, plots, reading, report, statistics
from common.runs import log, place


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("workdirs", type=place.folder, nargs="+", help="runs, or folders of runs")
    parser.add_argument("--metric", default="eval/test/accuracy", help="key of the log to compare")
    parser.add_argument("--select", default="", help="metric that decides the best row")
    parser.add_argument("--format", default="text", choices=FORMATS, help="format of the table")
    parser.add_argument("--png", help="file to plot the metric to")
    parser.add_argument("--x", default="steps", choices=curves.X, help="x axis of the curves")
    parser.add_argument("--html", help="file to write a page to")
    parser.add_argument("--cost", metavar="INPUT", help="time predictions of this input")
    args = parser.parse_args(argv)
    if args.png:
        plots.figure(1, 1)  # without Matplotlib, fail before reading runs
    require((args.png or ".png").endswith(".png"), f"--png: {args.png} does not end in .png")
    runs, left_out = reading.find_runs(args.workdirs)
    result = report.compare(runs, args.metric, args.select, left_out)
    if args.cost is not None:
        paths = [row.runs[0].path for row in result.rows]
        costs = cost.of_runs(paths, args.cost)
        names = [row.name for row in result.rows]
        result = result._replace(costs=dict(zip(names, costs, strict=True)))
    print(FORMATS[args.format](result), end="")
    # Programs read the other formats: messages stay out of their stdout.
    to = sys.stdout if args.format == "text" else sys.stderr
    for line in report.notes(result) if args.format == "csv" else ():
        print(line, file=to)
    for name, (caption, picture) in pictures(result, args.x).items() if args.png else ():
        file = args.png if name == "curves" else f"{args.png[:-4]}-{name}.png"
        _write("--png", file, picture)
        print(f"{file}: {caption}", file=to)
    if args.html:
        header, rows = cells(result)
        commands = {row.name: command(row.runs[0]) for row in result.rows}
        data = page.plotted(result, args.x)
        title = f"Report: {result.metric}"
        notes = report.notes(result._replace(left_out={}))  # the page lists these apart
        text = page.html(title, header, rows, notes, result.left_out, commands, data)
        _write("--html", args.html, text.encode(errors="replace"))
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


def mean_text(values: dict[statistics.Member, float]) -> str:
    """'0.9506 ± 0.0028' of {seed or fold: value}."""
    mean, deviation = report.average(values)
    return short(mean) + ("" if deviation is None else f" ± {short(deviation)}")


def difference_text(difference: statistics.Difference | None) -> str:
    """'-0.0123 [-0.0200, -0.0046]', or why that is inconclusive; 'best' for None."""
    if difference is None:
        return "best"
    seeds, mean, low, high, _ = difference
    if not seeds:
        return "no seed in common: not distinguishable"
    if len(seeds) == 1:
        return f"{short(mean, '+')}, one seed: not distinguishable"
    if low is None:
        return f"{short(mean, '+')} with each seed, no spread: not distinguishable"
    if difference.vague:
        return f"{short(mean, '+')}, {len(seeds)} seeds: too few to tell"
    interval = f"{short(mean, '+')} [{short(low, '+')}, {short(high, '+')}]"
    return interval if difference.distinguishable else f"{interval}: not distinguishable"


def seeds_text(row: report.Row) -> str:
    """'0, 1, 2'; with folds '0; 5 folds', or '0; folds 1, 3 of 5' if some are missing."""
    text = ", ".join(map(str, sorted({run.seed for run in row.runs})))
    folds = [member for member in row.values if isinstance(member, statistics.Fold)]
    if not folds:
        return text
    present = ", ".join(map(str, sorted({fold.number for fold in folds})))
    count = folds[0].count
    return (
        f"{text}; folds {present} of {count}"
        if report.missing_folds(row)
        else (f"{text}; {count} folds")
    )


def cells(result: report.RunReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(header, rows) of the table."""
    rows = []
    for row in result.rows:
        known = report.facts(row.runs)
        seconds = [f"{limit(known['seconds']):.0f}" for limit in (min, max)]
        cell = {"runs": row.name, "seeds": seeds_text(row)}
        cell[result.metric] = mean_text(row.values)
        cell[result.select] = mean_text(row.selecting)  # the same cell if it is the same key
        if len(result.rows) > 1:
            cell["against the best"] = difference_text(row.difference)
        cell["parameters"] = f"{known['parameters']:,}"
        cell |= {name: f"{value:,.5g}" for name, value in result.costs.get(row.name, {}).items()}
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
            if isinstance(run.member, statistics.Fold):
                line["fold"] = run.member.number
            line[result.metric] = row.values[run.member]
            line[result.select] = row.selecting[run.member]
            line |= {"mean": record["mean"], "std": record["std"]}
            for key in ("mean", "low", "high", "distinguishable"):
                line[f"against_the_best_{key}"] = against.get(key)
            line |= {"parameters": known["parameters"], "seconds": known["seconds"][0]}
            line |= result.costs.get(row.name, {})
            line |= {name: ", ".join(known[name]) for name in ("hardware", "jax", "commit")}
            lines.append(line | {"path": run.path} | record["settings"])
    text = io.StringIO()
    header = dict.fromkeys(name for line in lines for name in line)
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def records(result: report.RunReport) -> list[dict]:
    """The rows as plain values."""
    rows = []
    for i, row in enumerate(result.rows):
        mean, std = report.average(row.values)
        against = row.difference
        if against is not None:
            against = against._asdict() | {"distinguishable": against.distinguishable}
            del against["scale"]
        numbers = {
            "values": list(row.values.values()),
            "mean": mean,
            "std": std,
            "selecting": list(row.selecting.values()),
            "against_the_best": against,
        }
        settings = reading.settings_of(row.runs[0], result.varied)
        seeds = [run.seed for run in row.runs]
        about = {"name": row.name, "best": i == 0, "settings": settings, "seeds": seeds}
        about |= {"cost": result.costs[row.name]} if result.costs else {}
        if isinstance(row.runs[0].member, statistics.Fold):
            about["folds"] = [run.member.number for run in row.runs]
        paths = [run.path for run in row.runs]
        last = {"paths": paths, "command": command(row.runs[0])}
        rows.append(about | numbers | report.facts(row.runs) | last)
    return rows


def command(run: reading.FinishedRun) -> str:
    """The command that repeats a run; "" if it is unknown."""
    return (
        shlex.join(["python", *map(str, run.environment[-1]["command"])]) if run.environment else ""
    )


FORMATS = {"text": as_text, "markdown": as_markdown, "csv": as_csv, "json": as_json}


# ---------------------------------------------------------------------------------------- pictures


def pictures(result: report.RunReport, x: str = "steps") -> dict[str, tuple[str, bytes]]:
    """{name: (caption, PNG)}; `x` is the x axis of the learning curves."""
    metric, rows, keys = result.metric, result.rows, result.varied
    runs = {row.name: [run.history for run in row.runs] for row in rows}
    caption = f"learning curves: {metric} against {x}"
    first = rows[0].runs[0]
    span = curves.epoch_steps(first.config, first.result["steps"])
    require(
        x != "epochs" or span is not None,
        f"--x epochs: the duration of {first.name} is not in epochs",
    )
    sign, _ = statistics.wanted("", metric)
    figures = {"curves": (caption, plots.learning_curves(runs, metric, x, span, sign))}
    if result.costs:
        values = {row.name: report.average(row.values)[0] for row in rows}
        caption = f"cost: {metric} against size and time; a dot per row"
        figures["cost"] = caption, plots.costs(result.costs, values, metric)
    if keys:
        points = [
            (reading.settings_of(run, keys), row.values[run.member])
            for row in rows
            for run in row.runs
        ]
        caption = f"hyperparameters: {metric} against each; a dot per run, a line for their means"
        figures["against"] = caption, plots.against(*zip(*points, strict=True), metric)
        settings = [reading.settings_of(row.runs[0], keys) for row in rows]
        means = [report.average(row.values)[0] for row in rows]
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


if __name__ == "__main__":
    cli.exit(main)
