"""Masking: how much is hidden and how, what never is, what stays together, and keys that decide."""

from functools import lru_cache

import jax
import numpy as np
import pytest

from common.errors import BadInput
from lm import masking
from lm.data.tokenizer import TextFacts

V, L, B = 1000, 64, 1000  # one shape for nearly all: a program takes 3 s to compile
MASK = 4
SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": MASK, "end": None}
OWN = (77, 990)  # special tokens that a user added
FACTS = TextFacts(None, V, SPECIAL, np.arange(V) % 10 < 4, None, added=OWN)
FACTS.continues[[*range(5), *OWN]] = False
POLICIES = ("token", "word", "span")


def rows(seed: int = 0):
    """(tokens, segments): [CLS] and two documents, most with [SEP] behind them, and in some rows
    padding, which here looks like text."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, V, (B, L))
    segments = np.ones((B, L), int)
    for row in range(B):
        middle = rng.integers(2, L - 4)
        last = L - 1 if row % 2 else rng.integers(middle + 2, L)
        tokens[row, 0], tokens[row, [middle, last] if row % 3 else last] = 2, 3
        segments[row, middle + 1 :] = 2
        segments[row, last + 1 :] = 0
    return tokens, segments


@lru_cache
def compiled(**settings):
    return jax.jit(masking.make_masking(FACTS, L, **settings))


def masked(tokens, segments, seed: int = 1, keys=None, **settings) -> masking.Masked:
    keys = jax.random.split(jax.random.key(seed), len(tokens)) if keys is None else keys
    return masking.Masked(*map(np.asarray, compiled(**settings)(keys, tokens, segments)))


def candidates(tokens, segments) -> np.ndarray:
    return (segments > 0) & (tokens > 4) & ~np.isin(tokens, OWN)


def words(tokens, segments) -> np.ndarray:
    """i64[B, L]: the number of each position's word in its row, found one token at a time."""
    found = np.zeros(tokens.shape, int)
    there = candidates(tokens, segments)
    for row in range(len(tokens)):
        for i in range(1, L):
            same = FACTS.continues[tokens[row, i]] and there[row, i] and there[row, i - 1]
            same &= segments[row, i] == segments[row, i - 1]
            found[row, i] = found[row, i - 1] + (not same)
    return found


def chosen(found: masking.Masked) -> np.ndarray:
    """bool[B, L]: what is to be predicted."""
    there = np.zeros(found.tokens.shape, bool)
    at = found.weights > 0
    there[np.nonzero(at)[0], found.picked[at]] = True
    return there


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_picked_is_text_each_once_and_the_rest_stays(policy):
    tokens, segments = rows()
    found = masked(tokens, segments, policy=policy)
    assert found.picked.shape == found.targets.shape == found.weights.shape == (B, round(0.15 * L))
    assert set(np.unique(found.weights)) == {0, 1}
    there = chosen(found)
    assert not (there & ~candidates(tokens, segments)).any()
    assert (there.sum(axis=1) == found.weights.sum(axis=1)).all()
    assert (np.sort(found.picked, axis=1)[:, 1:] > np.sort(found.picked, axis=1)[:, :-1]).all()
    assert np.array_equal(found.targets, np.take_along_axis(tokens, found.picked, axis=1))
    assert np.array_equal(found.tokens[~there], tokens[~there])
    assert (there.sum(axis=1) > 0).all()


@pytest.mark.parametrize("policy", POLICIES)
def test_the_shares_are_those_asked_for(policy):
    tokens, segments = rows()
    found = masked(tokens, segments, policy=policy)
    there = chosen(found)
    shown, were = found.tokens[there], tokens[there]
    error = 5 * (2 if policy == "span" else 1) * np.sqrt(0.16 / len(were))  # spans share one coin
    assert np.mean(shown == MASK) == pytest.approx(0.8, abs=error)
    assert np.mean((shown != MASK) & (shown != were)) == pytest.approx(0.1, abs=error)
    assert np.mean(shown == were) == pytest.approx(0.1, abs=error)
    random = shown[(shown != MASK) & (shown != were)]
    assert len(np.unique(random)) > (100 if policy == "span" else 400)
    assert random.mean() == pytest.approx(V / 2, abs=5 * V / np.sqrt(12 * len(random)))
    number = candidates(tokens, segments).sum(axis=1)
    most = np.clip(np.round(0.15 * number), 1, round(0.15 * L))
    if policy == "token":
        assert np.array_equal(there.sum(axis=1), most)
    else:  # a word that does not fit is left out
        assert (there.sum(axis=1) <= most).all()
        assert 0.9 < there.sum() / most.sum() < 1


@pytest.mark.slow
@pytest.mark.parametrize(("mask", "random"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.4, 0.6)])
def test_shares_at_their_ends(mask, random):
    tokens, segments = rows()
    found = masked(tokens, segments, mask=mask, random=random)
    there = chosen(found)
    assert np.mean(found.tokens[there] == MASK) == pytest.approx(mask, abs=0.03)
    stayed = np.mean(found.tokens[there] == tokens[there])
    assert stayed == pytest.approx(1 - mask - random, abs=0.01)


def test_every_position_is_as_likely_as_another():
    tokens, segments = np.full((B, L), 7), np.ones((B, L), int)
    times = np.mean([chosen(masked(tokens, segments, seed)).mean(axis=0) for seed in range(5)], 0)
    assert np.abs(times - 10 / L).max() < 5 * np.sqrt(10 / L / (5 * B))


@pytest.mark.parametrize("policy", ["word", "span"])
def test_words_are_hidden_whole(policy):
    tokens, segments = rows()
    found = masked(tokens, segments, policy=policy)
    there, word = chosen(found), words(tokens, segments)
    text = candidates(tokens, segments)
    cut, long = 0, 0
    for row in range(B):
        for one in np.unique(word[row][there[row]]):
            whole = (word[row] == one) & text[row]
            long += whole.sum() > 2
            if not there[row][whole].all():  # too much for the row by itself
                cut += 1
                assert not (there[row] & ~whole).any()
    assert cut < B // 20
    assert long > B // 10


def test_a_word_ends_with_its_document():
    tokens, segments = np.full((B, L), 9), np.ones((B, L), int)
    tokens[:, [20, 40]] = 11  # goes on with a word, but at 40 another document begins
    segments[:, 40:] = 2
    there = chosen(masked(tokens, segments, policy="word"))
    assert np.array_equal(there[:, 19], there[:, 20])
    assert (there[:, 39] != there[:, 40]).mean() > 0.1


def test_a_word_longer_than_all_there_is_is_cut():
    """Else its row would have nothing to learn from."""
    tokens = np.full((B, L), 11)  # each goes on with the word before
    found = masked(tokens, np.ones((B, L), int), policy="word")
    assert (found.weights.sum(axis=1) == round(0.15 * L)).all()


def test_a_span_is_hidden_together_and_is_of_several_words():
    tokens = np.full((B, L), 9)  # every token a word
    found = masked(tokens, np.ones((B, L), int), policy="span")
    there = chosen(found)
    inside = there[:, 1:] & there[:, :-1]
    assert inside.sum() / there.sum() > 0.5
    # Spans may touch; only there can one token be a mask and its neighbour not.
    hidden = found.tokens == MASK
    mixed = inside & (hidden[:, 1:] != hidden[:, :-1])
    assert mixed.sum() / inside.sum() < 0.1  # 0.32 if each token had its own coin
    assert (there.sum(axis=1) == round(0.15 * L)).all()  # the last span ends where the number does


def test_the_lengths_of_spans():
    partition = jax.jit(jax.vmap(lambda key: masking._spans(key, L)))
    spans = np.asarray(partition(jax.random.split(jax.random.key(0), 3000)))
    assert set(np.unique(np.diff(spans, axis=1))) == {0, 1}
    first = (spans == 0).sum(axis=1)  # those of the first spans are not cut at the end of the row
    stop, most = masking.SPAN_STOP, masking.SPAN_MOST
    expected = np.array([stop * (1 - stop) ** n for n in range(most)])
    expected /= expected.sum()
    shares = np.bincount(first, minlength=most + 1)[1:] / len(first)
    assert len(shares) == most
    assert (np.abs(shares - expected) < 5 * np.sqrt(expected / len(first))).all()
    assert first.mean() == pytest.approx(3.8, abs=0.2)  # as Joshi et al. say


@pytest.mark.parametrize("policy", POLICIES)
def test_a_row_knows_its_key_and_no_batch(policy):
    tokens, segments = rows()
    keys = jax.random.split(jax.random.key(3), B)
    whole = masked(tokens, segments, keys=keys, policy=policy)
    order = np.random.default_rng(0).integers(0, B, B)  # other mates, in other places
    among = masked(tokens[order], segments[order], keys=keys[order], policy=policy)
    for a, b in zip(among, whole, strict=True):
        assert np.array_equal(a, b[order])
    if policy == "token":
        alone = masked(tokens[5:6], segments[5:6], keys=keys[5:6], policy=policy)
        for a, b in zip(alone, whole, strict=True):
            assert np.array_equal(a[0], b[5])
    other = masked(tokens, segments, seed=4, policy=policy)
    assert (chosen(other) != chosen(whole)).any(axis=1).mean() > 0.95


def test_rows_with_next_to_nothing_in_them():
    tokens, segments = np.zeros((B, L), int), np.zeros((B, L), int)
    tokens[:2, :3], segments[:2, :3] = [2, 9, 3], 1
    tokens[1, 1] = 3
    for policy in POLICIES:
        found = masked(tokens, segments, policy=policy)
        assert found.weights.sum(axis=1).tolist() == [1] + [0] * (B - 1)
        assert found.targets[0][found.weights[0] > 0] == [9]
        assert np.array_equal(found.tokens[1:], tokens[1:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 0.0}, "config.masking.rate: 0.0 is not between 0 and 1"),
        ({"rate": 1.0}, "config.masking.rate: 1.0"),
        ({"mask": 0.8, "random": 0.3}, "mask 0.8 and random 0.3 must be shares"),
        ({"mask": -0.1}, "mask -0.1"),
        ({"mask": 0.0, "random": 1.1}, "random 1.1"),
    ],
)
def test_shares_that_cannot_be_are_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        masking.make_masking(FACTS, L, **settings)


def test_a_tokenizer_without_a_mask_is_refused():
    facts = FACTS._replace(special=SPECIAL | {"mask": None})
    with pytest.raises(BadInput, match="it has no mask token; use 'wordpiece'"):
        masking.make_masking(facts, L)
