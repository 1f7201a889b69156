"""Tiny prepared TFDS sets by kind: of pixels, of labels, of encoded pictures, each with what is
right for it.

    for kind in tfds_sets.ALL:
        tfds_sets.prepare(folder, kind)
"""

import io
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from vision.data import datasets

F = tfds.features
CLASSES = F.ClassLabel(names=["red", "green", "blue"])
LABELS = [0, 1, 2, 2, 1, 0]
U8 = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 1), np.uint8)
U8[0, 0, :2, 0] = 0, 255
COLOURS = np.random.default_rng(1).integers(0, 256, (6, 4, 5, 3), np.uint8)


class Kind(NamedTuple):
    """A kind of set.

    Attributes:
      name: of the set.
      image: its feature.
      label: its feature.
      rows: {split: [(image, label), …]}.
      expected: u8[N, H, W, C] of the training split, or what the refusal says.
      labels: numbers of the training labels.
      classes: the names of all classes.
      keys: what the features are called.
      supervised: whether the metadata says so.
    """

    name: str
    image: Any
    label: Any
    rows: dict[str, list]
    expected: np.ndarray | str
    labels: list[int] = LABELS
    classes: tuple[str, ...] = ("red", "green", "blue")
    keys: tuple[str, str] = ("image", "label")
    supervised: bool = False


def prepare(folder, kind: Kind, file_format: str = "array_record"):
    """Writes a set of this kind, in the order of its rows, into TFDS's `folder`; returns the folder
    of its version."""

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Rows of a kind."""

        name = kind.name
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=kind.name,
                features=F.FeaturesDict(
                    dict(zip(kind.keys, (kind.image, kind.label), strict=True))
                ),
                supervised_keys=kind.keys if kind.supervised else None,
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(rows) for split, rows in kind.rows.items()}

        def _generate_examples(self, rows):
            for i, (image, label) in enumerate(rows):
                image = io.BytesIO(image) if isinstance(image, bytes) else image
                yield i, dict(zip(kind.keys, (image, label), strict=True))

    tfds.disable_progress_bar()
    made = Made(data_dir=str(folder), file_format=file_format)
    made.download_and_prepare()
    return made.data_dir


def load(name: str, folder, resident: bool | None, **further):
    """Sources of the set of this name in TFDS's `folder`."""
    splits = further.pop("splits", {"train": "train"})
    return datasets.load_sources(
        splits, name=f"tfds:{name}", folder=str(folder), resident=resident, **further
    )


def pixels(name: str, images: np.ndarray, expected, test: np.ndarray | None = None, **further):
    """A kind by its pixels [N, …], which are stored as they are."""
    feature = F.Tensor(shape=images.shape[1:], dtype=images.dtype)
    rows = {"train": list(zip(images, LABELS, strict=True))}
    if test is not None:
        rows["test"] = [(image, 0) for image in test]
    return Kind(name, feature, CLASSES, rows, expected, **further)


def labels(name: str, feature, values: list, expected=U8, test: list | None = None, **further):
    """A kind by its labels."""
    image = F.Tensor(shape=U8.shape[1:], dtype=np.uint8)
    rows = {"train": list(zip(U8, values, strict=True))}
    if test is not None:
        rows["test"] = list(zip(U8, test, strict=False))
    return Kind(name, image, feature, rows, expected, **further)


def pictures(name: str, feature, images: list[Image.Image], expected, kind: str = "png"):
    """A kind by its encoded pictures."""
    rows = [(encoded(image, kind), label) for image, label in zip(images, LABELS, strict=False)]
    return Kind(name, feature, CLASSES, {"train": rows}, expected, LABELS[: len(rows)])


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    """The bytes of a picture's file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def keyed(name: str, feature, images: list[Image.Image], keys: list, expected):
    """A kind by its PNGs, each with a colour that is transparent (tRNS)."""
    pairs = zip(images, keys, LABELS, strict=False)
    rows = [(encoded(image, transparency=key), label) for image, key, label in pairs]
    return Kind(name, feature, CLASSES, {"train": rows}, expected, LABELS[: len(rows)])


def _palette(clear: int | None = None) -> list[Image.Image]:
    made = [Image.fromarray(x).quantize(20) for x in COLOURS]
    for image in made:
        image.info |= {} if clear is None else {"transparency": clear}
    return made


def _opaque(mode: str, alpha: int = 255) -> list[Image.Image]:
    made = [Image.fromarray(x).convert(mode) for x in COLOURS]
    for image in made:
        image.putalpha(Image.new("L", image.size, alpha))
    return made


def _alpha_but(row: int, column: int) -> np.ndarray:
    alpha = np.full((1, 4, 5, 1), 255, np.uint8)
    alpha[0, row, column] = 0
    return alpha


_UNUSED = (1, 2, 3)
_GREY = [Image.fromarray(x[..., 0]) for x in U8]
_DEEP = U8[..., 0].astype(np.uint16) * 257
_HALF = np.where(U8 > 127, 255, 0).astype(np.uint8)
_UNIT = U8.astype(np.float32) / 255

_BETWEEN = np.random.default_rng(2).integers(0, 1 << 16, U8.shape, np.uint16)
_REAL = np.random.default_rng(3).random(U8.shape, np.float32)

PIXELS = [
    pixels("u8", U8, U8),
    pixels("u8_colour", COLOURS, COLOURS),
    pixels("u8_flat", U8[..., 0], U8),
    pixels("u8_two", np.repeat(U8, 2, -1), np.repeat(U8, 2, -1)),
    pixels("mask", U8 > 127, _HALF),
    pixels("u16", U8.astype(np.uint16) * 257, U8),
    pixels("u16_between", _BETWEEN, np.rint(_BETWEEN / 257).astype(np.uint8)),
    pixels("u16_of_8", U8.astype(np.uint16), U8),
    pixels("u16_of_12", U8.astype(np.uint16) * 16, r"uint16, from 0 to 4080.*12.*bits"),
    pixels("f32_unit", _UNIT, U8),
    pixels("f64_unit", U8 / 255, U8),
    pixels("f16_unit", (U8 / 255).astype(np.float16), U8),
    pixels("f32_between", _REAL, np.rint(_REAL * 255).astype(np.uint8)),
    pixels("f32_whole", U8.astype(np.float32), U8),
    pixels("f16_whole", U8.astype(np.float16), U8),
    pixels("f32_mask", _HALF.astype(np.float32) / 255, _HALF),
    pixels("f32_real", U8 * np.float32(0.9), r"float32, from 0 to 229\.5, which is neither"),
    pixels("f32_signed", _UNIT * 2 - 1, r"from -1 to 1, which is neither"),
    pixels("f32_nan", np.where(U8 == 255, np.float32(np.nan), _UNIT), r"some are NaN"),
    pixels("f32_inf", np.where(U8 == 255, np.float32(np.inf), _UNIT), r"from 0 to inf"),
    pixels("f32_16", U8.astype(np.float32) * 257, r"whole numbers from 0 to 65535"),
    pixels("i64", U8.astype(np.int64), U8),
    pixels("i32", U8.astype(np.int32), U8),
    pixels("i32_of_16", U8.astype(np.int32) * 257, r"int32, from 0 to 65535"),
    pixels("i8", (U8 // 2).astype(np.int8), r"int8, from 0 to 127, which is neither 0 to 255"),
    pixels("i16_signed", U8.astype(np.int16) - 128, r"int16, from -128 to 127"),
    pixels("i64_mask", (U8 > 127).astype(np.int64), r"int64, from 0 to 1, .* store them as bool"),
    pixels(
        "first_channels",
        COLOURS.transpose(0, 3, 1, 2),
        r"shape \[3, 4, 5\], .* the channels come first",
    ),
    pixels("vectors", U8.reshape(6, 20), r"Tensor of shape \[20\], not one image"),
    pixels("video", COLOURS[:, None].repeat(2, 1), r"shape \[2, 4, 5, 3\], not one image"),
]

LABELLED = [
    labels("count", F.ClassLabel(num_classes=4), LABELS, classes=("0", "1", "2", "3")),
    labels("integers", F.Scalar(np.int64), [0, 3, 1, 1, 3, 0], labels=[0, 3, 1, 1, 3, 0],
           classes=("0", "1", "2", "3")),
    labels("small_integers", F.Scalar(np.uint8), LABELS, classes=("0", "1", "2")),
    labels("true", F.Scalar(np.bool_), [True, False] * 3, labels=[1, 0] * 3, classes=("0", "1")),
    labels("texts", F.Text(), ["cat", "ant", "hé", "cat", "ant", "ant"],
           labels=[1, 0, 2, 1, 0, 0], classes=("ant", "cat", "hé")),
    labels("unlabelled", CLASSES, [0, 1, -1, 2, -1, 1],
           r"'train': 2 of 6 labels are -1, which means unlabelled, such as -1 in row 2"),
    labels("negative", F.Scalar(np.int64), [0, 1, -3, 2, 1, 1], r"numbers from -3 to 2"),
    labels("many", F.Scalar(np.int64), [0, 1, 10**9, 2, 1, 1],
           r"row 2 .*: its label is 1000000000; classes are counted from 0"),
    labels("large", F.Scalar(np.uint64), [0, 1, 2**63, 2, 1, 1],
           r"row 2 of 'train': its label is 9223372036854775808; classes are counted from 0"),
    labels("text_numbers", F.Text(), ["10", "9", "2", "10", "9", "2"], labels=[2, 1, 0, 2, 1, 0],
           classes=("2", "9", "10")),
    labels("empty_text", F.Text(), ["a", "b", " ", "a", "b", "a"],
           r"row 2 of 'train': its label is empty; prepare the set without it, or label it"),
    labels("latin", F.Text(), [b"a", b"b", b"caf\xe9", b"a", b"b", b"a"],
           r"row 2 of 'train': its label b'caf\\xe9' is not UTF-8; encode it so, or"),
    labels("one_class", F.ClassLabel(names=["red"]), [0] * 6, r"but one class, 'red': nothing to"),
    labels("one_text", F.Text(), ["red"] * 6, r"but one class, 'red': nothing to learn"),
    labels("all_zero", F.Scalar(np.int64), [0] * 6, r"but one class, '0': nothing to learn"),
    labels("several", F.Sequence(CLASSES), [[0, 1], [], [2], [1], [2, 0], [0]],
           labels=[[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1], [1, 0, 0]]),
    labels("several_hidden", F.Sequence(CLASSES), [[0, 1], [-1], *[[0]] * 4],
           r"'train': 1 of 7 labels are -1, which means unlabelled, such as -1 in row 1"),
    labels("several_numbers", F.Sequence(F.Scalar(np.int64)), [[0, 1]] * 6,
           r"'label' is Sequence .*, neither one class"),
    labels("one_hot", F.Tensor(shape=(3,), dtype=np.float32), list(np.eye(6, 3, dtype="f4")),
           r"'label' is Tensor of shape \[3\].* one-hot"),
    labels("real", F.Scalar(np.float32), [0.5] * 6,
           r"'label' is Scalar .* real numbers .*; store one"),
    labels("fine", CLASSES, LABELS, keys=("image", "fine_label"), supervised=True),
    labels("img", CLASSES, LABELS, keys=("img", "labels"), supervised=True),
    labels("named", CLASSES, LABELS, r"has no 'label', but (image, kind|kind, image)",
           keys=("image", "kind")),
    labels("itself", CLASSES, LABELS, r"has no 'image', but", keys=("picture", "label")),
]  # fmt: skip

ENCODED = [
    pictures("png", F.Image(shape=(4, 5, 1)), _GREY, U8),
    pictures("bits", F.Image(shape=(4, 5, 1)), [i.convert("1", dither=0) for i in _GREY], _HALF),
    pictures("palette", F.Image(shape=(4, 5, 3)), _palette(),
             np.stack([i.convert("RGB") for i in _palette()])),
    pictures("opaque", F.Image(shape=(4, 5, 3)), _opaque("RGB"), COLOURS),
    pictures("alpha", F.Image(shape=(4, 5, 4)), _opaque("RGB", 7),
             np.concatenate([COLOURS, np.full_like(U8, 7)], -1)),
    pictures("transparent", F.Image(shape=(4, 5, 3)), _opaque("RGB", 7),
             r"row 0 of 'train': parts are transparent, and the set has 3 channels"),
    keyed("key_unused", F.Image(shape=(4, 5, 3)), [Image.fromarray(x) for x in COLOURS],
          [_UNUSED] * 6, COLOURS),
    keyed("key_colour", F.Image(shape=(4, 5, 3)), [Image.fromarray(x) for x in COLOURS],
          [_UNUSED, tuple(COLOURS[1, 2, 3].tolist())],
          r"row 1 of 'train': parts are transparent, and the set has 3 channels"),
    keyed("key_grey", F.Image(shape=(4, 5, 1)), _GREY, [int(U8[0, 1, 2, 0])],
          r"row 0 of 'train': parts are transparent, and the set has 1 channels"),
    keyed("key_deep", F.Image(shape=(4, 5, 1), dtype=np.uint16),
          [Image.fromarray(x) for x in _DEEP], [int(_DEEP[0, 1, 2])],
          r"row 0 of 'train': parts are transparent, and the set has 1 channels"),
    keyed("key_bits", F.Image(shape=(4, 5, 1)), [i.convert("1", dither=0) for i in _GREY], [1],
          r"row 0 of 'train': parts are transparent by a colour"),
    keyed("key_kept", F.Image(shape=(4, 5, 4)), [Image.fromarray(x) for x in COLOURS[:1]],
          [tuple(COLOURS[0, 2, 3].tolist())],
          np.concatenate([COLOURS[:1], _alpha_but(2, 3)], -1)),
    pictures("deep_colour", F.Image(shape=(4, 5, 3), dtype=np.uint16),
             [Image.fromarray(x) for x in COLOURS], r"RGB does not hold uint16 of 3 channels"),
    pictures("palette_clear", F.Image(shape=(4, 5, 3)), _palette(0),
             r"parts are transparent, and the set has 3 channels"),
    pictures("deep", F.Image(shape=(4, 5, 1), dtype=np.uint16),
             [Image.fromarray(x) for x in _DEEP], U8),
    pictures("deep_as_u8", F.Image(shape=(4, 5, 1)), [Image.fromarray(x) for x in _DEEP],
             r"row 0 of 'train': a picture that Pillow reads as I.* does not hold uint8"),
    pictures("other_size", F.Image(shape=(4, 5, 1)), [*_GREY[:2], _GREY[2].resize((3, 3))],
             r"row 2 of 'train': its image has shape \[3, 3, 1\], not \[4, 5, 1\]"),
]  # fmt: skip

ALL = [*PIXELS, *LABELLED, *ENCODED]
