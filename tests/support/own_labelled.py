"""Changes of a file of labelled texts; see `own_data`."""

import collections
import json
import pathlib
import random

import numpy as np
from fuzz import Change
from own_texts import LINES, change_line, fixed, jsonl, parsed, texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lm.data import labelled

# -------------------------------------------------------------------------------------- labelled


def make(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(jsonl(texts(random.Random(1))))
    special = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = special | {c: i for i, c in enumerate(alphabet, len(special))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*special])
    tokenizer.save(str(folder / "tokenizer.json"))


def change(rng: random.Random, folder: pathlib.Path) -> Change:
    path = folder / "a.jsonl"
    if rng.random() < 0.6:
        return change_line(rng, path)
    lines = path.read_bytes().split(b"\n")
    at = rng.randrange(LINES)
    entry, where = json.loads(lines[at]), (f"line {at + 1}", "label", "split", "text_b")
    match rng.randrange(4):
        case 0:
            entry["label"] = rng.choice([None, [], {}, 1, 0.5, True])
            change = Change(f"label {entry['label']}", where, False)
        case 1:
            entry["label"] = rng.choice(["Yes", "yes ", "YES", "", "third"])
            change = Change(f"label {entry['label']!r}", where, None)
        case 2:
            entry["split"] = rng.choice(["train", "", "a b", 7])
            change = Change("a split", where, False)
        case _:
            entry["text_b"] = "a second text"
            change = Change("a second text", where, False)
    lines[at] = json.dumps(entry).encode()
    path.write_bytes(b"\n".join(lines))
    return change


def read(folder: pathlib.Path, scratch: pathlib.Path) -> collections.Counter:
    everything = "train+valid+test"
    source = labelled.load_sources(
        {"train": everything}, train=everything, name=f"file:{folder / 'a.jsonl'}", length=512,
        tokenizer=str(folder / "tokenizer.json"), folder=str(scratch),
    )["train"]  # fmt: skip
    batch = source.read(np.arange(source.size, dtype=np.uint32))
    decode = source.facts.tokenizer.decode
    return collections.Counter(
        (decode(row[np.asarray(inside) > 0].tolist()), source.facts.classes[label])
        for row, inside, label in zip(
            np.asarray(batch["tokens"]), batch["segments"], batch["label"], strict=True
        )
    )


def expected(folder: pathlib.Path) -> collections.Counter | None:
    try:
        entries = parsed((folder / "a.jsonl").read_bytes())
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(entry["label"], str) for entry in entries):
        return None
    # A row holds 512 tokens, of which two are special; a token is a byte.
    cut = lambda text: fixed(text).encode()[:510].decode(errors="replace")
    return collections.Counter((cut(e["text"]), e["label"]) for e in entries)
