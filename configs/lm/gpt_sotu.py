"""A small GPT on the State of the Union addresses, which are bundled with the project."""

import ml_collections

from common.errors import choice
from lm import gpt


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is the variant."""
    variant = choice("--config gpt_sotu.py", arg or "llama", ("llama", "gpt2"))
    return ml_collections.ConfigDict(
        {
            "task": "lm.clm",
            "seed": 0,
            "model": {
                "module": "lm.gpt:GPT",
                "width": 128,
                "layers": 4,
                "heads": 2,
                "hidden": 384 if variant == "llama" else 512,
                "max_length": 128,
                **(gpt.LLAMA if variant == "llama" else {}),
            },
            "data": {"name": "sotu", "tokenizer": "bpe", "vocab_size": 4096, "length": 128},
            "evals": {
                "valid": {"split": "valid", "every": "20%"},
                "test": {"split": "test", "every": "100%"},
            },
            "optim": {
                "name": "muon",
                "lr": 0.02,
                "schedule": "linear",
                "warmup": "5%",
                "clip": 1.0,
                "multipliers": ((r".*(embedding|bias|scale)", 0.2),),
            },
            "train": {"batch_size": 32, "duration": "1500 steps", "log_every": "50 steps"},
            "checkpoint": {"every": "25%"},
        }
    )
