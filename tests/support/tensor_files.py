"""Random variables of image models, and folders of weights that tests change."""

import json

import jax
import numpy as np
import safetensors.numpy

from common import tree
from common.weights import tensors


def random(model, channels: int = 3, seed: int = 0) -> dict:
    """Variables of a model, all numbers random, variances positive."""
    rng = np.random.default_rng(seed)
    side = getattr(model, "image_size", 16)
    shape = jax.ShapeDtypeStruct((1, side, side, channels), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), shape)
    numbers = lambda path, x: (
        rng.uniform(0.5, 1.5, x.shape) if path.endswith("var") else rng.normal(size=x.shape)
    )
    return tree.map_paths(lambda path, x: numbers(path, x).astype(np.float32), shapes)


def same(a, b) -> bool:
    """Whether two trees have the same paths, dtypes and bits."""
    a, b = tree.flatten(a), tree.flatten(b)
    bits = lambda x: (str(x.dtype), x.shape, x.tobytes())
    return a.keys() == b.keys() and all(bits(a[k]) == bits(b[k]) for k in a)


def write(path, found: dict):
    """A file of tensors."""
    path.write_bytes(safetensors.numpy.save(found))
    return path


def rewrite(folder, change):
    """Replaces the tensors of a folder by change(tensors)."""
    write(folder / "model.safetensors", change(tensors.read(folder)))


def settle(folder, **settings):
    """Changes settings in a folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
