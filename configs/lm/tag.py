"""Your own tagged sentences (entities, parts of speech), fine-tuned from MiniLM's weights.

First prepare `minilm` with `scripts/prepare.py`, and name the sentences:
`--config.data.name=file:sentences.jsonl` (see `lm.data.tagged`). Has been run on made-up sets
alone.
"""

import ml_collections

from common.errors import choice
from configs.lm.finetune_reviews import MINILM


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """There is one variant."""
    choice("--config tag.py", arg, ("",))
    encoder = {k: v for k, v in MINILM.items() if k not in ("module", "pooling")}
    head = {"module": "lm.bert:TokenClassifier", "dropout": 0.1, "head_dropout": 0.1}
    return ml_collections.ConfigDict(
        {
            "task": "lm.tag",
            "seed": 0,
            "model": encoder | head,
            "data": {"name": "file:sentences.jsonl", "tokenizer": "minilm", "length": 128},
            "evals": {
                "valid": {"split": "valid", "every": "1 epoch"},
                "test": {"split": "test", "every": "100%"},
            },
            "init": {"path": "minilm", "skip": ("token_classifier/.*",)},
            "optim": {
                "name": "adamw",
                "lr": 1e-4,
                "schedule": "linear",
                "warmup": "10%",
                "weight_decay": 0.01,
                "clip": 1.0,
            },
            "train": {"batch_size": 32, "duration": "3 epochs", "log_every": "25 steps"},
            "checkpoint": {"every": "1 epoch"},
        }
    )
