"""Changes of a set of images that TFDS prepared; see `own_data`."""

import ast
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil

import fuzz
import numpy as np
from fuzz import Change

from vision.data import datasets

# -------------------------------------------------------------------------------------------- TFDS


def make(folder: pathlib.Path) -> None:
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(2)

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """A few small images."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(6, 6, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            row = lambda i: {"image": rng.integers(0, 256, (6, 6, 1), np.uint8), "label": i % 3}
            return {s: ((i, row(i)) for i in range(n)) for s, n in (("train", 20), ("test", 10))}

        def _generate_examples(self):
            raise NotImplementedError

    Made.name = "made"
    with contextlib.redirect_stderr(open(os.devnull, "w")):
        Made(data_dir=str(folder), file_format="array_record").download_and_prepare()
    found = read(folder, None)
    (folder / "rows").write_text(repr(sorted(found.items())))
    shutil.rmtree(folder / "made/1.0.0/decoded", ignore_errors=True)


def change(rng: random.Random, folder: pathlib.Path) -> Change:
    root = folder / "made/1.0.0"
    path = rng.choice(sorted(root.iterdir()))
    again = ("again", "made", path.name)
    match rng.randrange(8):
        case 0 | 1 | 2:
            path = root / rng.choice(["dataset_info.json", "features.json"])
            values = json.loads(path.read_bytes())
            at, key = fuzz.place(rng, values)
            before = at[key]
            others = [None, "", "x", 0, -1, 7, "7", [], {}, 1e300, "uint16", "float32", "3", "test"]
            if rng.random() < 0.3:
                del at[key]
            else:
                at[key] = rng.choice(others)
            path.write_text(json.dumps(values))
            return Change(f"{path.name}: {key} was {str(before)[:40]}", again)
        case 3 | 4:
            how = rng.choice(sorted(fuzz.MUTATORS.keys() - {"disturb the lines of"}))
            fuzz.MUTATORS[how](rng, path)
            return Change(f"{how} {path.name}", again)
        case 5:
            root.rename(root.with_name(rng.choice(["incomplete.ABC_1.0.0", "1.0", "x", "2.0.0"])))
            return Change("the version's folder has another name", again)
        case 6:
            shards = sorted(root.glob("*array_record*"))
            a, b = rng.sample(shards, 2)
            shutil.copy(a, b)
            return Change(f"{a.name} over {b.name}", again)
        case _:
            (root / "decoded").mkdir()
            for part in ("train.image.npy", "train.label.npy", "train.sha256"):
                (root / "decoded" / part).write_bytes(
                    rng.choice([b"", b"\x93NUMPY\1\0", b"0" * 64])
                )
            return Change("a cache of something else", again, True)


def read(folder: pathlib.Path, scratch) -> collections.Counter:
    sources = datasets.load_sources(
        {"train": "train", "test": "test"}, name="tfds:made", folder=str(folder)
    )
    found = collections.Counter()
    for name, source in sources.items():
        batch = source.read(np.arange(source.size, dtype=np.uint32))
        for image, label in zip(np.asarray(batch["image"]), batch["label"], strict=True):
            found[name, int(label), image.dtype.str, image.tobytes().hex()] += 1
    return found


def expected(folder: pathlib.Path) -> collections.Counter:
    return collections.Counter(dict(ast.literal_eval((folder / "rows").read_text())))
