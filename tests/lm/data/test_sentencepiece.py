"""SentencePiece's model files: read from bytes written here, and cut as the scores say."""

import itertools
import math
import struct

import pytest

from common.errors import BadInput
from lm.data import tokenizer

NORMAL, UNKNOWN, CONTROL = 1, 2, 3
PIECES = [("<pad>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN)]
WORDS = ["▁", "a", "b", "c", "▁a", "▁ab", "bc", "ab", "abc", "▁b", "ca"]
PIECES += [(word, -1.0 - 0.37 * i % 3, NORMAL) for i, word in enumerate(WORDS)]


def varint(n: int) -> bytes:
    more = n >> 7
    return bytes([n & 127 | 128 * bool(more)]) + (varint(more) if more else b"")


def field(number: int, value) -> bytes:
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def model_file(kind: int = 1, trimmed: bool = True, pieces=PIECES) -> bytes:
    listed = [
        field(1, field(1, text.encode()) + field(2, score) + field(3, type_))
        for text, score, type_ in pieces
    ]
    normalizer = field(1, b"identity") + field(3, 1) + field(4, int(trimmed))
    return b"".join(listed) + field(2, field(3, kind) + field(4, 14)) + field(3, normalizer)


def best(text: str) -> list[str]:
    """The most probable way to cut a text without unknown characters, of all ways."""
    scores = {piece: score for piece, score, kind in PIECES if kind == NORMAL}
    text, ways = "▁" + text.replace(" ", "▁"), []
    for cuts in itertools.product((False, True), repeat=len(text) - 1):
        at = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(at)]
        ways.append((sum(scores.get(piece, -math.inf) for piece in pieces), pieces))
    return max(ways)[1]


def loaded(folder, contents: bytes, name: str = "spiece.model"):
    (folder / name).write_bytes(contents)
    return tokenizer.load(folder)


def test_texts_are_cut_as_the_scores_say(tmp_path):
    made = loaded(tmp_path, model_file())
    for text in ("abc", "a bc ca", "cab abcab", "bcbca"):
        assert made.encode(text).tokens == [*best(text), "</s>"]
        assert made.decode(made.encode(text).ids) == text
    assert made.encode("  a  \t b ").tokens[0] == made.encode("a").tokens[0]
    assert made.encode("a   b ").ids == made.encode("a b").ids
    assert made.encode("aéb").tokens.count("<unk>") == 1 or "é" in made.encode("aéb").tokens
    assert made.encode("aéb").ids.count(2) == 1
    # T5's sentinels: the first has the last id.
    assert made.token_to_id("<extra_id_0>") == len(PIECES) + 99
    assert made.token_to_id("<extra_id_99>") == len(PIECES)
    facts = tokenizer.facts(made)
    assert (facts.special["end"], facts.special["pad"], facts.end) == (1, 0, (1,))


def test_a_file_that_is_none_is_refused_in_a_line(tmp_path):
    whole = model_file()
    odd = {
        "damaged": whole[: len(whole) // 2],
        "is no SentencePiece model": b"a text, not a model",
        "it has no pieces": field(2, field(3, 1)),
        "is a SentencePiece model of BPE": model_file(kind=2),
        "0 pieces for what is unknown": model_file(pieces=PIECES[:2]),
    }
    for message, contents in odd.items():
        with pytest.raises(BadInput, match=message) as error:
            loaded(tmp_path, contents)
        assert "\n" not in str(error.value)
    (tmp_path / "spiece.model").unlink()
    with pytest.raises(BadInput, match=r"source\.spm and target\.spm of Marian"):
        loaded(tmp_path, whole, "source.spm")
