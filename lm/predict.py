"""Predictions of language models, from texts: hidden words, a class or a number, or a vector. What
comes next is in `lm.predict_continued`.

Each function makes a `common.task.Predictor` of a model and the facts of its tokenizer, for runs
and for published weights alike. `params` has no statistics beside it.

Letters: B batch, L positions, P masks, D width, K classes.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from common import classes as ranking
from common.errors import brief, require
from common.task import Function, Predictor
from lm import bert, fill
from lm.data import labelled, tokenizer
from lm.data.tokenizer import TextFacts


def longest_of(model: nn.Module) -> int | None:
    """The most positions that a model has; None is no limit."""
    return model.max_length if getattr(model, "positions", None) == "learned" else None


def pads(facts: TextFacts, *names: str) -> dict[str, int]:
    """What arrays of a row are padded with; padding is segment 0."""
    return {name: facts.special["pad"] or 0 if name == "tokens" else 0 for name in names}


def exported(apply: Callable, *names: str, longest: int | None = None) -> Function:
    """A `Function` whose inputs are arrays of rows, [B, L], cut at `longest`; what rows lack is
    0."""

    def inputs(params, extra, rows):
        del params, extra
        blank = np.zeros_like(rows["tokens"])
        return {name: rows.get(name, blank)[:, :longest].astype(np.int32) for name in names}

    return Function(apply, inputs, dict.fromkeys(names, "l"))


def text_of(given: Any) -> str:
    """A text that is alone in its input."""
    require(isinstance(given, str), f"{brief(given)} is not a text")
    _check_text(given)
    return given


def spelled(facts: TextFacts, texts: str | None) -> list[list[int]]:
    """The tokens of texts with ; between them, each alone and behind a space; None is no text."""
    sequences = []
    for text in [] if texts is None else texts.split(";"):
        for way in (text_of(text), f" {text}"):
            ids = facts.tokenizer.encode(way, add_special_tokens=False).ids
            require(bool(ids) and bool(text.strip()), f"forbid: {text!r} holds no token")
            sequences.append(ids)
    return sequences


def _check_text(text: str) -> None:
    half = re.search("[\ud800-\udfff]", text)
    require(
        half is None, "it holds bytes that are not UTF-8, or half of a character: it is no text"
    )


# ------------------------------------------------------------------------------------ hidden words


def fills(model: nn.Module, facts: TextFacts) -> Predictor:
    """Of a text with [MASK] or the tokenizer's own mask tokens: {"text": with the likeliest token
    in each, "masks": for each mask [{"token", "probability"}, …]}. Masks are independent.

    Args:
      model: called as `lm.mlm` calls it.
      facts: of its tokenizer, which has a mask token.
    """
    encoder, longest = facts.tokenizer, longest_of(model)
    mask, frame = facts.special["mask"], len(facts.begin) + len(facts.end)

    def options(*, top: int = 5) -> dict:
        """The options of a prediction.

        Args:
          top: number of tokens to tell for each mask, likeliest first.
        """
        size = facts.vocab_size
        require(0 < top <= size, f"top: {top} is not in [1, {size}], the size of the vocabulary")
        return {"top": top}

    def read(text, options) -> list[dict]:
        text = text_of(text).replace(fill.MASK, encoder.id_to_token(mask))
        ids = encoder.encode(text, add_special_tokens=False).ids
        require(mask in ids, f"it has no {fill.MASK}; write one in place of a word")
        length = len(ids) + frame
        require(
            longest is None or length <= longest,
            f"{length} tokens, and the model has {longest} positions; write a shorter text",
        )
        tokens = np.array([*facts.begin, *ids, *facts.end], np.int32)
        picked = np.flatnonzero(tokens == mask).astype(np.int32)
        return [{"tokens": tokens, "segments": np.ones(length, np.int32), "picked": picked}]

    def logits(params, extra, batch, options):
        inputs = batch["tokens"], batch["segments"], batch.get("types"), batch["picked"]
        outputs = model.apply({"params": params}, *inputs)
        # A model with a next-sentence head returns two outputs.
        return {"logits": outputs[0] if isinstance(outputs, tuple) else outputs}

    def apply(params, extra, batch, options):
        ids, shares = fill.guesses(logits(params, extra, batch, options)["logits"], options["top"])
        return {"ids": ids, "shares": shares}

    def inputs(params, extra, rows) -> dict:
        """Every eighth token of a row is hidden, unless it has its own masks."""
        tokens, segments = rows["tokens"].astype(np.int32), rows["segments"].astype(np.int32)
        if "picked" in rows:
            return {"tokens": tokens, "segments": segments, "picked": rows["picked"]}
        picked = np.arange(1, tokens.shape[1], 8, dtype=np.int32)
        tokens[:, picked] = mask
        picked = np.tile(picked, (len(tokens), 1))
        return {"tokens": tokens, "segments": segments, "picked": picked}

    def result(text, rows, outputs, options) -> dict:
        tokens, picked = rows[0]["tokens"].copy(), rows[0]["picked"]
        ids, shares = (outputs[0][name][: len(picked)] for name in ("ids", "shares"))
        tokens[picked] = ids[:, 0]
        inner = tokens[len(facts.begin) : len(tokens) - len(facts.end)]
        guesses = [
            [
                {"token": encoder.id_to_token(i), "probability": share}
                for i, share in zip(*of_mask, strict=True)
            ]
            for of_mask in zip(ids.tolist(), shares.tolist(), strict=True)
        ]
        return {
            "text": encoder.decode(inner.tolist(), skip_special_tokens=False),
            "masks": guesses,
        }

    def line(result) -> str:
        lines = [result["text"]]
        for guesses in result["masks"]:
            told = (f"{each['token']} {each['probability']:.1%}" for each in guesses)
            lines.append("    " + ", ".join(told))
        return "\n".join(lines)

    lengths = {"tokens": "l", "segments": "l", "picked": "p"}
    functions = {"predict": apply, "logits": logits}
    return Predictor(
        *(read, apply, result, line, options, pads(facts, *lengths), longest),
        model=model,
        exports={name: Function(f, inputs, lengths) for name, f in functions.items()},
    )


# ----------------------------------------------------------------------------- classes and numbers


def texts_of(given: Any, count: int = 0) -> tuple[str, ...]:
    """The texts of an input: one, or a pair.

    Args:
      given: a text; two texts as a tuple, or as one with a tab between them; or {"text": …} with
        "text_b" of a pair, as a dict or as JSON.
      count: texts that the model is for, 1 or 2; 0 is either, without tabs.

    Raises:
      BadInput: if it is none of these, is blank, or has another number of texts.
    """
    texts = given
    if isinstance(given, str):
        texts = (given,)
        if given.lstrip().startswith("{"):
            try:
                value = json.loads(given)
            except ValueError:
                value = None
            texts = value if isinstance(value, dict) and "text" in value else texts
        if texts == (given,) and count == 2:
            texts = tuple(given.split("\t"))
    if isinstance(texts, dict):
        unknown = sorted(texts.keys() - {"text", "text_b"})
        require(
            not unknown, f"{brief(unknown)[1:-1]}: an input has a 'text' and a 'text_b' at most"
        )
        second = () if texts.get("text_b") is None else (texts["text_b"],)
        texts = (texts.get("text"), *second)
    valid = isinstance(texts, tuple | list) and len(texts) in (1, 2)
    valid = valid and all(isinstance(text, str) for text in texts)
    two = 'two texts, with a tab between them, or as {"text": …, "text_b": …}'
    require(valid, f"{brief(given)} is neither a text nor {two}")
    require(
        count in (0, len(texts)),
        f"it has {'one text' if len(texts) == 1 else 'two texts'}, and the model is for "
        + ("one" if count == 1 else two),
    )
    for text in texts:
        _check_text(text)
    require(any(map(str.strip, texts)), "it is blank")
    return tuple(texts)


def _reader(facts: TextFacts) -> Callable:
    """(input, options) -> its row as the texts of `lm.data.labelled` have them, as long as it is;
    what exceeds `facts.length` is cut."""
    plain = tokenizer.reading(facts)

    def read(given, options) -> list[dict]:
        texts = texts_of(given, facts.texts)
        encodings = plain.encode_batch(list(texts), add_special_tokens=False)
        tokens, types = labelled.laid_out(facts, *(each.ids for each in encodings))
        ones = np.ones(len(tokens), np.int32)
        return [
            {"tokens": tokens.astype(np.int32), "segments": ones, "types": types.astype(np.int32)}
        ]

    return read


def classifies(model: nn.Module, facts: TextFacts) -> Predictor:
    """Of a text or a pair, {"class", "probability", "probabilities"} (`common.classes`); or
    {"value": a number}, of a regression.

    Args:
      model: called as `lm.classify` calls it.
      facts: of its tokenizer, with the classes, and the length at which texts are cut; `texts` is
        the number of texts it is for.
    """
    names, multi_label = facts.classes, facts.multi_label

    def classes(*, top: int = 5) -> dict:
        """The options of a prediction.

        Args:
          top: number of classes to tell, likeliest first.
        """
        return {"top": ranking.check_top(top, len(names))}

    def number() -> dict:
        """No options."""
        return {}

    def apply(params, extra, batch, options):
        inputs = batch["tokens"], batch["segments"], batch["types"]
        return {"logits": model.apply({"params": params}, *inputs)}

    def result(given, rows, outputs, options) -> dict:
        logits = outputs[0]["logits"]
        if not names:
            return {"value": float(logits[0])}
        return ranking.result(logits, names, options["top"], multi_label)

    return Predictor(
        read=_reader(facts),
        apply=apply,
        result=result,
        line=ranking.line if names else lambda result: f"{result['value']:.6g}",
        options=classes if names else number,
        pads=pads(facts, "tokens", "segments", "types"),
        longest=longest_of(model),
        columns=("text", "text_b"),
        optional=("text_b",) if facts.texts != 2 else (),
        model=model,
        exports={"predict": exported(apply, "tokens", "segments", "types")},
    )


# ----------------------------------------------------------------------------------------- vectors


def vectors(model: nn.Module, facts: TextFacts, pooling: str = "", unit: bool = False) -> Predictor:
    """Of a text or a pair, {"vector": D numbers}: its hidden states, pooled.

    Args:
      model: with the method `encode`, as `lm.bert.Encoder` has it.
      facts: of its tokenizer, with the length at which texts are cut.
      pooling: "mean" of all tokens, those of the template included; "first", the first of them; ""
        is what a classifier classifies, and the mean for other models.
      unit: divide by the Euclidean length.

    Raises:
      BadInput: if the model has no such method.
    """
    name = type(model).__name__
    require(hasattr(model, "encode"), f"config.model.module: {name} has no method `encode`")
    own = not pooling and hasattr(model, "pool")

    def pooled(module, tokens, segments, types):
        inputs = (tokens, segments, types) if hasattr(module, "types") else (tokens, segments)
        hidden = module.encode(*inputs)
        if own:
            return module.pool(hidden, segments)
        return hidden[:, 0] if pooling == "first" else bert.mean_pool(hidden, segments)

    def options() -> dict:
        """No options."""
        return {}

    def apply(params, extra, batch, options):
        inputs = batch["tokens"], batch["segments"], batch["types"]
        vector = model.apply({"params": params}, *inputs, method=pooled).astype(jnp.float32)
        if unit:
            vector /= jnp.maximum(jnp.linalg.norm(vector, axis=-1, keepdims=True), 1e-12)
        return {"vector": vector}

    return Predictor(
        read=_reader(facts),
        apply=apply,
        result=lambda given, rows, outputs, options: {"vector": outputs[0]["vector"].tolist()},
        line=lambda result: " ".join(f"{x:.6g}" for x in result["vector"]),
        options=options,
        pads=pads(facts, "tokens", "segments", "types"),
        longest=longest_of(model),
        columns=("text", "text_b"),
        optional=("text_b",) if facts.texts != 2 else (),
        model=model,
        exports={"predict": exported(apply, "tokens", "segments", "types")},
    )
