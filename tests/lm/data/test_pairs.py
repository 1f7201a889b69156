"""Rows of pairs: every pair is in exactly one row, as it would be alone, whatever the packing."""

import json
import pickle
import random

import corpus
import numpy as np
import pytest

from common.errors import BadInput
from lm.data import packing, pairs, trained

KINDS = {"tokenizer": "characters", "target_tokenizer": "words"}
SIZES = {"length": 16, "target_length": 12}


def write(path, *sides) -> str:
    """A set of the splits "train" and "test", each a list of pairs."""
    rows = [
        {"source": a, "target": b, "split": split}
        for split, own in zip(("train", "test"), sides, strict=True)
        for a, b in own
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return f"pairs:{path}"


def load(name: str, **settings):
    splits = {"train": "train", "test": "test"}
    return pairs.load_sources(splits, **({"name": name} | KINDS | SIZES | settings))


def spelled(source) -> list[tuple[str, str]]:
    """The pairs that the rows of a set hold, by their segments."""
    facts, rows, found = source.facts, source.read(np.arange(source.size)), []
    for row in range(source.size):
        one = {name: array[row] for name, array in rows.items()}
        assert (one["source"][one["source_segments"] == 0] == facts.pads[0]).all()
        assert (one["tokens"][one["segments"] == 0] == facts.pads[1]).all()
        for segment in range(1, one["segments"].max() + 1):
            here = one["segments"] == segment
            read, written = one["tokens"][here], one["targets"][here]
            assert read[0] == facts.start
            assert written[-1] == facts.end
            assert (read[1:] == written[:-1]).all()
            ids = one["source"][one["source_segments"] == segment]
            assert ids[-1] == facts.source.special["end"]
            sides = (facts.source, ids[:-1]), (facts.target, written[:-1])
            found.append(
                tuple(of.tokenizer.decode(x.tolist(), skip_special_tokens=False) for of, x in sides)
            )
        assert one["source_segments"].max() == one["segments"].max()
    return found


def test_rows_hold_every_pair_once(tmp_path):
    train, test = load(corpus.pairs(tmp_path, 400)).values()
    known = [json.loads(line) for line in (tmp_path / "pairs_400.jsonl").open()]
    known = {(each["source"], each["target"]) for each in known if len(each["source"]) < 12}
    held = spelled(test)
    assert held == list(test.facts.texts)
    assert set(spelled(train)) | set(held) <= known
    assert train.size < len(spelled(train)) / 2  # several in a row
    assert len(spelled(train)) > 300
    sizes = [len(source) for source, _ in held]
    assert sizes == sorted(sizes)
    assert test.spec["source"].shape[0] == 8  # six letters and an end
    again = pickle.loads(pickle.dumps(train.read))  # as for worker processes
    rows = np.array([3, 1], np.uint32)
    for name, array in train.read(rows).items():
        np.testing.assert_array_equal(again(rows)[name], array)
        np.testing.assert_array_equal(train.resident[name][rows], array)
        assert (array.shape[1:], array.dtype) == (train.spec[name].shape, train.spec[name].dtype)


def test_packing_fills_rows_within_their_room():
    sizes = np.random.default_rng(0).integers(1, 13, (500, 2))
    packed = packing.pack(sizes, (24, 20), 4)
    assert sorted(packed.members) == list(range(500))
    assert packed.counts.max() == 4
    for a, b in zip(packed.bounds, packed.bounds[1:], strict=False):
        assert (sizes[packed.members[a:b]].sum(axis=0) <= (24, 20)).all()
    assert sizes.sum() > 0.85 * len(packed.counts) * 44
    again = packing.pack(sizes, (24, 20), 4)
    np.testing.assert_array_equal(again.members, packed.members)


def test_long_pairs_are_left_out_of_training_and_cut_in_evaluation(tmp_path, caplog):
    short, long = ("ab", "A B"), ("abcdefgh" * 3, "A " * 30)
    sources = load(write(tmp_path / "a.jsonl", [short, long], [short, long]))
    assert spelled(sources["train"]) == [short]
    cut = ("abcdefgh" * 2)[:15], "A" + " A" * 10
    assert spelled(sources["test"]) == [short, cut]
    assert sources["test"].facts.texts == (short, (long[0], long[1].strip()))
    said = " ".join(caplog.messages)
    assert "pair left out, as longer than a row of 16 and 12 tokens (once)" in said
    assert "pair cut to a row of 16 and 12 tokens (once)" in said
    assert "have the text of one that is, first 'ab'" in said  # of the held-out ones
    with pytest.raises(BadInput, match="config.data.train: train has no pair: pair left out"):
        load(write(tmp_path / "b.jsonl", [long], [short]))


def test_what_spells_an_end_is_text(tmp_path):
    odd = [("a</s>b", "A </s> B"), ("ab", "B A")]
    train = load(write(tmp_path / "a.jsonl", odd, odd[1:]))["train"]
    targets = train.read(np.arange(train.size))["targets"]
    assert (targets == train.facts.end).sum() == 2
    assert ("ab", "B A") in spelled(train)


def test_one_tokenizer_may_be_of_both_sides(tmp_path):
    name = corpus.pairs(tmp_path)
    both = load(name, tokenizer="bpe", target_tokenizer="", vocab_size=300)["train"].facts
    assert both.shared
    assert both.source.tokenizer is both.target.tokenizer
    assert both.start == both.end == 0  # <|endoftext|>
    file = str(tmp_path / "tokenizer.json")
    both.source.tokenizer.save(file)
    kept = load(name, tokenizer=file, target_tokenizer="words")["train"].facts
    assert not kept.shared
    assert kept.source.vocab_size == both.source.vocab_size
    started = load(name, start="<pad>")["train"]
    assert started.facts.start == 0 != started.facts.end
    assert set(started.read(np.arange(3))["tokens"][:, 0]) == {0}
    with pytest.raises(BadInput, match="config.data.start: the tokenizer has no token '<go>'"):
        load(name, start="<go>")


def test_references_are_all_targets_of_a_source(tmp_path):
    own = [("tomato", "A B"), ("tomato", "A C"), ("b", "B")]
    name = write(tmp_path / "a.jsonl", [("c", "C")], own)
    splits = {"test": "test[:1]"}
    test = pairs.load_sources({"train": "train"} | splits, name=name, **KINDS, **SIZES)["test"]
    assert test.size == 1
    assert test.facts.targets == {"tomato": ("A B", "A C")}


def test_symbols_are_the_most_frequent():
    rng = random.Random(0)
    texts = ["".join(rng.choices("abcdefg", weights=range(1, 8), k=40)) for _ in range(50)]
    made = trained.train("characters", 6, texts)
    assert set(made.get_vocab()) == {"<pad>", "<unk>", "</s>", "g", "f", "e"}
    assert made.encode("gaf").tokens == ["g", "<unk>", "f"]
    assert trained.stand_in("words", 9).get_vocab_size() == 9
    with pytest.raises(BadInput, match="vocab_size: 3 is too small"):
        trained.train("words", 3, texts)
