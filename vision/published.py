"""Published image models that predict: `published`, see `common.predict`."""

import numpy as np
from etils import epath

from common import inputs
from common.data import fetch
from common.errors import require
from common.predict import Published
from common.weights import engine
from vision import predict, weights
from vision.pretrained import WEIGHTS
from vision.weights import preprocessor

WHERE = "--weights"


def published(name: str, embed: bool = False) -> Published | None:
    """The classifier of a folder of weights, with its preprocessing and its names of classes; None
    if the folder is of no image model.

    Raises:
      BadInput: as `vision.weights.pretrained` and `preprocessor.read`; if the folder lacks the file
        of either, or its model has no head for classes and no vectors are asked for.
    """
    if not _of_images(str(name)):
        return None
    folder = fetch.find_pretrained(str(name), known=WEIGHTS, where=WHERE)
    text = f"{WHERE}: {name}: no config.json says what model it is of"
    described = inputs.present(folder / "config.json")
    require(described, f"{text}; train or evaluate a config with config.init.path={name}")
    setup = preprocessor.read(folder)
    text = f"{WHERE}: {folder}: no {preprocessor.FILE} says how its images are resized and scaled"
    require(setup is not None, text)
    described, fields = engine.describe(folder, weights.DESCRIBED), weights.sizes(folder)
    model, values = described.family.model(**fields), weights.flat(weights.pretrained(folder))
    channels = weights.channels_of(model, values)
    read = lambda picture: preprocessor.prepare(setup, predict.pixels(picture, channels))
    as_it_is = lambda images: images
    if embed:
        # A head that the file lacks is called, though what it says is not used.
        lacking = weights.shapes_of(model, values).items()
        values |= {path: np.zeros(s, np.float32) for path, s in lacking if path not in values}
        made = predict.vectors(model, read, as_it_is)
    else:
        head = any(path.startswith(weights.HEADS) for path in values)
        require(head, f"{WHERE}: {name}: it has no head for classes; --embed has vectors")
        names = described.classes or tuple(map(str, range(fields["num_classes"])))
        several = inputs.json_object("", folder / "config.json").get("problem_type")
        multi_label = several == "multi_label_classification"
        made = predict.classifier(model, read, as_it_is, names, multi_label)
    variables = engine.variables(values)
    return Published(made, variables.pop("params"), variables)


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
    known = {family.name for family in weights.DESCRIBED}
    return inputs.present(file) and inputs.json_object("", file).get("model_type") in known
