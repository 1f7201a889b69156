"""BERT base as published (Devlin et al. 2019), for pods: 1,000,000 steps of 256 sequences.

`phase1` (default) is the first 900,000 steps, of 128 tokens; `phase2` the other 100,000, of 512,
which start from the parameters of phase 1: `--config.init.path=WORKDIR`. Text: English Wikipedia
from TFDS (`tfds build wikipedia/20230601.en --file_format=array_record`); the books of the paper
are no longer available. The paper has one linear schedule over both phases; here each has its own,
and the second starts at the rate where the first ends. Not run, so there is no figure.
"""

import ml_collections

from common.errors import choice
from lm import bert


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is the phase."""
    phase = choice("--config bert_base.py", arg or "phase1", ("phase1", "phase2"))
    first = phase == "phase1"
    shape = {name: value for name, value in bert.SIZES["base"].items() if name != "vocab_size"}
    return ml_collections.ConfigDict(
        {
            "task": "lm.mlm",
            "seed": 0,
            "model": {
                "module": "lm.bert:Bert",
                **shape,
                "dropout": 0.1,
                "attention_dropout": 0.1,
                "dtype": "bfloat16",
            },
            "data": {
                "name": "tfds:wikipedia/20230601.en",
                "tokenizer": "wordpiece",
                "vocab_size": 30522,
                "length": 128 if first else 512,
            },
            "loss": {"nsp": True},
            "evals": {"valid": {"split": "valid[:10000]", "every": "2%"}},
            "optim": {
                "name": "adamw",
                "lr": 1e-4 if first else 1e-5,
                "schedule": "linear",
                "warmup": "10000 steps" if first else "0 steps",
                "final": 0.1 if first else 0.0,
                "weight_decay": 0.01,
                "clip": 1.0,
                "direction": {"eps": 1e-6},
            },
            "train": {
                "batch_size": 256,
                "duration": "900000 steps" if first else "100000 steps",
                "log_every": "100 steps",
            },
            "checkpoint": {"every": "1%"},
        }
    )
