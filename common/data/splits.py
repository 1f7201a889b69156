"""Splits of data sets in TFDS's notation, and sets prepared by TFDS.

`train`, `train[:90%]`, `train[90%:]+test`: the same grammar for every set, from TFDS or not.
Prepared sets are opened as array_record files, without TensorFlow.
"""

import contextlib
import hashlib
import os
import re
import types
from collections.abc import Container, Iterator

from etils import epath

from common import inputs
from common.errors import BadInput, NotPrepared, brief, nearest, require

MOST_COUNTED = 16  # files of a split whose examples are counted when it is opened
MOST_PARTS = 100  # of an expression: TFDS reads one by recursion


def names(split: str) -> list[str]:
    """The splits that an expression names: 'train[:90%]+test' gives ['train', 'test']."""
    return [part.split("[")[0].strip() for part in split.split("+")]


def ranges(split: str, sizes: dict[str, int], where: str) -> list[tuple[str, slice]]:
    """'train[:90%]+test' as [('train', slice(0, …)), …].

    Args:
      split: the expression.
      sizes: {available split: number of examples}.
      where: the config key, for the error message.

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
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, AssertionError, NotImplementedError) as error:
        raise BadInput(f"{whole}: {brief(str(error).splitlines()[0])}") from error
    slices = [
        (p.splitname, slice(p.from_ or 0, sizes[p.splitname] if p.to is None else p.to))
        for p in parts
    ]
    require(sum(at.stop - at.start for _, at in slices) > 0, f"{whole} is empty")
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
    from tensorflow_datasets.core import read_only_builder

    at = f" --folder {folder}" if folder else ""
    how = (
        f"python scripts/prepare.py {name}{at}"
        if name in scripted
        else f"tfds build {name} --file_format=array_record --data_dir={data_dir(folder)} "
        "(where tensorflow is installed: TFDS needs it to prepare, and only for that)"
    )
    root = epath.Path(data_dir(folder)) / re.split("[/:]", name)[0]
    for depth in ("*", "*/*"):  # versions, or versions of configs
        for file in ("dataset_info.json", "features.json"):
            for path in root.glob(f"{depth}/{file}") if name.strip("./") else ():
                inputs.json_object("config.data.name", path)
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=data_dir(folder))
    except (FileNotFoundError, tfds.core.DatasetNotFoundError) as error:
        raise NotPrepared(
            f"config.data.name: {name!r} is not prepared in {data_dir(folder)}; run: {how}"
        ) from error
    except Exception as error:  # the metadata may be damaged in any way
        raise BadInput(_damaged(root, error)) from error
    with reading(builder.data_dir):
        formats = [format.value for format in builder.info.available_file_formats()]
        sizes = [info.num_examples for info in builder.info.splits.values()]
        sound = bool(sizes) and min(sizes) >= 0 and len(builder.info.features) > 0
        if not sound:
            raise ValueError("its metadata names no split or no feature, or a negative size")
    require(
        "array_record" in formats,
        f"config.data.name: {name!r} is prepared as {formats}, not array_record; run: {how}",
    )
    return builder


@contextlib.contextmanager
def reading(folder) -> Iterator[None]:
    """Turns whatever damaged files of a prepared set raise into `BadInput` that names `folder`."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(_damaged(folder, error)) from error


def _damaged(folder, error: Exception) -> str:
    return (
        f"config.data.name: {folder} is damaged ({type(error).__name__}: "
        f"{inputs.reason(error)}); remove that folder and prepare the set again"
    )


def source_of(builder, split: str):
    """Random access to the decoded examples of a prepared split (`as_data_source`).

    Raises:
      BadInput: if one of its files is missing or damaged, as far as its length, its first and its
        last example tell, or holds another number of examples than the metadata says.
    """
    info, where = builder.info.splits[split], "config.data.name"
    with reading(builder.data_dir):
        paths, size = info.filepaths, info.num_examples
        for path in paths:
            wrong = inputs.fault(path)
            again = f"remove {builder.data_dir} and prepare the set again"
            require(wrong is None, f"{where}: {wrong}; {again}")
        if len(paths) <= MOST_COUNTED:
            count = sum(_records(path) for path in paths)
            require(
                count == size,
                f"{where}: {builder.data_dir}: {split!r} has {count} examples, and its metadata "
                f"says {size}; remove that folder and prepare the set again",
            )
        source = builder.as_data_source(split=split)
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
    return inputs.folder("config.data.folder" if folder else "TFDS_DATA_DIR", path, missing=True)


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
