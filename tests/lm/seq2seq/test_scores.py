"""Scores of what a model writes, on examples with known values."""

import pytest

from lm.seq2seq import scores


def test_any_listed_pronunciation_counts():
    written = ["T AH0 M EY1 T OW2", "B AA1", "K AE0 T", "X"]
    listed = [["T AH0 M AA1 T OW2", "T AH0 M EY1 T OW2"], ["B AH1"], ["K AE1 T"], ["D AO1 G Z"]]
    values = scores.of_pronunciations(written, listed)
    # Edits 0 + 1 + 1 + 4, of 6 + 2 + 3 + 4 phonemes.
    assert values == pytest.approx(
        {
            "word_error": 3 / 4,
            "phoneme_error": 6 / 15,
            "stressless_word_error": 2 / 4,
            "stressless_phoneme_error": 5 / 15,
        }
    )


@pytest.mark.parametrize(
    ("one", "other", "edits"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abc", "acb", 2), ("ab", "ab", 0)],
)
def test_distance(one, other, edits):
    assert scores.distance_of(one, other) == edits


def test_exact():
    assert scores.exact(["a", "b", "c"], [["a"], ["x", "b"], ["d"]]) == pytest.approx(2 / 3)


def test_bleu_and_chrf_are_those_of_sacrebleu():
    pytest.importorskip("sacrebleu")
    texts = ["the cat sat on the mat", "a dog ran far away today"]
    values = scores.of_texts(texts, texts)
    assert values["bleu"] == pytest.approx(100)
    assert values["chrf"] == pytest.approx(100)
    assert values["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|")
    assert "nc:6|nw:0" in values["chrf_signature"]
    # Precisions of 1 to 4 words: 5/6, 3/5, 2/4, 1/3, as many words as the reference.
    near = scores.of_texts(["the cat sat on a mat"], ["the cat sat on the mat"])
    assert near["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
