"""Answers as spans: the likeliest by a loop, and scores by SQuAD's rules."""

import random
import string

import numpy as np
import pytest

from lm import spans

WORDS = [
    "The",
    "a",
    "an",
    "theatre",
    "Peace",
    "peace,",
    "of",
    "war",
    "war.",
    "1,000",
    "--",
    "naïve",
]


@pytest.mark.parametrize(("longest", "count"), [(1, 1), (3, 4), (50, 30)])
def test_the_likeliest_spans_are_those_of_a_loop(longest, count):
    rng = np.random.default_rng(longest)
    start, end = rng.integers(-4, 4, (2, 5, 9)).astype(np.float32)  # with many equal sums
    context = np.array([[2, 9], [1, 2], [0, 9], [3, 7], [4, 4]], np.int32)
    sums, first, last = map(np.asarray, spans.likeliest(start, end, context, longest, count))
    for row, (low, high) in enumerate(context):
        loop = [
            (-(start[row, i] + end[row, j]), i, j)
            for i in range(low, high)
            for j in range(i, min(i + longest, high))
        ]
        known = np.isfinite(sums[row])
        triples = zip(-sums[row][known], first[row][known], last[row][known], strict=True)
        assert [*triples] == sorted(loop)[:count]


def random_answers(rng: random.Random) -> tuple[str, list[str]]:
    answer = lambda: " ".join(rng.choices(WORDS, k=rng.randint(1, 5)))
    right = [answer() for _ in range(rng.randint(1, 3))]
    return rng.choice((answer(), rng.choice(right), rng.choice(right).upper())), right


def has_words(text: str) -> bool:
    return bool(spans.normalised(text))


@pytest.mark.slow
def test_scores_are_squads():
    """Version 1.1's, by torchmetrics, where every text has a word."""
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    rng, ours, both = random.Random(0), [], ([], [])
    while len(ours) < 1000:
        answer, right = random_answers(rng)
        if not all(map(has_words, (answer, *right))):
            continue
        both[0].append({"prediction_text": answer, "id": str(len(ours))})
        answers = {"answer_start": [0] * len(right), "text": right}
        both[1].append({"answers": answers, "id": str(len(ours))})
        ours.append(spans.scores(answer, right))
    theirs = squad(*both)
    exact, f1 = np.mean(ours, axis=0)
    assert 0.1 < exact < f1 < 0.9
    assert exact == pytest.approx(float(theirs["exact_match"]) / 100, abs=1e-6)
    assert f1 == pytest.approx(float(theirs["f1"]) / 100, abs=1e-6)


def reference(answer: str, right: list[str]) -> tuple[float, float]:
    """Version 2.0's rules as its paper and guide describe them, a word at a time."""

    def words(text):
        kept = "".join(c for c in text.lower() if c not in string.punctuation)
        return [word for word in kept.split() if word not in ("a", "an", "the")]

    best = (0.0, 0.0)
    for text in [text for text in right if words(text)] or [""]:
        ours, theirs = words(answer), words(text)
        left, shared = list(theirs), 0
        for word in ours:
            if word in left:
                left.remove(word)
                shared += 1
        if not ours or not theirs:
            pair = (float(ours == theirs),) * 2
        else:
            precision, recall = shared / len(ours), shared / len(theirs)
            total = precision + recall
            pair = float(ours == theirs), 2 * precision * recall / total if total else 0.0
        best = tuple(map(max, best, pair))
    return best


def test_scores_know_questions_without_an_answer():
    rng = random.Random(1)
    kinds = set()
    for _ in range(1000):
        answer, right = random_answers(rng)
        answer, right = rng.choice(("", answer)), rng.choice(([], right))
        assert spans.scores(answer, right) == pytest.approx(reference(answer, right))
        kinds.add((bool(answer), bool(right), spans.scores(answer, right)[0]))
    assert {(False, False, 1.0), (False, True, 0.0), (True, False, 0.0)} <= kinds


def test_an_answer_is_compared_as_squad_compares_it():
    assert spans.normalised(" The  U.S. (an)  Theatre—a ") == "us theatre—"
    assert spans.scores("the war", ["A War!", "peace"]) == (1.0, 1.0)
    assert spans.scores("war war peace", ["war and peace"]) == pytest.approx((0.0, 2 / 3))
