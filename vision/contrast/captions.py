"""Pictures with texts, as a user brings them: which files, what they say, and which part of a set
each belongs to. Opens no picture.

    captions:DIR     a picture X.png with X.txt beside it, whose first line is its text, anywhere
                     below DIR; folders DIR/train, DIR/test, … are parts
    captions:TABLE   a .jsonl, .csv, .tsv or .parquet whose records have `path`, relative to it, and
                     `text`, and may have `split`, any name, and `label`, a class
    emoji            a table of that kind, which scripts/prepare.py makes

A set without parts of its own is divided by a hash of the text (`lm.data.own`), so that neither a
text nor a picture is on two sides: what shares either, directly or by others, stays together.
"""

import collections
import hashlib
import logging
import os
import pathlib
from typing import NamedTuple

import numpy as np

from common import inputs
from common.data import fetch, tables
from common.data import labels as numbering
from common.data.parts import ALIASES
from common.errors import NotPrepared, brief, require
from lm.data import own
from vision.data import pictures

PREFIX = "captions:"
WHERE = "config.data.name"
COLUMNS = ("path", "text")
LABEL = "label"
EMOJI = "emoji"


class Captions(NamedTuple):
    """N pictures with their texts, in order.

    Attributes:
      root: the folder that paths start from.
      paths, texts, splits: of each.
      labels: i32[N], and the names of `classes`; None and () if they have none.
      stamp: a hash of all of this, and of the sizes and times of the files.
    """

    root: pathlib.Path
    paths: list[str]
    texts: list[str]
    splits: list[str]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    stamp: str

    def sizes(self) -> dict[str, int]:
        """{split: pictures}, in the order of their first."""
        return dict(collections.Counter(self.splits))


def known(name: str) -> bool:
    """Whether a set's name is of one that is read here."""
    return name.startswith(PREFIX) or name == EMOJI


def listing(name: str, folder: str, columns: tuple[str, str] = COLUMNS) -> Captions:
    """The pictures and texts of a set.

    Args:
      name: "captions:DIR", "captions:TABLE" or "emoji".
      folder: the data folder, for "emoji".
      columns: of a table, that hold the path and the text.

    Raises:
      BadInput: for no pictures, a picture without text, a row without its file.
    """
    if name == EMOJI:
        path = os.path.join(fetch.data_dir(folder), EMOJI, "emoji.jsonl")
        if inputs.fault(path) is not None:
            at = f" --folder {folder}" if folder else ""
            raise NotPrepared(
                f"{WHERE}: 'emoji' is not in {fetch.data_dir(folder)}; run: python "
                f"scripts/prepare.py emoji{at}"
            )
        return _table(path, COLUMNS)
    path = os.path.expanduser(name.removeprefix(PREFIX))
    valid = name.startswith(PREFIX) and bool(path) and "://" not in path
    require(valid, f"{WHERE}: {brief(name)}: use captions:DIR, captions:TABLE or 'emoji'")
    if inputs.fault(path) is None:
        return _table(path, columns)
    require(columns == COLUMNS, f"config.data.columns: {columns}: {name} is no table; leave it out")
    inputs.folder(WHERE, path)
    return _folder(path)


def _made(root, paths, texts, splits, values, where: str, at, facts) -> Captions:
    """Captions with numbered labels, and splits by a hash where there are none."""
    notes: collections.Counter = collections.Counter()
    own.check_same(
        [split is not None for split in splits], "split", [at(i) for i in range(len(paths))], where
    )
    together = texts if splits[0] is not None else _together(paths, texts)
    examples = [(split, (text,)) for split, text in zip(splits, together, strict=True)]
    splits = own.assign_splits(examples, where, notes)
    if notes:
        logging.warning("%s: %s", where, inputs.said(notes))
    labels, classes = None, ()
    if values is not None:
        labels, classes = numbering.numbered(values, where, at, numbers=False)
        single = f"{where}: {LABEL}: a picture here has one class"
        require(labels.ndim == 1, single)
    described = paths, texts, splits, values, classes, facts
    digest = hashlib.sha256(repr(described).encode()).hexdigest()[:16]
    return Captions(pathlib.Path(root), paths, texts, list(splits), labels, tuple(classes), digest)


def _together(paths: list[str], texts: list[str]) -> list[str]:
    """For each pair, the first in order of the texts of all pairs that it is connected to."""
    parent: dict[tuple, tuple] = {}

    def root(node):
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for path, text in zip(paths, texts, strict=True):
        # The text comes first, and of two texts the lesser: roots are texts.
        one, other = sorted((root((0, text)), root((1, os.path.normpath(path)))))
        parent[other] = one
    return [root((0, text))[1] for text in texts]


def stamp(path) -> tuple[int, int]:
    """Tells a changed file from what it was: its size, and when it was written, in nanoseconds."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _folder(root: str) -> Captions:
    paths, texts, splits, facts, alone = [], [], [], [], []
    for here, folders, names in os.walk(root):
        folders[:] = sorted((f for f in folders if not f.startswith(".")), key=inputs.natural)
        known = set(names)
        for name in sorted(names, key=inputs.natural):
            stem, suffix = os.path.splitext(name)
            if name.startswith(".") or suffix.lower() not in pictures.suffixes():
                continue
            full = os.path.join(here, name)
            path = os.path.relpath(full, root)
            if f"{stem}.txt" not in known:
                alone.append(path)
                continue
            lines = inputs.text(WHERE, os.path.join(here, f"{stem}.txt")).splitlines()
            text = next((line.strip() for line in lines if line.strip()), "")
            require(bool(text), f"{WHERE}: {inputs.shown(full)}: {stem}.txt says nothing")
            paths.append(path)
            texts.append(text)
            splits.append(ALIASES.get(path.split(os.sep)[0].lower()) if os.sep in path else None)
            facts.append(stamp(full))
    shown = inputs.shown(root)
    require(
        bool(paths), f"{WHERE}: {shown} holds no picture X.png with its text in X.txt beside it"
    )
    if alone:
        logging.warning(
            "%s: %s: left out, without a text: %s pictures, first %s",
            *(WHERE, shown, f"{len(alone):,}", inputs.shown(alone[0])),
        )
    at = lambda i: inputs.shown(paths[i])
    return _made(root, paths, texts, splits, None, f"{WHERE}: {shown}", at, facts)


def _table(path: str, columns: tuple[str, str]) -> Captions:
    root = os.path.dirname(os.path.abspath(path))
    where = f"{WHERE}: {inputs.shown(path)}"
    paths, texts, splits, values, facts, lines = [], [], [], [], [], []
    for number, record in tables.rows(WHERE, path):
        line = tables.line(path, number)
        for column in columns:
            hint = f"{tables.lacking(path, record, column)}; or set config.data.columns"
            require(column in record, f"{where}, {line}: there is no column {column!r}{hint}")
            own.check_string(record[column], column, f"{where}, {line}")
        file, text = (record[column].strip() for column in columns)
        require(bool(text), f"{where}, {line}: {columns[1]!r} is empty")
        wrong = inputs.fault(os.path.join(root, file)) if file else f"{columns[0]!r} is empty"
        require(wrong is None, f"{where}, {line}: {wrong}")
        paths.append(file)
        texts.append(text)
        splits.append(own.split_of(record, f"{where}, {line}"))
        values.append(record.get(LABEL))
        facts.append(stamp(os.path.join(root, file)))
        lines.append(line)
    labelled = [value is not None for value in values]
    own.check_same(labelled, LABEL, lines, where)
    return _made(
        root,
        paths,
        texts,
        splits,
        values if all(labelled) else None,
        where,
        lines.__getitem__,
        facts,
    )
