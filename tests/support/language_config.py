"""Small runs of language models on a text that counts; `arg` is the task, "clm" or "mlm".

The corpus is to be given: --config.data.name=folder:DIR, see `write`.
"""

import pathlib

import ml_collections

NUMBERS = "one two three four five six seven eight nine ten".split()


def write(folder, documents: int = 60) -> str:
    """Documents that count in a circle, each from another number; returns the corpus's name."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    for i in range(documents):
        words = [NUMBERS[(i + j) % len(NUMBERS)] for j in range(20 + i)]
        (folder / f"{i:02}.txt").write_text(" ".join(words), encoding="utf-8")
    return f"folder:{folder}"


def get_config(arg="clm"):
    masked = arg == "mlm"
    data = {"tokenizer": "wordpiece", "vocab_size": 80} if masked else {"tokenizer": "bpe", "vocab_size": 290}
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
            "data": data | {"length": 16},
            "optim": {"lr": 1e-2, "schedule": "linear", "warmup": "10%"},
            "train": {"batch_size": 32, "duration": "150 steps", "log_every": "50 steps"},
        }
    )
