"""Repeat a finished run and compare: python scripts/reproduce.py runs/fashion

Trains the run again, from its own config and with the code that is there now, in another workdir:
RUN-again unless `--workdir` names one. The same command resumes an interrupted repetition, if code,
versions, config and data are still those that it began with; a finished one is never taken for a
new one. Reports whether the result is bit-identical, equal within `--tolerance`, or different, and
the differences in config, code, data, versions and machine. Exit code 0 if it was reproduced, 1 if
it is different.
"""

import os
from collections.abc import Sequence

from etils import epath

import _checkout  # noqa: F401
from common import cli
from common.config import differing, flatten, from_json, to_json
from common.devices import code, runtime
from common.errors import require
from common.reports import compare
from common.runs import place, workdir
from common.runs.located import disagreeing
from common.runs.log import read_lines
from common.training import train
from common.training.saved import read_config


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=place.folder, help="the workdir of a finished run")
    parser.add_argument(
        "--workdir", type=place.workdir, help="workdir of the repetition (default: RUN-again)"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="largest relative difference in final metrics"
    )
    args = parser.parse_args(argv)
    require(args.tolerance >= 0, f"--tolerance: {args.tolerance} is negative")
    config, log = read_config(args.run), read_lines(args.run)
    result = workdir.read_result(epath.Path(args.run))
    finished = result is not None and log[-1:] and log[-1]["step"] == result.get("steps")
    require(bool(finished), f"{args.run}: the run is not finished; run its command again")
    again = args.workdir or _absolute(args.run) + "-again"
    _check_apart(args.run, again)
    if workdir.begun(again):
        _check_resumable(args.run, again, config, log)
    train.run(config, again)
    found = compare.runs(args.run, again, args.tolerance)
    print(compare.comparison_text(found), end="")
    return int(found.verdict == compare.DIFFERENT)


def _absolute(folder: str) -> str:
    """A folder without `..` and slashes at its end."""
    if "://" in folder:
        return folder.rstrip("/")
    return os.path.abspath(os.path.expanduser(folder))


def _check_apart(run: str, again: str) -> None:
    """Raises `BadInput` if one of the two folders is the other, or lies in it."""
    resolve = lambda folder: folder if "://" in folder else os.path.realpath(folder)
    of_run, of_again = (resolve(_absolute(folder)).rstrip("/") + "/" for folder in (run, again))
    apart = not of_run.startswith(of_again) and not of_again.startswith(of_run)
    how = "is the run itself" if of_run == of_again else "and the run lie in one another"
    require(apart, f"--workdir: {again} {how}; a repetition needs a folder of its own")


def _check_resumable(run: str, again: str, config: dict, log: Sequence[dict]) -> None:
    """Raises `BadInput` unless `again` holds an interrupted repetition that can go on: begun by
    this command, with the config, code and versions of now. (`train.run` compares the data.)"""
    instead = "nothing was trained; remove it, or give another --workdir"
    require(
        not (epath.Path(again) / "result.json").exists(),
        f"--workdir: {again} is finished: it says nothing about the code of now; {instead}, or "
        "compare the two with scripts/diff_runs.py",
    )
    begun = read_lines(again)
    require(
        not begun or begun != list(log[: len(begun)]),  # not even the clock differs
        f"--workdir: {again} holds a copy of the run; {instead}",
    )
    differ = disagreeing(workdir.read_config(again), from_json(to_json(config)))
    require(
        not differ,
        f"--workdir: {again} holds another run, config.{next(iter(differ), '')} differs; {instead}",
    )
    now = runtime.versions(code.named(flatten(config)))
    for start in workdir.read_starts(again) or [{}]:
        lines = compare.code_lines(start, now) + [
            f"{key}: {was} and {is_now}"
            for key, (was, is_now) in differing(
                *({k: facts.get(k) for k in ("python", "versions")} for facts in (start, now))
            ).items()
        ]
        require(
            not lines,
            f"--workdir: {again} holds an interrupted repetition that was begun otherwise "
            f"({'; '.join(lines)}); {instead}",
        )


if __name__ == "__main__":
    cli.exit(main)
