"""First paragraphs of Wikipedia articles by topic (11 classes), fine-tuned from MiniLM's weights.

First prepare `minilm` and `topics` with `scripts/prepare.py`. Reaches 0.9266 test accuracy with
seed 0 (two x86-64 CPU cores, jax 0.10.2, commit a043a3a), with the settings chosen by validation on
reviews.
"""

import ml_collections

from common.errors import choice
from configs.lm import finetune_reviews


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """There is one variant: `finetune_reviews` with other, longer texts."""
    choice("--config finetune_topics.py", arg, ("",))
    config = finetune_reviews.get_config()
    config.data.name = "topics"
    config.data.length = 64
    return config
