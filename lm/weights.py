"""Import and export of checkpoints in the Hugging Face layout: BERT, GPT-2 and Llama.

    sizes = weights.sizes(folder)                    # config.json as a model's fields
    params = weights.pretrained(folder)              # every tensor, under our names
    hidden = bert.Encoder(**sizes).apply({"params": params}, tokens)
    weights.save(folder, model, params)              # for `transformers` to load

A folder holds config.json and model.safetensors or pytorch_model.bin, in one file or in numbered
parts with an index. `lm.layouts` maps its names ("there") to ours ("here"). Torch is not needed,
and nothing in a file is executed.
"""

import logging
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from etils import epath

from common import inputs, tree
from common.data import fetch
from common.errors import require
from common.nn.layers import padded
from common.weights.tensors import json_object, read, settings, write
from lm import layouts
from lm.data.tokenizer import TextFacts
from lm.pretrained import WEIGHTS


def sizes(path: epath.PathLike) -> dict[str, Any]:
    """The fields of the model that a folder's config.json describes: `GPT(**sizes(path))`, or
    `Encoder`, `Bert` and `Classifier` (with their own fields) for a BERT.

    Raises:
      BadInput: if there is no config.json, or it has a setting that the models here lack.
    """
    return layouts.sizes(*settings(path))


# ------------------------------------------------------------------------------------------ import


class LoadReport(NamedTuple):
    """Mismatches between a checkpoint and a model.

    Attributes:
      missing: paths of the model that the file lacks; they kept their values.
      unused: paths of the file that the model lacks.
      unmatched: tensors of the file that have no name here.
    """

    missing: tuple[str, ...]
    unused: tuple[str, ...]
    unmatched: tuple[str, ...]


def pretrained(path: epath.PathLike) -> dict:
    """Every tensor of a checkpoint that has a name here, as nested dicts of f32 on the host.

    One warning lists tensors without a name here; buffers and copies of tied weights are not
    parameters and are left out.

    Args:
      path: a folder, whose config.json is checked too, or a .safetensors or .bin file.

    Raises:
      BadInput: as `read` and `sizes`; if no tensor has a name here, or two tensors that are one
        parameter here differ.
    """
    flat, unmatched = _translated(path)
    if unmatched:
        logging.warning("%s: left out, no parameter here: %s", path, ", ".join(unmatched))
    return tree.unflatten(flat)


def reader(facts: TextFacts, folder: str) -> Callable:
    """The reader of `config.init.path` for a task: path -> `pretrained(path)`.

    Args:
      facts: of the task's tokenizer; weights for a vocabulary of another size are refused.
      folder: the data folder, for names such as "minilm".
    """

    def read_path(name: str) -> dict:
        path = fetch.find_pretrained(name, folder, known=WEIGHTS)
        if inputs.present(path / "config.json"):
            theirs, ours = sizes(path)["vocab_size"], facts.vocab_size
            require(
                theirs == ours,
                f"config.init.path: {name} is for {theirs:,} tokens, and the tokenizer has "
                f"{ours:,}; set config.data.tokenizer to its own",
            )
        return pretrained(path)

    return read_path


def load_weights(path: epath.PathLike, params: dict) -> tuple[dict, LoadReport]:
    """A model's parameters, replaced by those that a checkpoint has.

    Args:
      path: as for `pretrained`.
      params: a model's parameters.

    Returns:
      (params in their own shapes and dtypes, on the host; LoadReport).

    Raises:
      BadInput: as `pretrained`, or if a shape differs.
    """
    loaded, unmatched = _translated(path)
    fresh = tree.flatten(params)
    shared = [p for p in fresh if p in loaded]
    wrong = [
        f"{p} is {list(loaded[p].shape)} there and {list(fresh[p].shape)} here"
        for p in shared
        if loaded[p].shape != fresh[p].shape
    ]
    require(not wrong, f"{path}: {'; '.join(wrong[:8])}")
    values = {
        p: loaded[p].astype(x.dtype) if p in loaded else np.asarray(x) for p, x in fresh.items()
    }
    missing = tuple(p for p in fresh if p not in loaded)
    unused = tuple(p for p in loaded if p not in fresh)
    return tree.unflatten(values), LoadReport(missing, unused, unmatched)


def _translated(path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """({path here: f32}, names there without one)."""
    file, tied = epath.Path(path) / "config.json", None
    tensors = read(path)
    if inputs.present(file):
        name = layouts.architecture(json_object(file), str(file))
        tied = sizes(path).get("tied")
    else:
        name = max(layouts.LAYOUTS, key=lambda n: len(_named(tensors, layouts.LAYOUTS[n], path)[0]))
    layout = layouts.LAYOUTS[name]
    named, unmatched = _named(tensors, layout, path)
    require(bool(named), f"{path}: of its {len(tensors)} tensors none is one of {name}")
    _drop_copies(named, layout, tied, path)
    rows, flat = layouts.leaves(layout), {}
    for name, x in named.items():
        pattern, number = _numbered(name)
        leaf = rows[pattern]
        require(
            jnp.issubdtype(x.dtype, jnp.floating),
            f"{path}: {name} is {x.dtype}; quantised weights are not supported",
        )
        flat_leaf = leaf.here[0].rpartition("/")[2] not in ("kernel", "embedding")
        require(
            x.ndim == (1 if flat_leaf else 2) and x.size > 0 and x.shape[-1] % len(leaf.here) == 0,
            f"{path}: {name} is {list(x.shape)}, and should be "
            + ("a vector" if flat_leaf else "a matrix")
            + (f" of {len(leaf.here)} equal parts" if len(leaf.here) > 1 else ""),
        )
        x = x.astype(np.float32)
        x = x.T if leaf.transposed else x
        if leaf.padded:
            x = np.pad(x, ((0, padded(len(x)) - len(x)), (0, 0)))
        for part, value in zip(leaf.here, np.split(x, len(leaf.here), axis=-1), strict=True):
            flat[part.replace("#", number)] = np.ascontiguousarray(value)
    return flat, unmatched


def _numbered(name: str) -> tuple[str, str]:
    """'h.3.ln_1.bias' -> ('h.#.ln_1.bias', '3')."""
    match = re.search(r"\.(\d+)\.", name)
    return (name.replace(match[0], ".#.", 1), match[1]) if match else (name, "")


def _named(tensors: dict, layout: layouts.HFLayout, path) -> tuple[dict, tuple[str, ...]]:
    """(tensors under the layout's names, without prefix, old spellings and buffers; names of those
    that the layout lacks)."""
    rows, named, unmatched = layouts.leaves(layout), {}, []
    for name, x in tensors.items():
        plain = name.removeprefix(layout.prefix)
        plain = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", plain))
        if plain in layout.copies or _numbered(plain)[0] in rows:
            require(plain not in named, f"{path}: {name} occurs under two names")
            named[plain] = x
        elif not re.fullmatch(layout.buffers, plain):
            unmatched.append(name)
    return named, tuple(unmatched)


def _drop_copies(named: dict, layout: layouts.HFLayout, tied: bool | None, path) -> None:
    """Removes from `named` the copies of tensors that are one parameter here, if equal."""
    rows = layouts.leaves(layout)
    for copy, original in layout.copies.items():
        if copy not in named or (tied is False and copy in rows):
            continue
        x = named[copy]
        same = np.array_equal(x, named.setdefault(original, x), equal_nan=True)
        if same or copy not in rows or tied:
            require(same, f"{path}: {copy} is not {original}, but here they are one parameter")
            del named[copy]


# ------------------------------------------------------------------------------------------ export


def save(folder: epath.PathLike, model: nn.Module, params: dict) -> None:
    """Writes model.safetensors and config.json for `transformers`.

    Args:
      folder: destination; created if missing.
      model: a `bert.Encoder` or a subclass of it, or a `gpt.GPT`.
      params: its parameters, in the dtypes to write; all are written, also those that the model
        itself lacks (a pooler, say).

    Raises:
      BadInput: if `transformers` has no such model or no such parameter.
    """
    described = layouts.config(model)
    layout = layouts.LAYOUTS[described["model_type"]]
    flat = tree.flatten(params)
    described |= _head(described["model_type"], flat)
    prefix = "" if described["architectures"] == ["BertModel"] else layout.prefix
    tensor_names = {
        path: (name, leaf) for name, leaf in layouts.leaves(layout).items() for path in leaf.here
    }
    tensors = {}
    for path in flat:
        pattern = re.sub(r"^block_\d+/", "block_#/", path)
        require(
            pattern in tensor_names,
            f"{path}: {described['model_type']} of transformers has no such parameter",
        )
        name, leaf = tensor_names[pattern]
        number = path.split("/")[0].removeprefix("block_")
        name = name.replace("#", number)
        name = name if name.startswith(layout.heads) else prefix + name
        if name in tensors:
            continue
        parts = [part.replace("#", number) for part in leaf.here]
        missing = [part for part in parts if part not in flat]
        require(not missing, f"{path}: written together with {missing}, which are missing")
        x = np.concatenate([np.asarray(flat[part]) for part in parts], axis=-1)
        x = x[: model.vocab_size] if leaf.padded else x
        tensors[name] = np.ascontiguousarray(x.T if leaf.transposed else x)
    write(folder, tensors, described)


def _head(name: str, flat: dict) -> dict[str, Any]:
    """Entries of config.json: the class of `transformers` with these parameters, and its labels."""
    if name != "bert":
        return {"architectures": [{"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[name]]}
    if "classifier/kernel" in flat:
        labels = {str(i): f"LABEL_{i}" for i in range(flat["classifier/kernel"].shape[1])}
        return {
            "architectures": ["BertForSequenceClassification"],
            "id2label": labels,
            "label2id": {label: int(i) for i, label in labels.items()},
        }
    heads = [("next/kernel", "BertForPreTraining"), ("head_bias", "BertForMaskedLM")]
    architecture = next((cls for path, cls in heads if path in flat), "BertModel")
    return {"architectures": [architecture]}
