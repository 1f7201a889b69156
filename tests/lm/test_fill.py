"""Filled masks, and the baseline, for tokenizers whose special tokens are their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import processors

from common import predict as predicting
from common.devices import mesh
from common.errors import BadInput
from lm import baseline, predict
from lm.data import tokenizer


class Copy(nn.Module):
    """Predicts the token before each mask."""

    size: int

    def __call__(self, tokens, segments, types, picked):
        before = jnp.take_along_axis(tokens, picked - 1, axis=1)
        return 9.0 * jax.nn.one_hot(before, self.size)


@pytest.fixture(scope="module")
def facts():
    """<s> A </s>, and a mask that no [MASK] spells."""
    made = tokenizer.train("bpe", 300, ["of the people of the states"])
    made.add_special_tokens(["<s>", "</s>", "«»"])
    ends = [(token, made.token_to_id(token)) for token in ("</s>", "<s>")]
    made.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
    made.roles = {"mask": "«»", "cls": "<s>", "sep": "</s>"}
    return tokenizer.facts(made)


def test_masks_are_written_either_way(facts):
    model = Copy(facts.vocab_size)
    texts = ["of[MASK] the", "of«» the", "[MASK] of«»"]
    fill = predicting.loaded(predict.fills(model, facts), mesh.make_layout(), {}, {}).predict
    one, two, both = fill(texts, top=1)
    assert one == two
    assert one["text"] == "ofof the"
    assert one["masks"][0][0]["token"] == "of"
    # What stands in front of the first word is what begins a text.
    assert [guesses[0]["token"] for guesses in both["masks"]] == ["<s>", "Ġof"]
    with pytest.raises(BadInput, match=r"'of <mask>': it has no \[MASK\]; write one"):
        fill(["[MASK]", "of <mask>"])


def test_the_baseline_counts_what_is_predicted(facts):
    """A document's first token is not; <|endoftext|>, which also ends one, is once a document."""
    counts = np.full(facts.vocab_size, 8)
    shares = lambda **changes: np.exp(baseline.unigram(facts._replace(**changes), special=True))
    llama = {"special": facts.special | {"mask": None}, "counts": counts}
    for begin, end, expected in (((5,), (6,), 1), ((5,), (5,), 5)):
        found = shares(begin=begin, end=end, **llama)
        assert found[5] / found[7] == pytest.approx(expected / 9)
    assert np.ptp(shares(counts=counts)) == 0  # nothing but a row begins with <s>
    low = np.exp(baseline.unigram(facts._replace(counts=counts, added=(9,)), special=False))
    assert low[[9, *facts.structural]].max() < 1e-9 * low[7]
