"""Small corpora of made-up English, written to a folder."""

import collections
import json
import pathlib
import random
from collections.abc import Iterable

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from common.errors import BadInput
from lm.data import corpora

WORDS = [
    *("the", "of", "and", "to", "in", "union", "states", "congress", "people", "government"),
    *("war", "peace", "public", "law", "country", "nation", "year", "great", "treaty", "army"),
    *("commerce", "treasury", "citizens", "duties", "power", "spirit", "naïve", "façade"),
]
KIND = {"tokenizer": "wordpiece", "vocab_size": 150}  # enough for these words


def text(rng: random.Random, sentences: int) -> str:
    """Sentences of three to twelve words."""
    made = (rng.choices(WORDS, k=rng.randint(3, 12)) for _ in range(sentences))
    return " ".join(f"{' '.join(words).capitalize()}." for words in made)


def write(folder, documents: int = 120, seed: int = 0) -> str:
    """Writes two sources, `speeches` (.jsonl) and `letters` (.txt); returns the corpus's name."""
    rng, folder = random.Random(seed), pathlib.Path(folder)
    (folder / "letters").mkdir(parents=True)
    with (folder / "speeches.jsonl").open("w", encoding="utf-8") as file:
        for i in range(documents // 2):
            entry = {"name": f"speech {i}", "text": text(rng, rng.randint(1, 30))}
            file.write(json.dumps(entry) + "\n")
    for i in range(documents - documents // 2):
        path = folder / "letters" / f"{i:03}.txt"
        path.write_text(text(rng, rng.randint(1, 30)), encoding="utf-8")
    return f"folder:{folder}"


def prepare(folder, name: str, features: dict[str, str], rows: dict[str, list[dict]]) -> None:
    """Writes a TFDS set: features {name: "text", "label" (three classes) or "number"}, and
    {split: [example]}."""
    import tensorflow_datasets as tfds

    kinds = {
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["no", "maybe", "yes"]),
        "number": tfds.features.Scalar(np.float32),
    }

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Made-up texts."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            described = tfds.features.FeaturesDict({k: kinds[v] for k, v in features.items()})
            return tfds.core.DatasetInfo(builder=self, description="texts", features=described)

        def _split_generators(self, dl_manager):
            return {split: enumerate(examples) for split, examples in rows.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Made.name = name
    Made(data_dir=str(folder), file_format="array_record").download_and_prepare()


def tokenizer(folder, kind: str, vocab_size: int) -> str:
    """A folder with the files of a tokenizer of exactly this size, most of it never used."""
    folder = pathlib.Path(folder, f"{kind}_{vocab_size}")
    if folder.exists():
        return str(folder)
    folder.mkdir(parents=True)
    filler = (f"filler{i}" for i in range(vocab_size))
    if kind == "bpe":
        known = ["<|endoftext|>", *pre_tokenizers.ByteLevel.alphabet()]
    else:
        letters = "abcdefghijklmnopqrstuvwxyz."
        known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
        known += [f"##{letter}" for letter in letters] + sorted(set(WORDS[:26]))
    known += [next(filler) for _ in range(vocab_size - len(known))]
    if kind == "bpe":
        (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(known)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
    else:
        (folder / "vocab.txt").write_text("\n".join(known) + "\n")
    return str(folder)


def labelled(folder, classes: int, examples: int = 300) -> str:
    """A .jsonl of texts with this many classes; returns the set's name."""
    rng, path = random.Random(classes), pathlib.Path(folder, f"labelled_{classes}.jsonl")
    with path.open("w", encoding="utf-8") as file:
        for i in range(examples):
            file.write(json.dumps({"text": text(rng, 2), "label": f"class {i % classes}"}) + "\n")
    return f"file:{path}"


def tagged(folder, sentences: int = 120, seed: int = 0) -> str:
    """A .jsonl of sentences of up to 12 words, in which "people" and "congress" begin entities that
    go on for a word where "of" follows; returns the set's name."""
    rng, path = random.Random(seed), pathlib.Path(folder, f"tagged_{sentences}.jsonl")
    kinds = {"people": "PER", "congress": "ORG"}
    with path.open("w", encoding="utf-8") as file:
        for _ in range(sentences):
            words = rng.choices(WORDS, k=rng.randint(2, 12))
            words[rng.randrange(len(words))] = rng.choice([*kinds])
            tags = []
            for i, word in enumerate(words):
                inside = word == "of" and i and words[i - 1] in kinds
                tag = f"I-{kinds[words[i - 1]]}" if inside else "O"
                tags.append(f"B-{kinds[word]}" if word in kinds else tag)
            file.write(json.dumps({"tokens": words, "tags": tags}) + "\n")
    return f"file:{path}"


def questions(folder, count: int = 120, seed: int = 0, sentences: int = 3) -> str:
    """A .jsonl of questions for the words after "treaty of" in their context, or without an answer
    where there is no such thing; returns the set's name."""
    rng, path = random.Random(seed), pathlib.Path(folder, f"questions_{count}.jsonl")
    others = [word for word in WORDS if word not in ("treaty", "peace", "war")]
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            words = rng.choices(others, k=8 * sentences)
            answers = {"text": [], "answer_start": []}
            if i % 4:
                at = rng.randrange(len(words) - 2)
                answer = rng.choice(("peace", "war"))
                words[at : at + 3] = "treaty", "of", answer
                start = len(" ".join(words[: at + 2])) + 1
                answers = {"text": [answer], "answer_start": [start]}
            record = {"id": f"q{i}", "question": "what treaty", "context": " ".join(words)}
            file.write(json.dumps(record | {"answers": answers}) + "\n")
    return f"file:{path}"


def read(folder, notes: collections.Counter | None = None) -> list[corpora.Document]:
    """The documents of a folder of one's own."""
    return list(corpora.documents(f"folder:{folder}", notes=notes))


def sizes(documents: Iterable[corpora.Document]) -> dict[str, int]:
    """The number of documents in each part."""
    return collections.Counter(document.part for document in documents)


def refused(folder, says: str) -> None:
    """A folder of one's own must be refused in one line that matches `says`."""
    with pytest.raises(BadInput, match=rf"^config\.data\.name: .*{says}") as error:
        read(folder)
    assert "\n" not in str(error.value)


def pairs(folder, count: int = 400, seed: int = 0) -> str:
    """A .jsonl of words of up to six letters and their "phonemes", one for each letter, the last
    first; returns the set's name."""
    rng, path = random.Random(seed), pathlib.Path(folder, f"pairs_{count}.jsonl")
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            letters = "abcdefghijklmnopqrstuvwxyz"
            word = letters if not i else "".join(rng.choices(letters, k=rng.randint(1, 6)))
            sounds = " ".join(letter.upper() for letter in reversed(word))
            file.write(json.dumps({"source": word, "target": sounds}) + "\n")
    return f"pairs:{path}"
