"""GPT-2 small, 124M (Radford et al. 2019), with the schedule of Brown et al. 2020 for this size.

Rows of 1,024 tokens, 512 per step (524,288 tokens), 19,000 steps (10e9 tokens), AdamW at 6e-4 with
cosine decay to a tenth. Text: English Wikipedia from TFDS (`tfds build wikipedia/20230601.en
--file_format=array_record`); the authors' WebText was not published. `llama` is a Llama of this
size: RMSNorm, rotary positions, gated silu, no biases. Batches of 16 rows are meant for one GPU of
80 GB. Not run, so there is no figure.
"""

import ml_collections

from common.errors import choice
from lm import gpt


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is the variant."""
    variant = choice("--config gpt2_small.py", arg or "gpt2", ("gpt2", "llama"))
    shape = {name: value for name, value in gpt.SIZES["gpt2"].items() if name != "vocab_size"}
    if variant == "llama":
        shape |= gpt.LLAMA | {"hidden": 2048}
    return ml_collections.ConfigDict(
        {
            "task": "lm.clm",
            "seed": 0,
            "model": {"module": "lm.gpt:GPT", **shape, "max_length": 1024, "dtype": "bfloat16"},
            "data": {
                "name": "tfds:wikipedia/20230601.en",
                "tokenizer": "bpe",
                "vocab_size": 50257,
                "length": 1024,
            },
            "evals": {"valid": {"split": "valid[:1024]", "every": "2%", "batch_size": 32}},
            "optim": {
                "name": "adamw",
                "lr": 6e-4,
                "schedule": "cosine",
                "warmup": "700 steps",
                "final": 0.1,
                "weight_decay": 0.1,
                "clip": 1.0,
                "direction": {"b1": 0.9, "b2": 0.95},
            },
            "train": {
                "batch_size": 512,
                "accumulate": 32,
                "duration": "19000 steps",
                "log_every": "20 steps",
            },
            "checkpoint": {"every": "2%"},
        }
    )
