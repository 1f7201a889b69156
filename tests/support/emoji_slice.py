"""A few emoji of two vendors with their names, as a table of pictures with texts."""

import pathlib
import zipfile

from helpers import ROOT

# The smallest task on it: settings of configs/vision/emoji_clip.py.
SMALL = {
    "model.vector_width": 8,
    "model.image_width": 16,
    "model.image_layers": 1,
    "model.image_heads": 2,
    "model.image_hidden": 16,
    "model.patch_size": 8,
    "model.text_width": 16,
    "model.text_layers": 1,
    "model.text_heads": 2,
    "model.text_hidden": 16,
    "data.vocab_size": 200,
    "train.batch_size": 16,
    "train.duration": "8 steps",
    "checkpoint.every": "4 steps",
    "optim.warmup": "0 steps",
    "evals.seen": None,
    "evals.unseen_same_vendor": None,
}
CONFIG = f"{ROOT}/configs/vision/emoji_clip.py"


def write(folder) -> str:
    """Unpacks the slice; returns the name of the set."""
    folder = pathlib.Path(folder)
    with zipfile.ZipFile(ROOT / "tests/saved/emoji.zip") as archive:
        archive.extractall(folder)
    return f"captions:{folder / 'emoji.jsonl'}"
