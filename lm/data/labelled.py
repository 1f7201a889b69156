"""Labelled texts for fine-tuning, as Sources: one text or two, and a class or a number.

    reviews          sentences of film reviews, negative or positive (10,072; Hutto & Gilbert 2014)
    topics           first paragraphs of Wikipedia articles by topic (11 classes; CC BY-SA 4.0)
    file:PATH        your own: a .jsonl, .csv, .tsv or .parquet (see `common.data.tables`) whose
                     records have `text` (or `sentence`) and `label`, and may have a second text
                     `text_b` and a `split`; a label may be a list of classes
    tfds:NAME        a prepared TFDS set, such as `tfds:glue/sst2`, with its own splits

scripts/prepare.py makes `reviews` and `topics` (see `lm.data.reviews`). A set without splits of its
own is divided by a hash of the text (see `lm.data.own`). Splits use TFDS's notation: `train+valid`,
`test[:100]`.

Letters: L length, N examples.
"""

import collections
import functools
import logging
import re
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from common import inputs
from common.data import fetch, loading, tables, textfiles
from common.data import labels as numbering
from common.data import splits as grammar
from common.errors import BadInput, NotPrepared, require
from common.task import Source, split_key
from lm.data import own, text
from lm.data import tokenizer as tokenizers
from lm.pretrained import VOCAB_SIZES

# Sets that scripts/prepare.py makes: (classes, number of examples).
PREPARED = {
    "reviews": (("negative", "positive"), 10_072),
    "topics": (tuple(f"topic {i}" for i in range(11)), 9_033),
}
WHERE = "config.data.name"
NUMBER = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")  # in a .csv
UNLABELLED = "-1"  # in sets that hide the labels of an exam
SHARES = {"train": 0.72, "valid": 0.08, "test": 0.2}  # of a set without splits of its own
# The text features of a TFDS set: the first row here whose features are all present.
TFDS_TEXTS = (
    ("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis"),
    ("question", "sentence"), ("sentence",), ("text",),
)  # fmt: skip


class Examples(NamedTuple):
    """A set in memory: texts [(first,) or (first, second)], labels i32[N], f32[N] or u8[N, K], and
    the names of its classes, () for numbers."""

    texts: list[tuple[str, ...]]
    labels: np.ndarray
    classes: tuple[str, ...]


def load_sources(
    splits: dict[str, str],
    *,
    name: str = "reviews",
    train: str = "train",
    tokenizer: str,
    length: int = 64,
    folder: str = "",
    resident: bool | None = None,
    workers: int = 0,
    label_separator: str = "",
) -> dict[str, Source]:
    """The section `data` of fine-tuning.

    Rows: tokens[L] (u16, or i32 for more than 65,536 tokens), segments u8[L] (0 for padding),
    types u8[L] (1 for the second text and its [SEP]), label i32[] (f32[] for numbers, u8[K] of 0
    and 1 for several classes): [CLS] first [SEP], or [CLS] first [SEP] second [SEP]; or the
    tokenizer's own template, with its type ids. If two texts do not fit, the longer is cut.

    Args:
      splits: {name of the Source: split}; its "train", if any, must equal `train`.
      name: the data set: "reviews", "topics", "file:PATH" (your own .jsonl, .csv, .tsv or
        .parquet) or "tfds:NAME".
      train: the split to train on, e.g. "train" or "train+valid".
      tokenizer: a tokenizer's file or folder, the name of prepared weights such as "minilm", or the
        workdir of a run.
      length: L, the number of tokens in a row; longer texts are cut, shorter ones padded.
      folder: folder of prepared sets and weights; "" is $TOUCHSTONE_DATA or
        ~/.cache/touchstone/data. For a tfds set, the folder where TFDS keeps its sets.
      resident: False keeps the rows off the device.
      workers: number of processes that read a set that is not resident; 0 uses threads.
      label_separator: what divides the labels of an example in a file, such as ";" in a .csv, where
        each may have several; "" is none. A .jsonl or .parquet may have lists instead.

    Returns:
      Sources whose facts are `lm.data.tokenizer.TextFacts`.

    Raises:
      BadInput: if a set, split or tokenizer does not exist, or a line is not an example.
    """
    text.check_length(length)
    loading.check_workers(workers)
    require(splits.get("train", train) == train, "config.data.train: given twice")
    require(
        not label_separator or name.startswith("file:"),
        f"config.data.label_separator: it divides the labels of a file:PATH, and not of {name!r}",
    )
    facts = own.text_facts(tokenizer, folder)
    from_file = lambda: _from_file(_path(name, folder), label_separator)
    sizes, take, classes = _from_tfds(name, folder) if name.startswith("tfds:") else from_file()
    ranges = {
        key: grammar.ranges(split, sizes, split_key(key), shuffled=True)
        for key, split in splits.items()
    }
    used = dict.fromkeys(part for at in ranges.values() for part, _ in at)
    examples = {part: take(part) for part in used}
    several = any(each.labels.ndim == 2 for each in examples.values())
    facts = facts._replace(classes=classes, length=length, multi_label=several)
    facts = facts._replace(texts=next(len(each.texts[0]) for each in examples.values()))
    rows = {part: _rows(examples[part], facts) for part in used}
    own.warn_of_repeated(ranges, {part: set_.texts for part, set_ in examples.items()}, name)
    sources = {}
    for key, at in ranges.items():
        arrays = {
            column: np.concatenate([rows[part][column][piece] for part, piece in at])
            for column in rows[at[0][0]]
        }
        sources[key] = loading.from_arrays(arrays, resident is not False, facts)
    numbering.say_sorted(sources, splits)
    if "train" in sources:
        labels = sources["train"].labels()
        numbering.say_absent(labels, classes, f"{WHERE}: {inputs.shown(name)}", splits["train"])
    return sources


def outline_sources(splits: dict[str, str], section: dict) -> dict[str, Source]:
    """The Sources of `load_sources` for a prepared set, from the config alone: the right shapes and
    classes, rows of zeros, and about the right number of them.

    Args:
      splits: {name of the Source: split}.
      section: the completed section `data`.

    Raises:
      BadInput: for another set that cannot be loaded, or a tokenizer of unknown size.
    """
    name, length = section["name"], section["length"]
    if name not in PREPARED:
        return load_sources(splits, **section)
    classes, count = PREPARED[name]
    try:
        tokenizer = text.find_tokenizer(section["tokenizer"], section["folder"])
    except NotPrepared:
        tokenizer = tokenizers.stand_in("wordpiece", VOCAB_SIZES[section["tokenizer"]])
    facts = tokenizers.facts(tokenizer)._replace(classes=classes, length=length)
    sizes = {part: round(share * count) for part, share in SHARES.items()}
    sources = {}
    for key, split in splits.items():
        ranges = grammar.ranges(split, sizes, split_key(key), shuffled=True)
        size = sum(at.stop - at.start for _, at in ranges)
        sources[key] = empty(facts, size, section["resident"] is not False)
    return sources


def empty(facts: tokenizers.TextFacts, size: int, resident: bool) -> Source:
    """A set of `size` rows of zeros, in the right shapes, with labels of every class."""
    spec, count = own.row_spec(facts), len(facts.classes)
    one, several = ((), np.int32 if count else np.float32), ((count,), np.uint8)
    spec["label"] = jax.ShapeDtypeStruct(*(several if facts.multi_label else one))
    source = own.empty(spec, size, facts)
    labels = functools.partial(numbering.any_of, size, count, facts.multi_label)
    return source._replace(
        resident=source.read(range(size)) if resident else None, labels=labels if count else None
    )


def _rows(examples: Examples, facts: tokenizers.TextFacts) -> dict[str, np.ndarray]:
    """{"tokens", "segments", "types", "label"} of all examples."""
    plain = tokenizers.reading(facts)
    flat = [each for texts in examples.texts for each in texts]
    ids = iter([e.ids for e in plain.encode_batch_fast(flat, add_special_tokens=False)])
    lines = [laid_out(facts, *(next(ids) for _ in texts)) for texts in examples.texts]
    return own.rows_of(lines, facts) | {"label": examples.labels}


def laid_out(facts: tokenizers.TextFacts, first: list, *second: list) -> tuple:
    """(tokens i64[L], types i64[L]) of the ids of one text, or of two, in the tokenizer's template;
    what exceeds `facts.length` is cut from the longer."""
    layout = facts.layouts[len(second)]
    room = facts.length - len(layout.special)
    second = [ids[: max(room // 2, room - len(first))] for ids in second]
    return layout.row(first[: room - sum(map(len, second))], *second)


# ------------------------------------------------------------------------------------- from a file


def _path(name: str, folder: str) -> epath.Path:
    kind, _, argument = name.partition(":")
    if kind == "file" and argument:
        return inputs.file(WHERE, inputs.path(WHERE, argument))
    require(
        name in PREPARED,
        f"{WHERE}: unknown {name!r}; choose 'reviews', 'topics', 'file:PATH' or 'tfds:NAME'",
    )
    path = epath.Path(fetch.data_dir(folder)) / f"{name}.jsonl"
    at = f" --folder {folder}" if folder else ""
    if not path.exists():
        raise NotPrepared(
            f"{WHERE}: {name!r} is not in {path.parent}; run: python scripts/prepare.py {name}{at}"
        )
    return path


def _from_file(path: epath.Path, separator: str):
    """({split: size}, split -> Examples, classes)."""
    examples: list[tuple[str | None, tuple[str, ...], object]] = []
    lines, notes = [], collections.Counter()
    shown = f"{WHERE}: {inputs.shown(path)}"
    delimited = textfiles.kind_of(path)[0] in tables.DELIMITERS
    for number, record in tables.rows(WHERE, path, notes, _used):
        line = tables.line(path, number)
        example = _example(record, f"{shown}, {line}", path)
        if any(map(str.strip, example[1])):
            examples.append(example)
            lines.append(line)
        else:
            notes["example without text left out"] += 1
    require(bool(examples), f"{shown} has no examples: {inputs.said(notes)}")
    own.check_same([split is not None for split, *_ in examples], "split", lines, shown)
    own.check_same([len(texts) == 2 for _, texts, _ in examples], "text_b", lines, shown)
    values = [each[2] for each in examples]
    labels, classes = numbering.numbered(values, shown, lines.__getitem__, separator=separator)
    if delimited:
        _warn_of_numbers(classes, shown)
    if UNLABELLED in classes:
        number = classes.index(UNLABELLED)
        count = int((labels[:, number] if labels.ndim == 2 else labels == number).sum())
        warning = "%s: %s of the examples have the label -1, a class here; if they are unlabelled, "
        logging.warning(warning + "remove them", shown, f"{count:,}")
    names = np.array(own.assign_splits(examples, shown, notes))
    if notes:
        logging.warning("%s: %s", shown, inputs.said(notes))

    def take(split: str) -> Examples:
        rows = np.flatnonzero(names == split)
        return Examples([examples[row][1] for row in rows], labels[rows], classes)

    return {str(name): int((names == name).sum()) for name in np.unique(names)}, take, classes


def _warn_of_numbers(classes: tuple[str, ...], shown: str) -> None:
    """Warns of classes of a .csv that are all numbers, if one is not whole or is spelled twice."""
    if all(map(NUMBER.fullmatch, classes)):
        values = set(map(float, classes))
        whole = all(map(numbering.WHOLE.fullmatch, map(str.strip, classes)))
        if not whole or len(values) < len(classes):
            spelled = f", of {len(values):,} values" if len(values) < len(classes) else ""
            logging.warning(
                "%s: labels of a .csv or .tsv are text, here %s classes%s; numbers need a .jsonl",
                *(shown, f"{len(classes):,}", spelled),
            )


def _used(names: list[str]) -> list[str]:
    """The columns of a table that are read; all, for a message, if one is lacking."""
    known = ("text", "sentence", "label", "text_b")
    used = [name for name in names if name in known or name.strip().casefold() == "split"]
    return used if "label" in used and {"text", "sentence"} & {*used} else names


def _example(record: dict, where: str, path) -> tuple[str | None, tuple[str, ...], object]:
    """(split or None, texts, label) of a record. In a .csv or .tsv, an empty cell is no second
    text. The column `split` may be in upper case."""
    first = "text" if "text" in record or "sentence" not in record else "sentence"
    for key in (first, "label"):
        if key not in record:
            lacking = tables.lacking(path, record, key)
            like = '{"text": "…", "label": "…"}'
            raise BadInput(f"{where}, is not an example like {like}{lacking}")
    second = record.get("text_b")
    second = None if textfiles.kind_of(path)[0] in tables.DELIMITERS and not second else second
    texts = {first: record[first]} | ({} if second is None else {"text_b": second})
    for key, value in texts.items():
        own.check_string(value, key, where)
    return own.split_of(record, where), tuple(texts.values()), record["label"]


# -------------------------------------------------------------------------------------------- TFDS


def _from_tfds(name: str, folder: str):
    """({split: size}, split -> Examples, classes)."""
    import tensorflow_datasets as tfds  # takes long

    builder = grammar.open_prepared(name.removeprefix("tfds:"), folder)
    features = builder.info.features
    keys = next((keys for keys in TFDS_TEXTS if all(key in features for key in keys)), None)
    require(
        keys is not None and "label" in features,
        f"{WHERE}: {name!r} has no text with a label, but {', '.join(features)}",
    )
    label = features["label"]
    several = isinstance(label, tfds.features.Sequence)
    classes = tuple(getattr(label.feature if several else label, "names", None) or ())
    require(
        bool(classes) or not several,
        f"{WHERE}: {name!r}: its examples have several labels each, without names of classes",
    )
    decode = lambda value: value.decode() if isinstance(value, bytes) else value

    def take(split: str) -> Examples:
        source = grammar.source_of(builder, split)
        with grammar.reading(builder.data_dir):
            examples = source.__getitems__(list(range(len(source))))
            given = [e["label"] for e in examples]
            flat = np.concatenate([np.zeros(0, int), *given]) if several else given
            labels = np.array(flat, np.int32 if classes else np.float32)
            texts = [tuple(decode(example[key]) for key in keys) for example in examples]
        text_of = all(isinstance(each, str) for one in texts for each in one)
        require(text_of, f"{WHERE}: {name!r}: {' or '.join(keys)} of {split!r} is not text")
        require(labels.ndim == 1, f"{WHERE}: {name!r}: its examples have several labels each")
        known = not classes or (labels >= 0).all()
        require(known, f"{WHERE}: {name!r} has no labels in {split!r}")
        fit = not classes or (labels < len(classes)).all()
        require(fit, f"{WHERE}: {name!r}: a label of {split!r} is none of its classes")
        if several:
            rows = np.repeat(np.arange(len(texts)), list(map(len, given)))
            labels = numbering.multi_hot(labels, rows, (len(texts), len(classes)))
        return Examples(texts, labels, classes)

    return {split: info.num_examples for split, info in builder.info.splits.items()}, take, classes
