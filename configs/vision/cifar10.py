"""CIFAR-10 (Krizhevsky 2009) from TFDS: three classic recipes, not run: the set was not
available.

Prepare it once, with network access: tfds build cifar10 --file_format=array_record

Variants, with the test accuracy that others report for such a recipe:
- `resnet18` (default), with a stem for small images, SGD for 200 epochs: 0.955 (the torch examples
  of kuangliu/pytorch-cifar report 0.9547);
- `wrn_28_10`: 0.960 (Zagoruyko & Komodakis 2016, who decay the learning rate in steps; we use a
  cosine);
- `airbench`: the network and tricks of airbench94 (Jordan 2024), which reaches 0.940 in eight
  epochs with a Muon that also normalises its parameters; ours does not.
"""

import ml_collections

from common.errors import choice
from vision import resnet


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` names the variant."""
    variants = "resnet18", "wrn_28_10", "airbench"
    variant = choice("--config cifar10.py", arg or "resnet18", variants)
    config = ml_collections.ConfigDict(
        {
            "task": "vision.classify",
            "seed": 0,
            "data": {"name": "tfds:cifar10"},
            "augment": {"crop_padding": 4, "flip": "random"},
            "evals": {"test": {"split": "test", "every": "5 epochs"}},
            "optim": {
                "name": "sgd",
                "direction": {"momentum": 0.9, "nesterov": True},
                "lr": 0.1,
                "schedule": "cosine",
                "l2": 5e-4,
            },
            "train": {"batch_size": 128, "duration": "200 epochs"},
            "checkpoint": {"every": "5 epochs"},
        }
    )
    if variant == "airbench":
        config.model = {
            "module": "vision.airbench:Airbench",
            "widths": (64, 256, 256),
            "whitening": 2,
            "momentum": 0.6,
        }
        config.augment = {"crop_padding": 2, "flip": "alternating"}
        config.loss = {"label_smoothing": 0.2}
        config.evals.test.views = "flip_shift"
        config.optim = {
            "name": "muon",
            "direction": {"beta": 0.6},
            "lr": 0.05,
            "schedule": "linear",
            "freeze": ("whitening/kernel",),
        }
        config.train = {"batch_size": 1000, "duration": "8 epochs", "average": 0.99}
        return config
    config.model = {"module": "vision.resnet:ResNet", **resnet.SIZES[variant]}
    if variant == "resnet18":
        config.model.stem = "small"
    return config
