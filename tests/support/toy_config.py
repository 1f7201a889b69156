"""A config of the toy task."""

import ml_collections


def get_config(arg=""):
    return ml_collections.ConfigDict(
        {
            "task": "toy",
            "seed": 3,
            "optim": {"lr": 0.01, "weight_decay": 0.1, "warmup": "2 steps", "schedule": "linear"},
            "train": {
                "batch_size": 40,
                "duration": "20 steps",
                "log_every": "1 steps",
                "average": 0.9,
            },
            "checkpoint": {"every": "5 steps"},
        }
    )
