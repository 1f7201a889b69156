"""Ranks of retrieval, by hand."""

import numpy as np

from vision.contrast import retrieval


def test_ranks_are_places_of_the_right_answer():
    answers = np.eye(4)
    queries = np.array([[3, 2, 1, 0], [3, 2, 1, 0], [0, 1, 2, 3], [9, 8, 7, 6]], float)
    assert retrieval.ranks(queries, answers, np.arange(4)).tolist() == [1, 2, 2, 4]


def test_any_row_of_the_same_text_is_right():
    queries = np.array([[1, 2, 3], [1, 2, 3], [3, 2, 1]], float)
    assert retrieval.ranks(queries, np.eye(3), np.array([0, 1, 0])).tolist() == [1, 2, 1]


def test_vectors_that_are_all_one_find_nothing():
    ones = np.ones((5, 2))
    assert retrieval.ranks(ones, ones, np.arange(5)).tolist() == [5] * 5


def test_parts_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    one, other, same = rng.normal(size=(30, 4)), rng.normal(size=(30, 4)), np.arange(30) // 2
    whole = retrieval.ranks(one, other, same)
    monkeypatch.setattr(retrieval, "CHUNK", 7)
    assert np.array_equal(retrieval.ranks(one, other, same), whole)
