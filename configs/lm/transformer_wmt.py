"""The base Transformer as published (Vaswani et al. 2017), on WMT 2014 English-German, for pods.

100,000 steps of about 25,000 source and 25,000 target tokens, a shared vocabulary of 37,000 byte
pairs, 4,000 steps of warmup and then 1 / sqrt(step), label smoothing 0.1. It differs in these: an
exponential moving average stands in for the mean of the last five checkpoints; the length penalty
is a power of the length (see `lm.decoding.beam`); the computation is in bfloat16, byte pairs are of
bytes, and pairs of more than 128 tokens a side are left out of training. Pairs: `tfds build
wmt14_translate/de-en --file_format=array_record`. Not run, so there is no figure; the paper has
BLEU 27.3, tokenized.
"""

import ml_collections

from common.errors import choice
from lm.seq2seq import transformer


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """There is one variant."""
    choice("--config transformer_wmt.py", arg, ("",))
    shape = {k: value for k, value in transformer.SIZES["base"].items() if k != "vocab_size"}
    return ml_collections.ConfigDict(
        {
            "task": "lm.translate",
            "seed": 0,
            "model": {
                "module": "lm.seq2seq.transformer:EncoderDecoder",
                **shape,
                "dropout": 0.1,
                "dtype": "bfloat16",
            },
            "data": {
                "name": "tfds:wmt14_translate/de-en",
                "source": "en",
                "target": "de",
                "tokenizer": "bpe",
                "vocab_size": 37000,
                "length": 128,
            },
            "loss": {"label_smoothing": 0.1},
            "evals": {
                "valid": {"split": "validation", "every": "5%"},
                "test": {
                    "split": "test",
                    "every": "100%",
                    "beams": 4,
                    "length_penalty": 0.6,
                },
            },
            "optim": {
                "name": "adamw",
                "lr": 512**-0.5 * 4000**-0.5,
                "schedule": "rsqrt",
                "warmup": "4000 steps",
                "direction": {"b1": 0.9, "b2": 0.98, "eps": 1e-9},
            },
            "train": {
                "batch_size": 208,
                "duration": "100000 steps",
                "average": 0.9995,
                "log_every": "100 steps",
            },
            "checkpoint": {"every": "1%"},
        }
    )
