"""Generation: continues prompts with a causal language model.

    tokens, lengths = generate.encode(facts, ["The people of", "Congress"])
    written = generate.generate(model, params, tokens, lengths, key, steps=64, temperature=0.8)
    texts = generate.decode(facts, tokens, lengths, written)

A model is a linen module with the methods `decode` and `empty_cache` of `lm.gpt.GPT`.

Beams of hypotheses and drafts by a smaller model are in `lm.decoding`.

Letters: B batch, P positions of the longest prompt.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common.errors import require
from common.nn.layers import split_like
from lm.data.tokenizer import TextFacts
from lm.decoding import causal, checks, sampling
from lm.decoding.rules import NONE, Rules
from lm.decoding.sampling import Written


def generate(
    model: nn.Module,
    params,
    prompts,
    lengths,
    key: jax.Array,
    *,
    steps: int,
    temperature=None,
    top_k: int | None = None,
    top_p=None,
    min_p=None,
    rules: Rules = NONE,
    end: int | None = None,
    index=None,
) -> Written:
    """Continues prompts, in one compiled program with a cache.

    A row's text depends on its prompt, its index and the key, not on the other rows;
    its first tokens do not depend on `steps`. Compiled once per shapes, `model`, `steps` and
    `top_k`.

    Args:
      model: see the module.
      params: the parameters.
      prompts: i32[B, P], padded on the right with any tokens.
      lengths: i32[B], the number of tokens of each prompt, at least 1.
      key: random key.
      steps: number of tokens to write; fewer if every row ends earlier.
      temperature: divides the logits. With None or 0 the most likely token is taken, and `top_k`
        and the other cuts have no effect. May be traced.
      top_k: sample from the k most likely tokens (Fan et al. 2018); None is all.
      top_p: of those, sample from the smallest set whose total probability is at least this
        (Holtzman et al. 2020); None is all. May be traced.
      min_p: of those, sample from the tokens at least this share as likely as the likeliest (Nguyen
        et al. 2024); None is all. May be traced.
      rules: what logits pass before that; see `lm.decoding.rules.make`.
      end: token that ends a text; None is none. May be traced.
      index: i32[B], the index of each row; None is 0, 1, … May be traced.

    Raises:
      BadInput: if a setting is out of range, a prompt is empty, or the model has too few positions;
        numbers that are traced, prompts' lengths among them, are not checked.
    """
    checks.check_model(model)
    checks.check_settings(steps, temperature, top_k, top_p, min_p)
    checks.check_prompts(model, prompts, lengths, steps)
    index = jnp.arange(len(prompts)) if index is None else index
    cuts = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    inputs = model, params, prompts, lengths, key, index
    return _generate(*inputs, steps=steps, **cuts, rules=rules, end=end)


@partial(jax.jit, static_argnames=("model", "steps", "top_k"))
def _generate(model, params, prompts, lengths, key, index, *, steps, **settings):
    prompts, lengths = prompts.astype(jnp.int32), lengths.astype(jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, split_like(index, prompts))
    cache = causal.prefilled(model, params, prompts, lengths, prompts.shape[1] + steps)
    limit = causal.room_of(model, lengths, steps)
    inputs = causal.step_of(model), params, cache, prompts, lengths, keys
    return sampling.write(*inputs, steps=steps, limit=limit, **settings)


# -------------------------------------------------------------------------------------------- text


def end_of(facts: TextFacts) -> int | None:
    """The token that ends a document in `lm.data.store`; facts: of `lm.data.tokenizer`."""
    return facts.end[0] if facts.end else None


def encode(facts: TextFacts, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(prompts i32[B, P], lengths i32[B]): texts as the starts of documents.

    Where documents begin with <|endoftext|>, or `<s>`, so do prompts, and a text may be empty.

    Args:
      facts: of `lm.data.tokenizer`.
      texts: B of them.

    Raises:
      BadInput: if a prompt has no tokens.
    """
    encode = partial(facts.tokenizer.encode, add_special_tokens=False)
    rows = [[*facts.document_begin, *encode(text).ids] for text in texts]
    for text, row in zip(texts, rows, strict=True):
        require(bool(row), f"prompt: {text!r} holds no token; write a word or more")
    lengths = np.array([len(row) for row in rows], np.int32)
    prompts = np.zeros((len(rows), lengths.max()), np.int32)
    for prompt, row in zip(prompts, rows, strict=True):
        prompt[: len(row)] = row
    return prompts, lengths


def decode(facts: TextFacts, prompts, lengths, written: Written) -> list[str]:
    """Each prompt with its continuation, up to its end, without structural tokens such as
    `<s>`; a last character whose bytes are incomplete is dropped.

    Args:
      facts: of `lm.data.tokenizer`.
      prompts, lengths: from `encode`.
      written: from `generate`.
    """
    tokens, sizes = np.asarray(written.tokens), np.asarray(written.lengths)
    rows = zip(prompts, lengths, tokens, sizes, strict=True)
    ids = [[*prompt[:length], *row[:size]] for prompt, length, row, size in rows]
    ids = [[int(i) for i in row if i not in facts.structural] for row in ids]
    texts = facts.tokenizer.decode_batch(ids, skip_special_tokens=False)
    return [text.rstrip("\N{REPLACEMENT CHARACTER}") for text in texts]
