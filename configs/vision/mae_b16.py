"""A masked autoencoder with a ViT-B/16 on ImageNet, as published (He et al. 2022): 49 of 196
patches are visible, targets are pixels normalised by patch; AdamW, 1600 epochs, batches of 4096.

Prepare the set once: tfds build imagenet2012 --file_format=array_record --manual_dir=DIR

The paper reports 0.836 top-1 accuracy on the validation set after fine-tuning for 100 epochs, and
0.680 by a linear probe. Not run: the set was not available. Its encoder becomes a classifier as in
`fashion_mnist_mae.py`.

Unlike the paper, random crops are taken on the device from the centre square of images scaled to
256 pixels on the shorter side, and resized linearly; kernels begin as those of all transformers
here do; the class token and the mask token have no weight decay; and the computation is in
bfloat16.
"""

import ml_collections

from vision import vit
from vision.masked import mae


def get_config() -> ml_collections.ConfigDict:
    """No variants."""
    return ml_collections.ConfigDict(
        {
            "task": "vision.masked.task",
            "seed": 0,
            "model": {
                "module": "vision.masked.mae:MAE",
                **vit.SIZES["b16"],
                **mae.DECODER,
                "positions": "sine",
                "dtype": "bfloat16",
            },
            "data": {"name": "tfds:imagenet2012", "image_size": 256, "workers": 16},
            "augment": {"resized_crop": 224, "resized_crop_area": (0.2, 1.0), "flip": "random"},
            "masking": {"ratio": 0.75},
            "evals": {"val": {"split": "validation", "every": "20 epochs", "batch_size": 1024}},
            "optim": {
                "name": "adamw",
                "direction": {"b2": 0.95},
                "lr": 2.4e-3,  # 1.5e-4 for each 256 images of a batch
                "schedule": "cosine",
                "warmup": "40 epochs",
                "weight_decay": 0.05,
            },
            "train": {"batch_size": 4096, "duration": "1600 epochs", "log_every": "100 steps"},
            "checkpoint": {"every": "10 epochs"},
        }
    )
