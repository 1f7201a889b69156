"""Splits of data sets in TFDS's notation, and sets prepared by TFDS.

`train`, `train[:90%]`, `train[90%:]+test`: the same grammar for every set, from TFDS or not; and,
for cross-validation, `train[fold 1/5]` and `train[not fold 1/5]` (`common.sweeps.sweep.folds`).
Prepared sets are opened as array_record files, without TensorFlow.
"""

import codecs
import contextlib
import hashlib
import io
import os
import re
import types
from collections.abc import Container, Iterator

import numpy as np
from etils import epath

from common import inputs
from common.data import order
from common.errors import BadInput, NotPrepared, brief, nearest, require

MOST_COUNTED = 16  # files of a split whose examples are counted when it is opened
MOST_PARTS = 100  # of an expression: TFDS reads one by recursion
NUMBER = r"(?:0|[1-9]\d*|\*)"
NAME = re.compile(  # NAME/CONFIG:VERSION
    rf"([a-z]\w{{0,200}})(?:/([\w.+-]{{1,200}}))?(?::{NUMBER}\.{NUMBER}\.{NUMBER})?", re.I | re.A
)
OWN = "run its own builder (TFDS has none of this name), with file_format='array_record'"
VERSION = re.compile(r"\d+\.\d+\.\d+")
FOLD = re.compile(r"\[(not )?fold (\d{1,9})/(\d{1,9})\]$", re.A)
MADE = re.compile(r"images_\w*_[0-9a-f]{16,}", re.A)  # sets that `images:` makes of pictures


def names(split: str) -> list[str]:
    """The splits that an expression names: 'train[:90%]+test' gives ['train', 'test']."""
    return [part.split("[")[0].strip() for part in split.split("+")]


def ranges(
    split: str, sizes: dict[str, int], where: str, shuffled: bool = False
) -> list[tuple[str, slice]]:
    """'train[:90%]+test' as [('train', slice(0, …)), …].

    `[fold i/k]` after a name, or after its slice, is the i-th (from 1) of k parts of these rows,
    whose sizes differ by at most one, and `[not fold i/k]` all the others: each row is in exactly
    one fold.

    Args:
      split: the expression.
      sizes: {available split: number of examples}.
      where: the config key, for the error message.
      shuffled: folds are drawn at random, by a fixed seed: a function of the number of rows, the
        same in every run. Else they are consecutive blocks, which keep neighbours together.

    Raises:
      BadInput: for a split that is unknown, malformed or empty.
    """
    import tensorflow_datasets as tfds

    whole = f"{where}: split {brief(split)}"
    require(split.isprintable(), f"{whole}: it holds a control character")
    require(split.count("+") < MOST_PARTS, f"{whole}: more than {MOST_PARTS} parts")
    require("shard" not in split.partition("[")[2], f"{whole}: count examples or %, not shards")
    require(
        "all" not in sizes,
        f"{whole}: this set has a split of its own that is called 'all', which means all splits "
        "together; rename it",
    )
    infos = {name: types.SimpleNamespace(num_examples=size) for name, size in sizes.items()}
    for name in names(split):
        known = not name or name in sizes or name == "all"
        require(known, f"{where}: unknown split {brief(name)}; {nearest(name, sizes)}")
    slices = []
    for part in split.split("+") if "fold" in split else [split]:
        fold = FOLD.search(part)
        try:
            spec = part[: fold.start()] if fold else part
            read = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
        except (ValueError, AssertionError, NotImplementedError) as error:
            raise BadInput(f"{whole}: {brief(str(error).splitlines()[0])}") from error
        rows = [
            (p.splitname, slice(p.from_ or 0, sizes[p.splitname] if p.to is None else p.to))
            for p in read
        ]
        slices += _fold(rows, fold, whole, shuffled) if fold else rows
    slices = [(name, at) for name, at in slices if at.stop > at.start]
    require(len(slices) > 0, f"{whole} is empty")
    return slices


def _fold(
    rows: list[tuple[str, slice]], fold: re.Match, whole: str, shuffled: bool
) -> list[tuple[str, slice]]:
    """One fold of these rows, or all but that fold."""
    number, count = int(fold[2]), int(fold[3])
    require(
        1 <= number <= count and count > 1,
        f"{whole}: folds are counted from 1: write [fold 1/5] to [fold 5/5]",
    )
    slices = []
    for name, at in rows:
        size = max(at.stop - at.start, 0)
        require(size >= count, f"{whole}: {count} folds of {size} examples would be empty")
        drawn = order.rows(0, 0, size, size) if shuffled else np.arange(size)
        wanted = np.full(size, bool(fold[1]))
        wanted[drawn[size * (number - 1) // count : size * number // count]] ^= True
        ends = at.start + np.flatnonzero(np.diff(wanted, prepend=False, append=False))
        slices += [(name, slice(*pair)) for pair in ends.reshape(-1, 2).tolist()]
    return slices


# -------------------------------------------------------------------------------------------- TFDS


def open_prepared(name: str, folder: str, scripted: Container[str] = ()):
    """The TFDS builder of a prepared set.

    Args:
      name: the set's TFDS name.
      folder: as in `data_dir`.
      scripted: names that scripts/prepare.py prepares; `tfds build` prepares the others.

    Raises:
      BadInput: if it is not prepared, with the command that prepares it.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import naming, read_only_builder

    parts = NAME.fullmatch(name)
    require(
        parts is not None and parts[2] not in (".", ".."),
        f"config.data.name: {brief(name)} is not the name of a TFDS set: NAME, NAME/CONFIG or "
        "NAME:1.0.0, in the folder config.data.folder",
    )
    require(
        VERSION.fullmatch(parts[2] or "") is None,
        f"config.data.name: {brief(name)}: {parts[2]} is read as the name of a configuration; for "
        f"this version, write {parts[1]}:{parts[2]}",
    )
    first, config = naming.camelcase_to_snakecase(parts[1]), parts[2] or ""
    root = epath.Path(data_dir(folder)) / first
    how = lambda: _how_to_prepare(first, config, folder, scripted)
    for path in _metadata(root):
        try:
            if path.suffix == ".json":
                inputs.json_object("config.data.name", path)
            else:
                inputs.text("config.data.name", path)
                marked = path.read_bytes().startswith(codecs.BOM_UTF8)
                require(
                    not marked,
                    f"config.data.name: {path} begins with a byte order mark, which would be part "
                    "of the first name",
                )
        except BadInput as error:
            raise BadInput(f"{error}; {_prepare_again(path.parent, scripted)}") from error
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS's ten lines on TensorFlow
            builder = read_only_builder.builder_from_files(name, data_dir=data_dir(folder))
    except (FileNotFoundError, tfds.core.DatasetNotFoundError) as error:
        raise NotPrepared(
            f"config.data.name: {name!r} is not prepared in {data_dir(folder)}{_remains(root)}; "
            f"{how()}"
        ) from error
    except ImportError as error:
        raise BadInput(
            f"config.data.name: {name!r} has features that are read by TensorFlow only, such as "
            f"video, or {root}/*/features.json names a type that there is not "
            f"({inputs.reason(error)})"
        ) from error
    except Exception as error:  # the metadata may be damaged in any way
        again = f"remove that folder and prepare the set again; {how()}"
        raise BadInput(_damaged(root, error, again)) from error
    with reading(builder.data_dir, scripted):
        formats = [format.value for format in builder.info.available_file_formats()]
        sizes = [info.num_examples for info in builder.info.splits.values()]
        if not (sizes and min(sizes) >= 0 and len(builder.info.features) > 0):
            raise ValueError("its metadata names no split or no feature, or a negative size")
        if max(sizes) == 0:
            raise ValueError("it holds no example")
    require(
        "array_record" in formats,
        f"config.data.name: {name!r} is prepared as {formats}, not array_record; {how()}",
    )
    return builder


def _metadata(root: epath.Path) -> Iterator[epath.Path]:
    """The files that TFDS reads when it opens a set: of its versions, or versions of configs."""
    yield from root.glob(".config/metadata.json")
    for pattern in ("dataset_info.json", "features.json", "*.labels.txt"):
        for path in (*root.glob(f"*/{pattern}"), *root.glob(f"*/*/{pattern}")):
            if not path.parent.name.startswith("incomplete."):
                yield path


def _how_to_prepare(name: str, config: str, folder, scripted: Container[str]) -> str:
    """The command that prepares a set; see `open_prepared`."""
    import tensorflow_datasets as tfds

    if name in scripted:
        at = f" --folder {folder}" if os.fspath(folder) else ""
        return f"run: python scripts/prepare.py {name}{at}"
    if name not in tfds.list_builders(with_community_datasets=False):
        return OWN
    return (
        f"run: tfds build {f'{name}/{config}' if config else name} --file_format=array_record "
        f"--data_dir={data_dir(os.fspath(folder))} (where tensorflow is installed: TFDS needs it "
        "to prepare, and only for that)"
    )


def _prepare_again(folder, scripted: Container[str]) -> str:
    """What to do about a damaged folder ROOT/NAME/VERSION or ROOT/NAME/CONFIG/VERSION."""
    at = epath.Path(folder).parent
    if MADE.fullmatch(at.name):
        return f"remove {at} and start again: its pictures are prepared anew"
    hows = [
        _how_to_prepare(at.name, "", at.parent, scripted),
        _how_to_prepare(at.parent.name, at.name, at.parent.parent, scripted),
    ]
    how = next((how for how in hows if how != OWN), OWN)
    return f"remove {folder} and prepare the set again; {how}"


def _remains(root: epath.Path) -> str:
    """What stands where a set should be, for the message that it does not."""
    paths = [path for depth in ("*", "*/*") for path in root.glob(depth) if path.is_dir()]
    for path in sorted(paths):
        if path.name.startswith("incomplete."):
            return f": preparing it was interrupted, and left {path}, which can be removed"
        if VERSION.fullmatch(path.name):
            lacks = [f for f in ("features.json", "dataset_info.json") if not (path / f).exists()]
            if lacks:
                return f": {path} has no {' and no '.join(lacks)}; remove that folder"
    versions = sorted(
        str(path.relative_to(root.parent)) for path in paths if VERSION.fullmatch(path.name)
    )
    return f", but {', '.join(versions)}" if versions else ""


@contextlib.contextmanager
def reading(folder, scripted: Container[str] = ()) -> Iterator[None]:
    """Turns whatever damaged files of a prepared set raise into `BadInput` that names `folder`,
    ROOT/NAME/VERSION, and says how to prepare the set again."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(_damaged(folder, error, _prepare_again(folder, scripted))) from error


def _damaged(folder, error: Exception, again: str) -> str:
    reason = f"{type(error).__name__}: {inputs.reason(error)}"
    return f"config.data.name: {folder} is damaged ({reason}); {again}"


def source_of(builder, split: str, scripted: Container[str] = (), decoders: dict | None = None):
    """Random access to the decoded examples of a prepared split (`as_data_source`).

    Args:
      builder: of `open_prepared`.
      split: the name of a split, without a part.
      scripted: as in `open_prepared`.
      decoders: TFDS's, by feature.

    Raises:
      BadInput: if one of its files is missing or damaged, as far as its length, its first and its
        last example tell, or holds another number of examples than the metadata says.
    """
    info = builder.info.splits[split]
    with reading(builder.data_dir, scripted):
        paths, size = info.filepaths, info.num_examples
        wrong = next(filter(None, map(inputs.fault, paths)), None)
        if wrong is None and len(paths) <= MOST_COUNTED:
            count = sum(_records(path) for path in paths)
            if count != size:
                wrong = (
                    f"{builder.data_dir}: {split!r} has {count} examples, and its metadata says "
                    f"{size}"
                )
        if wrong is not None:
            again = _prepare_again(builder.data_dir, scripted)
            raise BadInput(f"config.data.name: {wrong}; {again}")
        source = builder.as_data_source(split=split, decoders=decoders)
        if size:
            source.__getitems__(sorted({0, size - 1}))
    return source


def _records(path) -> int:
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(os.fspath(path))
    try:
        return reader.num_records()
    finally:
        reader.close()


def data_dir(folder: str) -> str:
    """The folder in which TFDS keeps prepared sets. Raises `BadInput` if it is not a folder."""
    path = os.path.expanduser(folder or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    where = "config.data.folder" if folder else "TFDS_DATA_DIR"
    return inputs.folder(where, os.fspath(inputs.path(where, path)), missing=True)


def fingerprint(builder) -> str:
    """Fingerprint of a set too large to read in full: its files' names and sizes and TFDS's
    metadata."""
    sha = hashlib.sha256()
    for path in sorted(epath.Path(builder.data_dir).iterdir()):
        if path.is_file():
            sha.update(f"{path.name} {path.stat().length}".encode())
        if path.name in ("dataset_info.json", "features.json"):
            sha.update(path.read_bytes())
    return sha.hexdigest()[:16]
