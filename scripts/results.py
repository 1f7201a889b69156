"""Fill the table of results in configs/README.md, from runs that anyone can repeat:

    python scripts/results.py --workdir runs/results

Trains seeds 0, 1 and 2 of each config in the table, one after the other, and writes their results
into its lines. That takes hours on two cores: the same command resumes with what is missing, and
`--only WORD` selects the configs with the word in their names. Lines with unfinished runs stay as
they are. Exit code 1 if a run failed.
"""

import os
import re
import sys

from etils import epath

import _checkout  # noqa: F401
from common import cli, config
from common.errors import require
from common.reports import reading, report
from common.runs import place
from common.sweeps import launch, trials

SEEDS = (0, 1, 2)
METRIC = "eval/test/accuracy"
# A line of the table: its config, the note after it, and the other columns.
LINE = re.compile(r"^\| `(?P<config>configs/[\w/.:]+)`(?P<note>[^|]*)\|.*$", re.MULTILINE)


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", type=place.workdir, required=True, help="folder of the runs")
    parser.add_argument("--only", default="", help="run only configs with this word in their names")
    parser.add_argument("--readme", default="configs/README.md", help="file with the table")
    args = parser.parse_args(argv)
    file = epath.Path(args.readme)
    require(file.exists(), f"--readme: no such file: {file}")
    paths = [m["config"] for m in LINE.finditer(file.read_text()) if args.only in m["config"]]
    require(bool(paths), f"--only: no line of {file} has {args.only!r}")
    states = [_train(path, os.path.join(args.workdir, folder(path))) for path in paths]
    lines = {
        path: os.path.join(args.workdir, folder(path))
        for path, finished in zip(paths, states, strict=True)
        if finished
    }
    file.write_text(updated(file.read_text(), lines))
    print(f"{len(lines)} lines of {file} updated")
    return int(not all(states))


def folder(path: str) -> str:
    """'configs/vision/digits.py:cnn' -> 'vision_digits_cnn'."""
    return re.sub(r"[/:]", "_", path.removeprefix("configs/").replace(".py", ""))


def _train(path: str, root: str) -> bool:
    """Trains the unfinished seeds of a config; returns whether all are finished."""
    module, arg = config.experiment(path)
    planned = [trials.one(module.get_config, arg, k, {"seed": s}, ()) for k, s in enumerate(SEEDS)]
    for trial in planned:
        require(not trial.refused, trial.refused)
    board = launch.Board(planned, root, METRIC)
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "train.py")
    command = lambda job: [
        *(sys.executable, script, "--config", path),
        *("--workdir", os.path.join(root, job[0].name), *job[0].words),
    ]
    left = [t for t in planned if not trials.finished(t, epath.Path(root) / t.name)]
    print(
        f"{path}: {len(planned) - len(left)} of {len(planned)} runs are finished", file=sys.stderr
    )
    launch.local([[trial] for trial in left], command, root, 1, board)
    return all(standing.state == "finished" for standing in board.standings())


def updated(text: str, runs: dict[str, str]) -> str:
    """A README with the lines of these configs rewritten.

    Args:
      text: text of the README.
      runs: {config: the folder of its runs}.
    """

    def line(match: re.Match) -> str:
        if match["config"] not in runs:
            return match[0]
        known, _ = reading.find_runs([runs[match["config"]]])
        row = report.compare(known, METRIC).rows[0]
        facts = report.facts(row.runs)
        mean, deviation = report.average(row.values)
        low, high = min(facts["seconds"]), max(facts["seconds"])
        cells = (
            f"`{match['config']}`{match['note'].rstrip()}",
            f"{facts['parameters']:,}",
            f"{mean:.4f} ± {deviation:.4f}",
            f"{low:.0f} to {high:.0f} s",
            ", ".join(facts["commit"]),
        )
        return f"| {' | '.join(cells)} |"

    return LINE.sub(line, text)


if __name__ == "__main__":
    cli.exit(main)
