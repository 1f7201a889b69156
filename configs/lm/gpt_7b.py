"""A GPT of 7 billion parameters in the shape of Llama 2 7B (Touvron et al. 2023), for a pod.

Rows of 4,096 tokens, 256 per step (1,048,576 tokens), AdamW at 3e-4 with cosine decay to a tenth,
as published; 140,000 steps are 147e9 tokens, twenty per parameter (Hoffmann et al. 2022).
Parameters and optimizer state are split 16 ways and each layer 4 ways: a v5p of 64 chips (4x4x4),
whose needs `scripts/compile.py --topology v5p:4x4x4` reports. The vocabulary of 32,000 byte-level
tokens is trained on the text: English Wikipedia from TFDS (`tfds build wikipedia/20230601.en
--file_format=array_record`), which is far too little for a model of this size; bring your own with
`--config.data.name=folder:DIR`. Not run, so there is no figure.
"""

import ml_collections

from common.errors import choice
from lm import gpt


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """There is one variant."""
    choice("--config gpt_7b.py", arg, ("",))
    shape = {name: value for name, value in gpt.SIZES["llama2_7b"].items() if name != "vocab_size"}
    return ml_collections.ConfigDict(
        {
            "task": "lm.clm",
            "seed": 0,
            "model": {
                "module": "lm.gpt:GPT",
                **shape,
                "dtype": "bfloat16",
                "remat": "block",
                "scan": True,
            },
            "data": {
                "name": "tfds:wikipedia/20230601.en",
                "tokenizer": "bpe",
                "vocab_size": 32000,
                "length": 4096,
            },
            "evals": {"valid": {"split": "valid[:1024]", "every": "1%", "batch_size": 256}},
            "optim": {
                "name": "adamw",
                "lr": 3e-4,
                "schedule": "cosine",
                "warmup": "2000 steps",
                "final": 0.1,
                "weight_decay": 0.1,
                "clip": 1.0,
                "direction": {"b1": 0.9, "b2": 0.95, "eps": 1e-5},
            },
            "mesh": {"data": 1, "fsdp": 16, "tensor": 4},
            "train": {"batch_size": 256, "duration": "140000 steps", "log_every": "10 steps"},
            "checkpoint": {"every": "500 steps"},
        }
    )
