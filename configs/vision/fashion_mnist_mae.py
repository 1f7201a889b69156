"""A masked autoencoder on Fashion-MNIST, and classifiers of its encoder. Prepare the set once:
python scripts/prepare.py fashion_mnist

Variants: `pretrain` (default) predicts 37 of an image's 49 patches from the other 12; `probe` is a
linear classifier of the frozen encoder's features, after a batch norm (He et al. 2022); `finetune`
trains everything, earlier layers with lower learning rates. The latter two start from the weights
of a pretraining run:

    python scripts/train.py --config configs/vision/fashion_mnist_mae.py --workdir runs/mae
    python scripts/train.py --config configs/vision/fashion_mnist_mae.py:probe \\
      --config.init.path=runs/mae --workdir runs/mae_probe

`init.skip` names the layers that are not loaded (the head), `optim.freeze` those that are not
trained, and `model.pooling` what the head classifies: "patch_mean" or "class". With
--config.init.path= and --config.init.skip='()', `probe` classifies random features, and `finetune`
trains from scratch.

Not run yet: `python -m tests.measure masked` runs all four with three seeds.
"""

import ml_collections

from common.errors import choice

ENCODER = {
    "image_size": 28,
    "patch_size": 4,
    "positions": "sine",
    "width": 128,
    "layers": 4,
    "heads": 4,
    "hidden": 512,
}
DECODER = {"decoder_width": 64, "decoder_layers": 2, "decoder_heads": 4, "decoder_hidden": 256}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` names the variant."""
    variants = "pretrain", "probe", "finetune"
    variant = choice("--config fashion_mnist_mae.py", arg or "pretrain", variants)
    config = ml_collections.ConfigDict(
        {
            "task": "vision.masked.task",
            "seed": 0,
            "model": {"module": "vision.masked.mae:MAE", **ENCODER, **DECODER},
            "data": {"name": "fashion_mnist"},
            "augment": {"crop_padding": 2, "flip": "random"},
            "masking": {"ratio": 0.75},
            "evals": {"test": {"split": "test", "every": "1 epoch"}},
            "optim": {
                "name": "adamw",
                "direction": {"b2": 0.95},
                "lr": 1e-3,
                "schedule": "cosine",
                "warmup": "5%",
                "weight_decay": 0.05,
            },
            "train": {"batch_size": 256, "duration": "12 epochs", "log_every": "50 steps"},
            "checkpoint": {"every": "1 epoch"},
            "runtime": {"cpu_devices": 2},
        }
    )
    if variant == "pretrain":
        return config
    del config.masking
    config.task = "vision.classify"
    config.model = {"module": "vision.vit:ViT", **ENCODER, "pooling": "patch_mean"}
    config.init = {"path": "runs/mae", "skip": ("head/.*",)}
    if variant == "probe":
        config.model.head_norm = True
        config.train.duration = "3 epochs"
        config.optim = {
            "name": "adamw",
            "lr": 3e-3,
            "schedule": "cosine",
            "freeze": ("(?!head/).*",),
        }
    else:
        config.loss = {"label_smoothing": 0.1}
        config.optim.layer_decay = 0.75
        config.train.duration = "2 epochs"
    return config


def sweep():
    """Three seeds."""
    for seed in (0, 1, 2):
        yield {"seed": seed}
