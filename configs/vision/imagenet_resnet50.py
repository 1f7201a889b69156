"""ResNet-50 on ImageNet (Russakovsky et al. 2015), following Flax's example: SGD with Nesterov
momentum, five epochs of warmup and a cosine, plain L2, 100 epochs.

Prepare the set once: tfds build imagenet2012 --file_format=array_record --manual_dir=DIR

Variants: `float32` (default), 250,228 steps of 512, for which Flax's example reports 0.7672 top-1
accuracy on the validation set; `bfloat16`, 62,557 steps of 2048, for which it reports 0.7647. Not
run: the set was not available.

Unlike the example, images are scaled to 256 pixels on the shorter side on the host, and random
crops are taken on the device from their centre square. Evaluation is the usual one: the middle 224
of 256 pixels.
"""

import ml_collections

from common.errors import choice
from vision import resnet


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` names the variant."""
    variants = {"float32": (512, None), "bfloat16": (2048, "bfloat16")}
    batch_size, dtype = variants[choice("--config", arg or "float32", variants)]
    return ml_collections.ConfigDict(
        {
            "task": "vision.classify",
            "seed": 0,
            "model": {
                "module": "vision.resnet:ResNet",
                **resnet.SIZES["resnet50"],
                **({} if dtype is None else {"dtype": dtype}),
            },
            "data": {"name": "tfds:imagenet2012", "image_size": 256, "workers": 16},
            "augment": {"resized_crop": 224, "flip": "random"},
            "evals": {"val": {"split": "validation", "every": "1 epoch", "batch_size": 1024}},
            "optim": {
                "name": "sgd",
                "direction": {"momentum": 0.9, "nesterov": True},
                "lr": 0.1 * batch_size / 256,
                "schedule": "cosine",
                "warmup": "5 epochs",
                "l2": 1e-4,
            },
            "train": {
                "batch_size": batch_size,
                "duration": "100 epochs",
                "log_every": "100 steps",
            },
            "checkpoint": {"every": "1 epoch"},
        }
    )
