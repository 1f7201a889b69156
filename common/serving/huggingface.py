"""Exports in the layout of Hugging Face: config.json, model.safetensors, and the files of the
tokenizer or of the image processor, for families that have one there.

What a domain writes is said by the modules that read it (`common.predict.READERS`): their function
`write(folder, model, variables, source) -> bool` is False for models of other domains.
"""

import json
import pathlib

import jax
import numpy as np

from common import imports, predict, tree
from common.errors import BadInput, require
from common.serving import artifact
from common.task import Predictor, Source
from common.weights import engine


def write(folder: pathlib.Path, predictor: Predictor, source: Source, variables: dict) -> None:
    """Writes a model.

    Args:
      folder: to write.
      predictor: of the run.
      source: its training set, without contents: the facts of its data.
      variables: {"params": …} and statistics, on the host.

    Raises:
      BadInput: if its family has no such layout.
    """
    names: list[str] = []
    for reader in predict.READERS:
        module = imports.module("--huggingface", reader, predict.READERS[0])
        with engine.within("--huggingface"):
            if module.write(folder, predictor.model, variables, source):
                _describe(folder / "config.json", dict(predictor.described))
                return
        names += module.families()
    kind = type(predictor.model).__name__
    raise BadInput(f"--huggingface: {kind} has no layout there; these have: {', '.join(names)}")


def _describe(file: pathlib.Path, entries: dict) -> None:
    """Adds entries to a config.json."""
    if entries:
        described = json.loads(file.read_text()) | entries
        file.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


def difference(
    folder: pathlib.Path, predictor: Predictor, params: dict, options: dict, calls: list
) -> float:
    """The largest difference of the run's outputs from those of the model that was written, as it
    is read back.

    Args:
      folder: from `write`.
      predictor, params: of the run.
      options: of the prediction, checked.
      calls: (inputs {name: [B, ...]}, the run's outputs) of each.

    Raises:
      BadInput: if other parameters are read back.
    """
    readers = (imports.module("--huggingface", x, predict.READERS[0]) for x in predict.READERS)
    back = next(filter(None, (reader.published(str(folder)) for reader in readers)))
    wrong = sorted(tree.flatten(params).keys() ^ tree.flatten(back.params).keys())
    require(not wrong, f"--huggingface: {wrong[:1]} is not read back as it was written")
    apply = jax.jit(
        lambda params, extra, batch: back.predictor.apply(params, extra, batch, options)
    )
    apart = []
    for inputs, outputs in calls:
        if predictor.suffixes:  # pictures: there a processor of its own scales them
            rows = [back.predictor.read(x, options)[0] for x in inputs["image"]]
            inputs = {"image": np.stack([row["image"] for row in rows])}
        found = jax.device_get(apply(back.params, back.extra, inputs))
        apart.append(artifact.difference(found, outputs))
    return max(apart)
