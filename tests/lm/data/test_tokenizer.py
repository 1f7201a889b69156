"""Tokenizers: the same for the same text, exact about bytes, and what published files make them."""

import hashlib
import json
import os
import subprocess
import sys

import corpus
import numpy as np
import pytest

from common.errors import BadInput
from lm.data import tokenizer

TIES = [" ".join(hashlib.sha256(bytes([i, j])).hexdigest()[:9] for j in range(200)) for i in (1, 2)]
TRAIN = """
import hashlib, sys
from lm.data import tokenizer
texts = sys.stdin.read().split("\\n")
for kind in tokenizer.KINDS:
    text = tokenizer.train(kind, 420, texts).to_str()
    print(hashlib.sha256(text.encode()).hexdigest())
"""


def words(seed: int = 0) -> list[str]:
    return [corpus.text(corpus.random.Random(seed), 40)]


@pytest.fixture(scope="module")
def bpe():
    return tokenizer.train("bpe", 320, words())


@pytest.fixture(scope="module")
def wordpiece():
    return tokenizer.train("wordpiece", 150, words())


def test_training_is_the_same_in_every_process_and_with_any_threads():
    """On texts with many pieces that are equally common, so that every tie has to be broken."""
    here = [
        hashlib.sha256(tokenizer.train(kind, 420, TIES).to_str().encode()).hexdigest()
        for kind in tokenizer.KINDS
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TRAIN],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for environment in (
            {"PYTHONHASHSEED": "1", "RAYON_NUM_THREADS": "1"},
            {"PYTHONHASHSEED": "2", "RAYON_NUM_THREADS": "5"},
            {"TOKENIZERS_PARALLELISM": "false"},
        )
    ]
    for process in processes:
        out, _ = process.communicate("\n".join(TIES), timeout=60)
        assert out.split() == here


def test_an_iterator_will_do(wordpiece):
    assert tokenizer.train("wordpiece", 150, iter(words())).to_str() == wordpiece.to_str()


def test_wordpiece_is_berts(wordpiece):
    assert [wordpiece.id_to_token(i) for i in range(5)] == list(tokenizer.SPECIAL)
    assert wordpiece.encode("Peace, NAÏVE!").tokens[0] == "[CLS]"
    tokens = wordpiece.encode("The naïve Congress", add_special_tokens=False).tokens
    assert "".join(tokens).replace("##", "") == "thenaivecongress"
    facts = tokenizer.facts(wordpiece)
    assert facts.vocab_size == 150 == len(facts.continues)
    assert facts.special == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "end": 3}
    assert facts.token_bytes is None
    for i, continues in enumerate(facts.continues):
        assert continues == wordpiece.id_to_token(i).startswith("##")
    assert wordpiece.encode("[MASK]").ids == [2, 4, 3]


def test_only_pieces_that_continue_words_are_taken_for_it():
    found = tokenizer.train("wordpiece", 60, ["ab, ab: ac"]).get_vocab()
    assert {token for token in found if len(token) == 3 and token[0] == "#"} == {"##b", "##c"}


TEXTS = [
    "Plain words, and more words.",
    "naïve – “quotes”\n\n\ttabs  and   runs \r\n",
    "汉字 🎉 e\u0301 \x00 \ufeff",
    "of the people <|endoftext|> of the nation",
]


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_come_back_and_are_counted(bpe, text):
    facts = tokenizer.facts(bpe)
    bpe.encode_special_tokens = True
    ids = bpe.encode(text).ids
    assert bpe.decode(ids, skip_special_tokens=False).encode() == text.encode()
    assert facts.token_bytes[ids].sum() == len(text.encode())


def test_byte_level_is_gpt2s(bpe):
    facts = tokenizer.facts(bpe)
    assert facts.special["end"] == 0 == bpe.token_to_id("<|endoftext|>")
    assert facts.token_bytes[0] == 0
    assert not facts.continues[0]
    assert (np.sort(facts.token_bytes)[:257] == [0] + [1] * 256).all()
    pieces = bpe.encode(" the the\nthe").ids
    begins = [not facts.continues[i] for i in pieces]
    assert begins == [piece[0] in "ĠĊ" for piece in bpe.encode(" the the\nthe").tokens]


@pytest.mark.parametrize(("kind", "least"), [("wordpiece", 40), ("bpe", 257)])
def test_a_vocabulary_that_cannot_hold_the_characters_is_refused(kind, least):
    with pytest.raises(BadInput, match=r"^config\.data\.vocab_size: 30 is too small: .* \d+$") as e:
        tokenizer.train(kind, 30, words())
    assert int(str(e.value).split()[-1]) == pytest.approx(least, abs=12 * (kind == "wordpiece"))
    with pytest.raises(BadInput, match="unknown 'bp'"):
        tokenizer.train("bp", 1000, words())


def save(made, folder, kind: str):
    """As published models come: a tokenizer.json, a vocab.txt, or vocab.json with merges.txt."""
    folder.mkdir(exist_ok=True)
    model = json.loads(made.to_str())["model"]
    if kind == "json":
        made.save(str(folder / "tokenizer.json"))
    elif kind == "txt":
        vocab = sorted(model["vocab"], key=model["vocab"].get)
        (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    else:
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
        (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    return folder


@pytest.mark.parametrize("kind", ["json", "txt"])
def test_wordpiece_is_loaded_from_its_files(wordpiece, tmp_path, kind):
    folder = save(wordpiece, tmp_path / kind, kind)
    assert tokenizer.has_files(folder)
    for path in (folder, next(folder.iterdir())):
        loaded = tokenizer.load(path)
        text = "The Union, and [MASK] of façades"
        assert loaded.encode(text).tokens == wordpiece.encode(text).tokens
        assert tokenizer.facts(loaded).special == tokenizer.facts(wordpiece).special


def test_vocab_txt_may_keep_case(wordpiece, tmp_path):
    folder = save(wordpiece, tmp_path, "txt")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert tokenizer.load(folder).encode("The", add_special_tokens=False).tokens == ["[UNK]"]


def test_byte_level_is_loaded_from_its_files(bpe, tmp_path):
    loaded = tokenizer.load(save(bpe, tmp_path / "gpt2", "merges"))
    for text in TEXTS[:3]:
        assert loaded.encode(text).ids == bpe.encode(text).ids
    ours, theirs = tokenizer.facts(bpe), tokenizer.facts(loaded)
    np.testing.assert_array_equal(ours.token_bytes, theirs.token_bytes)
    np.testing.assert_array_equal(ours.continues, theirs.continues)


def test_what_is_loaded_neither_pads_nor_truncates(wordpiece, tmp_path):
    copy = tokenizer.Tokenizer.from_str(wordpiece.to_str())
    copy.enable_padding(length=128)
    copy.enable_truncation(4)
    assert len(tokenizer.load(save(copy, tmp_path, "json")).encode("the union of states").ids) == 6


def test_files_that_are_no_tokenizer_are_one_line(tmp_path):
    with pytest.raises(BadInput, match="no such file or folder"):
        tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"has none of the files that are read: a tokenizer\.json"):
        tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}\n')
    with pytest.raises(BadInput, match=r"^config\.data\.tokenizer: .* cannot be read: [^\n]*$"):
        tokenizer.load(tmp_path)
