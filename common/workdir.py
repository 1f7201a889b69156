"""The files of a run beside its log and checkpoints: config.json, environment.json, result.json,
and what its task keeps there, such as tokenizer.json.

A workdir belongs to one run. The same command may be given to it again, to go on; what may differ
then is how the run is laid out and watched (`MAY_CHANGE`), and a longer duration. Anything else is
another run.
"""

import json

import jax
from etils import epath
from jax.experimental import multihost_utils

from common import runtime
from common.checkpoint import absolute
from common.config import BadInput, flatten, from_json, require, to_json
from common.log import replace_text

MAY_CHANGE = ("mesh.", "log.", "checkpoint.", "data.workers", "runtime.", "train.duration")


def begun(folder) -> bool:
    """Whether a run has made `folder` its own."""
    try:
        return (absolute(folder) / "config.json").exists()
    except OSError:
        return False  # `claim` says why


def claim(
    folder,
    config: dict,
    fingerprints: dict[str, str],
    write: bool,
    files: dict[str, str] | None = None,
) -> epath.Path:
    """Makes `folder` the workdir of this run, or finds that it is.

    Args:
      folder: any path that epath knows.
      config: nested dict.
      fingerprints: of the data sets.
      write: whether this process writes.
      files: {name: contents} of small files that the task keeps there, such as its tokenizer.

    Raises:
      BadInput: if it belongs to another run, its data has changed, or it cannot be written.
    """
    folder = absolute(folder)
    starts = []
    try:
        if (folder / "config.json").exists():
            check_same(folder, read_config(folder), config)
            starts = json.loads((folder / "environment.json").read_text())
            check_data(folder, fingerprints)
        elif folder.exists() and any((folder / "checkpoints").glob("*")):
            raise BadInput(
                f"{folder} holds checkpoints and no config.json: not a run of this program"
            )
        if write:
            folder.mkdir(parents=True, exist_ok=True)
            replace_text(folder / "environment.json", _environment(starts, fingerprints))
            for name, contents in (files or {}).items():
                replace_text(folder / name, contents)
            replace_text(folder / "config.json", to_json(config))
    except OSError as error:
        raise BadInput(f"--workdir: {folder}: {error.strerror or error}") from error
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("workdir")
    return folder


def _environment(starts: list[dict], fingerprints: dict[str, str]) -> str:
    return json.dumps([*starts, runtime.environment() | {"data": fingerprints}], indent=1) + "\n"


def check_data(folder, fingerprints: dict[str, str]) -> None:
    """Raises `BadInput` if data sets are not those that the run in `folder` began with.

    Args:
      folder: the workdir.
      fingerprints: {name: of the set}.
    """
    path = epath.Path(folder) / "environment.json"
    before = json.loads(path.read_text())[-1]["data"] if path.exists() else {}
    changed = sorted(n for n, found in fingerprints.items() if before.get(n, found) != found)
    require(
        not changed,
        f"{folder}: the data set {', '.join(changed)} has changed since the run began; put it back "
        "as it was, or begin another run in another --workdir",
    )


def check_same(folder, old: dict, new: dict) -> None:
    """Raises `BadInput`, naming the keys, if the two configs are of different runs."""
    old, new = flatten(old), flatten(new)
    differ = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE)
    ]
    said = lambda values, key: repr(values[key]) if key in values else "not there"
    told = ", ".join(f"config.{k} was {said(old, k)} and is {said(new, k)}" for k in differ[:4])
    more = f" and {len(differ) - 4} more" if len(differ) > 4 else ""
    require(not differ, f"{folder} belongs to another run: {told}{more}; take another --workdir")


def read_config(folder) -> dict:
    """The config of a run as a nested dict. Raises `BadInput` if there is none or it is torn."""
    path = epath.Path(folder) / "config.json"
    require(path.exists(), f"{folder}: no run there (no config.json)")
    try:
        return from_json(path.read_text())
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is damaged: {error}") from error


def read_result(folder: epath.Path) -> dict | None:
    """result.json, or None if the run is not finished."""
    path = folder / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def finish(folder: epath.Path, result: dict) -> None:
    """Writes result.json: the run is finished."""
    replace_text(folder / "result.json", json.dumps(result, indent=1, sort_keys=True) + "\n")
