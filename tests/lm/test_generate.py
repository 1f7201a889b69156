"""Generation: what the full forward would say, the distribution that was asked for, rows that know
nothing of each other, and an end.

The laws of sampling are shown on a model whose next-token probabilities are a table.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import Table
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from common import tree
from common.errors import BadInput
from lm import generate, gpt
from lm.data import tokenizer
from lm.decoding import checks

SMALL = {"vocab_size": 200, "width": 32, "layers": 2, "heads": 4, "hidden": 48, "max_length": 32}
LLAMA = gpt.LLAMA | {"layers": 1, "kv_heads": 2, "tied": False, "window": 4, "remat": "block"}
PROMPTS = np.random.default_rng(7).integers(5, 200, (3, 5))
LENGTHS = np.array([5, 3, 1])
KEY = jax.random.key(1)


def made(model):
    """Parameters spread wide, so that attention is far from even and texts differ; drawn by numpy,
    which compiles nothing."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), PROMPTS)["params"]
    rng = np.random.default_rng(0)

    def draw(path, p):
        x = rng.normal(size=p.shape) * 0.3 if p.ndim == 2 else np.full(p.shape, "scale" in path)
        return x.astype(p.dtype)

    return tree.map_paths(draw, shapes)


V, B, STEPS = 8, 6000, 3
LOGITS = np.random.default_rng(0).normal(0, 1.5, (V, V)).astype(np.float32)


def written(start, logits=LOGITS, key=KEY, steps=STEPS, **settings) -> generate.Written:
    """What the table writes behind prompts of one token."""
    prompts = np.asarray(start)[:, None]
    inputs = {"table": logits}, prompts, np.ones(len(prompts), int)
    return generate.generate(Table(V), *inputs, key, steps=steps, **settings)


def plain(logits, temperature=1.0, top_k=None, top_p=None, min_p=0.0) -> np.ndarray:
    """The probabilities of the next token, said plainly: f64[V]."""
    shares = np.exp(logits.astype(float) / temperature)
    order = np.argsort(-shares)
    kept = order[: top_k or len(order)]
    if top_p is not None:
        together = np.cumsum(shares[kept] / shares[kept].sum())
        kept = kept[: np.sum(together < top_p - 1e-9) + 1]
    kept = kept[shares[kept] >= min_p * shares[kept[0]]]
    found = np.zeros_like(shares)
    found[kept] = shares[kept] / shares[kept].sum()
    return found


# --------------------------------------------------------------------------------------- the model


def test_greedy_takes_what_the_full_forward_finds_likeliest():
    model = gpt.GPT(**SMALL)
    params = made(model)
    found = generate.generate(model, params, PROMPTS, LENGTHS, KEY, steps=9)
    forward = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    rows = np.arange(3)
    text = np.zeros((3, 14), np.int32)
    text[:, :5] = np.where(np.arange(5) < LENGTHS[:, None], PROMPTS, 0)
    for step in range(9):
        logits = np.asarray(forward(text))[rows, LENGTHS + step - 1]
        text[rows, LENGTHS + step] = np.argmax(logits, axis=-1)
    expected = text[rows[:, None], LENGTHS[:, None] + np.arange(9)]
    assert np.array_equal(found.tokens, expected)
    assert len(np.unique(expected)) > 5
    assert found.lengths.tolist() == [9, 9, 9]


def test_a_row_knows_nothing_of_its_batch():
    model = gpt.GPT(**SMALL | LLAMA)
    params = made(model)
    write = lambda *inputs: np.asarray(
        generate.generate(model, params, *inputs, KEY, steps=8, temperature=1.5).tokens
    )
    found = write(PROMPTS, LENGTHS)
    alone = write(PROMPTS[:1], LENGTHS[:1])
    assert np.array_equal(alone[0], found[0])
    others = np.where(np.arange(5) < LENGTHS[:, None], PROMPTS, 9)
    others[0] = 11
    among = write(others, np.array([4, 3, 1]))
    assert np.array_equal(among[1:], found[1:])
    assert not np.array_equal(among[0], found[0])


# ------------------------------------------------------------------------------------ the sampling


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 2.0, "top_k": 5, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 1.5, "min_p": 0.2},
        pytest.param({"temperature": 1.3, "top_k": 99, "top_p": 1.0}, marks=pytest.mark.slow),
        pytest.param({"temperature": 2.0, "top_p": 0.9, "min_p": 0.3}, marks=pytest.mark.slow),
    ],
)
def test_tokens_come_as_often_as_asked_and_none_that_is_cut_off(settings):
    """Behind every token, at every step: each draws anew."""
    text = np.asarray(written(np.arange(B) % V, **settings).tokens)
    text = np.concatenate([np.arange(B)[:, None] % V, text], axis=1)
    for step in range(STEPS):
        for last in range(V):
            following = text[text[:, step] == last, step + 1]
            if len(following) < 100:
                continue
            expected = plain(LOGITS[last], **settings)
            shares = np.bincount(following, minlength=V) / len(following)
            assert not shares[expected == 0].any()
            error = 5 * np.sqrt(expected * (1 - expected) / len(following))
            assert (np.abs(shares - expected) <= error + 1e-9).all(), (step, last)


def test_rows_and_steps_draw_independently():
    text = np.asarray(written(np.zeros(B, int), np.zeros_like(LOGITS), temperature=1.0).tokens)
    for pairs in (text[:, :2], text[:, ::2], np.stack([text[:-1, 0], text[1:, 0]], 1)):
        together = np.zeros((V, V))
        np.add.at(together, tuple(pairs.T), 1 / len(pairs))
        assert np.abs(together - V**-2).max() < 5 * V**-1 / np.sqrt(len(pairs))


def test_equal_logits_do_not_widen_the_k():
    text = written(np.zeros(B, int), np.zeros_like(LOGITS), temperature=1.0, top_k=3).tokens
    assert len(np.unique(text)) == 3


def test_the_key_decides():
    start = np.zeros(B, int)
    write = lambda seed, **more: np.asarray(
        written(start, key=jax.random.key(seed), temperature=1.0, **more).tokens
    )
    assert np.array_equal(write(3), write(3))
    assert not np.array_equal(write(3), write(4))
    assert np.array_equal(write(3, steps=2), write(3)[:, :2])


def test_numbers_may_be_traced_and_a_change_of_them_compiles_nothing():
    start = np.zeros(7, int)
    sweep = ((0.5, 0.9, 3), (0.9, 0.2, 5), (0.0, 1.0, -1))
    found = []
    for temperature, top_p, end in sweep:
        found.append(written(start, temperature=temperature, top_p=top_p, end=end))
        Table.traced.clear() if len(found) == 1 else None
    assert not Table.traced
    numbers = tuple(map(jnp.array, zip(*sweep, strict=True)))
    at_once = jax.vmap(lambda t, p, e: written(start, temperature=t, top_p=p, end=e))(*numbers)
    for i, one in enumerate(found):
        assert np.array_equal(at_once.tokens[i], one.tokens)
    best = np.argmax(LOGITS, axis=-1)
    assert np.asarray(found[2].tokens)[0, :2].tolist() == [best[0], best[best[0]]]


# ----------------------------------------------------------------------------------------- the end


def test_rows_end_are_padded_and_nothing_runs_behind_the_last():
    ring = 50 * np.roll(np.eye(V, dtype=np.float32), 1, axis=1)  # 0 1 2 3 …
    Table.at_work.clear()
    found = written([0, 2, 5, 6], ring, steps=30, end=7)
    jax.effects_barrier()
    assert found.lengths.tolist() == [6, 4, 1, 0]
    assert found.tokens.shape == (4, 30)
    for row, first in zip(np.asarray(found.tokens), (1, 3, 6, 7), strict=True):
        assert row.tolist() == [*range(first, 7), *[7] * (30 - 7 + first)]
    assert len(Table.at_work) == 1 + 7  # the prompts, and each step
    assert written([0] * B, ring, temperature=1.0).lengths.tolist() == [STEPS] * B


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 28}, "28 after a prompt of 5, and the model has 32 positions; write 27 or"),
        ({"prompts": np.zeros((3, 32), int)}, "write a shorter prompt"),
        ({"steps": 0}, "0 is not a positive number of tokens"),
        ({"top_k": 0}, "top-k: 0 is not positive"),
        ({"top_p": 0.0}, r"top-p: 0.0 is not in \(0, 1\]"),
        ({"top_p": 1.5}, "top-p: 1.5"),
        ({"top_p": float("nan")}, "top-p: nan"),
        ({"min_p": 1.5}, r"min-p: 1.5 is not in \[0, 1\]"),
        ({"temperature": -1.0}, "temperature: -1.0 is no number of at least 0"),
        ({"temperature": np.nan}, "temperature: nan is no number"),
        ({"lengths": np.array([5, 0, 1])}, "0 tokens leave nothing to continue"),
        ({"model": nn.Dense(3)}, "Dense cannot generate"),
    ],
)
def test_what_cannot_be_is_said(changes, message):
    given = {"model": gpt.GPT(**SMALL), "params": {}, "prompts": PROMPTS, "lengths": LENGTHS}
    with pytest.raises(BadInput, match=message) as caught:
        generate.generate(**given | {"key": KEY, "steps": 4} | changes)
    assert "\n" not in str(caught.value)


def test_rotary_positions_have_no_end():
    assert checks.room(gpt.GPT(**SMALL | LLAMA), 1000) is None
    assert checks.room(gpt.GPT(**SMALL), 5) == 27


# ------------------------------------------------------------------------------------------- texts


@pytest.fixture(scope="module")
def facts():
    texts = ["the people of the states", "the naïve façade of the union"]
    kinds = {"bpe": 300, "wordpiece": 60}
    return {kind: tokenizer.facts(tokenizer.train(kind, n, texts)) for kind, n in kinds.items()}


def answer(ids, length) -> generate.Written:
    return generate.Written(np.array([ids]), np.array([length]))


def test_prompts_are_beginnings_of_documents(facts):
    bytes_, words = facts["bpe"], facts["wordpiece"]
    tokens, lengths = generate.encode(bytes_, ["the people of", "", " the"])
    assert (tokens[:, 0] == bytes_.special["end"]).all()
    assert lengths[1] == 1
    for text, row, length in zip(["the people of", "", " the"], tokens, lengths, strict=True):
        assert bytes_.tokenizer.decode(row[1:length].tolist()) == text
    tokens, lengths = generate.encode(words, ["The states"])
    assert words.tokenizer.decode(tokens[0].tolist()) == "the states"
    assert generate.end_of(words) == words.special["sep"]
    with pytest.raises(BadInput, match="'  ' holds no token"):
        generate.encode(words, ["the", "  "])


def test_prompts_begin_as_the_template_does():
    """Llama's with <s>, and not with the </s> that ends a text."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁the": 3, "▁people": 4}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    llama = tokenizer.facts(made)
    tokens, lengths = generate.encode(llama, ["the people", ""])
    assert tokens.tolist() == [[1, 3, 4], [1, 0, 0]]
    assert lengths.tolist() == [3, 1]
    assert tokens[0].tolist() == made.encode("the people").ids
    assert generate.end_of(llama) == 2


def test_a_users_own_tokens_are_written():
    """Special or not; those of the template are not."""
    made = tokenizer.train("bpe", 300, ["the people"])
    made.add_special_tokens(["[URL]"])
    facts = tokenizer.facts(made)
    prompt = generate.encode(facts, ["the [URL]"])
    ids = [*made.encode(" [URL]").ids, facts.special["end"]]
    assert generate.decode(facts, *prompt, answer(ids, 3)) == ["the [URL] [URL]"]


def test_a_text_stops_at_its_end_and_drops_half_a_character(facts):
    bytes_ = facts["bpe"]
    prompt = generate.encode(bytes_, ["the"])
    ids = bytes_.tokenizer.encode(" naïve €").ids
    assert generate.decode(bytes_, *prompt, answer(ids, len(ids))) == ["the naïve €"]
    for cut in (1, 2):  # € is three bytes, and no token
        assert generate.decode(bytes_, *prompt, answer(ids, len(ids) - cut)) == ["the naïve "]
    words = facts["wordpiece"]
    prompt = generate.encode(words, ["the sta"])
    ids = words.tokenizer.get_vocab()
    ids = [ids["##te"] if "##te" in ids else ids["##t"], ids["[SEP]"], ids["t"]]
    assert generate.decode(words, *prompt, answer(ids, 1))[0] in ("the state", "the stat")
