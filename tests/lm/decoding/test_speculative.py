"""Speculative decoding is exact: the distribution, by sums over all drafts; the greedy text, beside
that of the model alone; and each row's own caches."""

import itertools
import time
from functools import partial

import jax
import numpy as np
import pytest
from helpers import ROOT, load
from tables import Table

from common import predict, tree
from common.errors import BadInput
from common.training import train
from lm import generate, gpt, rnn
from lm.decoding import speculative

V, B, STEPS = 5, 4000, 3
RNG = np.random.default_rng(0)
TABLE, DRAFT = RNG.normal(0, 1.5, (2, V, V)).astype(np.float32)
KEY = jax.random.key(2)
SMALL = {"vocab_size": 60, "width": 32, "layers": 2, "heads": 4, "hidden": 48, "max_length": 24}


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def written(start, steps=STEPS, ahead=2, draft=DRAFT, **settings) -> speculative.Speculated:
    prompts = np.asarray(start)[:, None]
    models = Table(V), {"table": TABLE}, Table(V), {"table": draft}
    sizes = {"steps": steps, "ahead": ahead}
    return speculative.generate(
        *models, prompts, np.ones(len(prompts), int), KEY, **sizes, **settings
    )


def test_the_distribution_is_that_of_the_model_alone_by_sums_over_all_drafts():
    """Of the tokens that one pass makes sure of, two drafted, behind every token: the probability
    of each text is the product of the model's. Exact, in float64."""
    p, q = softmax(TABLE.astype(float)), softmax(DRAFT.astype(float))
    cases = np.array(list(itertools.product(range(V), repeat=3)))  # the last token, two drafted
    own, other = p[cases[:, :2]], q[cases[:, :2]]
    with jax.enable_x64(True):
        accept = np.asarray(speculative.acceptance(own, other, cases[:, 1:]))
        rest = np.asarray(speculative.leftover(own, other))
    first = np.zeros((V, V))  # of the first token, by the last
    both = np.zeros((V, V, V))  # of the first two, where the pass makes sure of two
    share = np.zeros((V, V))  # that it does, by the first
    for (last, a, b), chance, instead in zip(cases, accept, rest, strict=True):
        drafted = q[last, a] * q[a, b]
        first[last] += drafted * (1 - chance[0]) * instead[0]
        first[last, a] += drafted * chance[0]
        share[last, a] += drafted * chance[0]
        both[last, a] += drafted * chance[0] * (1 - chance[1]) * instead[1]
        both[last, a, b] += drafted * chance[0] * chance[1]
    np.testing.assert_allclose(first, p, atol=1e-14)
    np.testing.assert_allclose(both, share[:, :, None] * p, atol=1e-14)


def test_texts_come_as_often_as_from_the_model_alone():
    """All texts of three tokens, by chi-square; some end early, and rows accept different numbers
    of tokens."""
    end = 4
    out = written(np.zeros(B, int), temperature=0.9, top_k=4, end=end)
    text, lengths, passes = map(np.asarray, out)
    model = np.zeros((V, V))
    for last in range(V):
        kept = np.argsort(-TABLE[last])[:4]
        model[last, kept] = softmax(TABLE[last, kept] / 0.9)
    counts = {}
    for row in text.tolist():
        counts[tuple(row)] = counts.get(tuple(row), 0) + 1
    chi, free = 0.0, -1
    for a, b, c in itertools.product(range(V), repeat=3):
        share = model[0, a] * (a == end or model[a, b]) * (end in (a, b) or model[b, c])
        if (a == end and b != end) or (end in (a, b) and c != end):
            share = 0.0
        seen, expected = counts.pop((a, b, c), 0), B * share
        assert seen == 0 or expected > 0
        if expected > 5:
            chi, free = chi + (seen - expected) ** 2 / expected, free + 1
    assert not counts
    assert free > 20
    assert chi < free + 4 * np.sqrt(2 * free)
    assert set(passes.tolist()) > {1, 2}
    assert (text[np.arange(STEPS) >= lengths[:, None]] == end).all()


def test_the_model_itself_drafts_what_it_accepts():
    """All of it: A + 1 tokens a pass. A draft that is always wrong costs one pass a token."""
    out = written([0, 1, 2], steps=9, draft=TABLE)
    alone = generate.generate(
        *(Table(V), {"table": TABLE}, np.array([[0], [1], [2]]), np.ones(3, int), KEY), steps=9
    )
    assert np.array_equal(out.tokens, alone.tokens)
    assert out.passes.tolist() == [3] * 3
    wrong = written([0, 1, 2], steps=9, draft=-TABLE)
    assert np.array_equal(wrong.tokens, alone.tokens)
    assert wrong.passes.tolist() == [9] * 3


def made(model, seed: int):
    """Parameters spread wide, scales of norms around 1."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 4), int))["params"]
    rng = np.random.default_rng(seed)
    draw = lambda path, p: rng.normal(size=p.shape) * 0.3 + path.endswith("scale")
    return tree.map_paths(draw, shapes)


def pair(kind: str):
    """(model, draft): the draft is the first block, or all of a recurrent network."""
    if kind == "rnn":
        return (rnn.RNN(vocab_size=60, width=24, layers=2, cell="gru"),) * 2
    more = gpt.LLAMA | {"kv_heads": 2, "window": 5} if kind == "llama" else {}
    model = gpt.GPT(**SMALL | more)
    return model, model.clone(layers=1)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_in_haste")
@pytest.mark.parametrize("kind", ["gpt2", "llama", "rnn"])
def test_greedy_tokens_are_those_of_the_model_alone(kind):
    """In float64, where the draft is right now and then, with prompts of different lengths and an
    end, up to the last position; and a row's text is the same without the others."""
    model, draft = pair(kind)
    rng = np.random.default_rng(3)
    prompts, lengths = rng.integers(0, 60, (6, 5)), np.array([5, 3, 1, 2, 5, 4])
    with jax.enable_x64(True):
        params = made(model, 0)
        near = jax.tree.map(lambda x: x + 0.02 * rng.normal(size=x.shape), params)
        near = {k: v for k, v in near.items() if k != "block_1" or kind == "rnn"}
        alone = generate.generate(model, params, prompts, lengths, KEY, steps=19)
        first = np.asarray(alone.tokens)[0].tolist()
        end = max(first, key=first.index)  # which the first row writes last of all its tokens
        alone = generate.generate(model, params, prompts, lengths, KEY, steps=19, end=end)
        write = partial(speculative.generate, model, params, draft, near, steps=19, end=end)
        out = write(prompts, lengths, KEY, ahead=3)
        assert np.array_equal(out.tokens, alone.tokens)
        assert np.array_equal(out.lengths, alone.lengths)
        passes = np.asarray(out.passes)
        assert len(set((np.asarray(out.lengths) / passes).tolist())) > 2
        assert passes.sum() < np.asarray(out.lengths).sum()
        if kind != "llama":
            return
        write = partial(write, ahead=3, temperature=1.0)
        drawn = write(prompts, lengths, KEY)
        some = write(prompts[3:5], lengths[3:5], KEY, index=np.array([3, 4]))
        assert np.array_equal(some.tokens, drawn.tokens[3:5])


@pytest.mark.parametrize(
    ("draft", "ahead", "message"),
    [
        (gpt.GPT(**SMALL | {"vocab_size": 61}), 4, "its vocabulary has 61 tokens, the model's 60"),
        (gpt.GPT(**SMALL), 0, "draft-tokens: 0 is not positive"),
        (
            gpt.GPT(**SMALL | gpt.LLAMA | {"rope_scaling": ("dynamic", 2.0, 8)}),
            4,
            "stretched by the text's length",
        ),
        (gpt.GPT(**SMALL | {"max_length": 8}), 4, "the model has 8 positions"),
    ],
)
def test_a_draft_that_does_not_fit_is_refused(draft, ahead, message):
    model, prompts = gpt.GPT(**SMALL), np.ones((1, 3), int)
    with pytest.raises(BadInput, match=message):
        speculative.generate(
            *(model, {}, draft, {}, prompts, np.array([3]), KEY), steps=8, ahead=ahead
        )


@pytest.mark.measure("speculative")
def test_what_a_draft_saves(tmp_path):
    """A GPT of 6 blocks of 256 on the addresses, with one of a single block of 64 that drafts:
    tokens a pass of the large one, and its time alone over that with the draft."""
    sizes = {"large": (256, 6, 4, 768), "draft": (64, 1, 2, 192)}
    loaded = {}
    for name, shape in sizes.items():
        keys = zip(("width", "layers", "heads", "hidden"), shape, strict=True)
        model = {f"model.{key}": value for key, value in keys}
        config = load(f"{ROOT}/configs/lm/gpt_sotu.py", **model, **{"data.folder": str(tmp_path)})
        result = train.run(config, tmp_path / name)
        print(name, {k: v for k, v in result["eval"]["test"].items() if k != "loss"})
        loaded[name] = predict.load(str(tmp_path / name))
    large, draft = loaded["large"], loaded["draft"]
    facts = large.predictor.facts
    texts = ["Fellow citizens", "The people of", "Congress", "Our army", "I recommend", "War"] * 2
    prompts, lengths = generate.encode(facts, texts)
    own, drafts = (each.variables["params"] for each in (large, draft))
    settings = {"steps": 64, "end": generate.end_of(facts)}
    for temperature in (None, 0.8):
        rest = {"temperature": temperature} | settings
        alone = lambda rest=rest: generate.generate(large.model, own, prompts, lengths, KEY, **rest)
        reference = np.asarray(alone().tokens)
        for ahead in (2, 4, 6):
            models = large.model, own, draft.model, drafts
            write = lambda rest=rest, ahead=ahead, models=models: speculative.generate(
                *models, prompts, lengths, KEY, ahead=ahead, **rest
            )
            out = write()
            ratio = np.median([seconds(alone) / seconds(write) for _ in range(7)])
            saved = float(np.asarray(out.lengths).sum() / np.asarray(out.passes).sum())
            same = (np.asarray(out.tokens) == reference).all(axis=1).mean()
            print(f"temperature {temperature}, {ahead} ahead: {saved:.2f} tokens a pass, ", end="")
            print(
                f"{ratio:.2f} times as fast; {same:.0%} of the texts are those of the model alone"
            )
            assert 1 < saved <= ahead + 1
            assert temperature is not None or same > 0.5  # in float32 a tie may be another


def seconds(work) -> float:
    start = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - start
