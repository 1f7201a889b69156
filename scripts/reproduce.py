"""Repeat a finished run and compare: python scripts/reproduce.py runs/fashion

Repeats the run from its own config in another workdir, RUN-again unless `--workdir` names one; the
same command resumes an interrupted repetition. Reports whether the result is bit-identical, equal
within `--tolerance`, or different, and the differences in config, data, versions and machine. Exit
code 0 if it was reproduced, 1 if it is different.
"""

from etils import epath

from common import cli
from common.errors import require
from common.reports import compare
from common.runs import workdir
from common.training import train
from common.training.saved import read_config


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("run", help="the workdir of a finished run")
    parser.add_argument("--workdir", help="workdir of the repetition (default: RUN-again)")
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="largest relative difference in final metrics"
    )
    args = parser.parse_args(argv)
    require(args.tolerance >= 0, f"--tolerance: {args.tolerance} is negative")
    config = read_config(args.run)
    finished = workdir.read_result(epath.Path(args.run)) is not None
    require(finished, f"{args.run}: the run is not finished; run its command again")
    again = args.workdir or args.run.rstrip("/") + "-again"
    train.run(config, again)
    found = compare.runs(args.run, again, args.tolerance)
    print(compare.comparison_text(found), end="")
    return int(found.verdict == compare.DIFFERENT)


if __name__ == "__main__":
    cli.exit(main)
