"""Folders of pictures of noise, and what is read of them."""

import logging
import pathlib

import numpy as np
from PIL import Image

from vision.data import datasets

SPLITS = {"train": "train", "valid": "valid", "test": "test"}


def noise(*shape: int, seed: int = 0, high: int = 256, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def write(root: pathlib.Path, *places: str, shape=(4, 5, 3)) -> pathlib.Path:
    """Pictures of noise, each another, at these paths below `root`."""
    for seed, place in enumerate(places):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(*shape, seed=seed)).save(root / place)
    return root


def pets(root: pathlib.Path, count: int = 40, **of) -> pathlib.Path:
    return write(root, *(f"{'ab'[i % 2]}/{i}.png" for i in range(count)), **of)


def load(root, splits=SPLITS, **arguments):
    folder = root.parent / "prepared"
    return datasets.load_sources(splits, name=f"images:{root}", folder=str(folder), **arguments)


def rows(source) -> dict:
    return source.read(np.arange(source.size, dtype=np.uint32))


def warned(caplog) -> str:
    """What was warned of since the last call."""
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    caplog.clear()
    return "\n".join(said)
