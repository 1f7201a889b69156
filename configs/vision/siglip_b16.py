"""SigLIP B/16 at 224 pixels with batches of 32,768 pairs (Zhai et al. 2023), for a pod: sigmoids in
chunks around the ring of its chips, AdamW at 1e-3 with b2 = 0.95, cosine decay. The warmup is that
of SigLIP 2 (Tschannen et al. 2025), and texts have 64 tokens as the published weights do.

Pairs are LAION-400M's from TFDS (`tfds build laion400m/images --file_format=array_record`), in
place of WebLI, which is not public: 9e9 of them are seen, as published for this size. Put the
published tokenizer's files (32,000 pieces) into a folder, and name it by
--config.data.tokenizer=DIR. Compiled for a v5e of 256 chips (`scripts/compile.py --topology
v5e:16x16`) it takes 6.8 of a chip's 17.2 GB and moves 116 GB in its memory a step, which is 141 ms
at the vendor's figures, and longer than its products; without `remat` it does not fit. Not run, so
there is no other figure. `val` is retrieval among 5,120 pairs held out
of training; `scripts/evaluate.py` takes evaluators of your own.
"""

import ml_collections

from common.errors import choice
from vision.contrast import model


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """There is one variant."""
    choice("--config siglip_b16.py", arg, ("",))
    shape = {k: v for k, v in model.SIZES["siglip_b16"].items() if k != "vocab_size"}
    return ml_collections.ConfigDict(
        {
            "task": "vision.contrast.task",
            "seed": 0,
            "model": {
                "module": "vision.contrast.model:Towers",
                **shape,
                "dtype": "bfloat16",
                "remat": "block",
                "scan": True,
            },
            "data": {
                "name": "tfds:laion400m/images",
                "train": "train[5120:]",
                "image_size": 224,
                "resize": "squash",
                "tokenizer": "siglip_tokenizer",
                "vocab_size": 32000,
                "length": 64,
                "workers": 32,
                "resident": False,
            },
            "loss": {"kind": "sigmoid"},
            "evals": {"val": {"split": "train[:5120]", "every": "5%", "batch_size": 1024}},
            "optim": {
                "name": "adamw",
                "lr": 1e-3,
                "schedule": "cosine",
                "warmup": "20000 steps",
                "weight_decay": 0.1,  # times the learning rate: 1e-4 there, which is not multiplied
                "clip": 1.0,
                "decayed": ((r"(.*/)?kernel", 1.0),),
                "direction": {"b1": 0.9, "b2": 0.95},
            },
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "train": {
                "batch_size": 32768,
                "duration": "9e9 examples",
                "log_every": "50 steps",
            },
            "checkpoint": {"every": "2000 steps"},
        }
    )
