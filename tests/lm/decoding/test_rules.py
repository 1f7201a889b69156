"""The rules that logits pass: what each excludes or makes rarer, and that they are those of
`transformers`."""

import jax
import numpy as np
import pytest
from tables import Table

from common.errors import BadInput
from lm import generate
from lm.decoding import rules, sampling

V, END = 12, 3
FORBIDDEN = [[7], [8, 9], [5, 6, 4]]


def ruled(logits, prompts, lengths, written, end=END, final=False, **settings) -> np.ndarray:
    """Logits after the rules, behind prompts and as many tokens as `written` has."""
    made = rules.make(**settings, end=end)
    padded = np.pad(written, ((0, 0), (0, 2)), constant_values=-1)

    @jax.jit
    def apply(made, logits, prompts, lengths, written, final):
        context = rules.aligned(made, prompts, lengths)
        return rules.apply(made, logits, context, written, written.shape[1] - 2, end, final)

    return np.asarray(apply(made, logits, prompts, lengths, padded, final))


def test_each_rule_excludes_what_it_names_and_no_more():
    logits = np.linspace(-2, 2, 2 * V).reshape(2, V).astype(np.float32)
    prompts, lengths = np.array([[1, 8, 0], [1, 2, 5]]), np.array([2, 3])
    none, one = np.zeros((2, 0), int), np.array([[5], [6]])
    given = logits, prompts, lengths
    assert np.array_equal(ruled(*given, none), logits)
    out = np.isneginf(ruled(*given, none, forbidden=FORBIDDEN))
    # 7 everywhere; behind 8, which ends the first prompt, 9. Padding is no text.
    assert [np.flatnonzero(row).tolist() for row in out] == [[7, 9], [7]]
    out = np.isneginf(ruled(*given, one, forbidden=FORBIDDEN))
    assert [np.flatnonzero(row).tolist() for row in out] == [[7], [4, 7]]
    out = ruled(*given, one, min_tokens=2)
    assert np.isneginf(out[:, END]).all()
    assert np.isneginf(out).sum() == 2
    assert np.array_equal(ruled(*given, one, min_tokens=1), logits)
    out = ruled(*given, one, forced=[-1, 6])
    assert np.argmax(out, axis=1).tolist() == [6, 6]
    assert np.isfinite(out).sum() == 2
    assert np.array_equal(ruled(*given, none, forced=[-1, 6]), logits)
    out = ruled(*given, none, forced_end=True, final=np.array([False, True]))
    assert np.array_equal(out[0], logits[0])
    assert np.flatnonzero(np.isfinite(out[1])).tolist() == [END]
    out = ruled(*given, one, repetition_penalty=2.0)
    for row, text in zip(range(2), ([1, 8, 5], [1, 2, 5, 6]), strict=True):
        changed = np.flatnonzero(out[row] != logits[row])
        assert changed.tolist() == sorted(text)
        assert (out[row, changed] < logits[row, changed]).all()


def test_greedy_text_keeps_the_rules():
    """A ring 0 1 2 … of which some are forbidden, and an end that comes too early."""
    ring = np.roll(np.eye(V, dtype=np.float32), 1, axis=1) * 9
    ring += np.roll(np.eye(V, dtype=np.float32), 2, axis=1) * 5  # the second best: one further
    prompts, lengths = np.array([[1, 0], [5, 6]]), np.array([1, 2])
    made = rules.make(forbidden=[[4, 5], [9]], min_tokens=3, end=END)
    write = lambda *rows: generate.generate(
        *(Table(V), {"table": ring}, prompts[rows,], lengths[rows,], jax.random.key(0)),
        steps=5,
        rules=made,
        end=END,
    )
    both = write(0, 1)
    assert np.asarray(both.tokens).tolist() == [[2, 4, 6, 7, 8], [7, 8, 10, 11, 0]]
    assert np.array_equal(write(1).tokens[0], both.tokens[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repetition_penalty": 0.0}, "repetition-penalty: 0.0 is not a positive number"),
        ({"repetition_penalty": float("nan")}, "repetition-penalty: nan"),
        ({"min_tokens": -1}, "min-tokens: -1 is negative"),
        ({"min_tokens": 1, "end": None}, "min-tokens: there is no token that ends a text"),
        ({"forced_end": True, "end": None}, "forced-end: there is no token"),
        ({"forbidden": [[]]}, "forbid: a sequence of no tokens"),
        ({"forbidden": [[4]], "forced": [4]}, r"forced: \[4\] are forbidden tokens"),
    ],
)
def test_what_contradicts_itself_is_said(settings, message):
    with pytest.raises(BadInput, match=message):
        rules.make(**{"end": END} | settings)


@pytest.mark.slow
def test_the_rules_are_those_of_transformers():
    """On random logits, behind random texts with repetitions."""
    process = pytest.importorskip("transformers.generation.logits_process")
    import torch

    rng = np.random.default_rng(0)
    text = rng.integers(4, V, (200, 6))
    logits = rng.normal(0, 3, (200, V)).astype(np.float32)
    lengths = np.full(200, 4)
    mine = lambda **settings: ruled(logits, text[:, :4], lengths, text[:, 4:], **settings)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
    make = process.RepetitionPenaltyLogitsProcessor, process.MinNewTokensLengthLogitsProcessor
    inputs = torch.tensor(text), torch.tensor(logits)
    for penalty in (0.7, 1.3):
        close(mine(repetition_penalty=penalty), make[0](penalty)(*inputs))
    for least in (2, 3):
        close(mine(min_tokens=least), make[1](4, least, END)(*inputs))
    forbidden = process.NoBadWordsLogitsProcessor(FORBIDDEN, torch.tensor([END]))
    close(mine(forbidden=FORBIDDEN), forbidden(*inputs))
    assert np.isneginf(mine(forbidden=FORBIDDEN)).sum() > 200
    for min_p in (0.05, 0.5, 1.0):
        kept, ids = sampling.candidates(logits, 1.0, min_p=min_p)
        assert ids is None
        close(kept, process.MinPLogitsWarper(min_p)(*inputs))
    chain = {"temperature": 0.7, "top_k": 8, "top_p": 0.8, "min_p": 0.3}
    shares = sampling.probabilities(logits, **chain)
    scores = process.TemperatureLogitsWarper(0.7)(*inputs)
    scores = process.TopKLogitsWarper(8)(inputs[0], scores)
    scores = process.TopPLogitsWarper(0.8)(inputs[0], scores)
    scores = process.MinPLogitsWarper(0.3)(inputs[0], scores)
    np.testing.assert_allclose(shares, torch.softmax(scores, -1), atol=1e-6)
