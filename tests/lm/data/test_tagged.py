"""Tagged sentences: every word has its tag, at its first token; and files of sentences."""

import itertools
import json
import logging
import random

import corpus
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from common.errors import BadInput
from lm.data import tagged
from lm.data import tokenizer as tokenizers

COLUMNS = """-DOCSTART- -X- O

EU NNP B-ORG
rejects VBZ O

Peter NNP B-PER
Blackburn NNP I-PER
"""
CONLLU = """# text = vámonos al mar .
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\t_\t_\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\t_\t_\t1\tobj\t_\t_
3\t#\tal\tADP\t_\t_\t1\tobl\t_\t_
3.1\tgo\tgo\tVERB\t_\t_\t_\t_\t_\t_
"""


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory):
    return corpus.tokenizer(tmp_path_factory.mktemp("tagged"), "wordpiece", 300)


def load(name: str, tokenizer: str, split: str = "mine", length: int = 24):
    return tagged.load_sources({"all": split}, name=name, tokenizer=tokenizer, length=length)["all"]


def write(path, *entries) -> str:
    path.write_text("".join(json.dumps({"split": "mine"} | e) + "\n" for e in entries))
    return f"file:{path}"


def tags_of(source) -> list[list[str]]:
    """The tags of each sentence, row by row joined."""
    rows, made = source.read(np.arange(source.size)), []
    for label, begins in zip(rows["label"], rows["begins"], strict=True):
        made += [[]] if begins else []
        made[-1] += [source.facts.classes[i] for i in label[label >= 0]]
    return made


def test_the_first_token_of_a_word_has_its_tag(tmp_path, wordpiece):
    words, tags = ["Peace", "zzq", "of", "the-army"], ["O", "X", "B", "C"]
    source = load(write(tmp_path / "a.jsonl", {"tokens": words, "tags": tags}), wordpiece)
    facts, row = source.facts, source.read([0])
    alone = [facts.tokenizer.encode(word, add_special_tokens=False).ids for word in words]
    assert max(map(len, alone)) > 2
    ids = [2, *itertools.chain(*alone), 3]
    expected = [-1, *(i for one, tag in zip(alone, tags, strict=True)
                      for i in [facts.classes.index(tag), *[-1] * (len(one) - 1)]), -1]  # fmt: skip
    assert row["tokens"][0, : len(ids)].tolist() == ids
    assert row["label"][0, : len(ids)].tolist() == expected
    assert row["segments"][0].tolist() == [1] * len(ids) + [0] * (24 - len(ids))
    assert (row["label"][0, len(ids) :] == -1).all()


@pytest.mark.parametrize("length", [8, 9, 24])
def test_a_long_sentence_is_divided_between_words(tmp_path, wordpiece, length, caplog):
    rng = random.Random(length)
    entries = []
    for count in (40, 1, 13):
        words = [rng.choice([*corpus.WORDS, "of", "the", "zzq"]) for _ in range(count)]
        entries.append({"tokens": words, "tags": [rng.choice("NVO") for _ in words]})
    with caplog.at_level(logging.WARNING):
        source = load(write(tmp_path / "a.jsonl", *entries), wordpiece, length=length)
    assert tags_of(source) == [entry["tags"] for entry in entries]
    rows = source.read(np.arange(source.size))
    counts = np.diff([*np.flatnonzero(rows["begins"]), source.size])
    times = {1: "once", 2: "2 times"}[(counts > 1).sum()]
    assert f"sentence longer than a row divided between words ({times})" in caplog.text
    assert (rows["segments"].sum(axis=1) <= length).all()
    assert (rows["label"][:, 1] >= 0).all()  # a row begins with a word
    text = " ".join(entries[0]["tokens"])
    whole = source.facts.tokenizer.encode(text, add_special_tokens=False).ids
    here = np.flatnonzero(rows["begins"])[1]
    joined = [t for row in rows["tokens"][:here] for t in row.tolist() if t not in (0, 2, 3)]
    cut = "word longer than a row cut" in caplog.text
    alone = [source.facts.tokenizer.encode(word, add_special_tokens=False).ids
             for each in entries for word in each["tokens"]]  # fmt: skip
    assert cut == (max(map(len, alone)) > length - 2)
    assert joined == whole if not cut else len(joined) < len(whole)


def byte_level(folder) -> str:
    """A byte-level BPE of single characters that knows the words that begin with a space."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [*("[PAD]", "[CLS]", "[SEP]"), *alphabet, "Ġt", "Ġth", "Ġthe"]
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(known)},
                                [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e")]))  # fmt: skip
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(known[:3])
    made.save(str(folder / "tokenizer.json"))
    return str(folder)


def test_words_are_tokens_of_a_text(tmp_path):
    """Of byte-level BPE, whose tokens hold the space before a word, and several of which may be of
    one character."""
    name = write(tmp_path / "a.jsonl", {"tokens": ["the", "the", "é"], "tags": ["A", "B", "C"]})
    source = load(name, byte_level(tmp_path))
    vocab = source.facts.tokenizer.get_vocab()
    row = source.read([0])
    line = ["[CLS]", "t", "h", "e", "Ġthe", "Ġ", "Ã", "©", "[SEP]"]
    assert row["tokens"][0, :9].tolist() == [vocab[token] for token in line]
    assert row["label"][0, :9].tolist() == [-1, 0, -1, -1, 1, 2, -1, -1, -1]


def test_a_word_without_a_token_is_unknown(tmp_path, wordpiece, caplog):
    words, tags = ["the", "\u200b", "war", ""], ["A", "B", "C", "D"]
    with caplog.at_level(logging.WARNING):
        source = load(write(tmp_path / "a.jsonl", {"tokens": words, "tags": tags}), wordpiece)
    row, token = source.read([0]), source.facts.tokenizer.token_to_id
    assert row["tokens"][0, :6].tolist() == [2, token("the"), 1, token("war"), 1, 3]
    assert row["label"][0, :6].tolist() == [-1, 0, 1, 2, 3, -1]
    assert "word without a token read as the unknown token (2 times)" in caplog.text


def test_columns_and_a_folder_of_parts(tmp_path, wordpiece, caplog):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.txt").write_text(COLUMNS)
    (folder / "dev.conll").write_text("EU\tB-ORG\nthe war\tO\n\n10\u00a0000  B-NUM\n\u3000 O\n")
    (folder / "README.md").write_text("Nothing.")
    splits = {"train": "train", "valid": "valid"}
    sources = tagged.load_sources(splits, name=f"folder:{folder}", tokenizer=wordpiece)
    assert sources["train"].facts.classes == ("B-NUM", "B-ORG", "B-PER", "I-PER", "O")
    assert "set: 1 of 5 classes has no example in 'train', 'B-NUM' first" in caplog.text
    assert tags_of(sources["train"]) == [["B-ORG", "O"], ["B-PER", "I-PER"]]
    assert tags_of(sources["valid"]) == [["B-ORG", "O"], ["B-NUM", "O"]]
    (folder / "more.txt").write_text(COLUMNS)
    with pytest.raises(BadInput, match=r"more\.txt is not named for one part"):
        tagged.load_sources(splits, name=f"folder:{folder}", tokenizer=wordpiece)


def test_universal_dependencies(tmp_path, wordpiece):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "es-ud-train.conllu").write_text(CONLLU)
    source = load(f"folder:{folder}", wordpiece, split="train")
    assert tags_of(source) == [["VERB", "PRON", "ADP"]]


def test_sentences_without_splits_are_divided_by_a_hash(tmp_path, wordpiece):
    name = corpus.tagged(tmp_path, 60)
    parts = ("train", "valid", "test")
    sizes = {key: load(name, wordpiece, split=key, length=64).size for key in parts}
    assert min(sizes.values()) > 0
    assert sum(sizes.values()) == 60
    assert load(name, wordpiece, split="train[:7]").size == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"tokens": ["a", "b"], "tags": ["O"]}', "line 1: it has 2 tokens and 1 tags"),
        ('{"tokens": "a b", "tags": "O O"}', "line 1: 'tokens' is a string, not a list"),
        ('{"words": ["a"], "tags": ["O"]}', "line 1, is not a sentence .* its columns are 'words'"),
        ('{"tokens": ["a"], "tags": [null]}', "line 1: the label is null"),
        ('{"tokens": ["a"], "tags": ["O"]}\n{"tokens": ["a"], "tags": [1]}', "of several kinds"),
        ('{"tokens": [1], "tags": ["O"]}', "line 1: 'tokens' is a whole number, not a string"),
        ('{"tokens": [], "tags": []}', "has no sentences"),
        ('{"tokens": ["a"], "tags": ["O"]}', "too few different texts"),
    ],
)
def test_what_is_no_sentence_is_named(tmp_path, wordpiece, text, message):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(BadInput, match=rf"^config\.data\.name: .*a\.jsonl.*{message}") as error:
        load(f"file:{tmp_path / 'a.jsonl'}", wordpiece)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb\n", "line 2, has 1 column, and the lines before it 2"),
        ("a\n", "line 1, has 1 column, not a word and its tag"),
        ("a X O\nb O\n", "line 2, has 2 columns, and the lines before it 3"),
        ("a\t\n", "line 1: the label is empty"),
    ],
)
def test_a_line_in_columns_is_named(tmp_path, wordpiece, text, message):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(BadInput, match=rf"^config\.data\.name: .*a\.txt, {message}"):
        load(f"file:{tmp_path / 'a.txt'}", wordpiece)


def test_a_tokenizer_that_leaves_nothing_of_a_word_is_named(tmp_path):
    source = tokenizers.facts(tokenizers.load(byte_level(tmp_path)))
    encoding = source.tokenizer.encode(" a", add_special_tokens=False)
    with pytest.raises(BadInput, match="here: the tokenizer leaves nothing of the word ''"):
        tagged.tokens_of(("", "a"), encoding, source, "here: ")
