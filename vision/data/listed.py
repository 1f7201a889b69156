"""Pictures that a user names, and their labels: folders with a folder for each class, or a table
with a row for each picture. Looks at names, sizes and times of files, and opens none but a table.
"""

import collections
import hashlib
import json
import os
import pathlib
import re
import stat
import urllib.parse
from typing import NamedTuple

import numpy as np

from common import inputs
from common.data import labels, tables
from common.data.parts import ALIASES, PARTS
from common.errors import BadInput, brief, nearest, require
from vision.data import pictures

PREFIX = "images:"
WHERE = "config.data.name"
FOREIGN = ("__MACOSX", "@eaDir")  # folders that other programs leave
MOST_NAMED = 5  # kinds of files passed over that a warning lists


class Picture(NamedTuple):
    """A file and what its set says of it.

    Attributes:
      path: below the root.
      label: its class, or its classes in their order where there may be several.
      part: "" if a hash decides.
      size: in bytes.
      modified, changed: when its contents and its entry were, in ns. The latter cannot be set, by
        unzip for example.
    """

    path: str
    label: int | tuple[int, ...]
    part: str
    size: int
    modified: int
    changed: int


class Listing(NamedTuple):
    """Pictures of a set in order. `parts` are those that the user made, () if there are none;
    `passed` counts files that are no pictures, by suffix or name; `deep` are pictures in a folder
    below that of their class; `multi_label` tells that they have any number of classes each."""

    root: pathlib.Path
    pictures: list[Picture]
    classes: tuple[str, ...]
    parts: tuple[str, ...]
    passed: dict[str, int]
    deep: list[str]
    multi_label: bool = False


def listing(
    name: str, columns: tuple[str, str], broken: str = "refuse", separator: str = ""
) -> Listing:
    """The pictures of a set `images:DIR` or `images:TABLE`.

    Below DIR there is a folder for each class, or `train` with `valid` or `test` beside it, by
    these or the other names of `common.data.parts.ALIASES`, and the classes in each. Two or three
    folders whose names begin or end with these words, such as training_set, are parts if they hold
    no pictures but in folders. A folder of a class may have folders of its own. Classes are
    numbered in the order of their names. In each part, files are in the order of their names, with
    numbers by their values, then of their paths: 2.png, 10.png. Links are followed.

    A table is a .csv, .tsv, .jsonl or .parquet with a row for each picture, in any order, which is
    kept. Its `columns` hold the path, relative to the table's folder, and the class, or a list of
    classes, in a .csv or .tsv with `separator` between them; a column
    `split` (in any case), if there is one, holds the part. A row without its file is refused, or
    left to be found broken if `broken` is "skip".

    Raises:
      BadInput: for no pictures, a class that not all parts have, a picture without a class, a name
        that is not UTF-8, folders in a circle, a row without its file.
    """
    path = os.path.expanduser(name.removeprefix(PREFIX))
    require(bool(path) and "://" not in path, f"{WHERE}: {name}: use images:DIR, a local folder")
    if inputs.fault(path) is None:
        return _table(path, columns, broken, separator)
    inputs.folder(WHERE, path)
    return _folder(path)


def check_learnable(listing: Listing, name: str) -> None:
    """Raises `BadInput` if the pictures of the set `name` have but one class, the same for all."""
    where = f"{WHERE}: {inputs.shown(name.removeprefix(PREFIX))}"
    require(
        len(listing.classes) > 1 or listing.multi_label,
        f"{where}: there is but one class, {brief(listing.classes[0])}: nothing to learn",
    )


def labels_of(picture: Picture) -> tuple[int, ...]:
    """The labels of a picture, one or several."""
    return picture.label if isinstance(picture.label, tuple) else (picture.label,)


def stamp(listing: Listing, *settings) -> str:
    """A hash of what a listing says and of `settings`: of where it is, names, sizes and times, not
    contents."""
    root = os.path.realpath(listing.root)
    made_from = [settings, root, listing.classes, listing.parts, listing.pictures]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]


# --------------------------------------------------------------------------------------- folders


def _folder(root: str) -> Listing:
    passed: collections.Counter[str] = collections.Counter()
    files: dict[str, os.stat_result] = {}
    folders: set[str] = set()
    _walk(root, "", (), files, folders, passed)
    require(bool(files), f"{WHERE}: {inputs.shown(root)} holds no pictures{said(passed)}")
    at = lambda path: inputs.shown(os.path.join(root, path))
    made = _parts(files, folders, at)
    depth = 1 if made else 0
    held: dict[str, set[str]] = {part: set() for part in made.values() or ("",)}
    places = {}
    for path in files:
        pieces = path.split("/")
        require(
            len(pieces) > depth + 1,
            f"{WHERE}: {at(path)} is in no folder of a class: images:DIR wants "
            "DIR/CLASS/PICTURE or DIR/train/CLASS/PICTURE",
        )
        places[path] = made[pieces[0]] if made else "", pieces[depth]
        held[places[path][0]].add(places[path][1])
    for folder in sorted(folders):
        pieces = folder.split("/")
        if len(pieces) == depth + 1 and (not made or pieces[0] in made):
            part = made[pieces[0]] if made else ""
            if pieces[depth] not in held[part]:
                own: collections.Counter[str] = collections.Counter()
                _walk(os.path.join(root, folder), "", (), {}, set(), own)
                text = f"{at(folder)}, the folder of a class, holds no pictures{said(own)}"
                raise BadInput(f"{WHERE}: {text}")
    for part, names in held.items():
        for other, more in held.items():
            lacking = sorted(more - names)
            require(
                not lacking,
                f"{WHERE}: {inputs.shown(root)}: {other} has a class {brief(lacking[:1])[1:-1]} "
                f"that {part} lacks; all parts must have the same",
            )
    classes = tuple(sorted(set().union(*held.values())))
    number = {name: i for i, name in enumerate(classes)}
    pictures_ = [
        Picture(path, number[name], part, *_facts(files[path]))
        for path, (part, name) in places.items()
    ]
    pictures_.sort(key=lambda p: (inputs.natural(p.path.rpartition("/")[2]), p.path))
    parts = tuple(part for part in PARTS if part in held)
    counts = collections.Counter(name for _, name in places.values())
    labels.say_alike(counts, f"{WHERE}: {inputs.shown(root)}")
    deep = [p.path for p in pictures_ if p.path.count("/") > depth + 1]
    return Listing(pathlib.Path(root), pictures_, classes, parts, dict(passed), deep)


def _walk(root: str, below: str, above: tuple, files: dict, folders: set, passed) -> None:
    """Adds the pictures and the folders below `below` by their relative paths."""
    here = os.path.join(root, below)
    inputs.folder(WHERE, here)
    status = os.stat(here)
    identity = status.st_dev, status.st_ino
    circle = f"{WHERE}: {inputs.shown(here)} is a link to a folder that holds it"
    require(identity not in above, circle)
    with os.scandir(here) as entries:
        entries = sorted(entries, key=lambda entry: entry.name)
    for entry in entries:
        name, path = entry.name, f"{below}/{entry.name}" if below else entry.name
        if name.startswith(".") or name in FOREIGN:
            passed["hidden"] += 1
            continue
        try:
            name.encode()
        except UnicodeEncodeError:
            require(False, f"{WHERE}: {inputs.shown(entry.path)}: its name is not UTF-8; rename it")
        suffix = os.path.splitext(name)[1].lower()
        try:
            status = entry.stat()
        except OSError:  # a link that leads nowhere, or in a circle: reading it says so
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError as error:
                shown = inputs.shown(entry.path)
                text = f"{WHERE}: {shown} went while it was looked at: {inputs.reason(error)}"
                raise BadInput(text) from error
        if stat.S_ISDIR(status.st_mode):
            folders.add(path)
            _walk(root, path, (*above, identity), files, folders, passed)
        elif suffix in pictures.suffixes():
            files[path] = status
        else:
            passed[suffix or "without a suffix"] += 1


def _parts(files: dict, folders: set, at) -> dict[str, str]:
    """{folder: part} of the parts that the user made; {} if the folders are classes.

    The folder of a part holds folders. One with pictures of its own may be a class that has the
    name of a part.
    """
    loose = {path.split("/")[0] for path in files if path.count("/") == 1}
    deep = {path.split("/")[0] for path in files if path.count("/") > 1}
    named = _spelled(loose, deep, folders, at) or {
        top: ALIASES[top.lower()] for top in loose | deep if top.lower() in ALIASES
    }
    others = any(part != "train" and top not in loose for top, part in named.items())
    is_part = lambda top: top not in loose or (top in deep and others)
    training = [top for top, part in named.items() if part == "train" and is_part(top)]
    if not training:
        lost = sorted(top for top in named if top not in loose)
        require(
            not lost,
            f"{WHERE}: {at(lost[0] if lost else '')} holds folders, as a part does, but there is "
            "no train beside it",
        )
        return {}
    beside = sorted((loose | deep) - named.keys())
    require(
        not beside,
        f"{WHERE}: {at(beside[0] if beside else '')} stands beside {training[0]}, but is none of "
        "the parts train, valid and test",
    )
    for part in PARTS:
        twice = sorted(top for top, of in named.items() if of == part)
        require(
            len(twice) < 2,
            f"{WHERE}: {at(twice[0] if twice else '')} and {twice[-1] if twice else ''} would both "
            f"be {part}; remove one",
        )
    return named


def _spelled(loose: set[str], deep: set[str], folders: set, at) -> dict[str, str]:
    """{folder: part} of two or three folders without pictures of their own, whose names hold the
    names of parts: training_set, seg_train. Refuses those that hold the same folders, as parts do,
    under names that tell nothing."""
    if loose or len(deep) not in (2, 3):
        return {}
    found = {}
    for top in sorted(deep):
        words = [word for word in re.split("[^a-z]+", top.lower()) if word]
        known = [ALIASES[w] for w in (*words[:1], *words[-1:]) if w in ALIASES]
        if known:
            found[top] = known[0]
    if len(set(found.values())) == len(deep) and "train" in found.values():
        return found
    below = [{f.split("/")[1] for f in folders if f.startswith(f"{top}/")} for top in deep]
    alike = len(below[0]) > 1 and all(names == below[0] for names in below)
    require(
        not alike or any(top.lower() in ALIASES for top in deep),
        f"{WHERE}: {at(min(deep))} and those beside it hold folders of the same names, as parts "
        "do: rename them to train, test and valid; if they are classes, rename what is in one",
    )
    return {}


def _facts(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def said(passed: dict[str, int]) -> str:
    """What was passed over, for a message: "; passed over: 3 .txt"."""
    most = sorted(passed.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{count:,} {kind}" for kind, count in most[:MOST_NAMED]]
    more = f" and {len(most) - MOST_NAMED} other kinds" if len(most) > MOST_NAMED else ""
    return f"; passed over: {', '.join(named)}{more}" if passed else ""


# ---------------------------------------------------------------------------------------- tables


def _table(path: str, columns: tuple[str, str], broken: str, separator: str) -> Listing:
    require(
        len(set(columns)) == 2 and all(c.strip().casefold() != "split" for c in columns),
        f"config.data.columns: {columns}: two names are needed, of the path and of the class, and "
        "neither is 'split'",
    )
    root = pathlib.Path(path).absolute().parent
    found, values, numbers, first = [], [], [], None
    for number, record in tables.rows(WHERE, path):
        at = f"{WHERE}: {tables.place(path, number)}"
        for column in columns:
            hint = f"{nearest(column, record)}; or set config.data.columns"
            require(column in record, f"{at}: no column {brief(column)}; {hint}")
        keys = [key for key in record if key.strip().casefold() == "split"]
        require(len(keys) < 2, f"{at}: columns {brief(keys)} both name the part; remove one")
        file, part = record[columns[0]], record[keys[0]] if keys else None
        named = isinstance(file, str) and bool(file.strip())
        require(named, f"{at}: {columns[0]} is {brief(file)}, not the path of a file")
        part = part.strip() if isinstance(part, str) else part
        first = part if first is None and not found else first
        require(
            (part in (None, "")) == (first in (None, "")),
            f"{at}: split is {brief(part)}, and {brief(first)} in the rows above: name the part in "
            "every row, or in none",
        )
        known = part in (None, "") or (isinstance(part, str) and part.lower() in ALIASES)
        require(known, f"{at}: split is {brief(part)}; use 'train', 'valid' or 'test'")
        wrong = inputs.fault(root / file)
        if wrong is not None and broken == "refuse":
            raise BadInput(f"{at}: {wrong}{_meant(root, file)}")
        part = ALIASES[part.lower()] if part else ""
        found.append((file, part, (0, 0, 0) if wrong else _facts(os.stat(root / file))))
        values.append(record[columns[1]])
        numbers.append(number)
    where = f"{WHERE}: {inputs.shown(path)}"
    at = lambda i: tables.place(path, numbers[i]).rpartition(", ")[2]
    label, classes = labels.numbered(values, where, at, numbers=False, separator=separator)
    several = label.ndim == 2
    label = [tuple(np.flatnonzero(row).tolist()) for row in label] if several else label.tolist()
    pictures_ = [
        Picture(file, k, part, *facts) for (file, part, facts), k in zip(found, label, strict=True)
    ]
    parts = tuple(part for part in PARTS if any(part == p.part for p in pictures_))
    require(not parts or "train" in parts, f"{where}: no row has the split 'train'")
    if parts:
        learnt = {k for p in pictures_ if p.part == "train" for k in labels_of(p)}
        lacking = [name for i, name in enumerate(classes) if i not in learnt]
        require(not lacking, f"{where}: no row of the class {brief(lacking[:1])[1:-1]} is in train")
    return Listing(root, pictures_, classes, parts, {}, [], several)


def _meant(root: pathlib.Path, file: str) -> str:
    """How a path that is not there may be meant, for a message."""
    bare = file.strip().removeprefix("file://")
    for other in (bare, bare.replace("\\", "/"), urllib.parse.unquote(bare)):
        other = os.path.expanduser(other)
        if other != file and inputs.fault(root / other) is None:
            return f"; {inputs.shown(other)} is there: write it so"
    return ""
