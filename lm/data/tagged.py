"""Tagged sentences, a class for each word (entities, parts of speech), as Sources.

    file:PATH        a .jsonl or .parquet (see `common.data.tables`) whose records have `tokens`, a
                     list of words, and `tags`, one for each, and may have a `split`; a .conllu; or
                     any other text in columns, as of CoNLL: the word first on its line, the tag
                     last, and a blank line between sentences
    folder:DIR       such files, each named for its part: `train.conll`, `dev.conll`, `test.conll`

Splits are those of `lm.data.own`, in TFDS's notation, in which `test[:100]` is 100 sentences.

A sentence is tokenized as text, its words joined by spaces, so that its tokens are those that the
encoder was pretrained on. The first token of a word carries its tag, and the others none.

Letters: L length, N rows, W words.
"""

import collections
import logging
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from tokenizers import Encoding

from common import inputs
from common.data import labels as numbering
from common.data import loading, tables, textfiles
from common.data import splits as grammar
from common.errors import require
from common.task import Source, split_key
from lm.data import own, text
from lm.data import tokenizer as tokenizers
from lm.data.own import WHERE

DOCUMENT = "-DOCSTART-"  # the word of a line that begins a document, in CoNLL's files
WORDLESS = "word without a token read as the unknown token"


class Sentence(NamedTuple):
    """Words, a tag for each, the split that the record or file names, if any, and the line of each
    word, or of all."""

    words: tuple[str, ...]
    tags: tuple
    split: str | None
    places: tuple[str, ...]


def load_sources(
    splits: dict[str, str],
    *,
    name: str,
    train: str = "train",
    tokenizer: str,
    length: int = 128,
    folder: str = "",
    resident: bool | None = None,
    workers: int = 0,
) -> dict[str, Source]:
    """The section `data` of tagging.

    Rows: tokens[L] (u16, or i32 for more than 65,536 tokens), segments u8[L] (0 for padding),
    types u8[L], label i32[L] (the class of the word whose first token this is; -1 on other tokens),
    begins u8[] (0 if the row goes on with the sentence of the one before). A sentence that is
    longer than a row is divided between words, and counted in a warning.

    Args:
      splits: {name of the Source: split}; its "train", if any, must equal `train`.
      name: the data set: "file:PATH" (your own .jsonl, .parquet, .conllu or columns of CoNLL) or
        "folder:DIR" (such files, named train, dev and test).
      train: the split to train on, e.g. "train" or "train+valid".
      tokenizer: a tokenizer's file or folder, the name of prepared weights such as "minilm", or the
        workdir of a run.
      length: L, the number of tokens in a row.
      folder: folder of prepared weights; "" is $TOUCHSTONE_DATA or ~/.cache/touchstone/data.
      resident: False keeps the rows off the device.
      workers: number of processes that read a set that is not resident; 0 uses threads.

    Returns:
      Sources whose facts are `lm.data.tokenizer.TextFacts`, with the tags as classes.

    Raises:
      BadInput: if a set, split or tokenizer does not exist, or a line is not of a tagged sentence.
    """
    text.check_length(length)
    loading.check_workers(workers)
    require(splits.get("train", train) == train, "config.data.train: given twice")
    facts = own.text_facts(tokenizer, folder)._replace(length=length)
    sentences, labels, classes = read(name)
    facts, notes = facts._replace(classes=classes), collections.Counter()
    named = np.array([sentence.split for sentence in sentences])
    sizes = {str(split): int((named == split).sum()) for split in np.unique(named)}
    ranges = {key: grammar.ranges(split, sizes, split_key(key)) for key, split in splits.items()}
    used = dict.fromkeys(part for at in ranges.values() for part, _ in at)
    members = {part: np.flatnonzero(named == part) for part in used}
    texts = {part: [(" ".join(sentences[i].words),) for i in members[part]] for part in used}
    own.warn_of_repeated(ranges, texts, name)
    rows = {
        part: _rows([sentences[i] for i in at], [labels[i] for i in at], facts, notes)
        for part, at in members.items()
    }
    if notes := +notes:
        logging.warning("%s: %s", own.shown(name), inputs.said(notes))
    sources = {}
    for key, pieces in ranges.items():
        pieces = [(*rows[part], at) for part, at in pieces]
        pieces = [(columns, slice(*bounds[[at.start, at.stop]])) for columns, bounds, at in pieces]
        arrays = {
            column: np.concatenate([columns[column][at] for columns, at in pieces])
            for column in pieces[0][0]
        }
        sources[key] = loading.from_arrays(arrays, resident is not False, facts)
    if "train" in sources:
        numbering.say_absent(sources["train"].labels(), classes, own.shown(name), splits["train"])
    return sources


# ------------------------------------------------------------------------------------------- files


def read(name: str) -> tuple[list[Sentence], list[np.ndarray], tuple[str, ...]]:
    """(sentences that each have a split, the numbers of their tags, the names of the tags).

    Args:
      name: "file:PATH" or "folder:DIR".

    Raises:
      BadInput: if a file cannot be read, or a line is not of a tagged sentence.
    """
    notes, sentences, shown = collections.Counter(), [], own.shown(name)
    for file in own.files(name):
        of_table = textfiles.kind_of(file.path)[0] in (*tables.LINES, ".parquet")
        for sentence in (_records if of_table else _columns)(file, shown, notes):
            if sentence.words:
                sentences.append(sentence)
            else:
                notes["sentence without words left out"] += 1
    require(bool(sentences), f"{shown} has no sentences")
    places = [sentence.places[0] for sentence in sentences]
    own.check_same([each.split is not None for each in sentences], "split", places, shown)
    words = [place for each in sentences for place in each.places]
    tags = [tag for sentence in sentences for tag in sentence.tags]
    numbers, classes = numbering.numbered(tags, shown, words.__getitem__, numbers=False)
    examples = [(each.split, (" ".join(each.words),)) for each in sentences]
    splits = own.assign_splits(examples, shown, notes)
    if notes:
        logging.warning("%s: %s", shown, inputs.said(notes))
    ends = np.cumsum([len(sentence.words) for sentence in sentences])[:-1]
    sentences = [each._replace(split=split) for each, split in zip(sentences, splits, strict=True)]
    return sentences, np.split(numbers, ends), classes


def _records(file: own.File, shown: str, notes: collections.Counter) -> Iterator[Sentence]:
    for number, record in tables.rows(WHERE, file.path, notes):
        place = file.place(number)
        where = f"{shown}, {place}"
        values = {}
        for key in ("tokens", "tags"):
            like = '{"tokens": ["…"], "tags": ["…"]}'
            lacking = f"{where}, is not a sentence like {like}"
            require(key in record, f"{lacking}{tables.lacking(file.path, record, key)}")
            spelled = inputs.spelled_type(record[key])
            require(isinstance(record[key], list), f"{where}: {key!r} is {spelled}, not a list")
            values[key] = record[key]
        words, tags = values["tokens"], values["tags"]
        require(
            len(words) == len(tags),
            f"{where}: it has {len(words)} tokens and {len(tags)} tags; each needs one",
        )
        for word in words:
            own.check_string(word, "tokens", where)
        split = own.split_of(record, where, file.part)
        yield Sentence((*words,), (*tags,), split, (place,) * len(words))


def _columns(file: own.File, shown: str, notes: collections.Counter) -> Iterator[Sentence]:
    """The sentences of a file in columns: separated by tabs in a line that has one, else by
    spaces."""
    universal = textfiles.kind_of(file.path)[0] == ".conllu"  # its forms and universal tags
    count, words, tags, places = None, [], [], []
    for number, line in enumerate(textfiles.lines(WHERE, file.path, notes), 1):
        place = file.place(number)
        line = line.strip(" \r\n")
        if not line.strip():
            if words:
                yield Sentence((*words,), (*tags,), file.part, (*places,))
            words, tags, places = [], [], []
            continue
        cells = line.split("\t") if "\t" in line else [cell for cell in line.split(" ") if cell]
        if cells[0] == DOCUMENT or (universal and line.startswith("#")):
            continue
        require(
            len(cells) > 1 and count in (None, len(cells)),
            f"{shown}, {place}, has {len(cells)} column{'s' * (len(cells) > 1)}, "
            + (f"and the lines before it {count}" if count else "not a word and its tag"),
        )
        count = len(cells)
        if universal:
            require(count == 10, f"{shown}, {place}, has {count} columns; a .conllu has 10")
            if not cells[0].isdigit():  # several words in one, or a word that is not there
                continue
            cells = cells[1], cells[3]
        words.append(cells[0])
        tags.append(cells[-1])
        places.append(place)
    if words:
        yield Sentence((*words,), (*tags,), file.part, (*places,))


# -------------------------------------------------------------------------------------------- rows


class Tokens(NamedTuple):
    """The tokens of a sentence, and the number of the first one of each of its W words."""

    ids: list[int]
    first: np.ndarray


def tokens_of(
    words: tuple[str, ...], encoding: Encoding, facts: tokenizers.TextFacts, where: str = ""
) -> Tokens:
    """Matches the words of a sentence with its tokens. A token belongs to the word in which it
    begins, white space before it left aside; a word without one gets the unknown token.

    Args:
      words: W words.
      encoding: of " ".join(words), without special tokens.
      facts: of the tokenizer.
      where: begins the message.

    Raises:
      BadInput: for such a word, if the tokenizer has no unknown token.
    """
    sentence, ids = " ".join(words), list(encoding.ids)
    begins = np.cumsum([0, *(len(word) + 1 for word in words[:-1])])
    at = [start + _spaces(sentence[start:end]) for start, end in encoding.offsets]
    owner = np.searchsorted(begins, at, side="right") - 1
    owner = np.maximum.accumulate(owner) if len(owner) else owner
    for word in sorted(set(range(len(words))) - set(owner.tolist()), reverse=True):
        unknown = facts.special["unk"]
        require(
            unknown is not None,
            f"{where}the tokenizer leaves nothing of the word {words[word]!r}; remove it",
        )
        place = int(np.searchsorted(owner, word))
        ids.insert(place, unknown)
        owner = np.insert(owner, place, word)
    return Tokens(ids, np.searchsorted(owner, np.arange(len(words))))


def _spaces(piece: str) -> int:
    return len(piece) - len(piece.lstrip())


class Row(NamedTuple):
    """A row of a sentence, or of a part of it.

    Attributes:
      tokens, types: i64[L], with special tokens, as long as they are.
      word: i64[L], the number of the word whose first token this is; -1 on other tokens.
      cut: whether tokens of its last word are left out.
    """

    tokens: np.ndarray
    types: np.ndarray
    word: np.ndarray
    cut: bool


def rows_of(tokens: Tokens, facts: tokenizers.TextFacts) -> list[Row]:
    """Divides a sentence between words into rows of at most `facts.length` tokens, each as full as
    can be. A word that is longer than a row is cut."""
    layout = facts.layouts[0]
    room, before = facts.length - len(layout.special), len(layout.ids[0])
    ends, rows, first = [*tokens.first[1:].tolist(), len(tokens.ids)], [], 0
    while first < len(ends):
        begin, last = int(tokens.first[first]), first + 1
        while last < len(ends) and ends[last] - begin <= room:
            last += 1
        line, types = layout.row(tokens.ids[begin : ends[last - 1]][:room])
        word = np.full(len(line), -1)
        word[tokens.first[first:last] - begin + before] = np.arange(first, last)
        rows.append(Row(line, types, word, ends[last - 1] - begin > room))
        first = last
    return rows


def _rows(
    sentences: list[Sentence],
    labels: list[np.ndarray],
    facts: tokenizers.TextFacts,
    notes: collections.Counter,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(columns of the rows, bounds: the rows of sentence i are those from bounds[i] to bounds[i +
    1])."""
    plain = tokenizers.reading(facts)
    texts = [" ".join(each.words) for each in sentences]
    encodings = plain.encode_batch(texts, add_special_tokens=False)
    made, numbers, bounds = [], [], [0]
    for sentence, label, encoding in zip(sentences, labels, encodings, strict=True):
        tokens = tokens_of(sentence.words, encoding, facts, f"{WHERE}: {sentence.places[0]}: ")
        rows = rows_of(tokens, facts)
        notes[WORDLESS] += len(tokens.ids) - len(encoding.ids)
        notes["sentence longer than a row divided between words"] += len(rows) > 1
        notes["word longer than a row cut"] += sum(row.cut for row in rows)
        made += rows
        numbers += [np.where(row.word < 0, -1, label[row.word]) for row in rows]
        bounds.append(len(made))
    columns = own.rows_of([(row.tokens, row.types) for row in made], facts)
    columns["label"] = np.full((len(made), facts.length), -1, np.int32)
    for row, label in enumerate(numbers):
        columns["label"][row, : len(label)] = label
    columns["begins"] = np.zeros(len(made), np.uint8)
    columns["begins"][bounds[:-1]] = 1
    return columns, np.array(bounds)


def empty(facts: tokenizers.TextFacts, size: int) -> Source:
    """A set of `size` rows of zeros, in the right shapes."""
    more = {
        "label": jax.ShapeDtypeStruct((facts.length,), np.int32),
        "begins": jax.ShapeDtypeStruct((), np.uint8),
    }
    return own.empty(own.row_spec(facts) | more, size, facts)
