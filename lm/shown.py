"""What trackers get of a language model's data and predictions, as texts.

Letters: n rows, L positions, V vocabulary, K classes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from common import evaluate, pictures
from common.task import EvalContext, Shown, Source
from lm.data.tokenizer import TextFacts

PROMPT, WRITTEN, TEMPERATURE = 16, 48, 0.8  # tokens, of a text that is continued
MOST = 4


def training(facts: TextFacts, rows: dict) -> dict[str, Shown]:
    """Prepared training rows as texts, special tokens and labels among them, for `Task.shown`.

    Args:
      facts: of the set.
      rows: `tokens` [n, L]; optionally `label` [n].
    """

    def draw():
        texts = _texts(facts, rows["tokens"][:MOST], skip=False)
        if "label" in rows:
            names = [_label(facts, label) for label in rows["label"]]
            texts = [f"{name}: {text}" for name, text in zip(names, texts, strict=False)]
        return "\n\n".join(texts)

    return {"texts": Shown(draw)}


def _texts(facts: TextFacts, tokens, skip: bool = True) -> list[str]:
    padding = facts.special["pad"]
    rows = [[int(i) for i in row if i != padding] for row in tokens]
    return [facts.tokenizer.decode(row, skip_special_tokens=skip) for row in rows]


def _label(facts: TextFacts, label) -> str:
    return facts.classes[int(label)] if facts.classes and not np.ndim(label) else str(label)


def continued(source: Source, predict: Callable) -> Callable:
    """context -> {"generated": Shown}: how a causal model goes on with texts of a set.

    Args:
      source: the set.
      predict: (params, batch) -> logits f32[n, L - 1, V] of the tokens after each.
    """
    at, length = evaluate.spread(source.size, MOST), source.spec["tokens"].shape[0]
    count = len(at)
    prompt = min(PROMPT, length // 2)
    end = min(prompt + WRITTEN, length)

    @jax.jit
    def generate(params, tokens, key):
        rows = jnp.arange(count)

        def write(i, tokens):
            logits = predict(params, {"tokens": tokens, "segments": jnp.ones_like(tokens)})
            key_i = jax.random.fold_in(key, i)
            new = jax.random.categorical(key_i, logits[rows, i - 1] / TEMPERATURE)
            return tokens.at[:, i].set(new.astype(tokens.dtype))

        tokens = jax.lax.fori_loop(prompt, end, write, tokens.astype(jnp.int32))
        return jax.lax.with_sharding_constraint(tokens, PartitionSpec())

    def run(context: EvalContext) -> dict[str, Shown]:
        tokens = source.read(at)["tokens"]
        tokens = jax.device_get(generate(context.params, tokens, context.key))

        def draw():
            begun = _texts(source.facts, tokens[:, :prompt])
            written = _texts(source.facts, tokens[:, prompt:end])
            return "\n\n".join(f"{a} |{b}" for a, b in zip(begun, written, strict=True))

        return {"generated": Shown(draw)}

    return run


def classified(source: Source, logits: Callable) -> Callable:
    """(context, confusion [K, K]) -> {name: Shown}, for a classifier's evaluator.

    Args:
      source: the set, whose facts have classes.
      logits: (params, extra, batch, key) -> f32[n, K].
    """
    gravest = evaluate.gravest_mistakes(source, logits)

    def run(context: EvalContext, confusion) -> dict[str, Shown]:
        classes, mistakes = source.facts.classes, gravest(context)

        def draw():
            texts = _texts(source.facts, mistakes.rows["tokens"])
            captions = mistakes.captions(classes)
            lines = [f"{caption}: {text}" for caption, text in zip(captions, texts, strict=True)]
            return "\n\n".join(lines) or "none among those looked at"

        matrix = Shown(lambda: pictures.confusion(confusion, classes))
        return {"mistakes": Shown(draw), "confusion_matrix": matrix}

    return run
