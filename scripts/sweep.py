"""Train a sweep: python scripts/sweep.py --config configs/vision/digits.py:mlp --workdir runs/sweep

The config's `sweep()` yields the trials; `--sweep NAME` uses another function of the file. Each is
an ordinary run in its own folder, named by its overrides. The same command resumes a killed sweep,
retries failed trials and starts new ones.

`--folds K` is cross-validation: every trial of `--sweep NAME`, or without it the config itself, on
each of K folds of its training split, which the evaluator `test` reads (`--folds K:NAME`: another).
A report averages the folds.

Every trial's keys, and values as far as that needs no data, are checked before any begins.

Launchers: `local` starts a process for each trial, `--jobs N` at a time; `vmap` trains those that
differ only in traced numbers and the seed as one program; `ray` hands them to Ray Tune, on this
machine or a cluster (`--address`), which can stop poor trials early (`--asha`) and let Optuna
sample trials from a space (`--optuna --trials N`); `slurm` submits them as a job array. `--index K`
trains only trial K: for the job arrays of any scheduler.

Exit codes: 0 all trials are finished; 1 some failed, the table says why; 2 bad input; 75 preempted,
after saving.
"""

import contextlib
import json
import os
import shlex
import sys
import traceback

import _checkout  # noqa: F401
from common import cli, config
from common.errors import BadInput, CannotWrite, NotFinite, Preempted, brief, require
from common.reports import statistics
from common.runs import place, workdir
from common.runs.files import absolute
from common.runs.history import metric_key, parse_best
from common.sweeps import launch, launch_ray, launch_slurm, population, trials
from common.training import train

EXPECTED = BadInput, NotFinite, CannotWrite


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    args, words = _parser().parse_known_args(argv)
    _check(args)
    if args.overrides is not None:
        return _train_here([_trial(args, words, _overrides(args.overrides))], args.workdir)
    if args.index is not None:
        return _train_here(_by_index(args.index, _trials(args, words)), args.workdir)
    with _little_memory():
        all_trials = _trials(args, words)
    trials.check(all_trials)
    return _launch(args, words, all_trials)


@contextlib.contextmanager
def _little_memory():
    """Keeps a config that computes its values with jax from taking a GPU's memory for the launcher,
    whose trials need it."""
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name)
        os.environ |= {} if before is None else {name: before}


def _trials(args, words: list[str]) -> list[trials.Trial]:
    """The trials of the sweep, [] if Optuna chooses them, and whether they can log its metric."""
    name = args.sweep or (None if args.folds else "sweep")
    all_trials = (
        [] if args.optuna else trials.of(args.config, words, name, args.trials, _folds(args.folds))
    )
    if args.metric:
        every = all_trials or [_trial(args, words, {})]
        made = [trial.config for trial in every if trial.config]
        trials.check_metric("--metric", metric_key(args.metric), made)
    return all_trials


def _launch(args, words: list[str], all_trials: list[trials.Trial]) -> int:
    """Has the trials that are left trained by other processes; returns the exit code."""
    board = launch.Board(all_trials, args.workdir, *_metric(args, all_trials))
    states = [standing.state for standing in board.standings()]
    left = [
        trial
        for trial, state in zip(all_trials, states, strict=True)
        if state not in ("finished", "stopped")
    ]
    LAUNCHERS[args.launcher](args, words, left, board)
    print(board.final(), end="")
    last = ["--overrides", "'{…}'"] if args.optuna else ["--index", "K"]
    if args.folds:
        print(f"means over the folds: python scripts/report.py {shlex.quote(args.workdir)}")
    print(f"a trial alone: {shlex.join(_command(args, words))} {' '.join(last)}")
    return int(any(s.state not in ("finished", "stopped") for s in board.standings()))


def _parser():
    parser = cli.parser(__doc__)
    cli.add_config(parser)
    parser.add_argument(
        "--workdir", type=place.workdir, required=True, help="folder for the trials' workdirs"
    )
    parser.add_argument(
        "--sweep", help="function of the config file that yields the trials (default: sweep)"
    )
    parser.add_argument(
        "--folds", metavar="K[:NAME]", help="cross-validation: each trial on K folds"
    )
    parser.add_argument("--trials", type=int, help="number of trials; required for a space")
    parser.add_argument("--launcher", default="local", choices=LAUNCHERS)
    parser.add_argument("--jobs", type=int, default=1, help="trials (or populations) at a time")
    parser.add_argument("--population", type=int, help="most trials in one program (vmap)")
    parser.add_argument(
        "--metric",
        help="key of the log to sort by, 'max KEY' or 'min KEY' (default: config.checkpoint.best, "
        "config.train.stop.metric, or a loss)",
    )
    parser.add_argument("--index", help="train only trial K here, or K,K,… as one program")
    parser.add_argument("--overrides", help="train only the trial with these overrides (JSON) here")
    ray = parser.add_argument_group("ray")
    ray.add_argument(
        "--address", default="", help="address of a cluster, or 'auto' (default: this machine)"
    )
    ray.add_argument("--cpus", type=float, help="CPUs per trial (default: 1)")
    ray.add_argument("--gpus", type=float, help="GPUs per trial; 0.5 shares one")
    ray.add_argument("--retries", type=int, help="retries of a failed trial")
    ray.add_argument(
        "--asha", type=int, metavar="STEPS", help="stop poor trials early, from this many steps on"
    )
    ray.add_argument("--optuna", action="store_true", help="let Optuna sample trials from a space")
    slurm = parser.add_argument_group("slurm")
    slurm.add_argument(
        "--slurm", default="", help="parameters of submitit: 'partition=gpu,time=600'"
    )
    return parser


def _check(args) -> None:
    """Raises `BadInput` for invalid or conflicting arguments."""
    for name in ("jobs", "population", "trials", "asha"):
        value = getattr(args, name)
        require(value is None or value > 0, f"--{name}: {value} is not a positive number")
    for name in ("cpus", "gpus", "retries"):
        value = getattr(args, name)
        require(value is None or value >= 0, f"--{name}: {value} is negative")
    for launcher, names in (
        ("ray", ("address", "cpus", "gpus", "retries", "asha", "optuna")),
        ("slurm", ("slurm",)),
        ("vmap", ("population",)),
    ):
        flags = [f"--{name}" for name in names if getattr(args, name)]
        wrong = flags and args.launcher != launcher
        require(not wrong, f"{', '.join(flags)}: for --launcher {launcher}")
    require(not (args.optuna and args.folds), "--folds: not for trials that Optuna chooses")
    require(not (args.optuna and args.index), "--index: Optuna's trials have none; use --overrides")
    if args.asha or args.optuna:
        require(bool(args.metric), "--metric: required, e.g. 'max eval/valid/accuracy'")
        parse_best("--metric", args.metric)
    if args.optuna:
        require(args.trials is not None, "--trials: say how many trials Optuna should sample")


def _folds(text: str | None) -> tuple[int, str] | None:
    """'5:valid' -> (5, 'valid')."""
    if text is None:
        return None
    count, _, evaluator = text.partition(":")
    valid = count.isdecimal() and len(count) < 10 and int(count) > 1
    require(valid, f"--folds: {text!r}; write a number of at least 2, or 5:EVALUATOR")
    return int(count), evaluator


def _metric(args, all_trials: list[trials.Trial]) -> tuple[str, int]:
    """(the key of the log by which trials are compared, 1 if more of it is better, -1 if less is, 0
    if that is unknown): the argument's, that which chooses checkpoints or ends runs, or the loss of
    `valid`, of `test` or of the first evaluation."""
    made = next((trial.config for trial in all_trials if trial.config), None)
    text = args.metric
    if not text and made:
        choices = made["checkpoint"]["best"], made["train"]["stop"]["metric"]
        names = [name for name in ("valid", "test", *made["evals"]) if name in made["evals"]]
        loss = f"eval/{names[0]}/loss" if names else "train/loss"
        text = next(filter(None, choices), loss)
    signs = statistics.signs([made["task"]] if made else [])
    sign, key = statistics.wanted("--metric", text or "train/loss", signs)
    return key, sign


def _command(args, words: list[str]) -> list[str]:
    """The command line of this sweep, the beginning of every trial's."""
    own = [sys.executable, os.path.abspath(__file__), "--config", args.config]
    own += ["--workdir", args.workdir]
    for name in ("sweep", "trials", "folds"):
        value = getattr(args, name)
        own += [f"--{name}", str(value)] if value else []
    return own + words


# --------------------------------------------------------------------------------------- launchers


def _local(args, words, left, board) -> None:
    _processes(args, words, [[trial] for trial in left], board)


def _vmap(args, words, left, board) -> None:
    jobs = trials.groups(left, args.population)
    alone = [job[0].name for job in jobs if len(job) == 1]
    if alone:
        print(f"alone, as they share no program: {', '.join(alone)}", file=sys.stderr)
    _processes(args, words, jobs, board)


def _processes(args, words, jobs, board) -> None:
    own = _command(args, words)
    index = lambda job: ",".join(str(trial.index) for trial in job)
    command = lambda job: [*own, "--index", index(job)]
    launch.local(jobs, command, args.workdir, args.jobs, board)


def _absolute(args, words: list[str]) -> list[str]:
    """`_command` for processes that may start in another folder."""
    args.workdir = os.fspath(absolute(args.workdir))
    file, *argument = args.config.partition(":")
    args.config = "".join((os.path.abspath(file), *argument))
    return _command(args, words)


def _ray(args, words, left, board) -> None:
    pending, space = [trial.overrides for trial in left], None

    def update():
        for overrides in launch_ray.chosen(space, args.workdir) if space else ():
            board.add(_trial(args, words, overrides))
        board.show([k for k, s in enumerate(board.standings()) if s.state in ("new", "begun")])

    if args.optuna:
        space = trials.space(args.config, args.sweep or "sweep")
        update()
        states = zip(launch_ray.chosen(space, args.workdir), board.standings(), strict=True)
        pending = [overrides for overrides, s in states if s.state not in ("finished", "stopped")]
        if args.trials <= len(board.standings()) - len(pending):
            return
    elif not pending:
        return
    own = _absolute(args, words)
    command = lambda overrides: [*own, "--overrides", json.dumps(overrides)]
    metric = parse_best("--metric", args.metric) if args.asha or args.optuna else None
    options = launch_ray.Options(
        address=args.address,
        at_once=args.jobs,
        cpus=1.0 if args.cpus is None else args.cpus,
        gpus=args.gpus or 0.0,
        retries=args.retries or 0,
        metric=metric,
        grace=args.asha,
    )
    launch_ray.run(
        pending, command, args.workdir, options, update, space=space, count=args.trials or 0
    )
    update()


def _slurm(args, words, left, board) -> None:
    own, parameters = _absolute(args, words), launch_slurm.parameters(args.slurm)
    command = lambda trial: [*own, "--index", str(trial.index)]
    launch_slurm.run(left, command, args.workdir, args.jobs, parameters, board)


LAUNCHERS = {"local": _local, "vmap": _vmap, "ray": _ray, "slurm": _slurm}


# ------------------------------------------------------------------------- trials in this process


def _trial(args, words: list[str], overrides: dict) -> trials.Trial:
    """The trial with these overrides."""
    module, arg = config.experiment(args.config)
    return trials.one(module.get_config, arg, 0, overrides, words)


def _overrides(text: str) -> dict:
    """The argument --overrides."""
    try:
        found = config.from_json(text)
    except (ValueError, RecursionError):
        found = None
    form = 'is not JSON like \'{"optim.lr": 1e-3, "seed": 0}\''
    require(isinstance(found, dict), f"--overrides: {brief(text)} {form}")
    return found


def _by_index(text: str, all_trials: list[trials.Trial]) -> list[trials.Trial]:
    indices = [int(word) for word in text.split(",") if word.isdecimal()]
    valid = len(indices) == len(text.split(",")) and max(indices, default=0) < len(all_trials)
    require(valid, f"--index: {text!r}; the sweep has trials 0 to {len(all_trials) - 1}")
    return [all_trials[k] for k in indices]


def _train_here(chosen: list[trials.Trial], root: str) -> int:
    """Trains trials in this process, those that share a program together; returns the exit code."""
    folder = lambda trial: os.path.join(root, trial.name)
    # Another launcher may have trained one while this process was starting.
    chosen = [t for t in chosen if t.refused or not trials.finished(t, folder(t))]
    for trial in chosen:
        trials.note_failure(folder(trial), trial.refused)
    if len(chosen) == 1:
        require(not chosen[0].refused, chosen[0].refused)
        try:
            train.run(chosen[0].config, folder(chosen[0]))
        except Preempted:
            raise
        except Exception as error:
            if not workdir.in_use(folder(chosen[0])):  # by another process that trains it
                trials.note_failure(folder(chosen[0]), _message(error))
            raise
        return 0
    failed = any(trial.refused for trial in chosen)
    for group in trials.groups(trial for trial in chosen if not trial.refused):
        outcomes = population.run([trial.config for trial in group], [*map(folder, group)], print)
        preempted = [outcome for outcome in outcomes if isinstance(outcome, Preempted)]
        for trial, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception) and outcome not in preempted:
                failed = True
                if workdir.in_use(folder(trial)):
                    continue
                if not isinstance(outcome, EXPECTED):
                    traceback.print_exception(outcome)
                trials.note_failure(folder(trial), _message(outcome))
                print(f"{trial.name}: {_message(outcome)}", file=sys.stderr)
        if preempted:
            raise preempted[0]
    return int(failed)


def _message(error: Exception) -> str:
    """The user's message for an error; for a bug, with its type."""
    return str(error) if isinstance(error, EXPECTED) else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    cli.exit(main)
