"""Published image models that predict: `published`, see `common.predict`; and `write`, of runs as
published ones."""

import json
from typing import NamedTuple

import flax.linen as nn
import numpy as np
from etils import epath
from PIL import Image

from common import inputs
from common.data import fetch
from common.errors import require
from common.nn.layers import identity
from common.predict import Published
from common.task import Predictor, Source
from common.weights import engine
from lm.data import tokenizer as tokenizers
from vision import predict, weights
from vision.contrast import predict as pairs
from vision.contrast.model import Towers
from vision.data.sets import NORMALISATION
from vision.efficientnet_lite import EfficientNetLite
from vision.masked import predict as masked
from vision.masked.mae import MAE
from vision.mobilenet import MobileNetV2
from vision.pretrained import WEIGHTS
from vision.weights import contrast, preprocessor
from vision.weights.preprocessor import Preprocessor

WHERE = "--weights"


class Fetched(NamedTuple):
    """A model that scripts/prepare.py fetches as tensors alone, and its preprocessing."""

    model: nn.Module
    setup: Preprocessor


FETCHED = {
    # (x - 127) / 128, and an inner square of 7/8: Liu 2020, and the port's own.
    "efficientnet_lite0": Fetched(
        EfficientNetLite(num_classes=1000),
        Preprocessor((127.0,) * 3, (128.0,) * 3, 256, (224, 224), Image.BICUBIC, 1.0),
    ),
    # As torchvision evaluates its first weights.
    "mobilenet_v2": Fetched(
        MobileNetV2(num_classes=1000),
        Preprocessor(*NORMALISATION["imagenet2012"], 256, (224, 224), Image.BILINEAR, 1 / 255),
    ),
}


def published(name: str, embed: bool = False) -> Published | None:
    """The classifier of a folder of weights, with its preprocessing and its names of classes; None
    if the folder is of no image model.

    Raises:
      BadInput: as `vision.weights.pretrained` and `preprocessor.read`; if the folder lacks the file
        of either, or its model has no head for classes and no vectors are asked for.
    """
    if contrast.of_towers(str(name)):
        return _towers(epath.Path(name).expanduser(), embed)
    if not _of_images(str(name)):
        return None
    folder = fetch.find_pretrained(str(name), known=WEIGHTS, where=WHERE)
    described = inputs.present(folder / "config.json")
    fetched = None if described else FETCHED.get(folder.name)
    text = f"{WHERE}: {name}: no config.json says what model it is of"
    advice = f"{text}; train or evaluate a config with config.init.path={name}"
    require(described or fetched is not None, advice)
    setup = preprocessor.read(folder) or (fetched and fetched.setup)
    text = f"{WHERE}: {folder}: no {preprocessor.FILE} says how its images are resized and scaled"
    require(setup is not None, text)
    if fetched is None:
        model = engine.describe(folder, weights.DESCRIBED).family.model(**weights.sizes(folder))
        values = weights.flat(weights.pretrained(folder))
    else:
        model = fetched.model
        values = weights.flat(weights.pretrained(folder, model))
    channels = weights.channels_of(model, values)
    read = lambda picture: preprocessor.prepare(setup, predict.pixels(picture, channels))
    if embed:
        # A head that the file lacks is called, though what it says is not used.
        lacking = weights.shapes_of(model, values).items()
        values |= {path: np.zeros(s, np.float32) for path, s in lacking if path not in values}
        made = predict.vectors(model, read, identity)
    elif isinstance(model, MAE):
        made = _reconstructor(folder, model, read, setup)
    else:
        head = any(path.startswith(weights.HEADS) for path in values)
        require(head, f"{WHERE}: {name}: it has no head for classes; --embed has vectors")
        names, multi_label = _classes(folder) if described else ((), False)
        names = names or tuple(map(str, range(model.num_classes)))
        made = predict.classifier(model, read, identity, names, multi_label)
    variables = engine.variables(values)
    return Published(made, variables.pop("params"), variables)


def _towers(folder: epath.Path, embed: bool = False) -> Published:
    """Published towers of pictures and texts, with their preprocessing and their tokenizer.

    Raises:
      BadInput: if the folder lacks one of them.
    """
    setup = preprocessor.read(folder)
    require(setup is not None, f"{WHERE}: {folder}: there is no {preprocessor.FILE}")
    require(tokenizers.has_files(folder), f"{WHERE}: {folder}: there is no tokenizer")
    model = Towers(**contrast.sizes(folder))
    params = contrast.pretrained(folder)
    read = lambda picture: preprocessor.prepare(setup, predict.pixels(picture, 3))
    facts = tokenizers.facts(tokenizers.load(folder))._replace(length=model.max_length)
    make = pairs.vectors if embed else pairs.finds
    return Published(make(model, read, identity, facts), params, {})


def _reconstructor(folder: epath.Path, model: MAE, read, setup: Preprocessor) -> Predictor:
    """The Predictor of a masked autoencoder, which sees as much as it was trained on."""
    where = folder / "config.json"
    ratio = inputs.field(inputs.json_object("", where), "mask_ratio", float, 0.75, str(where))
    scale = weights.normalisation(setup)
    shape = (model.image_size, model.image_size, model.channels)
    scale = scale["mean"], scale["std"]
    return masked.reconstructor(model, read, identity, shape, scale, ratio)


def _classes(folder: epath.Path) -> tuple[tuple[str, ...], bool]:
    """(the names of the classes, () if there are none, whether a picture has any number of them)
    of a config.json."""
    several = inputs.json_object("", folder / "config.json").get("problem_type")
    names = engine.describe(folder, weights.DESCRIBED).classes
    return names, several == "multi_label_classification"


def _of_images(name: str) -> bool:
    """Whether weights are of an image model, as far as their name or their files say."""
    if name in WEIGHTS:
        return True
    folder = epath.Path(name).expanduser()
    if "://" in name or not folder.is_dir():
        return False
    if inputs.present(folder / preprocessor.FILE):
        return True
    file = folder / "config.json"
    if folder.name in FETCHED and not inputs.present(file):
        return True
    known = {family.name for family in weights.DESCRIBED}
    return inputs.present(file) and inputs.json_object("", file).get("model_type") in known


# ----------------------------------------------------------------------------------------- writing


def families() -> list[str]:
    """The families in whose layout `write` writes."""
    return [family.name for family in weights.DESCRIBED]


def write(folder, model: nn.Module, variables: dict, source: Source) -> bool:
    """Writes an image classifier with its preprocessing, for `transformers` and for `published`;
    False if it is of no family there.

    Args:
      folder: to write.
      model: the model.
      variables: its parameters and statistics.
      source: a set without contents, with the shape of its images and their facts.

    Raises:
      BadInput: if no family has such a model.
    """
    if not any(isinstance(model, family.model) for family in weights.DESCRIBED):
        return False
    facts, (height, width, channels) = source.facts, source.spec["image"].shape
    classes = facts.classes if hasattr(model, "num_classes") else ()
    weights.save(folder, model, variables, classes=classes)
    square, sides = height == width, {"height": height, "width": width}
    setup = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": channels == 3,
        "do_resize": square,
        "size": {"shortest_edge": height},
        "resample": 3,
        "do_center_crop": square,
        "crop_size": sides,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(facts.mean),
        "image_std": list(facts.std),
    }
    folder = epath.Path(folder)
    (folder / preprocessor.FILE).write_text(json.dumps(setup, indent=2) + "\n")
    if facts.multi_label:
        kind = {"problem_type": "multi_label_classification"}
        described = inputs.json_object("", folder / "config.json") | kind
        (folder / "config.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
    return True
