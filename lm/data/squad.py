"""Files of questions with a context that answers them, or does not.

file:PATH        a .json as SQuAD's (Rajpurkar et al. 2016, 2018), version 1.1 or 2.0; or a
                 .jsonl or .parquet (see `common.data.tables`) whose records have `question`,
                 `context` and `answers` {"text": […], "answer_start": […]}, with empty lists if
                 there is none, and may have an `id` and a `split`
folder:DIR       such files, each named for its part: `train-v2.0.json`, `dev-v2.0.json`
"""

import collections
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

from common import inputs
from common.data import tables, textfiles
from common.errors import BadInput, brief, require
from lm.data import own
from lm.data.own import WHERE


class Question(NamedTuple):
    """A question.

    Attributes:
      id: its own, or the place of its record.
      text: the question.
      context: the text that may answer it.
      answers: (text, number of its first character in the context), each of them right; () if there
        is none.
      split: its part.
      place: where its record is, such as "line 3".
    """

    id: str
    text: str
    context: str
    answers: tuple[tuple[str, int], ...]
    split: str | None
    place: str


def read(name: str) -> list[Question]:
    """The questions of a data set, each with its split.

    Args:
      name: "file:PATH" or "folder:DIR".

    Raises:
      BadInput: if a file cannot be read, a record is no question, or an answer is not where it
        should be in its context.
    """
    notes, questions, shown = collections.Counter(), [], own.shown(name)
    for file in own.files(name):
        squad = textfiles.kind_of(file.path)[0] == ".json"
        for question in (_squad if squad else _records)(file, shown, notes):
            if question.text.strip() and question.context.strip():
                questions.append(question)
            else:
                notes["question without text or context left out"] += 1
    require(bool(questions), f"{shown} has no questions")
    places = [question.place for question in questions]
    own.check_same([each.split is not None for each in questions], "split", places, shown)
    splits = own.assign_splits([(each.split, (each.context,)) for each in questions], shown, notes)
    if notes:
        logging.warning("%s: %s", shown, inputs.said(notes))
    pairs = zip(questions, splits, strict=True)
    return [question._replace(split=split) for question, split in pairs]


def _records(file: own.File, shown: str, notes: collections.Counter) -> Iterator[Question]:
    for number, record in tables.rows(WHERE, file.path, notes):
        place = file.place(number)
        where = f"{shown}, {place}"
        for key in ("question", "context", "answers"):
            like = (
                '{"question": "…", "context": "…", "answers": {"text": ["…"], "answer_start": [0]}}'
            )
            lacking = f"{where}, is not a question like {like}"
            require(key in record, f"{lacking}{tables.lacking(file.path, record, key)}")
        value = record["answers"]
        if isinstance(value, dict):
            columns = [
                inputs.field(value, key, list, [], where) for key in ("text", "answer_start")
            ]
            same = len(columns[0]) == len(columns[1])
            require(same, f"{where}: answers: text and answer_start differ in length")
            value = [
                dict(zip(("text", "answer_start"), pair, strict=True))
                for pair in zip(*columns, strict=True)
            ]
        split = own.split_of(record, where, file.part)
        yield _question(record | {"answers": value}, record["context"], split, place, shown, notes)


def _squad(file: own.File, shown: str, notes: collections.Counter) -> Iterator[Question]:
    """The questions of a .json as SQuAD's: its `data` are articles, of `paragraphs` with a
    `context` and its questions, `qas`."""
    where = shown if file.part is None else f"{shown}, {file.path.name}"
    try:
        whole = inputs.json_line(textfiles.read(WHERE, file.path, notes), notes)
    except ValueError as error:
        raise BadInput(
            f"{where}: not JSON: {inputs.reason(error)}; if it has an object a line, name it .jsonl"
        ) from error
    listed = lambda value, key, at: inputs.field(
        value if isinstance(value, dict) else {}, key, list, inputs.REQUIRED, at
    )
    known = isinstance(whole, dict) and "data" in whole
    require(
        known,
        f'{where}: not like SQuAD\'s {{"data": […]}}; name it .jsonl if it has an object a line',
    )
    for i, article in enumerate(listed(whole, "data", where)):
        at = f"data[{i}]"
        for j, paragraph in enumerate(listed(article, "paragraphs", f"{where}: {at}")):
            here = f"{at}.paragraphs[{j}]"
            for k, record in enumerate(listed(paragraph, "qas", f"{where}: {here}")):
                place = f"{here}.qas[{k}]"
                place = place if file.part is None else f"{file.path.name}, {place}"
                require(isinstance(record, dict), f"{shown}, {place} is not an object")
                answers = record.get("answers", [])
                told = bool(answers) or "is_impossible" in record
                require(
                    told,
                    f"{shown}, {place}: question {brief(record.get('id'))} has no answers; "
                    'one that has none in its context says "is_impossible": true',
                )
                context = paragraph.get("context")
                yield _question(record, context, file.part, place, shown, notes)


def _question(
    record: dict,
    context: Any,
    split: str | None,
    place: str,
    shown: str,
    notes: collections.Counter,
) -> Question:
    """The question of a record whose `answers` are a list of {"text", "answer_start"}."""
    named = record.get("id", place)
    own_id = f"question {brief(named)}" if "id" in record else "the question"
    where = f"{shown}, {place}: {own_id}"
    own.check_string(record.get("question"), "question", where)
    own.check_string(context, "context", where)
    answers = record["answers"] if record.get("answers") is not None else []
    spelled = inputs.spelled_type(answers)
    require(isinstance(answers, list), f"{where}: answers is {spelled}, not a list")
    placed = tuple(_placed(answer, context, where, notes) for answer in answers)
    impossible = record.get("is_impossible")
    require(
        impossible is None or (impossible is True) == (not placed),
        f"{where}: is_impossible is {brief(impossible)}, and it has {len(placed)} answers",
    )
    return Question(str(named), record["question"], context, placed, split, place)


def _placed(answer: Any, context: str, where: str, notes: collections.Counter) -> tuple[str, int]:
    """(text, its first character) of an answer. One at another place is put right if its text
    occurs once in the context."""
    spelled = inputs.spelled_type(answer)
    require(isinstance(answer, dict), f"{where}: an answer is {spelled}, not an object")
    words, start = answer.get("text"), answer.get("answer_start")
    own.check_string(words, "text", f"{where}: an answer's")
    require(bool(words.strip()), f"{where}: an answer is empty")
    require(type(start) is int, f"{where}: answer_start is {brief(start)}, not a whole number")
    if start >= 0 and context.startswith(words, start):
        return words, start
    first = context.find(words)
    once = first >= 0 and context.find(words, first + 1) < 0
    count = "does not occur there" if first < 0 else "occurs there more than once"
    require(
        once,
        f"{where}: its answer {brief(words)} is not at character {start} of its context, and "
        f"{count}",
    )
    notes["answer_start put right, as its text occurs once in the context"] += 1
    return words, first
