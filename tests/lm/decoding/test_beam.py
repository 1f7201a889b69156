"""Beam search: the best of all texts, greedy with one beam, rows that know nothing of each other,
and the tokens of `transformers`."""

import itertools
from functools import partial

import jax
import numpy as np
import parity
import pytest
from tables import Table

from common import predict
from common.errors import BadInput
from lm import generate, gpt, weights
from lm.data import tokenizer
from lm.decoding import beam, rules
from lm.seq2seq import decoding
from lm.seq2seq.transformer import EncoderDecoder

V, END, STEPS = 4, 3, 3
TABLE = np.random.default_rng(1).normal(0, 1, (V, V)).astype(np.float32)
WIDE = np.random.default_rng(4).normal(0, 2, (30, 30)).astype(np.float32)
KEY = jax.random.key(0)


def searched(start, table=TABLE, steps=STEPS, end=END, **settings) -> beam.Best:
    prompts, lengths = np.asarray(start)[:, None], np.ones(len(start), int)
    inputs = Table(len(table)), {"table": table}, prompts, lengths
    return jax.tree.map(np.asarray, beam.generate(*inputs, steps=steps, end=end, **settings))


def plain(start: int, length_penalty: float) -> list[tuple[float, list[int]]]:
    """(score, text) of all texts of at most three tokens that end or are as long, best first."""
    table = TABLE.astype(float)
    likely = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    texts = []
    for size in range(1, STEPS + 1):
        for text in itertools.product(range(V), repeat=size):
            if END in text[:-1] or (size < STEPS and text[-1] != END):
                continue
            total = sum(likely[a, b] for a, b in zip((start, *text), text, strict=False))
            texts.append((total / size**length_penalty, list(text)))
    return sorted(texts, reverse=True)


@pytest.mark.parametrize("length_penalty", [0.6, 2.0])
def test_a_beam_as_wide_as_there_are_texts_finds_the_best_of_all(length_penalty):
    best = searched([0, 2], beams=40, best=40, length_penalty=length_penalty)
    for row, start in enumerate((0, 2)):
        expected = plain(start, length_penalty)
        assert len(expected) == 40
        np.testing.assert_allclose(best.scores[row], [score for score, _ in expected], rtol=1e-5)
        # Texts of the same steps in another order have equal scores.
        scores = {tuple(tokens): score for score, tokens in expected}
        for text, length, score in zip(*(each[row] for each in best), strict=True):
            tokens = text[: length + (length < STEPS)].tolist()
            assert (text[length:] == END).all()
            np.testing.assert_allclose(score, scores.pop(tuple(tokens)), rtol=1e-5)


def test_one_beam_is_greedy_token_for_token():
    """With rules, too, and whatever the length penalty."""
    made = rules.make(repetition_penalty=1.4, forbidden=[[5], [7, 8]], min_tokens=2, end=END)
    start = np.arange(30)
    for rule, penalty in ((rules.NONE, 1.0), (made, 3.0)):
        inputs = Table(30), {"table": WIDE}, start[:, None], np.ones(30, int)
        greedy = generate.generate(*inputs, KEY, steps=12, end=END, rules=rule)
        best = searched(start, WIDE, 12, beams=1, length_penalty=penalty, rules=rule)
        assert np.array_equal(best.tokens[:, 0], greedy.tokens)
        assert np.array_equal(best.lengths[:, 0], greedy.lengths)
        assert len(set(best.lengths[:, 0].tolist())) > 3


def test_rows_know_nothing_of_each_other():
    """Nor of their order; and the first of n best are the n - 1 best."""
    start = np.arange(30)
    best = searched(start, WIDE, 12, beams=3, best=3)
    order = np.random.default_rng(0).permutation(30)
    other = searched(start[order], WIDE, 12, beams=3, best=2)
    assert np.array_equal(other.tokens, best.tokens[order][:, :2])
    assert np.array_equal(other.scores, best.scores[order][:, :2])
    alone = searched(start[4:5], WIDE, 12, beams=3, best=3)
    assert np.array_equal(alone.tokens[0], best.tokens[4])
    assert (np.diff(best.scores) <= 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 0}, "beams: 0 is not positive"),
        ({"beams": 2, "best": 3}, r"best: 3 of 2 beams; it is in \[1, 2\]"),
        ({"beams": 2, "length_penalty": float("inf")}, "length-penalty: inf is no number"),
    ],
)
def test_what_cannot_be_is_said(settings, message):
    with pytest.raises(BadInput, match=message):
        searched([0], **settings)


# ------------------------------------------------------------------------------------ transformers

ROWS, MOST = 20, 12
SEARCHES = (
    {"num_beams": 4, "length_penalty": 0.6, "num_return_sequences": 4},
    {
        "num_beams": 3,
        "length_penalty": -1.0,
        "num_return_sequences": 2,
        "repetition_penalty": 1.5,
        "min_new_tokens": 4,
        "bad_words_ids": [[7], [8, 9], [12, 13, 14]],
    },
)


def theirs(model, tokens, lengths, end: int, first: int, **search) -> tuple:
    """(tokens i32[B, N, steps] behind the first ones, scores f32[B, N]) of `transformers`."""
    import torch

    there = torch.tensor(np.arange(tokens.shape[1]) < lengths[:, None]).long()
    with torch.no_grad():
        out = model.generate(
            torch.tensor(tokens),
            attention_mask=there,
            max_new_tokens=MOST,
            do_sample=False,
            early_stopping=False,
            eos_token_id=end,
            pad_token_id=end,
            return_dict_in_generate=True,
            output_scores=True,
            **search,
        )
    count = search["num_return_sequences"]
    expected = np.full((ROWS, count, MOST), end)
    written = out.sequences[:, first:].numpy().reshape(ROWS, count, -1)
    expected[:, :, : written.shape[2]] = written
    return expected, out.sequences_scores.numpy().reshape(ROWS, count)


def assert_same(best: beam.Best, expected) -> None:
    """Every one of the n best, with its score; and texts end here and there."""
    assert np.array_equal(best.tokens, expected[0])
    np.testing.assert_allclose(best.scores, expected[1], rtol=1e-4)
    assert len(set(np.asarray(best.lengths).ravel().tolist())) > 3


def often(texts) -> int:
    """A token that many texts hold, but few at their start: one to end them."""
    rows = [set(row[2:]) - set(row[:2]) for row in np.asarray(texts).tolist()]
    return max(range(3, parity.V), key=lambda token: sum(token in row for row in rows))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_in_haste")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_tokens_are_those_of_transformers(kind, tmp_path):
    """On random weights, behind 20 prompts."""
    pytest.importorskip("transformers")
    model = parity.reference(parity.CASES[kind])
    model.save_pretrained(tmp_path)
    own, params = gpt.GPT(**weights.sizes(tmp_path)), weights.pretrained(tmp_path)
    prompts = np.random.default_rng(5).integers(3, parity.V, (ROWS, 6))
    inputs = own, params, prompts, np.full(ROWS, 6)
    end = often(generate.generate(*inputs, KEY, steps=MOST).tokens)
    for search in SEARCHES:
        made = rules.make(
            repetition_penalty=search.get("repetition_penalty"),
            min_tokens=search.get("min_new_tokens"),
            forbidden=search.get("bad_words_ids", ()),
            end=end,
        )
        best = beam.generate(
            *inputs,
            steps=MOST,
            beams=search["num_beams"],
            best=search["num_return_sequences"],
            length_penalty=search["length_penalty"],
            rules=made,
            end=end,
        )
        assert_same(best, theirs(model, *inputs[2:], end, 6, **search))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_in_haste")
@pytest.mark.parametrize("kind", ["t5, 1.1", "marian", "bart"])
def test_translations_are_those_of_transformers(kind, tmp_path):
    """Of 20 sources of several lengths, padded."""
    pytest.importorskip("transformers")
    model = parity.reference(parity.CASES[kind])
    for name in ("forced_eos_token_id", "forced_bos_token_id", "no_repeat_ngram_size"):
        setattr(model.generation_config, name, None)
    model.save_pretrained(tmp_path)
    own, params = EncoderDecoder(**weights.sizes(tmp_path)), weights.pretrained(tmp_path)
    rng = np.random.default_rng(6)
    source, lengths = rng.integers(3, parity.V, (ROWS, 7)), rng.integers(3, 8, ROWS)
    segments = (np.arange(7) < lengths[:, None]).astype(np.int32)

    @partial(jax.jit, static_argnames=("beams", "best"))
    def translate(params, source, segments, end, **settings):
        inputs = own, params, source, segments
        return decoding.translate(*inputs, start=0, end=end, steps=MOST, **settings)

    end = often(translate(params, source, segments, -1, beams=1, best=1).tokens[:, 0])
    search = SEARCHES[0]
    best = translate(params, source, segments, end, beams=4, best=4, length_penalty=0.6)
    assert_same(best, theirs(model, source, lengths, end, 1, decoder_start_token_id=0, **search))


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_in_haste")
def test_published_weights_translate_as_transformers_do(tmp_path):
    """From texts to texts: the first token is the one that its files force, and no translation
    holds padding, even where the model prefers it."""
    pytest.importorskip("transformers")
    import torch

    model = parity.reference(parity.CASES["bart"])
    model.generation_config.forced_bos_token_id = 7
    model.final_logits_bias[0, 0] = 50.0
    words = tokenizer.stand_in("words", parity.V)
    (end,) = words.encode("</s>").ids
    model.config.eos_token_id = end
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(words.to_str())
    rng = np.random.default_rng(6)
    sources = [rng.integers(3, parity.V, rng.integers(3, 8)).tolist() for _ in range(4)]
    loaded = predict.of_weights(tmp_path)
    written = loaded.predict([words.decode(ids) for ids in sources], tokens=9)
    for ids, answer in zip(sources, written, strict=True):
        with torch.no_grad():
            out = model.generate(
                torch.tensor([[*ids, end]]),
                max_new_tokens=9,
                num_beams=4,
                do_sample=False,
                early_stopping=False,
                length_penalty=1.0,
                eos_token_id=end,
                forced_bos_token_id=7,
                forced_eos_token_id=None,
                bad_words_ids=[[0]],
            )
        assert answer["text"] == words.decode(out[0].tolist())
        assert answer["text"].startswith("[7]")
