"""Changes of a folder of pictures; see `own_data`."""

import collections
import os
import pathlib
import random
import shutil

import fuzz
import numpy as np
import picture_files
from fuzz import Change
from PIL import Image

from vision.data import datasets


def make(folder: pathlib.Path) -> None:
    kinds = sorted(picture_files.KINDS)
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i, kind in enumerate(kinds):
            picture_files.write(folder / name / f"{i}{picture_files.SUFFIXES[kind]}", kind, rng)


def change(rng: random.Random, folder: pathlib.Path) -> Change:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    name, noise = path.name, np.random.default_rng(rng.randrange(1 << 30))
    kind = rng.choice(sorted(picture_files.KINDS))
    other = folder / rng.choice(["cat", "dog"])
    match rng.randrange(14):
        case 0 | 1 | 2:
            how = rng.choice(["flip a bit of", "cut", "put junk into", "append to"])
            fuzz.MUTATORS[how](rng, path)
            return Change(f"{how} {name}", (name,))
        case 3:
            fuzz.MUTATORS["make another kind of"](rng, path)
            return Change(f"another kind of {name}", (name, path.stem), None)
        case 4 | 5:
            path.unlink()
            picture_files.write(path.with_suffix(picture_files.SUFFIXES[kind]), kind, noise)
            return Change(f"{name} is {kind}", (), True)
        case 6:
            to = path.with_name(rng.choice(["A.PNG", "naïve 图.png", "a b,c.Jpeg", "-x.png"]))
            path.rename(to)
            return Change(f"{name} is called {to.name}", (), True)
        case 7:
            to = path.with_name(rng.choice([".hidden.png", "x.txt", "Thumbs.db", "x.png~"]))
            path.rename(to)
            return Change(f"{name} is called {to.name}", (), True)
        case 8:
            os.rename(path, os.fsencode(path.parent) + b"/\xff\xfe.png")
            return Change(f"{name} is not UTF-8", ("UTF-8",), None)
        case 9:
            shutil.copy(path, other / f"again_{name}")
            return Change(f"{name} again in {other.name}", (), True)
        case 10:
            (other / "deeper" / "still").mkdir(parents=True)
            path.rename(other / "deeper" / "still" / name)
            return Change(f"{name} lies deeper", (), True)
        case 11:
            (other / "again").symlink_to(rng.choice(["..", ".", "nowhere", "/dev"]))
            return Change("a link to a folder", ("again", other.name), None)
        case 12:
            picture_files.write(path, rng.choice(["RGB", "L"]), noise, size=rng.choice([1, 5, 13]))
            return Change(f"{name} has another size", (name, "size"), False)
        case _:
            for file in (folder / "cat").iterdir():
                file.unlink()
            return Change("no cats", ("cat",), False)


def read(folder: pathlib.Path, scratch: pathlib.Path) -> collections.Counter:
    everything = "train+valid+test"
    source = datasets.load_sources(
        {"train": everything}, train=everything, name=f"images:{folder}", folder=str(scratch)
    )["train"]
    batch = source.read(np.arange(source.size, dtype=np.uint32))
    classes = source.facts.classes
    return collections.Counter(
        (classes[label], np.broadcast_to(image, (*image.shape[:2], 3)).tobytes())
        for image, label in zip(np.asarray(batch["image"]), batch["label"], strict=True)
    )


def expected(folder: pathlib.Path) -> collections.Counter | None:
    found = collections.Counter()
    for path in folder.rglob("*"):
        inside = path.relative_to(folder).parts
        if path.is_dir() or any(part.startswith(".") for part in inside):
            continue
        if path.suffix.lower() not in Image.registered_extensions():
            continue
        pixels = picture_files.pixels(path) if path.is_file() else None
        if pixels is None:
            return None
        found[inside[0], pixels.tobytes()] += 1
    return found
