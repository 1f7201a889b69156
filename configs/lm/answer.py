"""Your own questions on texts, as in SQuAD, fine-tuned from MiniLM's weights.

First prepare `minilm` with `scripts/prepare.py`, and name the questions:
`--config.data.name=folder:DIR` with SQuAD's train-v2.0.json and dev-v2.0.json in it, and
`--config.evals.test=None`, as there is no test set; or `file:questions.jsonl` (see
`lm.data.squad`). Has been run on made-up sets alone.
"""

import ml_collections

from common.errors import choice
from configs.lm import tag


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """There is one variant: the settings of `tag`, with rows of 384 tokens as in BERT's paper."""
    choice("--config answer.py", arg, ("",))
    config = tag.get_config()
    config.task = "lm.answer"
    config.model.module = "lm.bert:SpanAnswerer"
    del config.model.head_dropout
    config.data = {"name": "file:questions.jsonl", "tokenizer": "minilm", "length": 384}
    config.init.skip = ("span/.*",)
    return config
