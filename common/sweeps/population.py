"""Several trials as one program: the same pure step under `jax.vmap`, over stacked hyperparameters,
seeds and states.

    results = population.run([config_0, config_1], ["runs/0", "runs/1"])

Trials can be stacked if their configs differ only in traced numbers and the seed. Each is still an
ordinary run with its own workdir, log and checkpoints: `loop.drive` drives each of them, and only
the updates are stacked. A trial that has stopped early, diverged, or is waiting for others to catch
up is masked.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from common.config import changed
from common.devices import ending, mesh, runtime
from common.errors import Preempted
from common.runs import workdir
from common.sections import call
from common.training import train
from common.training.loop import drive, is_log_step
from common.training.program import Program, abstract_arguments, lay_out, prepare, with_numbers
from common.training.step import TrainState

AXIS = "population"


def run(configs: Sequence[dict], folders: Sequence, say=lambda text: None) -> list:
    """Trains configs that differ only in traced numbers, each in its workdir.

    Args:
      configs: completed, as nested dicts.
      folders: one workdir per config.
      say: called with a line that explains why they are trained one after the other, if they are.

    Returns:
      For each config what `train.run` returns, or the exception that ended it; `Preempted` where
      the process was told to end and the trial has saved, or not begun.
    """
    call(runtime.start, configs[0]["runtime"])
    programs = _programs(configs)
    ready = [k for k, program in enumerate(programs) if isinstance(program, Program)]
    if not ready:
        return programs
    reason = obstacle(programs[ready[0]])
    if reason:
        say(f"{len(ready)} trials one after the other, as {reason}")
    train_them = _one_by_one if reason else stack
    outcomes = train_them([programs[k] for k in ready], [folders[k] for k in ready])
    return [outcomes[ready.index(k)] if k in ready else programs[k] for k in range(len(programs))]


def _programs(configs: Sequence[dict]) -> list:
    """For each config its Program, sharing what is compiled, or the exception that it raised."""
    first, programs = None, []
    for config in configs:
        try:
            program = prepare(config) if first is None else with_numbers(first, config)
            first = first or program
        except Exception as error:
            program = error
        programs.append(program)
    return programs


def obstacle(program: Program) -> str | None:
    """Why trials of this program cannot be stacked, or None."""
    layout = program.layout
    if jax.process_count() > 1:
        return "the run has several processes"
    if layout.mesh.shape["fsdp"] * layout.mesh.shape["tensor"] > 1:
        return "its mesh shards the parameters of a trial"
    if program.task.frozen is not None:
        return f"each would hold {program.task.frozen.name}"
    if not program.resident:
        return "the training set is not resident"
    if program.config["log"]["wandb"]:
        return "W&B supports one run per process at a time"
    if program.config["runtime"]["profile"]:
        return "a profile covers one run"
    if layout.mesh.devices.flat[0].platform == "cpu":
        with jax.set_mesh(layout.mesh):
            traced = program.step.trace(*abstract_arguments(program)).jaxpr
        if "conv_general_dilated" in str(traced):
            return "stacked convolutions are slower than single ones on a CPU"
    return None


def _one_by_one(programs: Sequence[Program], folders: Sequence) -> list:
    outcomes = []
    for program, folder in zip(programs, folders, strict=True):
        try:
            with workdir.Lock(folder) as lock, train.refusals(folder):
                outcomes.append(train.run_program(program, folder, lock, show=False))
        except Preempted as error:
            return outcomes + [error] * (len(programs) - len(outcomes))
        except Exception as error:
            outcomes.append(error)
    return outcomes


# ------------------------------------------------------------------------------------------ stacked


class _Row:
    """A row of a device array, which `jax.device_get` copies once for all rows."""

    def __init__(self, array: jax.Array, row: int):
        self._array, self._row = array, row

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._array)[self._row]


def stack(programs: Sequence[Program], folders: Sequence) -> list:
    """`run` for programs that `with_numbers` made from one, each update as one computation.

    The population is divided over the devices; each device holds whole trials.
    """
    first, count = programs[0], len(programs)
    devices = first.layout.mesh.devices.reshape(-1)
    padded = -(-count // len(devices)) * len(devices)
    layout = mesh.Layout(
        Mesh(devices.reshape(-1, 1, 1, 1), (AXIS, *mesh.AXES), axis_types=(AxisType.Auto,) * 4),
        first.layout.rules,
    )
    by_trial = NamedSharding(layout.mesh, P(AXIS))
    config = first.config
    if config.get("model", {}).get("implementation", "plain") is None:
        # jax cannot vmap cuDNN's attention with masks.
        config = changed(config, **{"model.implementation": "plain"})
    step = _stacked_step(lay_out(config, layout, first.task.sources), by_trial)
    pick = jax.jit(
        lambda states, k: jax.tree.map(lambda x: x[k], states),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, first.like),
    )

    def stacked(trees: list) -> Any:
        rows = [trees[k] if k < count else trees[0] for k in range(padded)]
        rows = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
        return jax.device_put(rows, by_trial)

    states, sums, terms, finite = None, None, None, None
    outcomes: dict[int, Any] = {}

    def outputs_of(k):
        return lambda: jax.tree.map(lambda x: _Row(x, k), (sums, terms, finite))

    def advance(k):
        """Advances a trial to its next update, or records how it ended."""
        try:
            return next(trials[k])
        except StopIteration as end:
            outcomes[k] = end.value
        except Exception as error:
            outcomes[k] = error
        return None

    with ending.Preemption() as preemption, contextlib.ExitStack() as cleanup:
        trials = [
            _trial(program, folder, count, preemption, lambda k=k: pick(states, k), outputs_of(k))
            for k, (program, folder) in enumerate(zip(programs, folders, strict=True))
        ]
        for trial in trials:
            cleanup.callback(trial.close)
        with jax.set_mesh(first.layout.mesh):
            begun = {k: advance(k) for k in range(count)}
            begun = {k: start for k, start in begun.items() if k not in outcomes}
            if not begun:
                return [outcomes[k] for k in range(count)]
            # Trials that did not begin get any state: they are masked.
            filler = next(iter(begun.values()))
            states, sums = stacked([begun.get(k, filler) for k in range(count)])
            hypers = stacked([jax.device_get(program.hypers) for program in programs])
            next_step = {k: advance(k) for k in begun}
            del begun, filler
        while going := {k: s for k, s in next_step.items() if k not in outcomes}:
            steps = min(going.values(), key=lambda due: due.start)
            active = [k for k, due in going.items() if due == steps]
            live = np.isin(np.arange(padded), active)
            anew = live & is_log_step(first, steps.start)
            with jax.set_mesh(layout.mesh):
                step_count = np.int32(len(steps))
                states, sums, terms, finite = step(
                    hypers, states, sums, live, anew, step_count, first.resident
                )
            with jax.set_mesh(first.layout.mesh):
                next_step |= {k: advance(k) for k in active}
    return [outcomes[k] for k in range(count)]


def _stacked_step(program: Program, by_trial: NamedSharding):
    """(hypers, states, sums, live bool[n], anew bool[n], count, resident) -> (states, sums, Terms,
    finite), all stacked; trials that are not live keep their state, and new sums begin where
    `anew`."""
    update, several = program.update.__wrapped__, program.plan.steps_per_call > 1

    def trial_step(hypers, state: TrainState, sums, live, anew, count, resident):
        inputs, before = count if several else {}, jnp.where(anew, 0.0, sums)
        *updated, terms, finite = update(hypers, state, before, inputs, resident)
        updated = jax.tree.map(lambda new, old: jnp.where(live, new, old), updated, [state, sums])
        return *updated, terms, finite

    return jax.jit(
        jax.vmap(trial_step, in_axes=(0, 0, 0, 0, 0, None, None), spmd_axis_name=AXIS),
        donate_argnums=1,
        out_shardings=by_trial,
    )


def _trial(
    program: Program, folder, count: int, preemption, state, outputs
) -> Iterator[tuple[TrainState, np.ndarray] | range]:
    """An ordinary run whose updates the caller makes: yields its initial state and sums, on the
    host, then what `loop.drive` yields; returns its result."""
    with (
        workdir.Lock(folder) as lock,
        train.refusals(folder),
        train.begun(program, folder, lock, show=False, population=count) as (opened, first),
    ):
        step = int(first.step)
        # A copy: on a CPU `device_get` may return the very memory that is freed next.
        host = jax.tree.map(np.array, jax.device_get(first))
        jax.tree.map(lambda x: x.delete(), first)
        yield host, opened.sums
        del host
        yield from drive(opened._replace(preemption=preemption), step, state, outputs)
        return train.finish(opened, state())
