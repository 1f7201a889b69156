"""Checkpoints: asynchronous, verified, the latest and the best, on any mesh. Orbax lives behind
this.

The digest, shape and dtype of every tensor are saved inside the same Orbax step as the tensors, and
recomputed when they are read: bytes that changed on the way are found, and the newest good step is
used instead, with a warning. A checkpoint of another model is an error that lists the differences.
"""

import contextlib
import itertools
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from common import tree
from common.config import BadInput, require

preservation_policy = ocp.checkpoint_managers.preservation_policy


NOT_DAMAGE = (PermissionError, ConnectionError, TimeoutError, MemoryError)


def absolute(folder: epath.PathLike) -> epath.Path:
    """A workdir as Orbax wants it: absolute, or with its scheme."""
    folder = epath.Path(folder)
    return folder if "://" in str(folder) else folder.expanduser().absolute()


class Policy(NamedTuple):
    """The section `checkpoint`, checked.

    Attributes:
      every: steps between saves.
      keep_latest: how many of the newest to keep.
      keep_best: how many of the best to keep, by `best`.
      best: None, or (sign, key of the log), the sign 1 for max and -1 for min.
    """

    every: int
    keep_latest: int
    keep_best: int
    best: tuple[int, str] | None


def policy(
    to_steps: Callable[[str, str], int],
    *,
    every: str = "1 epoch",
    keep_latest: int = 2,
    keep_best: int = 1,
    best: str = "",
) -> Policy:
    """Checks the section `checkpoint`.

    Args:
      to_steps: (duration, key for messages) -> steps.
      every: how often to save; the end is always saved.
      keep_latest: how many of the newest stay.
      keep_best: how many of the best stay, if `best` is set.
      best: what "best" means, as "max eval/valid/accuracy" or "min eval/valid/loss"; each
        evaluation that logs this key is then followed by a save.

    Raises:
      BadInput: for a value out of range.
    """
    require(keep_latest >= 1, f"config.checkpoint.keep_latest: at least 1, got {keep_latest}")
    require(keep_best >= 1, f"config.checkpoint.keep_best: at least 1, got {keep_best}")
    every_steps = to_steps(every, "config.checkpoint.every")
    require(every_steps > 0, "config.checkpoint.every: more than 0 steps")
    return Policy(every_steps, keep_latest, keep_best, parse_best("config.checkpoint.best", best))


def parse_best(where: str, text: str) -> tuple[int, str] | None:
    """'max eval/valid/accuracy' -> (1, 'eval/valid/accuracy'); '' -> None. Raises `BadInput`."""
    if not text:
        return None
    matched = re.fullmatch(r"(max|min) +(\S+)", text)
    require(matched is not None, f"{where}: {text!r}; write 'max eval/valid/accuracy' or 'min …'")
    return (1 if matched[1] == "max" else -1), matched[2]


def best_steps(best: tuple[int, str] | None, history: Iterable[dict]) -> list[int]:
    """The steps of the log that hold the key, best first; of equal ones the earlier."""
    if best is None:
        return []
    sign, key = best
    found = [
        (-sign * line[key], line["step"]) for line in history if np.isfinite(number(line.get(key)))
    ]
    return [step for _, step in sorted(found)]


def number(value) -> float:
    """A value of the log as a number; NaN if it is none."""
    return value if isinstance(value, (int, float)) else float("nan")


class _Preserve(preservation_policy.PreservationPolicy):
    """Keeps the newest few and, by the log, the best few of the steps that there are."""

    def __init__(self, rule: Policy, history: Callable[[], list[dict]]):
        self.rule, self.history = rule, history

    def should_preserve(self, checkpoints, *, context):
        steps = [c.step for c in checkpoints]
        best = [s for s in best_steps(self.rule.best, self.history()) if s in steps]
        kept = set(sorted(steps)[-self.rule.keep_latest :]) | set(best[: self.rule.keep_best])
        return [step in kept for step in steps]


def _structure(state) -> dict[str, list]:
    return {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in tree.flatten(state).items()}


class Checkpoints:
    """The checkpoints of a workdir. Close it: saves are asynchronous."""

    def __init__(
        self, workdir: epath.PathLike, rule: Policy | None = None, history: Callable = list
    ):
        """Opens `workdir/checkpoints`; without a `rule` for reading only, creating nothing."""
        self._folder = absolute(workdir) / "checkpoints"
        self._manager, self._writing = None, rule is not None
        if rule is not None or self._folder.exists():
            options = ocp.CheckpointManagerOptions(
                create=rule is not None,
                read_only=rule is None,
                preservation_policy=None if rule is None else _Preserve(rule, history),
                enable_async_checkpointing=True,
            )
            handlers = {
                "state": ocp.StandardCheckpointHandler(),
                "digests": ocp.JsonCheckpointHandler(),
            }
            self._manager = ocp.CheckpointManager(
                self._folder, options=options, item_handlers=handlers
            )

    def steps(self) -> list[int]:
        """The steps that there are, in increasing order."""
        return sorted(self._manager.all_steps()) if self._manager else []

    def save(self, step: int, state) -> None:
        """Starts to save a state; the arrays may be donated as soon as this returns."""
        digests = jax.device_get(tree.digests(state))
        record = {p: [*s, int(digests[p])] for p, s in _structure(state).items()}
        # Orbax stores dicts; a NamedTuple goes as its fields.
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_as_dicts(state)), digests=ocp.args.JsonSave(record)
            ),
            force=True,
        )

    def restore(self, like, step: int | None = None) -> tuple[Any, int] | None:
        """Reads and verifies a state, onto the shardings of `like`.

        Args:
          like: a tree of ShapeDtypeStructs with shardings.
          step: which one; None is the newest that is whole. Damaged ones are passed over with a
            warning, and then moved to `workdir/damaged_checkpoint_STEP` unless opened for reading
            only.

        Returns:
          (state, step), or None where there is no checkpoint at all.

        Raises:
          BadInput: if the checkpoint is of another structure, the step that was asked for does not
            exist or is damaged, or there are checkpoints but none is whole.
        """
        steps = self.steps()
        if step is not None:
            require(
                step in steps, f"no checkpoint of step {step} in {self._folder}; there are {steps}"
            )
            try:
                return self._read(like, step), step
            except _Damaged as damage:
                raise BadInput(f"the checkpoint of step {step} is damaged: {damage}") from damage
        damaged = []
        for candidate in reversed(steps):
            try:
                state = self._read(like, candidate)
            except _Damaged as damage:
                logging.warning("checkpoint %d is damaged (%s)", candidate, damage)
                damaged.append(candidate)
                continue
            # Only now: if none were whole, all stay where they are, for a person to look at.
            if self._writing:
                for bad in damaged:
                    self._set_aside(bad)
            return state, candidate
        require(not steps, f"all checkpoints in {self._folder} are damaged: steps {steps}")
        return None

    def _read(self, like, step: int):
        try:
            record = self._manager.restore(
                step, args=ocp.args.Composite(digests=ocp.args.JsonRestore())
            ).digests
            saved = {path: entry[:2] for path, entry in record.items()}
            stored = self._manager.item_metadata(step).state
            stored = {
                p: [list(m.shape), str(np.dtype(m.dtype))]
                for p, m in tree.flatten(stored.tree).items()
            }
        except NOT_DAMAGE:
            raise
        except Exception as error:
            raise _Damaged(_first_line(error)) from error
        if saved != {p: [s, str(np.dtype(d))] for p, (s, d) in stored.items()}:
            raise _Damaged("its two records of names, shapes and dtypes differ")
        if saved != _structure(like):
            raise BadInput(
                f"the checkpoint of step {step} in {self._folder} is of another model or "
                f"optimizer: {differences(saved, _structure(like))}"
            )
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(_as_dicts(like)))
            ).state
            leaves = tree.flatten(restored)
            state = jax.tree.unflatten(
                jax.tree.structure(like), [leaves[p] for p in tree.flatten(like)]
            )
            found = jax.device_get(tree.digests(state))
        except NOT_DAMAGE:
            raise
        except Exception as error:
            raise _Damaged(_first_line(error)) from error
        wrong = [path for path, entry in record.items() if int(found[path]) != entry[2]]
        if wrong:
            raise _Damaged(f"{len(wrong)} tensors are not what was saved, {wrong[0]} first")
        return state

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            for number in itertools.count():
                suffix = f"_{number}" if number else ""
                aside = self._folder.parent / f"damaged_checkpoint_{step}{suffix}"
                if not aside.exists():
                    break
            (self._folder / str(step)).rename(aside)
            logging.warning("moved it to %s", aside)
        if jax.process_count() > 1:
            jax.experimental.multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()

    def wait(self) -> None:
        """Returns when every save is on disk; raises what a save in the background ran into."""
        if self._manager:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Waits and lets go."""
        if self._manager:
            self._manager.close()


class _Damaged(Exception):
    """A checkpoint that cannot be read or is not what was saved."""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:160]}".splitlines()[0]


def _as_dicts(state) -> dict:
    """Any state as nested dicts by path, which is how it lies on disk."""
    return tree.unflatten(tree.flatten(state))


def differences(saved: dict, wanted: dict, most: int = 8) -> str:
    """What differs between two {path: [shape, dtype]}, in one line."""
    lines = [f"{p} is not in the checkpoint" for p in wanted if p not in saved]
    lines += [f"{p} is only in the checkpoint" for p in saved if p not in wanted]
    lines += [
        f"{p} is {saved[p][1]}{saved[p][0]} there and {wanted[p][1]}{wanted[p][0]} here"
        for p in wanted
        if p in saved and saved[p] != wanted[p]
    ]
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "; ".join(lines[:most] + more)


def initialise(
    params,
    pretrained: Callable | None = None,
    files: dict[str, str] | None = None,
    *,
    path: str = "",
    step: int | None = None,
    rename: tuple[tuple[str, str], ...] = (),
    skip: tuple[str, ...] = (),
):
    """Parameters to begin with: those of another run's workdir or of weights that a task can read,
    or `params` as they are.

    Args:
      params: nested dicts of arrays.
      pretrained: how the task reads another library's weights: path -> nested dicts of arrays, in
        this model's names.
      files: {name: contents} of what the task keeps in its workdir, such as its tokenizer; those of
        the other run must be the same.
      path: a workdir, or what `pretrained` reads; "" is none.
      step: which checkpoint of a workdir; None is the newest.
      rename: rows (regex, replacement) over this model's paths, first match counts: the name a
        parameter has there.
      skip: regexes of this model's parameters that keep their fresh values (a new head, say).

    Returns:
      `params` with every parameter replaced that is not skipped.

    Raises:
      BadInput: if a row matches nothing, or a parameter is missing there or has another shape or
      dtype.
    """
    require(
        bool(path) or not (rename or skip or step is not None), "config.init: the path is not set"
    )
    if not path:
        return params
    flat = tree.flatten(params)
    tree.check_table("config.init.rename", rename, flat)
    tree.check_table("config.init.skip", tuple((r, 0) for r in skip), flat)
    names = {
        p: next((re.sub(f"^(?:{r})$", to, p) for r, to in rename if re.fullmatch(r, p)), p)
        for p in flat
        if not any(re.fullmatch(regex, p) for regex in skip)
    }
    if pretrained is None or (absolute(path) / "checkpoints").exists():
        for name, contents in (files or {}).items():
            kept = absolute(path) / name
            require(
                not kept.exists() or kept.read_text() == contents,
                f"config.init.path: {path} has another {name}, so its parameters mean something "
                "else; use the same one",
            )
        where, values = _parameters(path, step)
    else:
        require(step is None, f"config.init.step: {path} is no workdir, and has no steps")
        where, values = path, tree.flatten(pretrained(path))
    saved, taken = _structure(values), set(names.values())
    wanted = {n: _structure({"x": flat[p]})["x"] for p, n in names.items()}
    found = {n: entry for n, entry in saved.items() if n in taken}
    require(found == wanted, f"config.init.path: {where}: {differences(found, wanted)}")
    return tree.unflatten(
        {p: np.asarray(values[names[p]]) if p in names else leaf for p, leaf in flat.items()}
    )


def _parameters(path: str, step: int | None) -> tuple[str, dict[str, np.ndarray]]:
    """(what was read, {path: array}): the parameters of a checkpoint in a workdir."""
    with contextlib.closing(Checkpoints(path)) as there:
        steps = there.steps()
        require(bool(steps), f"config.init.path: no checkpoint in {path}")
        step = steps[-1] if step is None else step
        require(
            step in steps,
            f"config.init.step: no checkpoint of step {step} in {path}; there are {steps}",
        )
        metadata = tree.flatten(there._manager.item_metadata(step).state.tree)
        # Whole on every device: the run may have had others.
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=auto)
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        struct = lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place)
        whole = {path: struct(m) for path, m in metadata.items()}
        with jax.set_mesh(mesh):
            values = tree.flatten(there.restore(tree.unflatten(whole), step)[0])
    params = {p[7:]: v for p, v in values.items() if p.startswith("params/")}
    return f"{path}, step {step}", params
