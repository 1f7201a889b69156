"""What a checkpoint says of itself, beside its tensors: their shapes, dtypes and digests, its step,
and the run that it is of."""

import hashlib
import json
from typing import NamedTuple

from common import tree


class Damaged(Exception):
    """A checkpoint that cannot be read or differs from what was saved."""


class Record(NamedTuple):
    """What a checkpoint says of itself.

    Attributes:
      tensors: {path: [shape, dtype, digest]}.
      step: None in the checkpoints of older versions.
      run: {key: value} of the run, as `Checkpoints` is given it; {} in older ones.
      beside: what else `Checkpoints.save` is given; {} in older ones.
    """

    tensors: dict
    step: int | None
    run: dict
    beside: dict


def to_json(record: Record) -> dict:
    """A record as JSON values, with a digest of its own."""
    fields = record._asdict()
    if not record.beside:  # as older versions write it, and read it
        del fields["beside"]
    return fields | {"digest": _digest(fields)}


def from_json(saved: dict) -> Record:
    """The inverse of `to_json`. Raises `Damaged` if it is not what was written."""
    if "tensors" not in saved:  # of an older version
        return Record(saved, None, {}, {})
    fields = {name: saved[name] for name in Record._fields if name != "beside"}
    fields |= {"beside": saved["beside"]} if "beside" in saved else {}
    if saved.get("digest") != _digest(fields):
        raise Damaged("its record differs from what was saved")
    return Record(**{"beside": {}} | fields)


def _digest(fields: dict) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def structure(state) -> dict[str, list]:
    """{path: [shape, dtype]} of a state's tensors."""
    return {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in tree.flatten(state).items()}


def differences(saved: dict, wanted: dict, most: int = 8) -> str:
    """Describes in one line how two {path: [shape, dtype]} differ."""
    lines = [f"{p} is not in the checkpoint" for p in wanted if p not in saved]
    lines += [f"{p} is only in the checkpoint" for p in saved if p not in wanted]
    lines += [
        f"{p} is {saved[p][1]}{saved[p][0]} there and {wanted[p][1]}{wanted[p][0]} here"
        for p in wanted
        if p in saved and saved[p] != wanted[p]
    ]
    more = [f"and {len(lines) - most} more"] if len(lines) > most else []
    return "; ".join(lines[:most] + more)
