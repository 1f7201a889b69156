"""Small runs of language models on a text that counts; `arg` is the task, "clm" or "mlm".

The corpus is to be given: --config.data.name=folder:DIR, see `write`.
"""

import pathlib
import random

import ml_collections

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def write(folder, documents: int = 150) -> str:
    """Documents that count in a circle, from any number to any; returns the corpus's name."""
    folder, rng = pathlib.Path(folder), random.Random(0)
    folder.mkdir(parents=True)
    for i in range(documents):
        first = rng.randrange(10)
        words = [NUMBERS[(first + j) % 10] for j in range(rng.randint(10, 40))]
        (folder / f"{i:03}.txt").write_text(" ".join(words), encoding="utf-8")
    return f"folder:{folder}"


def get_config(arg="clm"):
    masked = arg == "mlm"
    kind, size = ("wordpiece", 80) if masked else ("bpe", 290)
    return ml_collections.ConfigDict(
        {
            "task": f"lm.{arg}",
            "seed": 0,
            "model": {
                "module": "lm.bert:Bert" if masked else "lm.gpt:GPT",
                "width": 32,
                "layers": 1,
                "heads": 2,
                "hidden": 64,
                "max_length": 16,
                "pre_norm": True,
            },
            "data": {"tokenizer": kind, "vocab_size": size, "length": 16},
            "optim": {"name": "adamw", "lr": 1e-2, "schedule": "linear", "warmup": "10%"},
            "train": {"batch_size": 32, "duration": "150 steps", "log_every": "50 steps"},
        }
    )
