"""Questions that a passage of their context answers, or none does, as Sources.

The files are those of `lm.data.squad`. Splits are those of `lm.data.own`, by a hash of the context,
in TFDS's notation, in which `valid[:100]` is 100 questions.

A row is a question and a window of its context: [CLS] question [SEP] window [SEP]. Windows overlap,
so that an answer that one cuts another holds (Devlin et al. 2019). Answers are matched with tokens
by characters.

Letters: L length, N rows, T tokens of a context.
"""

import collections
import hashlib
import logging
from typing import NamedTuple

import jax
import numpy as np

from common import inputs
from common.data import loading
from common.data import splits as grammar
from common.errors import brief, require
from common.task import Source, split_key
from lm.data import own, squad, text
from lm.data import tokenizer as tokenizers
from lm.data.squad import Question
from lm.data.tokenizer import TextFacts


class QuestionFacts(NamedTuple):
    """What a set of questions adds to its rows, to turn positions into text: `Source.facts`.

    Attributes:
      text: of the tokenizer, with the length L.
      unanswerable: whether any question of the data set, of all splits, has no answer.
      questions: of this Source, in order.
      characters: of each question, i32[T, 2]: where each token of its context begins and ends.
      question: i32[N], the number of each row's question.
      first: i32[N], the number of the token of the context with which the row's window begins.
    """

    text: TextFacts
    unanswerable: bool
    questions: list[Question]
    characters: list[np.ndarray]
    question: np.ndarray
    first: np.ndarray


def load_sources(
    splits: dict[str, str],
    *,
    name: str,
    train: str = "train",
    tokenizer: str,
    length: int = 384,
    stride: int = 128,
    question_length: int = 64,
    folder: str = "",
    resident: bool | None = None,
    workers: int = 0,
) -> dict[str, Source]:
    """The section `data` of answering questions.

    Rows: tokens[L] (u16, or i32 for more than 65,536 tokens), segments u8[L] (0 for padding),
    types u8[L] (1 for the context and its [SEP]), context i32[2] (the positions of the context, a
    half-open range), span i32[2] (the positions of the answer's first and last token; 0, of [CLS],
    if the window does not hold all of it). With several answers, the first is trained on.

    Args:
      splits: {name of the Source: split}; its "train", if any, must equal `train`.
      name: the data set: "file:PATH" (your own, SQuAD's .json, a .jsonl or .parquet) or
        "folder:DIR" (such files, named train, dev and test).
      train: the split to train on, e.g. "train" or "train+valid".
      tokenizer: a tokenizer's file or folder, the name of prepared weights such as "minilm", or the
        workdir of a run.
      length: L, the number of tokens in a row.
      stride: tokens from the beginning of a window of the context to that of the next.
      question_length: tokens of a question; the rest of a longer one is cut.
      folder: folder of prepared weights; "" is $TOUCHSTONE_DATA or ~/.cache/touchstone/data.
      resident: False keeps the rows off the device.
      workers: number of processes that read a set that is not resident; 0 uses threads.

    Returns:
      Sources whose facts are `QuestionFacts`.

    Raises:
      BadInput: if a set, split or tokenizer does not exist, a record is no question, or an answer
        is not where it should be in its context.
    """
    text.check_length(length)
    loading.check_workers(workers)
    require(splits.get("train", train) == train, "config.data.train: given twice")
    facts = own.text_facts(tokenizer, folder)._replace(length=length)
    check_room(facts, stride, question_length)
    records = squad.read(name)
    sizes = dict(collections.Counter(question.split for question in records))
    ranges = {key: grammar.ranges(split, sizes, split_key(key)) for key, split in splits.items()}
    members = {
        part: [question for question in records if question.split == part]
        for part in dict.fromkeys(part for at in ranges.values() for part, _ in at)
    }
    texts = {part: [(each.text, each.context) for each in of] for part, of in members.items()}
    own.warn_of_repeated(ranges, texts, name)
    notes = collections.Counter()
    encoded = {
        part: _rows(of, facts, stride, question_length, notes) for part, of in members.items()
    }
    if notes := +notes:
        logging.warning("%s: %s", own.shown(name), inputs.said(notes))
    unanswerable = any(not question.answers for question in records)
    sources = {}
    for key, pieces in ranges.items():
        pieces = [(members[part][at], encoded[part].of(at)) for part, at in pieces]
        columns = {
            column: np.concatenate([rows.columns[column] for _, rows in pieces])
            for column in pieces[0][1].columns
        }
        counts = np.concatenate([rows.counts for _, rows in pieces])
        left = [question for questions, _ in pieces for question in questions]
        left = [question for question, count in zip(left, counts, strict=True) if count]
        require(bool(left), f"{split_key(key)}: no question of {brief(splits[key])} has a token")
        characters = [c for _, rows in pieces for c in rows.characters if c is not None]
        row_of = np.repeat(np.arange(len(left)), counts[counts > 0])
        first = np.concatenate([rows.first for _, rows in pieces])
        source = loading.from_arrays(columns, resident is not False)
        digest = hashlib.sha256(f"{source.fingerprint} {left}".encode()).hexdigest()[:16]
        known = QuestionFacts(facts, unanswerable, left, characters, row_of, first)
        sources[key] = source._replace(fingerprint=digest, facts=known)
    return sources


def check_room(facts: TextFacts, stride: int, question_length: int) -> None:
    """Raises `BadInput` unless windows of rows of `facts.length` tokens cover every context."""
    layout, length = facts.layouts[1], facts.length
    require(
        bool(layout.ids[0]),
        "config.data.tokenizer: its template of two texts begins with no token, such as [CLS], "
        "that could stand for no answer",
    )
    require(stride > 0, f"config.data.stride: {stride} is not positive")
    require(question_length > 0, f"config.data.question_length: {question_length} is not positive")
    room = length - len(layout.special) - question_length
    require(
        stride <= room,
        f"config.data.stride: {stride} would skip tokens: rows of {length} with questions of up to "
        f"{question_length} hold {room} tokens of a context; a longer config.data.length, or a "
        "shorter stride or question_length, will do",
    )


# -------------------------------------------------------------------------------------------- rows


def windows(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """The windows of a context, half-open ranges of its tokens that cover it.

    Args:
      tokens: T.
      room: the most tokens in a window.
      stride: tokens from the beginning of one to that of the next; at most `room`.
    """
    begins = range(0, max(tokens - room, 0) + stride, stride)
    return [(begin, min(begin + room, tokens)) for begin in begins]


def characters_of(context: str, offsets: list[tuple[int, int]]) -> np.ndarray:
    """i32[T, 2]: where each token of a context begins and ends, without white space around it."""
    made = np.array(offsets, np.int32).reshape(-1, 2)
    for i, (start, end) in enumerate(offsets):
        piece = context[start:end]
        if piece[:1].isspace() or piece[-1:].isspace():
            kept = len(piece) - len(piece.lstrip())
            made[i] = start + kept, max(end - len(piece) + len(piece.rstrip()), start + kept)
    return made


def covered(characters: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """The first and the last token that hold any of the characters [start, end); None if none
    does."""
    at = np.flatnonzero((characters[:, 1] > start) & (characters[:, 0] < end))
    return (int(at[0]), int(at[-1])) if len(at) else None


class Row(NamedTuple):
    """A question and a window of its context.

    Attributes:
      tokens, types: i64[L], with special tokens, as long as they are.
      context: the positions of the window, a half-open range.
      first: the number of its first token in the context.
    """

    tokens: np.ndarray
    types: np.ndarray
    context: tuple[int, int]
    first: int


def rows_of(question: list[int], context: list[int], facts: TextFacts, stride: int) -> list[Row]:
    """The rows of a question and a context, as ids: one for each window; see `windows`."""
    layout, rows = facts.layouts[1], []
    at = len(layout.ids[0]) + len(question) + len(layout.ids[1])
    room = facts.length - len(layout.special) - len(question)
    for begin, end in windows(len(context), room, stride):
        tokens, types = layout.row(question, context[begin:end])
        rows.append(Row(tokens, types, (at, at + end - begin), begin))
    return rows


class Rows(NamedTuple):
    """The rows of questions.

    Attributes:
      columns: {name: np[N, ...]}.
      first: i32[N], as in `QuestionFacts`.
      counts: i64 of each question, the number of its rows.
      characters: of each question, as in `QuestionFacts`; None if it has no rows.
    """

    columns: dict[str, np.ndarray]
    first: np.ndarray
    counts: np.ndarray
    characters: list[np.ndarray | None]

    def of(self, at: slice) -> "Rows":
        """Those of some of the questions."""
        bounds = np.cumsum([0, *self.counts])
        rows = slice(bounds[at.start], bounds[at.stop])
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Rows(columns, self.first[rows], self.counts[at], self.characters[at])


def _rows(
    questions: list[Question],
    facts: TextFacts,
    stride: int,
    question_length: int,
    notes: collections.Counter,
) -> Rows:
    plain = tokenizers.reading(facts)
    encode = lambda texts: dict(
        zip(texts, plain.encode_batch(texts, add_special_tokens=False), strict=True)
    )
    contexts = encode(list(dict.fromkeys(each.context for each in questions)))
    texts = encode(list(dict.fromkeys(each.text for each in questions)))
    places = {c: characters_of(c, encoding.offsets) for c, encoding in contexts.items()}
    lines, context, span, first, counts, characters = [], [], [], [], [], []
    for question in questions:
        tokens, here, answer = contexts[question.context].ids, places[question.context], None
        if question.answers:
            words, start = question.answers[0]
            answer = covered(here, start, start + len(words))
        if not tokens or (question.answers and answer is None):
            notes["question left out, as no token is of its answer or context"] += 1
            counts.append(0)
            characters.append(None)
            continue
        ids = texts[question.text].ids
        notes[f"question cut after {question_length} tokens"] += len(ids) > question_length
        rows = rows_of(ids[:question_length], tokens, facts, stride)
        for row in rows:
            end = row.first + row.context[1] - row.context[0]
            holds = answer is not None and row.first <= answer[0] and answer[1] < end
            shift = row.context[0] - row.first
            span.append([token + shift for token in answer] if holds else [0, 0])
            lines.append((row.tokens, row.types))
            context.append(row.context)
            first.append(row.first)
        counts.append(len(rows))
        characters.append(here)
    columns = own.rows_of(lines, facts)
    columns["context"] = np.array(context, np.int32).reshape(-1, 2)
    columns["span"] = np.array(span, np.int32).reshape(-1, 2)
    return Rows(columns, np.array(first, np.int32), np.array(counts), characters)


def empty(facts: TextFacts, unanswerable: bool, size: int) -> Source:
    """A set of `size` rows of zeros, in the right shapes, without questions."""
    pair, none = jax.ShapeDtypeStruct((2,), np.int32), np.zeros(0, np.int32)
    known = QuestionFacts(facts, unanswerable, [], [], none, none)
    return own.empty(own.row_spec(facts) | {"context": pair, "span": pair}, size, known)
