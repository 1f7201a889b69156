"""Import and export of language models in the Hugging Face layout.

    sizes = weights.sizes(folder)                    # config.json as a model's fields
    params = weights.pretrained(folder)              # every tensor, under our names
    hidden = bert.Encoder(**sizes).apply({"params": params}, tokens)
    weights.save(folder, model, params)              # for `transformers` to load

The families are those of `FAMILIES`; `common.weights.engine` reads and writes them.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from common import tree
from common.data import fetch
from common.errors import brief, require
from common.nn.layers import padded
from common.weights import engine, tensors
from common.weights import family as families
from lm import bert as classifiers
from lm import gguf
from lm.data import tokenizer
from lm.data.tokenizer import TextFacts
from lm.pretrained import WEIGHTS
from lm.seq2seq import recurrent
from lm.seq2seq.transformer import EncoderDecoder
from lm.weights import bert, gpt, rnn, sentences, seq2seq

FAMILIES = *bert.FAMILIES, *gpt.FAMILIES, *seq2seq.FAMILIES
STORED = *FAMILIES, rnn.FAMILY  # in files that have no config.json as well
# With a row for every token.
TABLES = {"token/embedding", "output/embedding", "head_bias", "logits_bias"}
ROWS = 128  # published tables are rounded up to multiples of at most this


def sizes(path: epath.PathLike) -> dict[str, Any]:
    """The fields of the model that a folder's config.json, or a GGUF file, describes:
    `GPT(**sizes(path))`, or `Encoder`, `Bert` and `Classifier` (with their own fields) for a BERT,
    or `EncoderDecoder`.

    Raises:
      BadInput: if there is no config.json, or it has a setting that the models here lack.
    """
    file = tensors.gguf_of(path)
    if file is not None:
        return families.describe(gguf.load(file)[0], FAMILIES, str(file)).fields
    return engine.describe(path, FAMILIES).fields


def _read(path: epath.PathLike) -> engine.Read:
    """The contents of a folder or file, in any format."""
    file = tensors.gguf_of(path)
    read = engine.read(path, STORED, contents=None if file is None else gguf.load(file))
    own, head = sentences.read(path)
    return read._replace(values=read.values | head, own=own)


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
      path: a folder, whose config.json is checked too, or a file of tensors.

    Raises:
      BadInput: as `engine.read`.
    """
    read = _read(path)
    engine.warn_unmatched(path, read.unmatched)
    return tree.unflatten(read.values)


def settings(config: dict) -> dict[str, dict[str, Any]]:
    """What the weights at `config.init.path` say: `weights_settings` of a task (`common.task`)."""
    path = folder_of(config["init"]["path"], "config.init.path", config["data"]["folder"])
    read = _read(path)
    known = read.described is not None
    require(known, f"config.init.adopt: {path}: there is no config.json to adopt")
    found = {"model": read.fields(config["init"]["skip"])}
    if tokenizer.has_files(path):
        found["data"] = {"tokenizer": str(path)}
    return found


def folder_of(name: str, where: str = "weights", folder: str = "") -> epath.Path:
    """The path of published weights, as `load` finds it. Raises `BadInput` if there are none."""
    return fetch.find_pretrained(name, folder, known=WEIGHTS, where=where)


class Loaded(NamedTuple):
    """A published model, ready to use.

    Attributes:
      model: a `GPT`, `EncoderDecoder`, `Bert`, `Classifier`, `TokenClassifier`, `SpanAnswerer` or,
        of a file without heads, an `Encoder`.
      params: its parameters, f32 on the host.
      facts: of its tokenizer.
      classes: the names of a classifier's classes; () if they have none.
    """

    model: nn.Module
    params: dict
    facts: TextFacts
    classes: tuple[str, ...]


def load(name: str, folder: str = "", where: str = "weights") -> Loaded:
    """The model of a folder of weights with its tokenizer.

    Args:
      name: a folder in the Hugging Face layout, a GGUF file, or a name that scripts/prepare.py
        fetches.
      folder: the data folder, for such names.
      where: begins messages.

    Raises:
      BadInput: as `engine.read`; if there is no config.json or no tokenizer, or the tensors are not
        exactly those of the model that it describes.
    """
    path = folder_of(name, where, folder)
    read = _read(path)
    described = read.described
    require(described is not None, f"{where}: {path}: no config.json names the model")
    require(tokenizer.has_files(path), f"{where}: {path}: there is no tokenizer beside the weights")
    facts = tokenizer.facts(tokenizer.load(path))
    _check_tokens(f"{where}: {name}", path, described.fields["vocab_size"], facts)
    own, values = {}, read.values
    cls = read.family.model
    if "classifier/kernel" in values:
        cls, own = classifiers.Classifier, {"num_classes": values["classifier/kernel"].shape[1]}
    elif "token_classifier/kernel" in values:
        cls = classifiers.TokenClassifier
        own = {"num_classes": values["token_classifier/kernel"].shape[1]}
    elif "span/kernel" in values:
        cls = classifiers.SpanAnswerer
    elif "head_bias" in values:
        cls, own = classifiers.Bert, {"next_sentence": "next/kernel" in values}
    fields = read.fields()
    model = cls(**{k: v for k, v in fields.items() if k in families.names_of(cls)}, **own)
    with engine.within(f"{where}: {path}: config.json"):
        shapes = {p: x.shape for p, x in tree.flatten(_shapes(model)).items()}
    unused = [p for p in values if p not in shapes and engine.of_head(read, p)]
    values = {p: x for p, x in values.items() if p not in unused}
    values = engine.fitted(read._replace(values=values), shapes, str(path))
    return Loaded(model, tree.unflatten(values), facts, described.classes)


def _shapes(model: nn.Module) -> dict:
    tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    pairs = isinstance(model, EncoderDecoder | recurrent.EncoderDecoder)
    inputs = (tokens, None, tokens) if pairs else (tokens,)
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def reader(facts: TextFacts, config: dict, model: nn.Module) -> Callable:
    """The reader of `config.init.path` for a task: path -> `pretrained(path)`.

    Args:
      facts: of the task's texts.
      config: the run's config.
      model: the task's model.

    Raises:
      BadInput: when called, if the weights are of a model that computes something else, or of
        another tokenizer, or predict other classes.
    """

    def read_path(name: str) -> dict:
        where = f"config.init.path: {name}"
        path = folder_of(name, "config.init.path", config["data"]["folder"])
        read = _read(path)
        paths = tree.flatten(_shapes(model)).keys()
        engine.check(where, read, model, paths, config.get("init", {}), facts.classes)
        engine.warn_unmatched(path, read.unmatched)
        rows = read.described.fields["vocab_size"] if read.described is not None else None
        _check_tokens(where, path, rows, facts)
        return tree.unflatten(_for_tokens(read.values, rows, facts.vocab_size))

    return read_path


def _check_tokens(where: str, path: epath.Path, rows: int | None, facts: TextFacts) -> None:
    """Raises `BadInput` if the weights at `path`, with embeddings for `rows` tokens, are of another
    tokenizer than a task's."""
    advice = "set config.data.tokenizer to its own"
    if path.is_dir() and tokenizer.has_files(path):
        own = tokenizer.load(path).get_vocab(with_added_tokens=True)
        ours = facts.tokenizer.get_vocab(with_added_tokens=True)
        different = sorted(own.items() ^ ours.items())
        count = len({token for token, _ in different})
        require(
            not different,
            f"{where} is of a tokenizer with other tokens ({count} differ, such as "
            f"{brief(different[0][0]) if different else ''}); {advice}",
        )
        require(
            rows is None or rows >= facts.vocab_size,
            f"{where}: its vocab_size is {rows or 0:,}, and its tokenizer has "
            f"{facts.vocab_size:,} tokens",
        )
        return
    count = facts.vocab_size
    close = rows is None or 0 <= rows - count < ROWS
    message = f"{where} is for {rows or 0:,} tokens, and the tokenizer has {count:,}; {advice}"
    require(close, message)


def _for_tokens(values: dict[str, np.ndarray], rows: int | None, vocab_size: int) -> dict:
    """Parameters with rows for `vocab_size` tokens, of those with `rows`; others are of no token,
    and left out."""
    if rows in (None, vocab_size):
        return values
    values = dict(values)
    for path in TABLES & values.keys():
        x = values[path][:vocab_size]
        more = padded(vocab_size) - vocab_size
        values[path] = x if x.ndim == 1 else np.pad(x, ((0, more), (0, 0)))
    logging.warning("left out: %d rows of the embeddings, of no token", rows - vocab_size)
    return values


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
    read = _read(path)
    loaded, fresh = read.values, tree.flatten(params)
    wrong = [
        f"{p} is {list(loaded[p].shape)} there and {list(x.shape)} here"
        for p, x in fresh.items()
        if p in loaded and loaded[p].shape != x.shape
    ]
    require(not wrong, f"{path}: {'; '.join(wrong[:8])}")
    values = {
        p: loaded[p].astype(x.dtype) if p in loaded else np.asarray(x) for p, x in fresh.items()
    }
    missing = tuple(p for p in fresh if p not in loaded)
    unused = tuple(p for p in loaded if p not in fresh)
    return tree.unflatten(values), LoadReport(missing, unused, read.unmatched)


def save(
    folder: epath.PathLike,
    model: nn.Module,
    params: dict,
    family: str | None = None,
    classes: tuple[str, ...] = (),
) -> None:
    """Writes model.safetensors and config.json for `transformers`.

    Args:
      folder: destination; created if missing.
      model: a `bert.Encoder` or a subclass of it, a `gpt.GPT`, or an `EncoderDecoder`.
      params: its parameters, in the dtypes to write; all are written, also those that the model
        itself lacks (a pooler, say).
      family: `model_type` of the layout; None is the first that has such a model.
      classes: the names of a classifier's classes.

    Raises:
      BadInput: if `transformers` has no such model or no such parameter.
    """
    values = tree.flatten(params)
    if getattr(model, "pooling", None) == "mean":  # as sentence-transformers has it
        head = {p: x for p, x in values.items() if p.startswith("classifier/")}
        values = {p: x for p, x in values.items() if p not in head}
        own = families.names_of(classifiers.Encoder)
        fields = {k: v for k, v in families.fields_of(model).items() if k in own}
        model = classifiers.Encoder(**fields)
        sentences.write(folder, model.width, head, model.max_length)
    engine.save(folder, model, values, engine.family_for(model, FAMILIES, family), classes)
