"""SentencePiece's model files (Kudo & Richardson 2018), such as T5's spiece.model, as tokenizers.

The file is a protocol buffer of which five fields count, so it is read here without a package for
either. Unigram models are read; of the other kinds a tokenizer.json is needed.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
)

from common import inputs
from common.errors import BadInput, require

SPACE = "▁"
UNIGRAM, KINDS = 1, {1: "unigram", 2: "BPE", 3: "words", 4: "characters"}
UNKNOWN, BYTE = 2, 6  # types of pieces
TOP = {1: "piece", 2: "training", 3: "normalizer"}  # fields of the file


class Model(NamedTuple):
    """What a model file says.

    Attributes:
      pieces: (text, logarithm of its probability, type) in the order of their ids.
      kind: a key of `KINDS`.
      charsmap: the normalizer's rules, compiled; b"" is none.
      prefix: whether a space is put before a text.
      trimmed: whether spaces around a text, and all but one of several, are dropped.
    """

    pieces: list[tuple[str, float, int]]
    kind: int
    charsmap: bytes
    prefix: bool
    trimmed: bool


def read(where: str, path: epath.Path) -> Model:
    """Reads a model file.

    Args:
      where: begins messages.
      path: the file.

    Raises:
      BadInput: if it is none.
    """
    data, pieces, parts = inputs.contents(where, path), [], {}
    try:
        for number, value in _fields(data):
            if TOP.get(number) == "piece":
                piece = dict(_fields(value))
                (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
                pieces.append((piece[1].decode(), score, piece.get(3, 1)))
            elif number in TOP:
                parts[TOP[number]] = dict(_fields(value))
        training, normalizer = parts.get("training", {}), parts.get("normalizer", {})
        charsmap = bytes(normalizer.get(2, b""))
    except (BadInput, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise BadInput(f"{where}: {path} is no SentencePiece model: it is damaged") from error
    require(bool(pieces), f"{where}: {path} is no SentencePiece model: it has no pieces")
    return Model(
        pieces,
        training.get(3, UNIGRAM),
        charsmap,
        bool(normalizer.get(3, True)),
        bool(normalizer.get(4, True)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of the fields of a protocol buffer; numbers of fixed size are bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(kind)
            if kind == 2:
                size, at = _varint(data, at)
            require(size is not None and at + size <= len(data), "no such field")
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(a number of seven bits a byte, the place after it)."""
    value = 0
    for shift in range(0, 70, 7):
        require(at < len(data), "cut short")
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise BadInput("a number without an end")


def load(where: str, path: epath.Path, sentinels: int = 0) -> Tokenizer:
    """The tokenizer of a model file, which cuts texts as SentencePiece does.

    Args:
      where: begins messages.
      path: the file.
      sentinels: how many of T5's `<extra_id_0>`, … follow the pieces, the last one first.

    Raises:
      BadInput: as `read`, or for another kind of model than unigram.
    """
    require(0 <= sentinels <= 10_000, f"{where}: extra_ids: {sentinels} is no number of tokens")
    model = read(where, path)
    require(
        model.kind == UNIGRAM,
        f"{where}: {path} is a SentencePiece model of {KINDS.get(model.kind, 'another kind')}, and "
        "only unigram ones are read; save its tokenizer.json (save_pretrained of transformers)",
    )
    unknown = [i for i, piece in enumerate(model.pieces) if piece[2] == UNKNOWN]
    require(len(unknown) == 1, f"{where}: {path} has {len(unknown)} pieces for what is unknown")
    scored = [(text, score) for text, score, _ in model.pieces]
    bytes_ = any(kind == BYTE for *_, kind in model.pieces)
    made = Tokenizer(models.Unigram(scored, unk_id=unknown[0], byte_fallback=bytes_))
    steps = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.trimmed:
        steps += [
            normalizers.Replace(Regex(r"\A +| +\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    steps += [normalizers.Prepend(SPACE)] * model.prefix + [normalizers.Replace(" ", SPACE)]
    made.normalizer = normalizers.Sequence(steps)
    spaces = decoders.Metaspace(SPACE, prepend_scheme="always" if model.prefix else "never")
    made.decoder = decoders.Sequence([decoders.ByteFallback(), spaces]) if bytes_ else spaces
    made.add_special_tokens([f"<extra_id_{i}>" for i in reversed(range(sentinels))])
    return made


def close(tokenizer: Tokenizer, end: str | None) -> None:
    """Sets the template: each text is followed by the token `end`, or by nothing if it is None."""
    if end is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=["$A", end],
            pair=["$A", end, "$B:1", f"{end}:1"],
            special_tokens=[(end, tokenizer.token_to_id(end))],
        )
