"""Small corpora of made-up English, written to a folder."""

import json
import pathlib
import random

import numpy as np

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
