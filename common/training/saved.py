"""Existing runs: their configs and the states in their checkpoints, to evaluate or reuse.

with saved.opened(saved.read_config("runs/a"), "runs/a", "best") as (program, state, step):
    ...
"""

import contextlib

import jax

from common import imports
from common.config import completed
from common.devices import runtime
from common.errors import require
from common.runs import checkpoint, files, log, workdir
from common.runs.history import best_steps, parse_best
from common.sections import call
from common.training.loop import eval_context
from common.training.program import initial_state, prepare, sections


def read_config(folder) -> dict:
    """The config of a run as a nested dict; keys added since it began get backward-compatible
    defaults. Raises `BadInput` if there is none or it is torn."""
    config = workdir.read_config(folder)
    imports.search(*workdir.import_folders(folder), *imports.here())
    require(
        "task" in config,
        f"{folder}: no run there: its config.json names no task; published weights are named with "
        "--weights",
    )
    return completed(config, sections)


def evaluate_run(folder, step: str = "latest", sets: list[str] | None = None) -> dict:
    """Evaluates a checkpoint of a finished or unfinished run, exactly as training does.

    Args:
      folder: the workdir.
      step: "latest", "best" (by config.checkpoint.best), or a step's number.
      sets: names of the run's evaluators, or splits of its data set such as "test[:1000]", read
        by the run's first evaluator; None is all of its evaluators.

    Returns:
      {"step": …, "eval": {NAME or SPLIT: {metric: value}}}.

    Raises:
      BadInput: if there is no such run, step or set.
    """
    config, keys = with_sets(read_config(folder), sets, str(folder))
    with opened(config, folder, step) as (program, state, number):
        return _evaluated(eval_context(program, state, number, folder), program, keys)


def evaluate_weights(config: dict, name: str, sets: list[str] | None = None) -> dict:
    """Evaluates published weights on the data of a config, without a run.

    Args:
      config: a completed config; its model, tokenizer and scaling of images give way to what the
        weights say (`config.init.adopt`).
      name: the weights, as for `config.init.path`.
      sets, result: as for `evaluate_run`.

    Raises:
      BadInput: if the weights cannot be read, or predict other classes than the data's.
    """
    config, keys = with_sets(config, sets, "the config")
    with opened_weights(config, name) as (program, state, number):
        return _evaluated(eval_context(program, state, number), program, keys)


def with_sets(config: dict, sets: list[str] | None, where: str) -> tuple[dict, dict[str, str]]:
    """(the config with an evaluator for each of `sets`, {set: that evaluator}); see
    `evaluate_run`."""
    evals = config["evals"]
    require(bool(evals), f"{where}: the run has no evaluators")
    # Any other name is a split, read by the run's first evaluator.
    keys = {name: name if name in evals else f"split {name}" for name in sets or evals}
    first = next(iter(evals.values()))
    for name in set(keys) - set(evals):
        require("split" in first, f"--set: {name!r}: the run has {', '.join(evals)}, and no splits")
        evals = evals | {keys[name]: first | {"split": name}}
    return config | {"evals": evals}, keys


def _evaluated(context, program, keys: dict[str, str]) -> dict:
    values = {name: program.task.evaluators[key].run(context) for name, key in keys.items()}
    return {"step": context.step, "eval": values}


@contextlib.contextmanager
def opened_weights(config: dict, name: str):
    """The program of a config that begins with published weights, and its first state, with its
    mesh set; see `evaluate_weights`. Yields as `opened`."""
    begin = {**dict.fromkeys(config["init"]), "path": name, "adopt": True}
    begin |= {"rename": (), "skip": (), "allow": ()}
    call(runtime.start, config["runtime"])
    program = prepare(config | {"init": begin})
    with jax.set_mesh(program.layout.mesh):
        yield program, initial_state(program), 0


@contextlib.contextmanager
def opened(config: dict, folder, step: str = "latest", sources: dict | None = None):
    """Opens a run: its program and the state of one of its checkpoints, with its mesh set.

    Args:
      config: the run's config, possibly with other evaluators.
      folder: the workdir.
      step: "latest", "best" (by config.checkpoint.best), or a step's number.
      sources: data sets in place of the run's own, which are then neither read nor compared.

    Yields:
      (Program, TrainState, step).

    Raises:
      BadInput: if there is no such checkpoint.
    """
    call(runtime.start, config["runtime"])
    program = prepare(config, sources=sources)
    if sources is None:
        fingerprints = {name: source.fingerprint for name, source in program.task.sources.items()}
        workdir.check_data(files.absolute(folder), fingerprints)
    else:
        fingerprints = None
    with reading(folder, fingerprints) as checkpoints:
        number = step_number(config, folder, checkpoints, step)
        with jax.set_mesh(program.layout.mesh):
            restored = checkpoints.restore(program.like, number)
            require(restored is not None, f"{folder}: no checkpoint there")
            yield program, *restored


@contextlib.contextmanager
def reading(folder, fingerprints: dict[str, str] | None = None):
    """The `Checkpoints` of a run, to read; a checkpoint of another run is damage.

    Args:
      folder: the workdir.
      fingerprints: of its data sets; None is what its last start says of them.
    """
    if fingerprints is None:
        fingerprints = next((start["data"] for start in workdir.read_starts(folder)[-1:]), {})
    own = workdir.identity(workdir.read_config(folder), fingerprints)
    with contextlib.closing(checkpoint.Checkpoints(folder, run=own)) as checkpoints:
        yield checkpoints


def step_number(config: dict, folder, checkpoints: checkpoint.Checkpoints, step: str) -> int | None:
    """The number of a run's step that is "latest" (None), "best" or a number. Raises `BadInput` if
    it is none of these, or none is best."""
    if step == "latest":
        return None
    if step != "best":
        number = step.isascii() and step.isdigit()
        require(number, f"--step: {step!r} is not 'latest', 'best' or a number")
        return int(step)
    best = parse_best("config.checkpoint.best", config["checkpoint"]["best"])
    require(best is not None, "--step best: the run's config.checkpoint.best is not set")
    saved_steps = checkpoints.steps()
    kept = [s for s in best_steps(best, log.read_lines(folder)) if s in saved_steps]
    require(bool(kept), f"--step best: no checkpoint in {folder} has that evaluation")
    return kept[0]
