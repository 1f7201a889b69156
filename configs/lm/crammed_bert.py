"""The crammed BERT of Geiping & Goldstein 2022: pretraining on one GPU in one day.

Their final architecture and recipe (crammed-bert, o4): 16 pre-norm layers of width 768 without
biases, gated GELU, scaled sinusoids, no head before the tied projection, a quarter of the positions
predicted, no dropout in pretraining, a triangular learning rate with its peak at three quarters,
clip 0.5. Two things differ: the batch is 4,096 throughout (theirs grows to 8,192), and the text is
Wikipedia from TFDS (`tfds build wikipedia/20230601.en --file_format=array_record`; theirs was a
selection of the Pile). 20,000 steps are 10.5e9 tokens; set `train.duration` to what fits into your
day. Not run, so there is no figure.
"""

import ml_collections

from common.errors import choice


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """There is one variant."""
    choice("--config crammed_bert.py", arg, ("",))
    return ml_collections.ConfigDict(
        {
            "task": "lm.mlm",
            "seed": 0,
            "model": {
                "module": "lm.bert:Bert",
                "width": 768,
                "layers": 16,
                "heads": 12,
                "hidden": 1536,
                "max_length": 128,
                "types": 0,
                "pre_norm": True,
                "bias": False,
                "gated": True,
                "positions": "scaled_sinusoidal",
                "head": False,
                "dtype": "bfloat16",
            },
            "data": {
                "name": "tfds:wikipedia/20230601.en",
                "tokenizer": "wordpiece",
                "vocab_size": 32768,
                "length": 128,
            },
            "masking": {"rate": 0.25},
            "evals": {"valid": {"split": "valid[:10000]", "every": "2%"}},
            "optim": {
                "name": "adamw",
                "lr": 1e-3,
                "schedule": "wsd",
                "warmup": "75%",
                "decay": "25%",
                "weight_decay": 0.01,
                "clip": 0.5,
                "direction": {"b1": 0.9, "b2": 0.98, "eps": 1e-12},
            },
            "train": {
                "batch_size": 4096,
                "accumulate": 16,
                "duration": "20000 steps",
                "log_every": "20 steps",
            },
            "checkpoint": {"every": "2%"},
        }
    )
