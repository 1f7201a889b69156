"""Entities of tags: as conlleval reads them, and scores equal to seqeval's."""

import random
import warnings

import pytest

from lm import entities

TYPES = "PER", "LOC", "A-B"


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("O B-PER I-PER O", [("PER", 1, 3)]),
        ("B-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("I-PER I-PER O I-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),
        ("S-PER E-PER I-PER E-PER", [("PER", 0, 1), ("PER", 1, 2), ("PER", 2, 4)]),
        ("U-LOC U-LOC B-LOC L-LOC", [("LOC", 0, 1), ("LOC", 1, 2), ("LOC", 2, 4)]),
        ("B I O I B", [("", 0, 2), ("", 3, 4), ("", 4, 5)]),
        ("B-PER M-PER E-PER O", [("PER", 0, 3)]),
        ("O", []),
        ("", []),
    ],
)  # fmt: skip
def test_spans_of_tags(tags, spans):
    assert entities.spans(tags.split()) == spans


@pytest.mark.slow
def test_scores_are_seqevals():
    """Random tags, most of them no valid sequence, and sentences without an entity."""
    metrics = pytest.importorskip("seqeval.metrics")
    rng = random.Random(0)
    for prefixes in ("BI", "BIES"):
        tags = ["O"] * 4 + [f"{prefix}-{kind}" for prefix in prefixes for kind in TYPES]
        true = [rng.choices(tags, k=rng.randint(1, 20)) for _ in range(500)]
        guesses = [[rng.choice((tag, rng.choice(tags))) for tag in line] for line in true]
        found = entities.scores(zip(true, guesses, strict=True))
        for average, f1 in (("micro", "f1"), ("macro", "macro_f1")):
            theirs = metrics.f1_score(true, guesses, average=average)
            assert found[f1] == pytest.approx(theirs, abs=1e-12)
        assert found["precision"] == pytest.approx(metrics.precision_score(true, guesses))
        assert found["recall"] == pytest.approx(metrics.recall_score(true, guesses))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for line, guess in zip(true[:100], guesses[:100], strict=True):
                theirs = metrics.f1_score([line], [guess])
                assert entities.scores([(line, guess)])["f1"] == pytest.approx(theirs, abs=1e-12)


def test_what_has_no_entity_scores_nothing():
    assert set(entities.scores([(["O"], ["O"])]).values()) == {0.0}


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("B-PER", "I-PER", "O"), True),
        (("I-PER", "O"), True),
        (("B-PER", "E-PER", "S-PER"), True),
        (("B", "I", "O"), True),
        (("B-PER", "E-PER", "M-PER", "O", "S-PER"), True),
        (("NN", "VB", "O"), False),
        (("B-PER", "NN"), False),
        (("O", "S-PER"), False),
    ],
)
def test_tags_of_entities_are_told_from_others(classes, expected):
    assert entities.are_entities(classes) is expected
