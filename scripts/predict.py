"""Predict: python scripts/predict.py --workdir runs/digits three.png more/ [--top 3]

What a run's task predicts, with its options, which --workdir RUN --help lists: classes of pictures
or texts with their probabilities, hidden words ("the [MASK] of peace"), what comes next. Published
weights predict, too: --weights FOLDER, or a name that scripts/prepare.py fetches. --embed predicts
vectors.

An input is a text, or a picture's file. A file of texts is read, even if a text happens to be its
name: a .txt or .md has a text in each line, a .jsonl, .csv, .tsv or .parquet one in each record, by
its --column. So is a table of pictures, whose `path` is relative to it. A folder is all of its
files, in order of their names, without links to folders; "-" the lines of standard input, which are
never files of texts. Two texts stand in a line with a tab between them, or as {"text": …, "text_b":
…}.

Good inputs are predicted, in order; each that cannot be is one line on standard error, and the exit
code is then 2.
"""

import base64
import csv
import json
import logging
import os
import pathlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import _checkout  # noqa: F401
from common import cli, inputs, predict
from common.data import tables, textfiles
from common.devices import terminal
from common.errors import BadInput, brief, require
from common.planning.keys import meanings
from common.sections import Parameter, parameters
from common.task import Predictor

LINES = (".txt", ".md", ".text")


class Named(NamedTuple):
    """An input, where it stands, for messages, and what it is called in the output."""

    value: Any
    place: str
    name: Any


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    first = cli.parser(__doc__)
    _add_own(first)
    named = any(word.partition("=")[0] in ("--workdir", "--weights") for word in argv)
    if not named:
        first.parse_args(argv)  # says what is needed, or shows the help without options
    known, _ = first.parse_known_args([word for word in argv if word not in ("-h", "--help")])
    if known.workdir is not None:
        loaded = predict.of_run(known.workdir, known.step, known.embed)
    else:
        loaded = predict.of_weights(known.weights, known.embed)
    if known.draft is not None:
        loaded = predict.drafted(loaded, predict.load(known.draft))
    parser = cli.parser(__doc__)
    _add_own(parser)
    add_options(parser, loaded.predictor)
    args = parser.parse_intermixed_args(argv)
    options = {name: getattr(args, name) for name in parameters(loaded.predictor.options)}
    return _predict(loaded, args, options)


def _add_own(parser) -> None:
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="texts, files, folders or -")
    cli.add_model(parser)
    parser.add_argument("--embed", action="store_true", help="predict vectors")
    parser.add_argument(
        "--draft",
        metavar="RUN",
        help="a smaller model that drafts text for this one, which checks it: a workdir or weights "
        "with the same tokenizer",
    )
    parser.add_argument("--to", metavar="FOLDER", help="write pictures that are predicted there")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print an object a line")
    output.add_argument("--csv", action="store_true", help="print a table, nested values as JSON")
    parser.add_argument(
        "--column",
        action="append",
        help="column of a table that holds the input, or, the second time, its second text "
        "(default: text and text_b, or path)",
    )


def add_options(parser, predictor: Predictor) -> None:
    """Adds the options of a prediction as flags."""
    group = parser.add_argument_group("options of the prediction")
    described = meanings(predictor.options)
    for name, parameter in parameters(predictor.options).items():
        shown = "" if parameter.default in (None, False) else f" (default: {parameter.default})"
        text = (described.get(name, "") + shown).replace("%", "%%")
        group.add_argument(f"--{name.replace('_', '-')}", help=text, **_flag(parameter))


def _flag(parameter: Parameter) -> dict:
    """How argparse reads an option."""
    if parameter.annotation is bool:
        return {"action": "store_true"}
    kinds = get_args(parameter.annotation) or (parameter.annotation,)
    kind = next((kind for kind in (int, float) if kind in kinds), str)
    return {"type": kind, "default": parameter.default}


# ------------------------------------------------------------------------------------------ inputs


def named_inputs(
    words: list[str], predictor: Predictor, columns: list[str] | None
) -> Iterator[Named]:
    """The inputs that words on a command line name; a file that cannot be read, or not further, is
    one, whose value is the error."""
    own = predictor.columns
    most = len(own)
    require(len(columns or ()) <= most, f"--column: {columns}: an input has {most} at most: {own}")
    # {the task's name of a column: the table's}
    named = dict(zip(own, columns or own, strict=False))
    require(words.count("-") < 2, "-: standard input can be read once: name it once")
    for word in words:
        yield from _or_error(word, _named(word, predictor, named))


def _or_error(name: str, read: Iterator[Named]) -> Iterator[Named]:
    """What is read, and at the end the error that ends it, if there is one."""
    try:
        yield from read
    except BadInput as error:
        yield Named(error, "", name)


def _named(word: str, predictor: Predictor, columns: dict[str, str]) -> Iterator[Named]:
    """The inputs that a word names."""
    if word == "-":
        yield from _standard_input()
    elif os.path.isdir(word):
        yield from _folder(word, predictor, columns)
    elif (predictor.suffixes and not predictor.texts) or os.path.lexists(word):
        yield from _file(word, predictor, columns)
    else:
        yield Named(word, "", word)


def _standard_input() -> Iterator[Named]:
    """The inputs in the lines of standard input."""
    empty = True
    try:
        for number, line in enumerate(sys.stdin, 1):
            line = line.rstrip("\r\n")
            if line.strip():
                empty = False
                yield Named(line, f"standard input, line {number}", line)
    except UnicodeDecodeError as error:
        raise BadInput(f"standard input is not UTF-8 ({error.reason})") from error
    require(not empty, "standard input has no line that is an input")


def _folder(root: str, predictor: Predictor, columns: dict[str, str]) -> Iterator[Named]:
    """The inputs of all files in a folder and those below it, in order of their names. Links to
    folders, which may lead back, are not followed."""
    kinds = predictor.suffixes or {*LINES, *tables.KINDS}
    passed: Counter = Counter()
    count, closed = 0, []
    for folder, folders, names in os.walk(root, onerror=closed.append):
        linked = {name for name in folders if os.path.islink(os.path.join(folder, name))}
        hidden = {name for name in folders if name.startswith(".")} - linked
        passed.update({"link to a folder": len(linked), "hidden folder": len(hidden)})
        folders[:] = sorted({*folders} - linked - hidden, key=inputs.natural)
        for name in sorted(names, key=inputs.natural):
            path = os.path.join(folder, name)
            suffix = name[name.rfind(".") :].lower() if predictor.suffixes else _kind(name)
            if name.startswith(".") or suffix not in kinds:
                passed[suffix or "without a suffix"] += 1
                continue
            count += 1
            yield from _or_error(path, _file(path, predictor, columns))
    for error in closed:
        where = f"{inputs.shown(error.filename)} cannot be read: {inputs.reason(error)}"
        yield Named(BadInput(where), "", error.filename)
    if passed := +passed:
        logging.warning("%s: passed over: %s", inputs.shown(root), inputs.said(passed))
    require(count or closed, f"{inputs.shown(root)} holds no file that is an input")


def _kind(path: str) -> str:
    return textfiles.kind_of(path)[0]


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _file(path: str, predictor: Predictor, columns: dict[str, str]) -> Iterator[Named]:
    """The inputs of a file: its lines, its records, or itself."""
    kind = _kind(path)
    if kind in tables.KINDS:
        yield from _records(path, predictor, columns)
    elif predictor.suffixes and (not predictor.texts or _suffix(path) in predictor.suffixes):
        # A name that is no text is written with its bytes.
        yield Named(path, inputs.shown(path), path.encode(errors="backslashreplace").decode())
    else:
        mended: Counter = Counter()
        for number, line in enumerate(textfiles.lines("input", path, mended), 1):
            line = line.rstrip("\n")
            if line.strip():
                yield Named(line, f"{inputs.shown(path)}, line {number}", line)
            else:
                mended["blank line passed over"] += 1
        if mended:
            logging.warning("%s: %s", inputs.shown(path), inputs.said(mended))


def _records(path: str, predictor: Predictor, columns: dict[str, str]) -> Iterator[Named]:
    """The inputs of a table's records; one that is none is its error."""
    begun = False
    for number, record in tables.rows("input", path, past=True):
        place = tables.place(path, number)
        if isinstance(record, BadInput):
            yield Named(record, "", place)
            continue
        lacking = _lacking(path, record, predictor, columns)
        require(begun or not lacking, f"{place}: {lacking}")  # else as many lines as records
        begun = True
        value = BadInput(lacking) if lacking else _value(path, record, predictor, columns)
        yield Named(value, place, str(value) if isinstance(value, pathlib.Path) else value)


def _lacking(path: str, record: dict, predictor: Predictor, columns: dict[str, str]) -> str:
    """Says which column a record lacks; "" if none. One may be missing if it is optional and was
    not named by the user; but not all of them."""
    none = record.keys().isdisjoint(columns.values())
    for name, column in columns.items():
        free = name in predictor.optional and name == column and not none
        if column not in record and not free:
            hint = f"{tables.lacking(path, record, column)}; or name it with --column"
            return f"there is no column {column!r}{hint}"
    return ""


def _value(path: str, record: dict, predictor: Predictor, columns: dict[str, str]) -> Any:
    """The input that a table's record is, or why it is none."""
    values = {name: record.get(column) for name, column in columns.items()}
    absent = lambda name, value: name in predictor.optional and value in (None, "")
    values = {name: value for name, value in values.items() if not absent(name, value)}
    if predictor.texts and len(values) > 1:
        return BadInput(f"it has both {' and '.join(map(repr, values))}: choose by --column")
    value = next(iter(values.values()), "") if len(values) < 2 else values
    if predictor.texts and isinstance(value, str):
        column = next((columns[name] for name in values), "")
        is_path = column == "path" or _suffix(value) in predictor.suffixes
        return pathlib.Path(path).parent / value.strip() if is_path and value else value
    if not predictor.suffixes:
        return value
    if isinstance(value, str) and value:
        return os.path.join(os.path.dirname(path), value)
    return BadInput(f"{next(iter(columns.values()))} is {brief(value)}, not a path")


# ------------------------------------------------------------------------------------------ output


def _predict(loaded: predict.Loaded, args, options: dict) -> int:
    """Prints the predictions of all inputs; returns the exit code."""
    require(bool(args.inputs), "an input is needed: a text, a file, a folder, or - for its lines")
    # Of pictures that are large, or have notes that are damaged.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    places: list[Named] = []

    def values() -> Iterator[Any]:
        for each in named_inputs(args.inputs, loaded.predictor, args.column):
            places.append(each)
            yield each.value

    show = not sys.stdout.isatty()
    bad, table = 0, None
    for number, (_, result) in enumerate(loaded.each(values(), options, show)):
        at, places[number] = places[number], None
        if args.to is not None and not isinstance(result, BadInput):
            result = _written(result, args.to, number, str(at.name))
        if isinstance(result, BadInput):
            told = isinstance(at.value, BadInput) and not at.place  # its message names the place
            place = at.place or inputs.shown(repr(at.name))
            terminal.say(f"error: {result}" if told else f"error: {place}: {result}")
            bad += 1
        elif args.json:
            print(json.dumps({"input": at.name, **result}, ensure_ascii=False))
        elif args.csv:
            row = {"input": at.name, **result}
            if table is None:
                table = csv.DictWriter(sys.stdout, list(row), lineterminator="\n")
                table.writeheader()
            table.writerow({k: _cell(v) for k, v in row.items()})
        else:
            line = loaded.predictor.line(result)
            print(f"{at.name}: {line}" if loaded.predictor.suffixes else line)
    return 2 if bad else 0


def _written(result: dict, folder: str, number: int, name: str) -> dict:
    """A result whose picture, a PNG in base64, is in a file: FOLDER/NUMBER_NAME.png."""
    require("picture" in result, "--to: this model predicts no pictures")
    stem = os.path.splitext(os.path.basename(name))[0]
    path = os.path.join(folder, f"{number}_{stem}.png")
    try:
        os.makedirs(folder, exist_ok=True)
        with open(path, "wb") as file:
            file.write(base64.b64decode(result["picture"]))
    except OSError as error:
        raise BadInput(f"--to: {inputs.shown(path)}: {inputs.reason(error)}") from error
    return result | {"picture": path}


def _cell(value: Any) -> Any:
    plain = isinstance(value, str | int | float)
    return value if plain else json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    cli.exit(main)
