"""Pictures for words, and words for pictures: what is nearest to an input, among pictures or texts
that the option `among` names.

    python scripts/predict.py --workdir RUN "a red apple" --among photos/
    python scripts/predict.py --workdir RUN apple.png --among names.txt

An input is a text, or the path of a picture: a word with a suffix such as .png is always a path.

Letters: B batch, M things to find among, E width of a vector.
"""

import collections
import concurrent.futures
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import inputs
from common.data import tables, textfiles
from common.errors import BadInput, brief, require
from common.task import Predictor
from lm.data.tokenizer import TextFacts
from vision import predict as pictured
from vision.contrast import captions
from vision.contrast.data import text_encoder
from vision.data import pictures

WHERE = "--among"
Column = Literal["text", "path"]
CHUNK = 64  # things encoded at a time
MOST = 100_000  # things to find among

reader = pictured.reader


def is_picture(given: Any) -> bool:
    """Whether an input is a picture: an array, bytes, a path, or a string that ends like one, even
    if there is no such file, as a name that is misspelt is no text."""
    if not isinstance(given, str):
        return True
    return os.path.splitext(given)[1].lower() in pictures.suffixes()


def _rows(given: Any, read: Callable, encode: Callable) -> dict[str, np.ndarray]:
    """The arrays of an input: `image`, or `tokens` and `segments`."""
    if is_picture(given):
        return {"image": read(given)}
    require(bool(given.strip()), "it is empty: neither a text nor a picture")
    return {name: array[0] for name, array in encode([given.strip()]).items()}


def _vectors(model: nn.Module, prepare: Callable, params, arrays: dict):
    """f32[B, E] of pictures or of texts."""
    if "image" in arrays:
        images = prepare(arrays["image"])
        return model.apply({"params": params}, images, method="encode_images")
    texts = arrays["tokens"], arrays["segments"]
    return model.apply({"params": params}, *texts, method="encode_texts")


def finds(model: nn.Module, read: Callable, prepare: Callable, facts: TextFacts) -> Predictor:
    """A Predictor of {"nearest": [{"name", "similarity", "probability"}, …]}, the nearest first.
    The probability is of a softmax over all that is searched or, for a model with a bias, of the
    pair alone.

    Args:
      model: the towers.
      read: picture -> [H, W, C], as `prepare` takes it.
      prepare: [B, H, W, C] -> as the model takes them; traced.
      facts: of the texts, with L.
    """

    encode = text_encoder(facts)

    def options(*, among: str = "", among_column: Column | None = None, top: int = 5) -> dict:
        """The options of a prediction.

        Args:
          among: what to search: a folder of pictures, a file of texts, one a line, or a table with
            a column `text`, or `path`, relative to it.
          among_column: which of the two to search, where the table has both.
          top: number of things to tell, nearest first.
        """
        require(
            bool(among), f"{WHERE}: name what to search: a folder of pictures, or a file of texts"
        )
        require(top > 0, f"--top: {top} is not positive")
        things = _things(among, among_column)
        texts = isinstance(things[0], str)
        # Changes of a picture's file are seen, as those of texts are.
        stamps = () if texts else tuple(map(_stamp, things))
        names = tuple(map(str, things))
        return {"top": min(top, len(things)), "names": names, "texts": texts, "stamps": stamps}

    encoded = jax.jit(lambda params, arrays: _vectors(model, prepare, params, arrays))

    def searched(path: str) -> np.ndarray:
        try:
            return read(path)
        except BadInput as error:
            raise BadInput(f"{WHERE}: {inputs.shown(path)}: {error}") from error

    def derived(params, extra, options):
        """{"others": f32[M, E]}: read and encoded a chunk at a time."""
        del extra
        names, parts = options["names"], []
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(names), CHUNK):
                part = list(names[start : start + CHUNK])
                part += part[-1:] * (CHUNK - len(part))  # one program for all chunks
                if options["texts"]:
                    arrays = encode(part)
                else:
                    arrays = {"image": np.stack(list(pool.map(searched, part)))}
                parts.append(encoded(params, arrays))
        return {"others": jnp.concatenate(parts)[: len(names)]}

    def apply(params, extra, batch, options):
        del extra
        similarity = _vectors(model, prepare, params, batch) @ options["others"].T
        scale, bias = model.apply({"params": params}, method="scale")
        scores = scale * similarity
        chances = jax.nn.softmax(scores) if bias is None else jax.nn.sigmoid(scores + bias)
        return {"similarity": similarity, "probability": chances}

    def result(given, rows, outputs, options) -> dict:
        similarity, chances = outputs[0]["similarity"], outputs[0]["probability"]
        nearest = np.argsort(-similarity, kind="stable")[: options["top"]]
        numbers = lambda i: {"similarity": float(similarity[i]), "probability": float(chances[i])}
        return {"nearest": [{"name": options["names"][i], **numbers(i)} for i in nearest]}

    def line(result) -> str:
        return "; ".join(f"{one['name']} {one['similarity']:.3f}" for one in result["nearest"])

    made = _predictor(model, read, encode, options, apply, result, line)
    return made._replace(derived=derived)


def vectors(model: nn.Module, read: Callable, prepare: Callable, facts: TextFacts) -> Predictor:
    """A Predictor of {"vector": E numbers}, of length 1; arguments as in `finds`."""

    encode = text_encoder(facts)

    def options() -> dict:
        """No options."""
        return {}

    def apply(params, extra, batch, options):
        del extra, options
        return {"vector": _vectors(model, prepare, params, batch)}

    def result(given, rows, outputs, options) -> dict:
        return {"vector": outputs[0]["vector"].tolist()}

    def line(result) -> str:
        return " ".join(f"{x:.6g}" for x in result["vector"])

    return _predictor(model, read, encode, options, apply, result, line)


def _predictor(model, read, encode, options, apply, result, line) -> Predictor:
    return Predictor(
        read=lambda given, options: [_rows(given, read, encode)],
        apply=apply,
        result=result,
        line=line,
        options=options,
        columns=("text", "path"),
        optional=("text", "path"),
        suffixes=pictures.suffixes(),
        texts=True,
        model=model,
    )


# --------------------------------------------------------------------------------- what is searched


def _things(among: str, column: Column | None) -> list[str] | list[pathlib.Path]:
    """What is searched: texts, or the paths of pictures."""
    things = list(_folder(among) if os.path.isdir(among) else _file(among, column))
    require(bool(things), f"{WHERE}: {inputs.shown(among)} holds neither pictures nor texts")
    require(len(things) <= MOST, f"{WHERE}: {len(things):,} things are more than {MOST:,}")
    return things


def _stamp(path: pathlib.Path) -> tuple[int, int] | None:
    """Tells a changed file from what it was; None if there is none."""
    try:
        return captions.stamp(path)
    except OSError:
        return None


def _folder(root: str) -> Iterator[pathlib.Path]:
    for here, folders, names in os.walk(root):
        folders[:] = sorted(
            (name for name in folders if not name.startswith(".")), key=inputs.natural
        )
        for name in sorted(names, key=inputs.natural):
            if not name.startswith(".") and is_picture(name):
                yield pathlib.Path(here, name)


def _file(path: str, column: Column | None) -> Iterator[str] | Iterator[pathlib.Path]:
    inputs.file(WHERE, path)
    if is_picture(path):
        yield pathlib.Path(path)
    elif textfiles.kind_of(path)[0] in tables.KINDS:
        for number, record in tables.rows(WHERE, path):
            place, there = tables.place(path, number), [k for k in get_args(Column) if k in record]
            require(
                len(there) < 2 or column is not None,
                f"{WHERE}: {place}: it has both 'text' and 'path': choose by --among-column",
            )
            column = column or (there or ["text"])[0]
            value = record.get(column)
            valid = isinstance(value, str) and bool(value.strip())
            require(valid, f"{WHERE}: {place}: {column} is {brief(value)}, not a {column}")
            yield value.strip() if column == "text" else pathlib.Path(path).parent / value.strip()
    else:
        for text in textfiles.lines(WHERE, path, collections.Counter()):
            if text.strip():
                yield text.strip()
