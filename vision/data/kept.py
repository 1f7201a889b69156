"""What is kept beside the pixels of prepared pictures, in images.json, and whether all of it is as
it was written.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from common.data.fetch import sha256
from common.data.splits import ranges
from common.task import split_key
from vision.data import packed, sets

INDEX = "images.json"
LABELS = "labels.npy"  # of each row, by part; sets of older versions have none
ROWS = "rows.npy"  # u64: the beginnings of hashes of the pixels of each row, by part


class Kept(NamedTuple):
    """What stands beside the pixels in images.json.

    Attributes:
      classes: names, in the order of the labels.
      mean, std: of the pixels to train on divided by 255, per channel.
      sizes: {part: pictures}.
      digest: of all pixels and labels in their order, and the classes.
      warnings: what a reader should know of the set, a line each.
      files: {file: bytes} of the prepared set.
      sums: {file: sha256} of those without pixels, which are read at each start.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sizes: dict[str, int]
    digest: str
    warnings: tuple[str, ...]
    files: dict[str, int]
    sums: dict[str, str]


def save(path: pathlib.Path, rows: Iterable[bytes], labels: np.ndarray, **facts) -> Kept:
    """Writes what is kept of a set whose pixels are at `path`, its index last; `facts` are the
    fields of `Kept` but those of files. `rows` are hashes of the pixels of all rows, by part, and
    `labels` i32[N] or u8[N, K] those of the same rows."""
    np.save(path / ROWS, np.frombuffer(b"".join(rows), np.uint64))
    np.save(path / LABELS, labels)
    files = [path / ROWS, path / LABELS, *sorted((path / packed.NUMBER).iterdir())]
    name = lambda file: file.relative_to(path).as_posix()
    sums = {name(file): sha256(file) for file in files if ".array_record-" not in file.name}
    kept = Kept(files={name(f): os.path.getsize(f) for f in files}, sums=sums, **facts)
    index = json.loads(json.dumps(kept._asdict()))
    (path / INDEX).write_text(json.dumps(index | {"sha256": _own_sum(index)}, indent=1))
    return kept


def _own_sum(index: dict) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def load(path: pathlib.Path) -> Kept | None:
    """What is kept at `path`; None if nothing is, or not all is what was written there (of files
    with pixels, their sizes tell)."""
    try:
        index = json.loads((path / INDEX).read_text())
        if index.pop("sha256") != _own_sum(index):
            return None
        kept = Kept(**{k: tuple(v) if isinstance(v, list) else v for k, v in index.items()})
        sound = all(os.path.getsize(path / file) == size for file, size in kept.files.items())
        sound = sound and all(sha256(path / file) == digest for file, digest in kept.sums.items())
        return kept if sound else None
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None


def labels(path: pathlib.Path, kept: Kept, split: str, key: str) -> np.ndarray:
    """The labels of all rows of the Source `key`, which reads `split`, without their pixels."""
    labels = np.load(path / LABELS)
    starts = dict(zip(kept.sizes, np.cumsum([0, *kept.sizes.values()]), strict=False))
    spans = ranges(split, kept.sizes, split_key(key), shuffled=True)
    return np.concatenate([labels[starts[part] :][at] for part, at in spans])


def warn_of_copies(path: pathlib.Path, kept: Kept, splits: dict[str, str]) -> None:
    """Warns of pictures of other splits that have the pixels of another picture, of the same part,
    that is trained on: of train[:50%] and train[50%:]. Those of two parts are in `Kept.warnings`.

    Args:
      path: of the prepared set.
      kept: what is kept there.
      splits: {name of the Source: split}.
    """
    rows = {
        key: ranges(split, kept.sizes, split_key(key), shuffled=True)
        for key, split in splits.items()
    }
    trained = rows.get("train", [])
    starts = dict(zip(kept.sizes, np.cumsum([0, *kept.sizes.values()]), strict=False))
    hashes = np.load(path / ROWS, mmap_mode="r")
    for split, key in {split: key for key, split in splits.items()}.items():
        count = 0
        for part in {part for part, _ in rows[key]} & {part for part, _ in trained}:
            own, learnt = np.zeros((2, kept.sizes[part]), bool)
            for mask, spans in ((own, rows[key]), (learnt, trained)):
                for at in (at for other, at in spans if other == part):
                    mask[at] = True
            of = hashes[starts[part] : starts[part] + kept.sizes[part]]
            count += int(np.isin(of[own & ~learnt], of[learnt]).sum())
        size = sum(at.stop - at.start for _, at in rows[key])
        sets.warn_of_copies(count, size, split, splits.get("train", ""))
