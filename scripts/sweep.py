"""Train a sweep: python scripts/sweep.py --config configs/vision/digits.py:mlp --workdir runs/sweep

The trials are what the config's `sweep()` yields; `--sweep NAME` takes another function of the
file. Each is an ordinary run in a folder of its own, named by its overrides. The same command goes
on where a killed sweep stopped, tries again what failed, and begins trials that are new.

Launchers: `local` starts a process for each trial, `--jobs N` at a time; `vmap` trains those that
differ in traced numbers and the seed alone as one program. `--index K` trains trial K and nothing
else: for the array jobs of any scheduler.

Exit codes: 0 all trials are finished; 1 some failed, the table says why; 2 bad input; 75 told to
end and saved.
"""

import os
import shlex
import sys
import traceback

from etils import epath

from common import cli, launch, population, train, trials
from common.config import BadInput, require

EXPECTED = BadInput, train.NotFinite, train.CannotWrite


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    cli.add_config(parser)
    parser.add_argument("--workdir", required=True, help="where the trials' folders lie")
    parser.add_argument("--sweep", default="sweep", help="a function of the config file")
    parser.add_argument("--trials", type=int, help="how many; needed for a space of them")
    parser.add_argument("--launcher", default="local", choices=("local", "vmap"))
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--population", type=int, help="trials in one program at most (vmap)")
    parser.add_argument(
        "--metric", help="a key of the log to show; of the first evaluation if none"
    )
    parser.add_argument("--index", help="K, or K,K,… as one program: train these here")
    args, words = parser.parse_known_args(argv)
    require(args.jobs > 0, f"--jobs: {args.jobs} is not a positive number")
    most = args.population
    require(most is None or most > 0, f"--population: {most} is not a positive number")
    every = trials.of(args.config, words, args.sweep, args.trials)
    if args.index is not None:
        return _train_here(_chosen(args.index, every), args.workdir)

    metric = args.metric or _first_metric(every)
    for trial in every:
        if trial.refused:
            trials.note_failure(trial, args.workdir, trial.refused)
    open_ = [trial for trial in every if trial.config and not _is_finished(trial, args.workdir)]
    single = args.launcher == "local"
    jobs = [[trial] for trial in open_] if single else trials.groups(open_, most)
    alone = [job[0].name for job in jobs if len(job) == 1]
    if alone and not single:
        print(f"alone, as they share no program: {', '.join(alone)}", file=sys.stderr)
    board = launch.Board(every, args.workdir, metric)
    launch.local(jobs, _command(args, words), args.workdir, args.jobs, board)
    print(board.final(), end="")
    print(f"a trial alone: {shlex.join([*_command(args, words)([]), '--index', 'K'])}")
    return int(any(s.state != "finished" for s in board.standings()))


def _first_metric(every: list[trials.Trial]) -> str:
    """The loss of the first evaluation, or of training if there is none."""
    evals = next((trial.config["evals"] for trial in every if trial.config), {})
    return f"eval/{next(iter(evals))}/loss" if evals else "train/loss"


def _is_finished(trial: trials.Trial, root) -> bool:
    return trials.finished(trial, epath.Path(root) / trial.name)


def _command(args, words: list[str]):
    """Trials -> the command line that trains them."""
    own = [sys.executable, os.path.abspath(__file__), "--config", args.config]
    own += ["--workdir", args.workdir, "--sweep", args.sweep]
    own += ["--trials", str(args.trials)] if args.trials else []

    def of(job) -> list[str]:
        index = ["--index", ",".join(str(trial.index) for trial in job)] if job else []
        return [*own, *index, *words]

    return of


def _chosen(text: str, every: list[trials.Trial]) -> list[trials.Trial]:
    indices = [int(word) for word in text.split(",") if word.isdigit()]
    valid = len(indices) == len(text.split(",")) and max(indices, default=0) < len(every)
    require(valid, f"--index: {text!r}; the sweep has trials 0 to {len(every) - 1}")
    return [every[k] for k in indices]


def _train_here(chosen: list[trials.Trial], root: str) -> int:
    """Trains trials in this process, those that share a program together; the exit code."""
    for trial in chosen:
        trials.note_failure(trial, root, trial.refused)
    if len(chosen) == 1:
        require(not chosen[0].refused, chosen[0].refused)
        try:
            train.run(chosen[0].config, os.path.join(root, chosen[0].name))
        except train.Preempted:
            raise
        except Exception as error:
            trials.note_failure(chosen[0], root, _said(error))
            raise
        return 0
    failed = any(trial.refused for trial in chosen)
    for group in trials.groups(trial for trial in chosen if not trial.refused):
        folders = [os.path.join(root, trial.name) for trial in group]
        found = population.run([trial.config for trial in group], folders, print)
        for trial, outcome in zip(group, found, strict=True):
            if isinstance(outcome, Exception):
                failed = True
                if not isinstance(outcome, EXPECTED):
                    traceback.print_exception(outcome)
                trials.note_failure(trial, root, _said(outcome))
                print(f"{trial.name}: {_said(outcome)}", file=sys.stderr)
    return int(failed)


def _said(error: Exception) -> str:
    """What the user is told of an error; of a bug its type as well."""
    return str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    cli.exit(main)
