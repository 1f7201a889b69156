"""Existing runs: their configs and the states in their checkpoints, to evaluate or reuse.

with saved.opened(saved.read_config("runs/a"), "runs/a", "best") as (program, state, step):
    ...
"""

import contextlib
import logging
from collections.abc import Sequence

import jax
import ml_collections

from common import imports
from common.compress import distill, lora
from common.config import completed, overridden, plain
from common.devices import mesh, runtime
from common.errors import require
from common.nn.layers import identity
from common.runs import checkpoint, facts, files, log, workdir
from common.runs.history import best_steps, parse_best
from common.sections import call
from common.task import MOST_STEPS, held_out
from common.training import optim, unsaved
from common.training.loop import eval_context
from common.training.program import initial_state, prepare, sections, task_module

EVALUATED = ("--config.data.", "--config.evals.")  # overrides that an evaluation heeds


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


def evaluate_run(
    folder,
    step: str = "latest",
    sets: list[str] | None = None,
    data: dict | None = None,
    overrides: Sequence[str] = (),
) -> dict:
    """Evaluates a checkpoint of a finished or unfinished run, exactly as training does, on its own
    data or on another set of the same kind.

    Args:
      folder: the workdir.
      step: "latest", "best" (by config.checkpoint.best), or a step's number.
      sets: names of the run's evaluators, or splits of its data set such as "test[:1000]", read
        by the run's first evaluator; None is all of its evaluators.
      data: keys of the section `data` that name another set: {"name": "images:other"}. Classes are
        matched by their names; tokenizer, mean and deviation stay the run's, whose own data are not
        read.
      overrides: the same, and keys of the evaluators, as on a command line:
        ["--config.data.name=images:other"].

    Returns:
      {"step": …, "eval": {NAME or SPLIT: {metric: value}}}.

    Raises:
      BadInput: if there is no such run, step or set, or the other set has other classes.
    """
    own = read_config(folder)
    config, keys = with_sets(_overridden(own, data or {}, overrides), sets, str(folder))
    sources = None
    if config["data"] != own["data"]:
        config |= {"evals": {key: config["evals"][key] for key in keys.values()}}
        sources = _elsewhere(config, own, folder)
        if sets is None and config["data"].get("name") != own["data"].get("name"):
            for name, split in held_out(config).items():
                logging.warning(
                    f"{name}: the {sources[name].size:,} examples of its split {split!r}; "
                    "--set all takes all of the set"
                )
        config = endless(own) | {"evals": config["evals"]}
    with opened(config, folder, step, sources) as (program, state, number):
        return _evaluated(eval_context(program, state, number, folder), program, keys)


def _overridden(config: dict, data: dict, overrides: Sequence[str]) -> dict:
    """The config of a run with other keys of `data` and `evals`."""
    if not (data or overrides):
        return config
    for word in overrides:
        other = word.startswith("--config.") and not word.startswith(EVALUATED)
        require(
            not other,
            f"{word.partition('=')[0]}: of a run, data and evals alone can be another's; all else "
            "is its own",
        )
    given = ml_collections.ConfigDict(config | {"data": config["data"] | data})
    return plain(overridden(given, overrides, sections))


def _elsewhere(config: dict, own: dict, folder) -> dict:
    """The sources to evaluate a run on the data of `config`."""
    module, folder = task_module(own["task"]), files.absolute(folder)
    can = hasattr(module, "elsewhere") and hasattr(module, "kept")
    require(can, f"{own['task']}: its runs are evaluated on their own data alone: no `elsewhere`")
    kept = kept_sources(module, own, folder)
    return {"train": kept["train"]} | module.elsewhere(config, own, folder, kept)


def endless(config: dict) -> dict:
    """The config of a run without an end: an epoch has no length without the training data, and
    nothing of the model depends on it."""
    return config | {"train": config["train"] | {"duration": f"{MOST_STEPS} steps"}}


def kept_sources(module, config: dict, folder) -> dict:
    """The run's sources without contents, by what it keeps. Of a run of an older version, which
    kept less, its data are read, and it is kept from now on.

    Args:
      module: the task's, with `kept`.
      config: of the run.
      folder: its workdir.
    """
    sources = module.kept(config, files.absolute(folder))
    if sources is not None:
        return sources
    keys = config["data"] | ({"resident": False} if "resident" in config["data"] else {})
    whole = config | {"data": keys}
    sources = module.sources(whole)
    fingerprints = {name: source.fingerprint for name, source in sources.items()}
    workdir.check_data(files.absolute(folder), fingerprints)
    with contextlib.suppress(OSError):  # where it cannot be written
        facts.write(folder, module.make(whole, sources, identity))
    return sources


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


# ------------------------------------------------------------------------------- parameters alone


def evaluated(config: dict, folder, step: str, sources: dict, layout: mesh.Layout) -> tuple:
    """(parameters to evaluate, statistics, step) of a run's checkpoint, on the devices of a mesh:
    of the checkpoint nothing else is read, unless the optimizer's state has to tell.

    Args:
      config: of the run; its evaluators are not used, and its teacher only if it teaches hidden
        states and the optimizer's state has to tell.
      folder: its workdir.
      step: "latest", "best" (by config.checkpoint.best), or a step's number.
      sources: of `kept_sources`.
      layout: the mesh.

    Raises:
      BadInput: if there is no such checkpoint.
    """
    config = config | {"evals": {}}
    if optim.keeps_own(config["optim"]) or lora.of(config).rank:
        # The state has the projections to a teacher's hidden states, whose shapes it tells.
        with opened(endless(config), folder, step, sources) as (program, state, number):
            context = eval_context(program, state, number)
            return distill.without_projections(context.params, config), context.extra, number
    like = placed(config, sources, layout)
    averaged = config["train"]["average"] is not None
    with jax.set_mesh(layout.mesh), reading(folder) as checkpoints:
        number = step_number(config, folder, checkpoints, step)
        like = {"average": like} if averaged else like
        restored = checkpoints.restore(like, number, part=True)
    require(restored is not None, f"{folder}: no checkpoint there")
    state, number = restored
    state = state["average"] if averaged else state
    return state["params"], state["extra"], number


def placed(config: dict, sources: dict, layout: mesh.Layout) -> dict:
    """{"params", "extra"}: those of a run's model, as ShapeDtypeStructs with their shardings on a
    mesh; see `evaluated`."""
    config = distill.untaught(config | {"evals": {}})
    task = task_module(config["task"]).make(config, sources, mesh.constrainer(layout))
    params, extra = jax.eval_shape(lambda: task.init(jax.random.key(0)))
    shardings = (
        mesh.shardings(layout, task.partition, params),
        jax.tree.map(lambda _: mesh.replicated(layout), extra),
    )
    place = lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at)
    params, extra = jax.tree.map(place, (params, extra), shardings)
    return {"params": params, "extra": extra}


# ------------------------------------------------------------------------------------------- opened


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
    program = prepare(distill.untaught(config, whole=False), sources=sources, trains=False)
    if sources is None:
        fingerprints = {name: source.fingerprint for name, source in program.task.sources.items()}
        workdir.check_data(files.absolute(folder), fingerprints)
    else:
        fingerprints = None
    with reading(folder, fingerprints) as checkpoints:
        number = step_number(config, folder, checkpoints, step)
        with jax.set_mesh(program.layout.mesh):
            restored = checkpoints.restore(unsaved.kept(program, program.like), number)
            require(restored is not None, f"{folder}: no checkpoint there")
            state = unsaved.restored(program, restored[0], unsaved.read(program, folder))
            yield program, state, restored[1]


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
