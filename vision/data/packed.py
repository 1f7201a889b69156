"""Writes u8 images of one shape as a set that TFDS reads, without TensorFlow and one at a time.

    with packed.writing(folder, "pets", (64, 64, 3), ("cat", "dog")) as add:
        add("train", image, 0)

Pixels are stored as they are, neither encoded nor compressed, so that reading them back costs no
more than copying. Unlike a builder of TFDS, which runs through its splits one after the other, this
one takes the examples of all splits in any order, and those of a split stay in it.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from common import inputs
from common.errors import CannotWrite

NUMBER = "1.0.0"  # of the version that TFDS reads
OPTIONS = "group_size:1,uncompressed"  # of array_record: any row by itself
SHARD_BYTES = 1 << 30
FILE_BYTES, ROW_BYTES = 1 << 17, 256  # at most what a file and a row take besides pixels


class _Shards:
    """The files of one split."""

    def __init__(self, folder: pathlib.Path, stem: str):
        self.folder, self.stem = folder, stem
        self.lengths: list[int] = []
        self.bytes, self.filled, self.writer = 0, SHARD_BYTES, None

    def add(self, record: bytes) -> None:
        from array_record.python import array_record_module

        if self.filled >= SHARD_BYTES:
            self.close()
            path = self.folder / f"{self.stem}-{len(self.lengths):05d}"
            self.writer = array_record_module.ArrayRecordWriter(str(path), OPTIONS)
            self.lengths.append(0)
            self.filled = 0
        self.writer.write(record)
        self.lengths[-1] += 1
        self.bytes += len(record)
        self.filled += len(record)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def _builder(
    folder: pathlib.Path, name: str, shape: tuple[int, ...], classes: tuple[str, ...], several: bool
):
    """A builder of TFDS that knows the set's features, and prepares nothing."""
    import tensorflow_datasets as tfds  # half a second, for those who write alone

    plain = all(label.isprintable() and label == label.strip() for label in classes)
    labels = {"names": classes} if plain else {"num_classes": len(classes)}
    label = tfds.features.ClassLabel(**labels)
    label = tfds.features.Sequence(label) if several else label

    class Images(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Images of files, as raw pixels."""

        VERSION = tfds.core.Version(NUMBER)

        def _info(self):
            image = tfds.features.Tensor(
                shape=shape, dtype=np.uint8, encoding=tfds.features.Encoding.BYTES
            )
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.__doc__,
                features=tfds.features.FeaturesDict({"image": image, "label": label}),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            raise NotImplementedError

        def _generate_examples(self):
            raise NotImplementedError

    Images.name = name
    return Images(data_dir=str(folder), file_format="array_record")


@contextlib.contextmanager
def writing(
    folder: pathlib.Path,
    name: str,
    shape: tuple[int, int, int],
    classes: tuple[str, ...],
    several: bool = False,
) -> Iterator[Callable]:
    """Yields add(split, image u8[shape], label), which appends an example to a split.

    The set is `folder`/1.0.0: move it to TFDS's folder as NAME/1.0.0. Its metadata is written when
    the block ends.

    Args:
      folder: an empty folder.
      name: of the set, in lower case.
      shape: (H, W, C).
      classes: names of the labels.
      several: whether each label is a tuple of any number of classes.

    Raises:
      CannotWrite: if the file system refuses, full for example.
    """
    from tensorflow_datasets.core import example_serializer, naming, splits

    builder, into = _builder(folder, name, shape, classes, several), folder / NUMBER
    features = builder.info.features
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    shards: dict[str, _Shards] = {}

    def add(split: str, image: np.ndarray, label: int | tuple[int, ...]) -> None:
        record = serializer.serialize_example(
            features.encode_example({"image": image, "label": label})
        )
        if split not in shards:
            shards[split] = _Shards(into, f"{name}-{split}.array_record")
        with refused(into):
            shards[split].add(record)

    with refused(into):
        into.mkdir()
    try:
        yield add
    finally:
        with refused(into):
            for files in shards.values():
                files.close()
    infos = [
        splits.SplitInfo(
            name=split,
            shard_lengths=files.lengths,
            num_bytes=files.bytes,
            filename_template=naming.ShardedFileTemplate(
                dataset_name=name,
                data_dir=into,
                split=split,
                filetype_suffix="array_record",
                template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
            ),
        )
        for split, files in shards.items()
    ]
    builder.info.set_splits(splits.SplitDict(infos))
    with refused(into):
        builder.info.write_to_directory(into)


@contextlib.contextmanager
def refused(folder: pathlib.Path) -> Iterator[None]:
    """Turns what writing raises into `CannotWrite`."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:  # the latter two are array_record's
        reason = inputs.reason(error)
        raise CannotWrite(f"{inputs.shown(folder)} cannot be written: {reason}") from error
