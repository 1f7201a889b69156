"""CIFAR-10 from TFDS, with the classic augmentation (crops of a 4-pixel padding, flips).

Prepare it once, where there is a network: tfds build cifar10 --file_format=array_record
No figure is stated: the set could not be had where this was written.
"""

import ml_collections

from common.config import choice


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` must be empty: there is one variant."""
    choice("--config cifar10.py", arg, ("",))
    return ml_collections.ConfigDict(
        {
            "task": "vision.classify",
            "seed": 0,
            "model": {
                "module": "vision.cnn:CNN",
                "widths": (64, 128, 256),
                "padding": "SAME",
                "hidden": (256,),
                "dropout": 0.2,
            },
            "data": {"name": "tfds:cifar10"},
            "augment": {"crop_padding": 4, "flip": "random"},
            "loss": {"label_smoothing": 0.1},
            "evals": {"test": {"split": "test", "every": "1 epoch"}},
            "optim": {
                "name": "adamw",
                "lr": 2e-3,
                "schedule": "cosine",
                "warmup": "5%",
                "weight_decay": 0.02,
                "clip": 1.0,
            },
            "train": {"batch_size": 256, "duration": "30 epochs", "average": 0.999},
            "checkpoint": {"every": "5 epochs"},
        }
    )
