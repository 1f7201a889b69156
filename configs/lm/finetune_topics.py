"""First paragraphs of Wikipedia articles by topic (11 classes), from MiniLM's weights."""

import ml_collections

from common.config import choice
from configs.lm.finetune_reviews import MINILM


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """There is one variant."""
    choice("--config finetune_topics.py", arg, ("",))
    return ml_collections.ConfigDict(
        {
            "task": "lm.classify",
            "seed": 0,
            "model": MINILM | {"dropout": 0.1, "head_dropout": 0.1},
            "data": {"name": "topics", "tokenizer": "minilm", "length": 64},
            "evals": {
                "valid": {"split": "valid", "every": "1 epoch"},
                "test": {"split": "test", "every": "100%"},
            },
            "init": {"path": "minilm", "skip": ("classifier/.*",)},
            "optim": {
                "name": "adamw",
                "lr": 1e-4,
                "schedule": "linear",
                "warmup": "10%",
                "weight_decay": 0.01,
                "clip": 1.0,
            },
            "train": {"batch_size": 32, "duration": "2 epochs", "log_every": "25 steps"},
            "checkpoint": {"every": "1 epoch"},
        }
    )
