"""Checkpoints: asynchronous, verified, the latest and the best, restored onto any mesh. The only
user of Orbax.

A record is saved in the same Orbax step as the tensors: the digest, shape and dtype of each, the
step, and the run (its config and data). The digests are recomputed on reading: corruption is
detected and the newest good step is used instead, with a warning. So is one that was renamed to
another step, or comes from another run. A checkpoint of another model is an error that lists the
differences.

Processes that share a run agree on what each has found before they proceed, so that none waits for
one that has failed (`together`).
"""

import contextlib
import errno
import itertools
import json
import logging
import os
import re
import shutil
import stat
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from common import tree
from common.devices.agreement import gather, together
from common.errors import BadInput, require
from common.runs.files import absolute, can_append, error_number, refusals
from common.runs.history import best_steps
from common.runs.record import Damaged, Record, differences, from_json, structure, to_json
from common.runs.saves import Policy

preservation_policy = ocp.checkpoint_managers.preservation_policy

DELETED = "deleted"  # the folder to which a step is renamed before its files are deleted

# Errors unrelated to a checkpoint's bytes, as Python and TensorStore spell them.
NOT_DAMAGE = (PermissionError, ConnectionError, TimeoutError)
NOT_DAMAGE_NUMBERS = (errno.EMFILE, errno.ENFILE, errno.ESTALE)
NOT_DAMAGE_STATUS = re.compile(
    "(UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED|ABORTED)"
)


# ------------------------------------------------------------------------------------------- saving


class _Preserve(preservation_policy.PreservationPolicy):
    """Keeps the newest few of the saved steps and, by the log, the best few."""

    def __init__(self, rule: Policy, history: Callable[[], list[dict]]):
        self.rule, self.history = rule, history

    def should_preserve(self, checkpoints, *, context):
        steps = [c.step for c in checkpoints]
        best = [s for s in best_steps(self.rule.best, self.history()) if s in steps]
        kept = set(sorted(steps)[-self.rule.keep_latest :]) | set(best[: self.rule.keep_best])
        return [step in kept for step in steps]


def steps_in(workdir: epath.PathLike) -> list[int]:
    """Steps with a complete checkpoint on disk, in increasing order."""
    folder = absolute(workdir) / "checkpoints"
    steps = ocp.path.step.standard_name_format().find_all(folder) if folder.exists() else ()
    return sorted(checkpoint.step for checkpoint in steps)


def _barrier(*, key: str, timeout_ms: int) -> None:
    """Orbax's barrier between the threads that save, except that a failed save does not wait.

    Orbax also calls it while handling an error, and would wait for processes whose save waits for
    this one: for 20 minutes, in which the error goes unreported.
    """
    error = sys.exc_info()[1]
    if error is not None:
        raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


class Checkpoints:
    """A workdir's checkpoints. Must be closed: saves are asynchronous."""

    def __init__(
        self,
        workdir: epath.PathLike,
        rule: Policy | None = None,
        history: Callable = list,
        run: dict | None = None,
    ):
        """Opens `workdir/checkpoints`.

        Args:
          workdir: the folder of the run.
          rule: when to save and what to keep; None opens read-only and creates nothing.
          history: () -> the lines of the log, for the best.
          run: {key: value} that tells the run from others. A checkpoint whose record says
            otherwise is damage; keys that only one of them has are not compared.
        """
        self._folder = absolute(workdir) / "checkpoints"
        self._run = json.loads(json.dumps(run or {}))
        self._states, self._records = ocp.StandardCheckpointHandler(), ocp.JsonCheckpointHandler()
        self._parts = ocp.PyTreeCheckpointHandler()
        self._manager = None
        if rule is None:
            return
        with together():
            if jax.process_index() == 0:
                self._folder.mkdir(parents=True, exist_ok=True)
        self._set_aside(*filter(self._stops_orbax, self._agreed_steps()))
        options = ocp.CheckpointManagerOptions(
            cleanup_tmp_directories=True,
            preservation_policy=_Preserve(rule, history),
            # Renamed first: one that is deleted by halves is not taken for a checkpoint.
            todelete_subdir=DELETED if can_append(self._folder) else None,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(barrier_sync_fn=_barrier),
        )
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "digests": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)
        self._empty()

    def _stops_orbax(self, step: int) -> bool:
        """Whether a step's metadata are damaged such that Orbax, which reads those of every step
        for its time, could not even open the folder."""
        try:
            ocp.path.step.standard_name_format().find_step(self._folder, step).commit_timestamp  # noqa: B018
        except Exception as error:
            return not isinstance(error, OSError)
        return False

    def _empty(self) -> None:
        """Deletes what is no longer kept; no save may be in progress."""
        if jax.process_index() == 0 and can_append(self._folder):
            shutil.rmtree(self._folder / DELETED, ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps that are complete on disk, in increasing order."""
        return steps_in(self._folder.parent)

    def save(self, step: int, state, beside: dict | None = None) -> None:
        """Starts saving a state; its arrays may be donated as soon as this returns.

        Args:
          step: completed updates.
          state: a tree of arrays.
          beside: JSON values to keep beside it; see `Checkpoints.beside`.

        Raises:
          OSError: from the file system (a full disk, say), during this call or the previous save.
            A save that fails leaves no checkpoint.
        """
        digests = jax.device_get(tree.digests(state))
        tensors = {p: [*s, int(digests[p])] for p, s in structure(state).items()}
        record = to_json(Record(tensors, step, self._run, beside or {}))
        # Orbax stores dicts: a NamedTuple becomes a dict of its fields.
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(_as_dicts(state)), digests=ocp.args.JsonSave(record)
        )
        self.wait()
        with refusals(self._folder):
            self._manager.save(step, args=args, force=True)

    def restore(self, like, step: int | None = None, part: bool = False) -> tuple[Any, int] | None:
        """Reads and verifies a state, onto the shardings of `like`.

        Args:
          like: a tree of ShapeDtypeStructs with shardings.
          step: the step to read; None is the newest intact one. Damaged ones are skipped with a
            warning, and then moved to `workdir/damaged_checkpoint_STEP` unless opened read-only.
          part: whether `like` may be part of what was saved: nothing else is read or verified.

        With several processes, each reads its part of the files, and all agree on each candidate:
        if one finds it damaged, all skip it. No Orbax barrier is crossed, and if one raises, all
        raise. The exception is a process that is killed or hangs in a read: the others wait until
        the coordination service ends them.

        Returns:
          (state, step), or None if there is no checkpoint at all.

        Raises:
          BadInput: if the checkpoint has another structure or cannot be read for a reason other
            than damage, the requested step is missing or damaged, or there are checkpoints but none
            is intact.
        """
        self.wait()
        steps = self._agreed_steps()
        if step is not None:
            require(
                step in steps, f"no checkpoint of step {step} in {self._folder}; there are {steps}"
            )
            try:
                return self._read(like, step, part), step
            except Damaged as damage:
                raise BadInput(f"the checkpoint of step {step} is damaged: {damage}") from damage
        damaged = []
        for candidate in reversed(steps):
            try:
                state = self._read(like, candidate, part)
            except Damaged as damage:
                logging.warning("checkpoint %d is damaged (%s)", candidate, damage)
                damaged.append(candidate)
                continue
            # Only now: if none is intact, all stay where they are for inspection.
            if self._manager:
                for bad in damaged:
                    self._set_aside(bad)
            return state, candidate
        if not self._manager and self._agreed_steps() != steps:
            return self.restore(like, part=part)  # a live run has saved and deleted meanwhile
        require(not steps, f"all checkpoints in {self._folder} are damaged: steps {steps}")
        return None

    def beside(self, step: int) -> dict:
        """What `save` was given beside the state of a step that `restore` has verified."""
        with together(), self._reading(step):
            return from_json(self._records.restore(self._folder / str(step) / "digests")).beside

    def _agreed_steps(self) -> list[int]:
        """The steps that every process sees."""
        with together():
            own = self.steps()
        return sorted(set.intersection(*map(set, gather(own))))

    def shapes(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """{path: shape and dtype} of a step's tensors. Raises `BadInput` if it is damaged."""
        try:
            with together(Damaged), self._reading(step):
                self._check_files(step)
                return self._stored(step)
        except Damaged as damage:
            raise BadInput(f"the checkpoint of step {step} is damaged: {damage}") from damage

    def _stored(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        stored = tree.flatten(self._states.metadata(self._folder / str(step) / "state").tree)
        return {p: jax.ShapeDtypeStruct(m.shape, np.dtype(m.dtype)) for p, m in stored.items()}

    @contextlib.contextmanager
    def _reading(self, step: int):
        """Classifies errors: damage becomes `Damaged`, other read errors `BadInput`; the rest pass
        unchanged."""
        try:
            yield
        except (BadInput, Damaged, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:
            damage = (
                not isinstance(error, NOT_DAMAGE)
                and error_number(error) not in NOT_DAMAGE_NUMBERS
                and not NOT_DAMAGE_STATUS.match(str(error))
            )
            if damage:
                raise Damaged(_first_line(error)) from error
            where = f"the checkpoint of step {step} in {self._folder}"
            raise BadInput(f"{where} cannot be read: {_first_line(error)}") from error

    def _read(self, like, step: int, part: bool):
        folder, wanted = self._folder / str(step), structure(like)
        with together(Damaged), self._reading(step):
            self._check_files(step)
            record = from_json(self._records.restore(folder / "digests"))
            self._check_origin(record, step)
            saved = {path: [shape, dtype] for path, (shape, dtype, _) in record.tensors.items()}
            if saved != structure(self._stored(step)):
                raise Damaged("its two records of names, shapes and dtypes differ")
            if part:
                saved = {path: entry for path, entry in saved.items() if path in wanted}
            require(
                saved == wanted,
                f"the checkpoint of step {step} in {self._folder} is of another model or "
                f"optimizer: {differences(saved, wanted)}",
            )
        with together(Damaged), self._reading(step):
            leaves = tree.flatten(self._tensors(folder / "state", _as_dicts(like), part))
            state = jax.tree.unflatten(
                jax.tree.structure(like), [leaves[p] for p in tree.flatten(like)]
            )
        # All processes compute the digests together, so they get the same values.
        digests = jax.device_get(tree.digests(state))
        entries = ((path, record.tensors[path]) for path in wanted)
        wrong = [path for path, entry in entries if int(digests[path]) != entry[2]]
        if wrong:
            raise Damaged(f"{len(wrong)} tensors differ from what was saved, {wrong[0]} first")
        number = leaves.get("step")  # of our training runs
        if number is not None and number.ndim == 0 and int(number) != step:
            raise Damaged(f"its state is that of step {int(number)}")
        return state

    def _tensors(self, folder: epath.Path, like: dict, part: bool) -> dict:
        """The tensors of a step as `like` has them."""
        if not part:
            return self._states.restore(folder, args=ocp.args.StandardRestore(like))
        targets = ocp.checkpoint_utils.construct_restore_args(like)
        args = ocp.args.PyTreeRestore(like, restore_args=targets, partial_restore=True)
        return self._parts.restore(folder, args=args)

    def _check_files(self, step: int) -> None:
        """Raises `Damaged` for a FIFO or a device in the place of a file: reading it may wait for
        ever."""
        if not can_append(self._folder):
            return
        for folder, folders, names in os.walk(self._folder / str(step)):
            for name in (*folders, *names):
                mode = os.lstat(os.path.join(folder, name)).st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise Damaged(f"{name} is not a file")

    def _check_origin(self, record: Record, step: int) -> None:
        """Raises `Damaged` if the record is of another step or another run."""
        if record.step not in (None, step):
            raise Damaged(f"it was saved as that of step {record.step}")
        both = sorted(record.run.keys() & self._run.keys())
        differ = [key for key in both if record.run[key] != self._run[key]]
        if differ:
            key, more = differ[0], f" and {len(differ) - 1} more" if len(differ) > 1 else ""
            raise Damaged(
                f"it is of another run: {key} is {record.run[key]!r} there and "
                f"{self._run[key]!r} here{more}"
            )

    def written(self) -> str:
        """How much of a save is on disk by now, for people."""
        size = 0
        with contextlib.suppress(OSError):
            for unfinished in self._folder.glob("*.orbax-checkpoint-tmp*"):
                for folder, _, names in os.walk(unfinished):
                    size += sum(os.path.getsize(os.path.join(folder, name)) for name in names)
        return f"{size / 1e6:,.1f} MB on disk"

    def _set_aside(self, *steps: int) -> None:
        """Moves steps that are damaged out of the way."""
        with together():
            for step in steps if jax.process_index() == 0 else ():
                for number in itertools.count():
                    suffix = f"_{number}" if number else ""
                    aside = self._folder.parent / f"damaged_checkpoint_{step}{suffix}"
                    if not aside.exists():
                        break
                (self._folder / str(step)).rename(aside)
                logging.warning("moved it to %s", aside)
        if self._manager:
            self._manager.reload()

    def wait(self) -> None:
        """Returns when every save is on disk; raises the errors of background saves, as `save`
        does."""
        if self._manager:
            with refusals(self._folder):
                self._manager.wait_until_finished()
                self._manager.check_for_errors()
            self._empty()

    def close(self) -> None:
        """Waits for saves and closes; raises as `wait` does."""
        self._states.close()
        self._parts.close()
        if self._manager:
            with refusals(self._folder):
                self._manager.close()
            self._empty()


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:160]}".splitlines()[0]


def _as_dicts(state) -> dict:
    """A state as nested dicts by path, its layout on disk."""
    return tree.unflatten(tree.flatten(state))
