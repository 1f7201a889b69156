"""Tables that a user brings: records of a .jsonl, .csv, .tsv or .parquet file, one at a time.

A record is {column: value}. What is damaged is named by file and line; what is repaired is counted
(see `common.inputs`). Knows nothing of what the columns mean.
"""

import collections
import contextlib
import csv
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from common import inputs
from common.data import textfiles
from common.errors import BadInput, brief, require

LINES = (".jsonl", ".ndjson", ".json")  # an object a line
DELIMITERS = {".csv": ",", ".tsv": "\t"}
KINDS = (*LINES, *DELIMITERS, ".parquet")
BATCH = 256  # rows of a .parquet in memory
LISTED = "; a JSON list must become one object a line"
MOST_NAMED = 8  # columns that a message lists
SEPARATORS = {";": "';'", "\t": "a tab", "|": "'|'", ",": "','"}
REPEATED = "header repeated within a table left out"


def rows(
    where: str,
    path,
    mended: collections.Counter | None = None,
    used: Callable[[list[str]], list[str]] = list,
    past: bool = False,
) -> Iterator[tuple[int, dict[str, Any] | BadInput]]:
    """The records of a table, in order, each with its number: that of the line where it begins,
    counted from 1, or of its row, for a .parquet.

    The file's suffix, in upper or lower case, tells its kind: `.jsonl`, `.ndjson` or `.json` with
    an object a line; `.csv` or `.tsv` with a header, in which every value is a string; `.parquet`.
    All but .parquet may be compressed: `.gz`, `.bz2`, `.xz` or `.zst`. Blank lines are passed over.

    Args:
      where: the config key or flag that names the file, for messages.
      path: the file, of any size.
      mended: counts repairs; without it, one warning at the end tells them.
      used: the columns that will be looked at, of those that there are; of a .parquet no others
        are read.
      past: go on past a line that is no record, which becomes its `BadInput`.

    Raises:
      BadInput: when it comes to a line that is no record, or finds the file damaged.
      textfiles.Empty: if it has no record.
    """
    kind, packing = textfiles.kind_of(path)
    inputs.file(where, path)
    readable = kind in KINDS and not (kind == ".parquet" and packing)
    require(
        readable,
        f"{where}: {inputs.shown(path)}: its name should end in {', '.join(KINDS)}, and all but "
        f".parquet also in {', '.join(textfiles.PACKED)}",
    )
    counted = collections.Counter() if mended is None else mended
    if kind == ".parquet":
        records = _parquet(where, path, used)
    elif kind in LINES:
        records = _json(where, path, counted)
    else:
        records = _delimited(where, path, DELIMITERS[kind], counted)
    empty = True
    for record in records:
        empty = False
        if isinstance(record[1], BadInput) and not past:
            raise record[1]
        yield record
    if empty:
        raise textfiles.Empty(f"{where}: {inputs.shown(path)} holds no records")
    if mended is None and counted:
        logging.warning("%s: %s: %s", where, inputs.shown(path), inputs.said(counted))


def line(path, number: int) -> str:
    """Where in its file a record is, for a message: "line 3", or "row 3" of a .parquet."""
    return f"{'row' if textfiles.kind_of(path)[0] == '.parquet' else 'line'} {number}"


def place(path, number: int) -> str:
    """Where a record is, for a message: "FILE, line 3"."""
    return f"{inputs.shown(path)}, {line(path, number)}"


def columns(record: dict) -> str:
    """The columns of a record, for a message: "its columns are 'a', 'b'"."""
    names = [brief(name) for name in record]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"its columns are {', '.join(names[:MOST_NAMED]) or 'none'}{more}"


def lacking(path, record: dict, column: str) -> str:
    """The end of a message that a record lacks a column: which it has, and what may be meant."""
    kind = textfiles.kind_of(path)[0]
    comma = DELIMITERS.get(kind)
    near = [name for name in record if name.strip().casefold() == column]
    (only,) = record if len(record) == 1 else ("",)
    other = next((sign for sign in SEPARATORS if sign != comma and sign in only), None)
    hint = ""
    if near:
        hint = f"; rename {brief(near[0])} to {column!r}"
    elif comma and other:
        hint = (
            f"; the columns of a {kind} are separated by {SEPARATORS[comma]}, but its header (the "
            f"first line) has {SEPARATORS[other]}"
        )
    elif comma:
        hint = "; its first line must name the columns"
    return f": {columns(record)}{hint}"


def _unmarked(lines: Iterator[str], mended: collections.Counter) -> Iterator[str]:
    """Lines without the byte order marks that stand where files were joined."""
    for line in lines:
        if line.startswith("\ufeff"):
            line = line[1:]
            mended[textfiles.BOM] += 1
        yield line


def _json(where: str, path, mended: collections.Counter) -> Iterator[tuple[int, dict | BadInput]]:
    for number, line in enumerate(_unmarked(textfiles.lines(where, path, mended), mended), 1):
        if not line.strip():
            continue
        at = f"{where}: {place(path, number)}"
        try:
            record = inputs.json_line(line, mended)
        except ValueError as error:
            listed = number == 1 and line.lstrip().startswith("[")
            hint = LISTED if listed else ""
            why = inputs.reason(error)
            if isinstance(error, json.JSONDecodeError):
                why = f"{error.msg} at character {error.pos + 1}"
            yield number, BadInput(f"{at}, is not JSON: {why}{hint}")
            continue
        if not isinstance(record, dict):
            hint = LISTED if isinstance(record, list) else ""
            spelled = inputs.spelled_type(record)
            record = BadInput(f"{at}, is not a JSON object, but {spelled}{hint}")
        yield number, record


def _delimited(
    where: str, path, delimiter: str, mended: collections.Counter
) -> Iterator[tuple[int, dict[str, str] | BadInput]]:
    csv.field_size_limit(sys.maxsize)  # a process-wide setting; 128 KiB is less than a long text
    lines = _unmarked(textfiles.lines(where, path, mended, newline=""), mended)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header, start = None, 1
    while True:
        start = reader.line_num + 1
        at = f"{where}: {place(path, start)}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise BadInput(
                f"{at}, is not a row of a {textfiles.kind_of(path)[0]}: {inputs.reason(error)}; a "
                'field with a quote in it must be quoted, and that quote doubled: "a ""b"" c"'
            ) from error
        if cells is None:
            break
        if not cells or (len(header or ()) != 1 == len(cells) and not cells[0].strip()):
            continue  # a blank line
        if header is None:
            header = cells
            twice = [name for name, count in collections.Counter(header).items() if count > 1]
            require(not twice, f"{at}, the header, has {brief(twice[:1])[1:-1]} twice")
            require(
                all(map(str.strip, header)),
                f"{at}, the header, has a column without a name; give it one, or, if it is the "
                "index that pandas writes, leave it out: to_csv(…, index=False)",
            )
            continue
        if cells == header:  # where two files were joined
            mended[REPEATED] += 1
            continue
        fields = "1 field" if len(cells) == 1 else f"{len(cells):,} fields"
        if len(cells) != len(header):
            yield start, BadInput(f"{at}, has {fields}, but the header has {len(header)}")
            continue
        yield start, dict(zip(header, cells, strict=True))


def _parquet(
    where: str, path, used: Callable[[list[str]], list[str]]
) -> Iterator[tuple[int, dict]]:
    import pyarrow.parquet  # comes with tensorflow-datasets

    number, shown = 0, inputs.shown(path)
    try:
        with epath.Path(path).open("rb") as file:
            head = file.read(64)
            known = inputs.impostor(head)
            require(known is None, f"{where}: {shown} is {known}")
            table = pyarrow.parquet.ParquetFile(file)
            names = table.schema_arrow.names
            twice = [name for name, count in collections.Counter(names).items() if count > 1]
            require(not twice, f"{where}: {shown} has the column {brief(twice[:1])[1:-1]} twice")
            for batch in table.iter_batches(BATCH, columns=used(names)):
                names = batch.schema.names
                columns = [batch.column(i) for i in range(len(names))]
                for i in range(len(batch)):
                    number += 1
                    values = [_plain(column[i].as_py()) for column in columns]
                    yield number, dict(zip(names, values, strict=True))
    except BadInput:
        raise
    except UnicodeDecodeError as error:
        at = place(path, number)
        raise BadInput(f"{where}: {at}, is not UTF-8 ({error.reason}); write it so") from error
    except Exception as error:  # Arrow has many
        why = inputs.reason(error)
        raise BadInput(f"{where}: {shown} cannot be read as .parquet: {why}") from error


def _plain(value):
    """Bytes as the text that they are, if they are: some programs write no other strings."""
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    return value
