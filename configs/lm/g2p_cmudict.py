"""Letters to phonemes: CMUdict, which is bundled with the project, learned from scratch.

The classic small task of sequence to sequence (Bisani & Ney 2008; Rao et al. 2015; Yolchuyeva et
al. 2019). `transformer` is an encoder-decoder of three blocks a side, `lstm` one of LSTMs with
attention (Bahdanau et al. 2015). 5% of the words are held out for each of `valid` and `test`, by a
hash of their spelling; a word is right if it is any of its listed pronunciations. The rate stays
where the warmup ends, and evaluation is of averaged parameters, so that the curve of one run shows
what every shorter one reaches: `python -m tests.measure g2p_curve`. Not run yet, so there is no
figure.
"""

import ml_collections

from common.errors import choice

MODELS = {
    "transformer": {
        "module": "lm.seq2seq.transformer:EncoderDecoder",
        "width": 192,
        "layers": 3,
        "heads": 4,
        "hidden": 512,
        "pre_norm": True,
        "dropout": 0.1,
    },
    "lstm": {
        "module": "lm.seq2seq.recurrent:EncoderDecoder",
        "cell": "lstm",
        "width": 256,
        "embedding_width": 128,
        "layers": 1,
        "dropout": 0.1,
    },
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg` is the variant."""
    variant = choice("--config g2p_cmudict.py", arg or "transformer", MODELS)
    return ml_collections.ConfigDict(
        {
            "task": "lm.translate",
            "seed": 0,
            "model": MODELS[variant],
            "data": {
                "name": "cmudict",
                "tokenizer": "characters",
                "target_tokenizer": "words",
                "length": 64,
                "target_length": 56,
            },
            "loss": {"label_smoothing": 0.1},
            "evals": {
                "valid": {"split": "valid", "every": "1 epoch", "scores": "none"},
                "test": {
                    "split": "test",
                    "every": "5 epochs",
                    "scores": "phonemes",
                    "batch_size": 256,
                    "show": 6,
                },
            },
            "optim": {
                "name": "adamw",
                "lr": 1e-3,
                "schedule": "constant",
                "warmup": "500 steps",
                "clip": 1.0,
                "direction": {"b1": 0.9, "b2": 0.98},
            },
            "train": {
                "batch_size": 32,
                "duration": "15 epochs",
                "average": 0.999,
                "log_every": "50 steps",
            },
            "checkpoint": {"every": "1 epoch"},
        }
    )


def sweep():
    """Learning rates."""
    for lr in (5e-4, 1e-3, 2e-3):
        yield {"optim.lr": lr}
