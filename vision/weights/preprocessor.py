"""preprocessor_config.json: how a published model's images are resized, cropped and scaled.

    setup = preprocessor.read(folder)              # None if the folder has no such file
    image = preprocessor.prepare(setup, photograph)

What the plain image processors of `transformers` do for classification, on the host, one image at a
time, with Pillow.

Letters: H height, W width and C channels of an image; h, w its height and width afterwards.
"""

import json
import logging
import math
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from common import inputs
from common.errors import require

FILE = "preprocessor_config.json"
LARGEST = 1 << 15  # pixels of a side
WARPED = 384  # ConvNeXt's images of this size or more are resized whole, without a crop


class Preprocessor(NamedTuple):
    """What is done to an image, in this order: resize, crop, rescale, normalise.

    Attributes:
      mean, std: of each channel after rescaling; both () if images are not normalised.
      size: (h, w), or the length of the shorter side, whose image keeps its proportions; None does
        not resize.
      crop: (h, w) of the centre, padded with black where the image is smaller; None does not crop.
      resample: Pillow's number of the filter, 0 to 5.
      rescale: factor on the values 0 to 255.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    resample: int
    rescale: float


_HALF = [0.5, 0.5, 0.5]
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_SHARED = {"image_mean": _HALF, "image_std": _HALF, "rescale_factor": 1 / 255, "resample": 3}
_SHARED |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False}
# What a file of each processor leaves out.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": _SHARED | {"size": 224, "resample": 2},
    "DeiT": _SHARED | {"size": 256, "crop_size": 224, "do_center_crop": True},
    "CLIP": _SHARED | _CLIP | {"size": 224, "crop_size": 224, "do_center_crop": True},
    "Siglip": _SHARED | {"size": 224},
    "Bit": _SHARED | _CLIP | {"size": 224, "crop_size": 224, "do_center_crop": True},
    "ConvNext": _SHARED | {"size": 384, "crop_pct": 224 / 256},
}
SHORTER = "CLIP", "Bit", "ConvNext"  # their sizes that are one number are of the shorter side
# Processors of files that do not name theirs, by the `model_type` beside them.
OF_MODELS = {
    "clip": "CLIP",
    "siglip": "Siglip",
    "vit": "ViT",
    "deit": "DeiT",
    "dinov2": "Bit",
    "dinov2_with_registers": "Bit",
    "convnext": "ConvNext",
    "resnet": "ConvNext",
}
ENDINGS = "ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor"
IDLE = {
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "do_convert_rgb",
    "default_to_square",
    "do_pad",
    "crop_size",
    "crop_pct",
    "data_format",
    "input_data_format",
    "return_tensors",
    "device",
    "disable_grouping",
    "image_seq_length",
}
NONE = {"pad_size": "padding", "do_reduce_labels": "labels of segmentation"}  # if not false


def read(folder: epath.PathLike) -> Preprocessor | None:
    """The preprocessing that a folder's preprocessor_config.json describes; None without one.

    Raises:
      BadInput: if it is of a processor that does more than resize, crop, rescale and normalise, or
        a value is of the wrong type or out of range.
    """
    path = epath.Path(folder) / FILE
    if not inputs.present(path):
        return None
    where = str(path)
    given = {k: v for k, v in inputs.json_object("", path).items() if v is not None}
    kind = _kind(given, epath.Path(folder), where)
    config = DEFAULTS[kind] | given
    for key, what in NONE.items():
        require(not config.get(key), f"{where}: {key}: {what} is not supported")
    known = {*DEFAULTS[kind], *IDLE, *NONE}
    unknown = sorted(k for k in config if k not in known and not k.startswith("_"))
    if unknown:
        logging.warning("%s: not understood, and ignored: %s", where, ", ".join(unknown))
    on = {k: inputs.field(config, k, bool, False, where) for k in DEFAULTS["ViT"] if k[:3] == "do_"}
    size = _size(config, "size", where, kind in SHORTER) if on["do_resize"] else None
    crop = None
    if on["do_center_crop"]:
        require(
            kind != "ConvNext" and "crop_size" in config,
            f"{where}: do_center_crop: "
            + (
                "a ConvNextImageProcessor crops by crop_pct"
                if kind == "ConvNext"
                else "no crop_size"
            ),
        )
        crop = _size(config, "crop_size", where, False)
    if kind == "ConvNext" and size is not None:
        size, crop = _convnext(size, config, where)
    mean, std = ((), ())
    if on["do_normalize"]:
        mean, std = (_numbers(config, key, where) for key in ("image_mean", "image_std"))
        require(len(mean) == len(std), f"{where}: image_mean and image_std differ in length")
        require(min(std) > 0, f"{where}: image_std = {list(std)} has to be positive")
    resample = config["resample"]
    known_filter = type(resample) is int and 0 <= resample <= 5
    require(
        known_filter,
        f"{where}: resample = {json.dumps(resample)} is none of Pillow's filters, 0 to 5",
    )
    rescale = 1.0
    if on["do_rescale"]:
        rescale = float(inputs.field(config, "rescale_factor", float, 0, where))
        require(rescale > 0, f"{where}: rescale_factor is 0: all images would be alike")
    return Preprocessor(mean, std, size, crop, resample, rescale)


def prepare(setup: Preprocessor, image: np.ndarray) -> np.ndarray:
    """An image as the model takes it, as by the image processors of `transformers`.

    Args:
      setup: from `read`.
      image: u8[H, W, C]; C is 1 or 3, and that of mean and std.

    Returns:
      f32[h, w, C].

    Raises:
      BadInput: if the image has another shape or dtype, or mean and std are of other channels.
    """
    image = np.asarray(image)
    require(
        image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[-1] in (1, 3)
        and image.size > 0,
        f"an image to prepare is u8[H, W, 1] or u8[H, W, 3], not {image.dtype}{list(image.shape)}",
    )
    channels = image.shape[-1]
    require(
        len(setup.mean) in (0, channels),
        f"image_mean is of {len(setup.mean)} channels, and the image has {channels}",
    )
    if setup.size is not None:
        height, width = _target(setup.size, *image.shape[:2])
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        resized = picture.resize((width, height), Image.Resampling(setup.resample))
        image = np.asarray(resized).reshape(height, width, channels)
    if setup.crop is not None:
        image = _cropped(image, setup.crop)
    scaled = (image * setup.rescale).astype(np.float32)
    if not setup.mean:
        return scaled
    return (scaled - np.float32(setup.mean)) / np.float32(setup.std)


def _target(size: tuple[int, int] | int, height: int, width: int) -> tuple[int, int]:
    if isinstance(size, tuple):
        return size
    longer = int(size * max(height, width) / min(height, width))
    return (longer, size) if width <= height else (size, longer)


def _cropped(image: np.ndarray, crop: tuple[int, int]) -> np.ndarray:
    """The centre of an image; where that is smaller, black around it."""
    short = [max(0, new - old) for new, old in zip(crop, image.shape[:2], strict=True)]
    if any(short):
        # Of an odd number of missing rows, the one more is above; of columns, to the left.
        image = np.pad(image, [(n - n // 2, n // 2) for n in short] + [(0, 0)])
    top, left = ((old - new) // 2 for new, old in zip(crop, image.shape[:2], strict=True))
    return image[top : top + crop[0], left : left + crop[1]]


def _kind(config: dict, folder: epath.Path, where: str) -> str:
    """A key of `DEFAULTS`."""
    for key in "image_processor_type", "feature_extractor_type":
        name = inputs.field(config, key, str, None, where)
        if name is not None:
            stem = next((name.removesuffix(end) for end in ENDINGS if name.endswith(end)), name)
            require(
                stem in DEFAULTS,
                f"{where}: {key} {name!r} is not supported; those that are: "
                + ", ".join(f"{kind}ImageProcessor" for kind in DEFAULTS),
            )
            return stem
    model = None
    if inputs.present(folder / "config.json"):
        described = inputs.json_object("", folder / "config.json")
        model = inputs.field(described, "model_type", str, None, str(folder / "config.json"))
    require(
        model in OF_MODELS,
        f"{where}: no image_processor_type, and no config.json beside it of a model that has one",
    )
    return OF_MODELS[model]


def _size(config: dict, key: str, where: str, shorter: bool) -> tuple[int, int] | int:
    """(height, width), or the shorter side."""
    value = config[key]
    if not isinstance(value, dict):
        side = _side(config, key, where)
        return side if shorter else (side, side)
    sides = {k: v for k, v in value.items() if v is not None}
    if key == "size" and set(sides) == {"shortest_edge"}:
        return _side(sides, "shortest_edge", f"{where}: {key}")
    require(
        set(sides) == {"height", "width"},
        f"{where}: {key} = {json.dumps(value)} is not a number"
        + (', {"shortest_edge"}' if key == "size" else "")
        + ' or {"height", "width"}',
    )
    return tuple(_side(sides, side, f"{where}: {key}") for side in ("height", "width"))


def _side(config: dict, key: str, where: str) -> int:
    side = inputs.field(config, key, int, 0, where)
    require(side <= LARGEST, f"{where}: {key} = {side:,} is more than {LARGEST:,} pixels")
    return side


def _convnext(size: tuple[int, int] | int, config: dict, where: str) -> tuple:
    """(size, crop) of a ConvNextImageProcessor: small images are a centre crop of larger ones."""
    require(
        not isinstance(size, tuple), f"{where}: size of a ConvNextImageProcessor is shortest_edge"
    )
    if size >= WARPED:
        return (size, size), None
    fraction = inputs.field(config, "crop_pct", float, 0, where)
    require(0 < fraction <= 1, f"{where}: crop_pct = {fraction} is not in (0, 1]")
    large = size / fraction <= LARGEST
    require(large, f"{where}: crop_pct = {fraction} of {size} is of more than {LARGEST:,} pixels")
    return int(size / fraction), (size, size)


def _numbers(config: dict, key: str, where: str) -> tuple[float, ...]:
    values = inputs.field(config, key, list, None, where)
    numbers = all(type(x) in (int, float) and math.isfinite(x) for x in values)
    require(numbers and len(values) > 0, f"{where}: {key} = {json.dumps(values)} is not numbers")
    return tuple(map(float, values))
