"""A small CLIP on emoji and their names, trained on one vendor's drawings of nine tenths of the
names and evaluated on another vendor's.

Prepare the set once: python scripts/prepare.py emoji

`seen` and `unseen` are retrieval in both directions on the other vendor's drawings, of names in the
training set and of held-out names. `python -m tests.measure emoji` compares them with chance and
with TF-IDF over names; not run yet.
"""

import ml_collections

from common.errors import choice
from vision.contrast import model


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """There is one variant."""
    choice("--config emoji_clip.py", arg, ("",))
    return ml_collections.ConfigDict(
        {
            "task": "vision.contrast.task",
            "seed": 0,
            "model": {
                "module": "vision.contrast.model:Towers",
                **{key: value for key, value in model.CLIP.items() if key != "max_length"},
                "vector_width": 128,
                "image_size": 32,
                "patch_size": 4,
                "image_width": 128,
                "image_layers": 4,
                "image_heads": 4,
                "image_hidden": 512,
                "max_length": 16,
                "text_width": 128,
                "text_layers": 3,
                "text_heads": 4,
                "text_hidden": 512,
                "dropout": 0.1,
            },
            "data": {"name": "emoji", "image_size": 32, "vocab_size": 2000, "length": 16},
            "augment": {"crop_padding": 3, "rotation": 10.0},
            "evals": {
                "seen": {"split": "twitter_seen", "every": "25%", "batch_size": 256},
                "unseen": {"split": "twitter_unseen", "every": "25%", "batch_size": 64},
                "unseen_same_vendor": {
                    "split": "google_unseen",
                    "every": "25%",
                    "batch_size": 64,
                },
            },
            "optim": {
                "name": "adamw",
                "lr": 1e-3,
                "schedule": "cosine",
                "warmup": "5%",
                "weight_decay": 0.1,
                "clip": 1.0,
            },
            "train": {"batch_size": 256, "duration": "1200 steps", "log_every": "20 steps"},
            "checkpoint": {"every": "400 steps"},
        }
    )
