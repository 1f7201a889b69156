"""Labels as numbers, and parts of which none is empty."""

import collections
import hashlib
import itertools
import logging

import numpy as np
import pytest

from common.data import labels, parts
from common.errors import BadInput


@pytest.mark.parametrize(
    ("values", "numbers", "classes"),
    [
        (["b", "a", "b"], [1, 0, 1], ("a", "b")),
        ([10, -2, 10], [1, 0, 1], ("-2", "10")),
        ([True, False], [1, 0], ("False", "True")),
        ([1, 2.5], [1, 2.5], ()),
        (["10", "2", "-1", "2"], [2, 1, 0, 1], ("-1", "2", "10")),
        (["10", "2", "02"], [2, 1, 0], ("02", "2", "10")),
        (["10", "2", "1.5"], [1, 2, 0], ("1.5", "10", "2")),
        (["10", "2", "²"], [0, 1, 2], ("10", "2", "²")),
    ],
)
def test_classes_are_sorted_and_numbers_are_kept(values, numbers, classes):
    array, names = labels.numbered(values, "key")
    assert array.tolist() == numbers
    assert names == classes
    assert array.dtype == (np.int32 if classes else np.float32)


@pytest.mark.parametrize(
    ("values", "separator", "hot", "classes"),
    [
        ([["b", "a"], [], ["a"]], "", [[1, 1], [0, 0], [1, 0]], ("a", "b")),
        ([[10], [9, 10]], "", [[0, 1], [1, 1]], ("9", "10")),
        ([["a"]], "", [[1]], ("a",)),
        (["b; a", "", "a;;a c;"], ";", [[1, 0, 1], [0, 0, 0], [1, 1, 0]], ("a", "a c", "b")),
        ([None, "a;b"], ";", [[0, 0], [1, 1]], ("a", "b")),
        (["a;b|c", "c"], "|", [[1, 1], [0, 1]], ("a;b", "c")),
        (["a", "b"], ";", [[1, 0], [0, 1]], ("a", "b")),
    ],
)
def test_several_labels_are_ones_in_a_row(values, separator, hot, classes):
    array, names = labels.numbered(values, "key", separator=separator)
    assert array.tolist() == hot
    assert array.dtype == np.uint8
    assert names == classes


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([["a"], "b"], "line 12: the label is a string, but a list in line 11"),
        ([["a"], None], "line 12: the label is null, but a list in line 11"),
        ([["a"], ["b", ""]], "line 12: the label is empty"),
        ([[0, 1, 1], [0, 0, 1]], r"such as \[0, 1, 1\] \(line 11\) are vectors of 0 and 1"),
        ([["a"], ["b", 1]], r"of several kinds: 'a' \(line 11\), 1 \(line 12\)"),
        ([[], [0.5]], "line 12: the label 0.5 is a number with a decimal point"),
        ([[], []], "none of the 2 examples has a label"),
    ],
)
def test_several_labels_that_are_refused(values, says):
    with pytest.raises(BadInput, match=f"^key.*{says}"):
        labels.numbered(values, "key", lambda i: f"line {i + 11}")


def test_labels_that_may_be_several_and_labels_that_repeat_are_told(caplog):
    labels.numbered(["a;b", "a", "b", "c;d", "c|a"], "key")
    (told,) = caplog.messages
    assert "key: 'a;b' is read as the name of one class" in told
    assert told.endswith("set config.data.label_separator=';'")
    labels.numbered([["a", "a"], ["b"]], "key")
    assert caplog.messages[1:] == ["key: labels repeated within an example count once: 1"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (["a", None], "line 12: the label is null"),
        (["a", "b", " "], "line 13: the label is empty"),
        ([[["a"]]], "line 11: a label in the list is a list"),
        ([b"a"], "line 11: the label is of type bytes"),
        ([1.5, float("nan")], "line 12: a label is not finite"),
        ([1.5, 1e39], "line 12: a label is not finite"),
        ([1, 2, "a"], r"several kinds: 1 \(line 11\), 'a' \(line 13\)"),
        ([True, 1], r"several kinds: True \(line 11\), 1 \(line 12\)"),
    ],
)
def test_a_label_that_is_none_is_named_by_its_line(values, says):
    with pytest.raises(BadInput, match=rf"^key: .*{says}|^key, {says}"):
        labels.numbered(values, "key", lambda i: f"line {i + 11}")


def test_where_classes_are_wanted_a_number_is_named_by_its_line():
    says = (
        r"^key, label 2: the label 2\.0 is a number with a decimal point, not a class; write .*1\.0"
    )
    with pytest.raises(BadInput, match=says):
        labels.numbered([1, 2.0], "key", numbers=False)
    assert labels.numbered([1, 2], "key", numbers=False)[1] == ("1", "2")


def test_labels_of_mixed_spelling_are_named_with_their_counts(caplog):
    values = ["Positive", "positive ", "negative", "positive ", "not so", "Notso"]
    with caplog.at_level(logging.WARNING):
        assert len(labels.numbered(values, "key")[1]) == 5
    (record,) = caplog.records
    assert "'Notso' (1) and 'not so' (1); 'Positive' (1) and 'positive ' (2)" in record.getMessage()
    caplog.clear()
    labels.numbered(["a", "b", "a b"], "key")
    assert not caplog.records
    labels.say_alike({"CAT": 0, "cat": 0, "dog": 0}, "key")
    unseen = {"café": 1, "cafe\u0301": 2, "pos": 3, "pos\u200b": 4}
    labels.say_alike(unseen, "key")
    assert r"'cafe\u0301' (2) and 'café' (1); 'pos' (3) and 'pos\u200b' (4)" in caplog.messages[-1]
    assert caplog.messages[0].endswith("classes of their own: 'CAT' and 'cat'")


def test_white_space_around_labels_is_told_though_all_have_it(caplog):
    assert labels.numbered([" cat", "dog", " cat"], "key")[1] == (" cat", "dog")
    assert caplog.messages == ["key: labels with white space around them keep it: ' cat' (2)"]


# ------------------------------------------------------------------------------------------- parts


def rank(key) -> bytes:
    return hashlib.sha256(str(key).encode()).digest()


def moved(held: dict) -> dict:
    return parts.moves((key, part, rank(key)) for key, part in held.items())


@pytest.mark.parametrize("size", [3, 4, 38])
@pytest.mark.parametrize("seed", range(6))
def test_no_part_is_empty_and_as_few_as_possible_move(size, seed):
    names = np.array(["train", "valid", "test"])
    chosen = np.random.default_rng(seed).choice(names[: 1 + seed % 3], size)
    held = dict(enumerate(chosen.tolist()))
    moves = moved(held)
    after = collections.Counter((held | moves).values())
    assert sorted(after) == sorted(names)
    assert len(moves) == 3 - len(set(held.values()))
    assert size > 3 or set(after.values()) == {1}
    assert moved(dict(reversed(held.items()))) == moves
    if set(held.values()) == {"train"}:  # the lowest two
        assert sorted(moves, key=rank) == sorted(held, key=rank)[:2]
        assert [moves[key] for key in sorted(moves, key=rank)] == ["test", "valid"]


def test_two_keys_are_too_few_and_a_large_set_is_not_read():
    assert parts.moves([("a", "train", b"1"), ("b", "test", b"2"), ("a", "train", b"1")]) is None
    endless = ((i, "train", b"") for i in itertools.count())
    first = [(-1, "test", b""), (-2, "valid", b"")]
    assert parts.moves(itertools.chain(first, endless)) == {}
