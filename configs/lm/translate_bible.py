"""The Bible from English to Spanish: the World English Bible and Reina-Valera 1909.

First prepare `bible` with `scripts/prepare.py`. Whole books are held out (`valid`: Ruth, Joel,
Galatians, 1 Peter; `test`: Esther, Amos, Jonah, Philippians, Hebrews, James). An encoder-decoder of
three pre-norm blocks of width 256 a side, a shared byte-level BPE vocabulary of 4,096 tokens.
`python -m tests.measure translate` sets it beside plain torch in the same time. Not run yet, so
there is no figure.
"""

import ml_collections

from common.errors import choice


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """There is one variant."""
    choice("--config translate_bible.py", arg, ("",))
    return ml_collections.ConfigDict(
        {
            "task": "lm.translate",
            "seed": 0,
            "model": {
                "module": "lm.seq2seq.transformer:EncoderDecoder",
                "width": 256,
                "layers": 3,
                "heads": 4,
                "hidden": 1024,
                "pre_norm": True,
                "dropout": 0.2,
            },
            "data": {"name": "bible", "tokenizer": "bpe", "vocab_size": 4096, "length": 128},
            "loss": {"label_smoothing": 0.1},
            "evals": {
                "valid": {"split": "valid", "every": "20%", "scores": "none"},
                "test": {"split": "test", "every": "100%", "beams": 4, "show": 6},
            },
            "optim": {
                "name": "adamw",
                "lr": 1e-3,
                "schedule": "linear",
                "warmup": "10%",
                "clip": 1.0,
                "direction": {"b1": 0.9, "b2": 0.98},
            },
            "train": {
                "batch_size": 16,
                "duration": "6 epochs",
                "average": 0.998,
                "log_every": "50 steps",
            },
            "checkpoint": {"every": "10%"},
        }
    )
