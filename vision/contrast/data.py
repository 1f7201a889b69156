"""Pictures with texts as Sources: `image u8[S, S, 3]`, `tokens [L]`, `segments u8[L]` (0 is
padding) and, of sets with classes, `label i32[]`.

Sets of `vision.contrast.captions`, and `tfds:NAME`: any prepared TFDS set with an image and a text.
Small sets are decoded once and live on the device; large ones are read and decoded on demand.

Letters: S side of a picture, L positions of a text.
"""

import concurrent.futures
import functools
import os
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import numpy as np
from tokenizers import Tokenizer

from common import inputs
from common.data import loading
from common.data import splits as grammar
from common.errors import NotPrepared, brief, require
from common.task import Source, split_key
from lm.data import own, text
from lm.data import tokenizer as tokenizers
from lm.data.tokenizer import TextFacts
from lm.data.trained import KINDS, stand_in
from lm.data.trained import train as train_tokenizer
from vision.contrast import captions
from vision.data import photographs, pictures, sets
from vision.data.sets import ImageFacts

RESIDENT_BYTES = 1 << 28
TFDS_TEXTS = ("text", "caption", "captions", "title")  # the first that a set has
FITS = {"centre": photographs.square, "squash": photographs.squashed}
OUTLINED = 400_000_000  # pairs of a set that is not there, for its outline


class PairFacts(NamedTuple):
    """What tasks know of pictures with texts, `Source.facts`: of the pictures, with the names of
    classes, if there are any; and of the texts' tokenizer, with L."""

    image: ImageFacts
    text: TextFacts


def load_sources(
    splits: dict[str, str],
    *,
    name: str = "emoji",
    train: str = "train",
    folder: str = "",
    image_size: int = 32,
    resize: Literal["centre", "squash"] = "centre",
    tokenizer: str = "wordpiece",
    vocab_size: int = 2000,
    length: int = 16,
    resident: bool | None = None,
    workers: int = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    columns: tuple[str, str] = captions.COLUMNS,
) -> dict[str, Source]:
    """The section `data`: pictures with texts.

    Args:
      splits: {name of the Source: split}; its "train" is the argument `train`.
      name: the data set: "emoji", "captions:DIR" for pictures with a .txt beside each,
        "captions:TABLE" for a .csv, .tsv, .jsonl or .parquet of paths and texts, or "tfds:NAME".
      train: split to train on: "train" or "train[:90%]".
      folder: folder of prepared sets, also of evaluators' own; "" is $TOUCHSTONE_DATA or
        ~/.cache/touchstone/data, and for "tfds:" TFDS_DATA_DIR or ~/tensorflow_datasets.
      image_size: S: pictures become squares of so many pixels.
      resize: how: "centre" keeps the centre square (CLIP), "squash" all of a picture, whatever its
        proportions (SigLIP).
      tokenizer: "wordpiece" or "bpe", trained on the texts of `train`; or the file or folder of
        one, such as that of published weights.
      vocab_size: most tokens of one that is trained.
      length: L, tokens of a row; longer texts are cut, shorter ones padded.
      resident: whether the training set lives on the device; None decides by its size.
      workers: number of processes that read a set that is not resident; 0 reads in threads.
      mean, std: by which pixels, divided by 255, are normalised: a number per channel, or one for
        all; () are 0.5.
      columns: the columns of a table that hold the path and the text.

    Raises:
      BadInput: if the set or a split of it does not exist, or a picture cannot be read.
    """
    loading.check_workers(workers)
    _check(splits, train, image_size, length, name, columns)
    if name.startswith("tfds:"):
        require(
            not resident,
            f"config.data.resident: {name} is read on demand: leave it out, or set it to false",
        )
        sides = image_size, resize
        return _from_tfds(splits, name, folder, *sides, tokenizer, length, mean, std)
    listed = captions.listing(name, folder, columns)
    sizes = listed.sizes()
    texts = lambda: _trained_on(listed, sizes, train)
    facts = _text_facts(tokenizer, vocab_size, folder, length, texts)
    facts = PairFacts(_image_facts(mean, std, listed.classes), facts)
    rows = text_encoder(facts.text)(listed.texts)
    ranges = {
        key: grammar.ranges(split, sizes, split_key(key), shuffled=True)
        for key, split in splits.items()
    }
    paths_of = {part: [] for part in sizes}
    for part, path in zip(listed.splits, listed.paths, strict=True):
        paths_of[part].append((os.path.normpath(path),))
    own.warn_of_repeated(ranges, paths_of, name, "picture")
    sources = {}
    for key, split in splits.items():
        mine = _rows(listed, sizes, split, split_key(key))
        arrays = {column: array[mine] for column, array in rows.items()}
        if listed.labels is not None:
            arrays["label"] = listed.labels[mine]
        paths = [os.fspath(listed.root / listed.paths[i]) for i in mine]
        small = len(paths) * image_size**2 * 3 <= RESIDENT_BYTES
        if small if resident is None else resident:
            arrays |= _Files(paths, {}, image_size, resize)(np.arange(len(paths)))
            sources[key] = loading.from_arrays(arrays, True, facts)
            continue
        spec = row_spec(facts, image_size, listed.labels is not None)
        read = _Files(paths, arrays, image_size, resize)
        mark = f"{listed.stamp}:{split}:{image_size}:{resize}:{length}"
        sources[key] = Source(len(paths), read, None, spec, mark, facts)
    return sources


def _rows(listed: captions.Captions, sizes: dict[str, int], split: str, where: str) -> np.ndarray:
    """i64[n], the pictures of a split."""
    at = np.array(listed.splits)
    parts = grammar.ranges(split, sizes, where, shuffled=True)
    return np.concatenate([np.flatnonzero(at == part)[piece] for part, piece in parts])


def _check(splits, train: str, image_size: int, length: int, name: str, columns) -> None:
    require(splits.get("train", train) == train, "config.data.train: given twice")
    require(image_size > 0, f"config.data.image_size: {image_size} is not positive")
    text.check_length(length)
    require(
        tuple(columns) == captions.COLUMNS or name.startswith(captions.PREFIX),
        f"config.data.columns: {tuple(columns)}: {name} is no table; leave them out",
    )
    known = captions.known(name) or name.startswith("tfds:")
    require(known, f"{captions.WHERE}: {brief(name)}: use 'emoji', captions:DIR, captions:TABLE or "
            "tfds:NAME")  # fmt: skip


def outline_sources(splits: dict[str, str], section: dict) -> dict[str, Source]:
    """The Sources of `load_sources` without contents, where the set is not there: black pictures,
    and rows of padding.

    Args:
      splits: {name of the Source: split}.
      section: the completed section `data`.
    """
    keys = "train", "image_size", "length", "name", "columns"
    _check(splits, *(section[key] for key in keys))
    if not section["name"].startswith("tfds:"):
        try:
            return load_sources(splits, **section)
        except NotPrepared:
            pass
    trained = section["tokenizer"] in KINDS
    kind = section["tokenizer"] if trained else "wordpiece"
    try:
        named = None if trained else text.find_tokenizer(section["tokenizer"], section["folder"])
    except Exception:  # it is not here either
        named = None
    encoder = named or stand_in(kind, section["vocab_size"])
    facts = tokenizers.facts(encoder)._replace(length=section["length"])
    facts = PairFacts(_image_facts(section["mean"], section["std"], ()), facts)
    outlines = {}
    for key, split in splits.items():
        parts = grammar.ranges(
            split, dict.fromkeys(grammar.names(split), OUTLINED), split_key(key), shuffled=True
        )
        size = sum(at.stop - at.start for _, at in parts)
        outlines[key] = empty(facts, section["image_size"], size)
    return outlines


def empty(facts: PairFacts, side: int, size: int) -> Source:
    """A set of `size` black pictures with empty texts."""
    return own.empty(row_spec(facts, side, bool(facts.image.classes)), size, facts)


def row_spec(facts: PairFacts, side: int, labelled: bool) -> dict:
    """{name: ShapeDtypeStruct} of an example."""
    kind = np.uint16 if facts.text.vocab_size <= 1 << 16 else np.int32
    spec = {
        "image": jax.ShapeDtypeStruct((side, side, 3), np.uint8),
        "tokens": jax.ShapeDtypeStruct((facts.text.length,), kind),
        "segments": jax.ShapeDtypeStruct((facts.text.length,), np.uint8),
    }
    return spec | ({"label": jax.ShapeDtypeStruct((), np.int32)} if labelled else {})


def _image_facts(mean, std, classes: tuple[str, ...]) -> ImageFacts:
    require(
        bool(mean) == bool(std), f"config.data: mean {mean} and std {std}: set both, or neither"
    )
    for key, values in (("mean", mean), ("std", std)):
        require(
            len(values) in (0, 1, 3) and all(0 <= x <= 2 for x in values),
            f"config.data.{key}: {values}: it is one number, or one of each of 3 channels, of "
            "pixels divided by 255",
        )
    require(all(x > 0 for x in std), f"config.data.std: {std}: it must be positive")
    plain = sets.known("", classes)
    return plain._replace(mean=tuple(mean), std=tuple(std)) if mean else plain


# -------------------------------------------------------------------------------------------- texts


def _trained_on(listed: captions.Captions, sizes: dict[str, int], train: str) -> list[str]:
    lacking = [part for part in grammar.names(train) if part not in (*sizes, "all")]
    require(
        not lacking,
        f"config.data.tokenizer: there is no split {brief(lacking and lacking[0])}, whose texts it "
        "would be trained on: name a tokenizer's file or folder",
    )
    return [listed.texts[i] for i in _rows(listed, sizes, train, split_key("train"))]


def _text_facts(kind: str, vocab_size: int, folder: str, length: int, texts) -> TextFacts:
    if kind in KINDS:
        encoder: Tokenizer = train_tokenizer(kind, vocab_size, texts())
    else:
        encoder = text.find_tokenizer(kind, folder)
    facts = tokenizers.facts(encoder)
    require(
        len(facts.begin) + len(facts.end) < length,
        f"config.data.length: {length} is too few tokens for a text",
    )
    return facts._replace(length=length)


def text_encoder(facts: TextFacts) -> Callable:
    """texts -> {"tokens", "segments"} [N, L]: as the tokenizer frames them, cut to L, padded. It
    takes a while to make, of a large vocabulary, and can be sent to processes."""
    return functools.partial(_text_rows, tokenizers.reading(facts), facts)


def _text_rows(plain: Tokenizer, facts: TextFacts, texts: list[str]) -> dict[str, np.ndarray]:
    room = facts.length - len(facts.begin) - len(facts.end)
    kind = np.uint16 if facts.vocab_size <= 1 << 16 else np.int32
    tokens = np.full((len(texts), facts.length), facts.special["pad"] or 0, kind)
    segments = np.zeros((len(texts), facts.length), np.uint8)
    encoded = plain.encode_batch_fast(list(texts), add_special_tokens=False)
    for row, each in enumerate(encoded):
        ids = [*facts.begin, *each.ids[:room], *facts.end]
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
    return {"tokens": tokens, "segments": segments}


# ----------------------------------------------------------------------------------------- pictures


def decoded(picture, side: int, resize: str, named: str) -> np.ndarray:
    """u8[S, S, 3] of a picture: a path, or the contents of a file. Raises `BadInput` that names it
    if it cannot be read."""
    try:
        array, _ = pictures.pixels(picture, 3)
    except pictures.Broken as error:
        require(False, f"{captions.WHERE}: {named}: {error}; mend or remove it")
    return array if array.shape == (side, side, 3) else FITS[resize](array, side)


class _Files:
    """Reads rows of pictures in files; a class, so that it can be sent to processes."""

    def __init__(self, paths: list[str], columns: dict[str, np.ndarray], side: int, resize: str):
        self.paths, self.columns, self.side, self.resize = paths, columns, side, resize

    def __call__(self, rows) -> dict[str, np.ndarray]:
        one = lambda i: decoded(self.paths[i], self.side, self.resize, inputs.shown(self.paths[i]))
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            images = list(pool.map(one, rows))
        shape = self.side, self.side, 3
        images = np.stack(images) if images else np.zeros((0, *shape), np.uint8)
        return {"image": images} | {k: column[rows] for k, column in self.columns.items()}


# --------------------------------------------------------------------------------------------- TFDS


def _from_tfds(
    splits, name, folder, side, resize, tokenizer, length, mean, std
) -> dict[str, Source]:
    import tensorflow_datasets as tfds

    require(
        tokenizer not in KINDS,
        f"config.data.tokenizer: {tokenizer}: for {name} name a tokenizer's file or folder: none "
        "is trained on sets that are read on demand",
    )
    builder = grammar.open_prepared(name.removeprefix("tfds:"), folder)
    features = builder.info.features
    key = next((key for key in TFDS_TEXTS if key in features), None)
    require(
        key is not None and isinstance(dict(features.items()).get("image"), tfds.features.Image),
        f"{captions.WHERE}: {name!r} has no 'image' with one of {', '.join(TFDS_TEXTS)}, but "
        f"{', '.join(features)}",
    )
    facts = _text_facts(tokenizer, 0, "", length, None)
    facts = PairFacts(_image_facts(mean, std, ()), facts)
    skip = {"image": tfds.decode.SkipDecoding()}
    examples = functools.cache(lambda part: grammar.source_of(builder, part, decoders=skip))
    sizes = {part: info.num_examples for part, info in builder.info.splits.items()}
    mark, sources = grammar.fingerprint(builder), {}
    for source, split in splits.items():
        parts = grammar.ranges(split, sizes, split_key(source), shuffled=True)
        read = _Records(
            [(examples(part), part, at) for part, at in parts], key, facts, side, resize
        )
        spec = row_spec(facts, side, False)
        print_ = f"{mark}:{split}:{side}:{resize}:{length}"
        sources[source] = Source(len(read.rows), read, None, spec, print_, facts)
    return sources


class _Records:
    """Reads rows of prepared sets; a class, so that it can be sent to processes."""

    def __init__(self, parts: list, key: str, facts: PairFacts, side: int, resize: str):
        self.sources = [source for source, _, _ in parts]
        self.names = [part for _, part, _ in parts]
        self.rows = np.concatenate([np.arange(at.start, at.stop) for _, _, at in parts])
        self.part = np.repeat(np.arange(len(parts)), [at.stop - at.start for _, _, at in parts])
        self.key, self.side, self.resize = key, side, resize
        self.encode = text_encoder(facts.text)

    def __call__(self, rows) -> dict[str, np.ndarray]:
        images, texts = [None] * len(rows), [""] * len(rows)
        for number, source in enumerate(self.sources):
            at = np.flatnonzero(self.part[rows] == number)
            for i, one in zip(at, source.__getitems__(self.rows[rows[at]].tolist()), strict=True):
                place = f"row {self.rows[rows[i]]} of {self.names[number]!r}"
                images[i] = decoded(one["image"], self.side, self.resize, place)
                texts[i] = _first_text(one[self.key], place)
        return {"image": np.stack(images), **self.encode(texts)}


def _first_text(value, place: str) -> str:
    """A text, or the first of several."""
    value = value["text"] if isinstance(value, dict) and "text" in value else value
    if not isinstance(value, str | bytes) and len(value):
        value = value[0]
    value = value.decode() if isinstance(value, bytes) else value
    require(isinstance(value, str), f"{captions.WHERE}: {place} has no text, but {brief(value)}")
    return value
