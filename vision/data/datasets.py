"""Sets of labelled images as Sources: `digits`, `fashion_mnist`, any prepared TFDS directory, and
pictures of your own.

`images:DIR` and `images:TABLE` read files of pictures (see `folders`). `tfds:NAME` (`tfds:cifar10`,
`tfds:NAME/CONFIG:VERSION`) reads what `tfds build --file_format=array_record` or scripts/prepare.py
wrote (see `prepared`). Splits use TFDS syntax: `train`, `train[:90%]`, `train[90%:]+test`.
"""

import gzip
import importlib.resources
import os

import numpy as np

from common.data import loading
from common.data.splits import ranges
from common.errors import require
from common.task import Source, split_key
from vision.data import folders, listed, prepared, sets

# Sets whose outline is known without their files: shape, classes, examples per split.
OUTLINES = {
    "digits": ((8, 8, 1), 10, {"train": 1437, "test": 360}),
    "fashion_mnist": ((28, 28, 1), 10, {"train": 60_000, "test": 10_000}),
    "cifar10": ((32, 32, 3), 10, {"train": 50_000, "test": 10_000}),
    "imagenet2012": ((None, None, 3), 1000, {"train": 1_281_167, "validation": 50_000}),
}

COLUMNS = ("path", "label")
# What `std` may be: that of pixels divided by 255 is at most 0.5, and published weights that do not
# normalise have 1, or 1/255 where theirs go to 255, give or take what they take for 1/255.
LEAST_STD, MOST_STD = 1e-3, 2


def load_sources(
    splits: dict[str, str],
    *,
    name: str = "digits",
    train: str = "train",
    folder: str = "",
    image_size: int | None = None,
    resident: bool | None = None,
    workers: int = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    broken: folders.Broken = "refuse",
    columns: tuple[str, str] = COLUMNS,
    label_separator: str = "",
) -> dict[str, Source]:
    """The section `data`: Sources of `image u8[N, H, W, C]` and `label i32[N]`, or `label u8[N, K]`
    of 0 and 1 if examples have any number of K classes.

    Args:
      splits: {name of the Source: split}; its "train" is the argument `train`.
      name: the data set: "digits", "fashion_mnist", "tfds:NAME" for any set prepared by TFDS,
        "images:DIR" for a folder of pictures with a folder for each class, or "images:TABLE" for a
        .csv, .tsv, .jsonl or .parquet of their paths and classes.
      train: split to train on: "train" or "train[:90%]".
      folder: folder of TFDS's prepared sets, and of prepared pictures; "" is TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      image_size: for images of varying size: the shorter side is resized to this many pixels, and
        the centre square is kept (`photographs.shorter_side`). None is for images of one size.
      resident: whether the training set lives on the device; None decides by its size.
      workers: number of processes that read a set that is not resident; 0 reads in threads.
      mean, std: by which pixels, divided by 255, are normalised: a number per channel, or one for
        all, such as 0.5; () are those of the set. Published weights come with their own.
      broken: what to do with files of `images:` that cannot be read: "refuse" names the first,
        "skip" leaves them out and counts them.
      columns: the columns of a table of `images:` that hold the path and the class.
      label_separator: what divides the classes of a picture in a table of `images:`, such as ";" in
        a .csv, where each may have several; "" is none. A .jsonl or .parquet may have lists
        instead.

    Raises:
      BadInput: if the set is not prepared, there is no such split, or its images vary in size and
        the config sets no `image_size`.
    """
    own = name.startswith(listed.PREFIX)
    loading.check_workers(workers)
    require(splits.get("train", train) == train, "config.data.train: given twice")
    _check_use(name, image_size, broken, columns, label_separator)
    require(
        own or image_size is None or not resident,
        f"config.data.image_size: {image_size}: the set must be read on demand "
        "(config.data.resident=false)",
    )
    if own:
        sources = folders.load_sources(
            splits, name, folder, image_size, resident, broken, columns, label_separator
        )
    else:
        sources = _read(splits, name, folder, image_size, resident)
    return {k: source._replace(facts=_scaled(source, mean, std)) for k, source in sources.items()}


def _check_use(
    name: str, image_size: int | None, broken: str, columns: tuple, separator: str
) -> None:
    """Refuses settings that the set `name` does not use."""
    own, key = name.startswith(listed.PREFIX), "config.data.image_size"
    require(image_size is None or image_size > 0, f"{key}: {image_size}: must be positive")
    require(
        image_size is None or own or name.startswith("tfds:"),
        f"{key}: the images of {name} have one size",
    )
    require(
        own or broken == "refuse",
        f"config.data.broken: {broken}: only files of images:DIR and images:TABLE can be left out",
    )
    path = os.path.expanduser(name.removeprefix(listed.PREFIX))
    require(
        tuple(columns) == COLUMNS or (own and not os.path.isdir(path)),
        f"config.data.columns: {tuple(columns)}: {name} is no table; leave them at {COLUMNS}",
    )
    require(
        not separator or (own and not os.path.isdir(path)),
        f"config.data.label_separator: it divides the labels of a table, and {name} is none",
    )


def _scaled(source: Source, mean: tuple[float, ...], std: tuple[float, ...]) -> sets.ImageFacts:
    """A set's facts, with another normalisation if there is one."""
    channels = source.spec["image"].shape[-1]
    for key, values in (("mean", mean), ("std", std)):
        require(
            len(values) in (0, 1, channels),
            f"config.data.{key}: {values} are {len(values)} numbers, and the images have "
            f"{channels} channels",
        )
    require(
        bool(mean) == bool(std),
        f"config.data: mean {mean} and std {std}: set both, or neither",
    )
    for key, values, fits, limits in (
        ("mean", mean, lambda x: 0 <= x <= 1, "at least 0 and at most 1"),
        ("std", std, lambda x: LEAST_STD < x < MOST_STD, f"above {LEAST_STD} and below {MOST_STD}"),
    ):
        require(
            all(map(fits, values)),
            f"config.data.{key}: {values}: of pixels divided by 255, it must be {limits}",
        )
    return source.facts._replace(mean=mean, std=std) if mean else source.facts


def _read(
    splits: dict[str, str], name: str, folder: str, image_size: int | None, resident: bool | None
) -> dict[str, Source]:
    if name == "digits":
        arrays = _digits()
        sizes = {split: len(columns["label"]) for split, columns in arrays.items()}
        facts = sets.known("digits", tuple(map(str, range(10))))
        take = lambda split, rows: {k: v[rows] for k, v in arrays[split].items()}
        return sets.in_memory(splits, sizes, take, facts, resident is not False)
    require(
        name == "fashion_mnist" or name.startswith("tfds:"),
        f"config.data.name: unknown {name!r}; use 'digits', 'fashion_mnist', 'tfds:NAME' "
        "or 'images:DIR'",
    )
    return prepared.from_tfds(splits, name.removeprefix("tfds:"), folder, image_size, resident)


def outline_sources(splits: dict[str, str], section: dict) -> dict[str, Source]:
    """What `load_sources` returns, but with black images, for the sets in `OUTLINES` and for
    pictures that are not prepared.

    Args:
      splits: {name of the Source: split}.
      section: the completed section `data`.
    """
    name, side = section["name"].removeprefix("tfds:"), section["image_size"]
    keys = "name", "image_size", "broken", "columns", "label_separator"
    _check_use(*(section[key] for key in keys))
    several = False
    if unprepared(section) is not None:
        shape, classes, several, sizes = folders.outline(section)
        side = None  # they are prepared at their size
    elif name in OUTLINES:
        shape, count, sizes = OUTLINES[name]
        shape = shape if side is None else (side, side, shape[-1])
        classes = tuple(map(str, range(count)))
    else:
        return load_sources(splits, **section)
    require(None not in shape, f"config.data.image_size: the images of {name} vary; set it to 256")
    facts = sets.known(name, classes)._replace(multi_label=several)
    resident = sets.is_resident(section["resident"], side, sizes, shape)
    outlines = {}
    for key, split in splits.items():
        rows = ranges(split, sizes, split_key(key), shuffled=True)
        size = sum(at.stop - at.start for _, at in rows)
        source = sets.outline(shape, size, facts, resident)
        facts = _scaled(source, section["mean"], section["std"])
        outlines[key] = source._replace(facts=facts)
    return outlines


def unprepared(section: dict) -> str | None:
    """What reading a set would prepare first, perhaps for long; None if nothing."""
    own = section["name"].startswith(listed.PREFIX)
    return folders.unprepared(section) if own else None


def _digits() -> dict[str, dict[str, np.ndarray]]:
    """8x8 handwritten digits (Alpaydin & Kaynak 1998, CC BY 4.0; the test part of UCI's set, as in
    scikit-learn): the first 1,437 for training, the other 360, by other writers, for testing."""
    packed = importlib.resources.files("vision.data").joinpath("digits.csv.gz").read_bytes()
    table = np.loadtxt(gzip.decompress(packed).decode().splitlines(), delimiter=",", dtype=np.int32)
    images = (table[:, :-1] * 15).astype(np.uint8).reshape(-1, 8, 8, 1)  # 0..16 -> 0..240
    labels = table[:, -1].astype(np.int32)
    parts = {"train": slice(0, 1437), "test": slice(1437, None)}
    return {split: {"image": images[at], "label": labels[at]} for split, at in parts.items()}
