"""What finished runs reached: python scripts/report.py WORKDIR … [--png curves.png]

Prints a line for each config: the mean and standard deviation over its seeds of the last value of
`--metric`, parameters, seconds, and the commit. Runs are of one config if nothing but the seed
differs; they are called as the first workdir, without a number at its end (`cnn-0`: `cnn`).
`--png` draws the metric against minutes, a line a run (needs the extra `plots`).
"""

import json
import os
import re
import statistics

from etils import epath

from common import cli, config, plots, tree, workdir
from common.config import require


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("workdirs", nargs="+", help="runs")
    parser.add_argument("--metric", default="eval/test/accuracy", help="a key of the log")
    parser.add_argument("--png", help="where to draw it")
    args = parser.parse_args(argv)
    groups: dict[str, list[str]] = {}
    for path in args.workdirs:
        settings = config.flatten(workdir.read_config(path)) | {"seed": None}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(path)
    rows, curves = [], {}
    for paths in groups.values():
        name = _name(paths)
        require(name not in curves, f"{name}: runs of two configs have this name")
        curves[name] = [workdir.read_log(path) for path in paths]
        rows.append((name, *_row(paths, curves[name], args.metric)))
    header = "runs", "seeds", args.metric, "parameters", "seconds", "commit"
    print(tree.table_text(header, rows), end="")
    if args.png:
        plots.learning_curves(curves, args.metric).savefig(args.png, dpi=120)
        print(f"curves in {args.png}")
    return 0


def _name(paths: list[str]) -> str:
    """The first workdir's name, without its seed's number if there are several."""
    name = os.path.basename(paths[0].rstrip("/"))
    return re.sub(r"[-_.]?\d+$", "", name) if len(paths) > 1 else name


def _row(paths: list[str], histories: list[list[dict]], metric: str) -> tuple:
    seeds, values, results, commits = [], [], [], set()
    for path, history in zip(paths, histories, strict=True):
        found = [line[metric] for line in history if metric in line]
        keys = sorted({key for line in history for key in line if key.startswith("eval/")})
        require(bool(found), f"{path}: no {metric!r} in its log; there are: {', '.join(keys)}")
        file = epath.Path(path) / "result.json"
        require(file.exists(), f"{path}: the run is not finished; run its command again")
        seeds.append(workdir.read_config(path)["seed"])
        values.append(found[-1])
        results.append(json.loads(file.read_text()))
        commits |= _commits(path)
    seconds = [result["wall_seconds"] for result in results]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return (
        ", ".join(map(str, seeds)),
        f"{statistics.mean(values):.4f}{spread}",
        f"{results[0]['parameters']:,}",
        f"{min(seconds):.0f} to {max(seconds):.0f}" if len(seconds) > 1 else f"{seconds[0]:.0f}",
        ", ".join(sorted(commits)),
    )


def _commits(path: str) -> set[str]:
    """The commits of a run's starts, short."""
    starts = json.loads((epath.Path(path) / "environment.json").read_text())
    return {start["commit"][:7] + start["commit"][40:] for start in starts}


if __name__ == "__main__":
    cli.exit(main)
