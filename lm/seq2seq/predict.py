"""Predictions of encoder-decoders: the translation of a text.

Letters: B batch, N best, T target positions.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from common.errors import require
from common.task import Function, Predictor
from lm.data import sides
from lm.data.sides import PairFacts
from lm.decoding import beam
from lm.decoding import rules as logit_rules
from lm.decoding.rules import Rules
from lm.predict import longest_of, spelled, text_of
from lm.seq2seq import decoding


def texts_of(facts: PairFacts, tokens: np.ndarray, lengths: np.ndarray) -> list[str]:
    """Targets as texts.

    Args:
      facts: of the set.
      tokens: i32[B, T].
      lengths: i32[B], the tokens before each one's end.
    """
    structural = {*facts.target.structural, facts.end}
    rows = zip(tokens.tolist(), lengths.tolist(), strict=True)
    ids = [[i for i in row[:length] if i not in structural] for row, length in rows]
    texts = facts.target.tokenizer.decode_batch(ids, skip_special_tokens=False)
    return [text.strip() for text in texts]


def rules_of(facts: PairFacts, forbidden: Sequence[Sequence[int]] = (), **settings) -> Rules:
    """The rules of `lm.decoding.rules.make`, and that no target holds padding: a model may have
    learned nothing about it, or, as Marian's, prefer it.

    Args:
      facts: of the tokenizers.
      forbidden, settings: of `make`, except `end`.
    """
    pad = facts.target.special["pad"]
    padding = [] if pad in (None, facts.end) else [[pad]]
    return logit_rules.make(forbidden=[*forbidden, *padding], end=facts.end, **settings)


def translates(model: nn.Module, facts: PairFacts, forced: Sequence[int] = ()) -> Predictor:
    """Of a text: {"text": its translation, "score"}, and, of several, "best": [{"text", "score"}].

    Args:
      model: with the methods of `lm.seq2seq.decoding`.
      facts: of its tokenizers, with the lengths of rows.
      forced: the first tokens of every target.
    """
    decoding.check_model(model)
    before, after = sides.frame(facts.source)
    encode, _ = sides.readers_of(facts)
    longest = facts.source.length
    bound = longest_of(model)
    longest = longest if bound is None else min(longest, bound)

    def options(
        *,
        beams: int = 4,
        best: int = 1,
        length_penalty: float = 1.0,
        tokens: int | None = None,
        min_tokens: int = 0,
        repetition_penalty: float = 1.0,
        forbid: str | None = None,
    ) -> dict:
        """The options of a prediction.

        Args:
          beams: hypotheses of beam search; 1 is greedy.
          best: number of translations to tell, best first.
          length_penalty: exponent of a hypothesis's length, which divides its log probability:
            higher favours longer translations.
          tokens: most tokens of a translation, its end included; by default those of the run's
            rows.
          min_tokens: write at least as many tokens before the end.
          repetition_penalty: divides the logits of tokens that the translation holds: above 1 they
            are rarer.
          forbid: texts that are not written, with ; between them, as the tokenizer spells them at
            the start and inside of a text.
        """
        beam.check(beams, best, length_penalty)
        room = facts.target.length
        steps = room if tokens is None else tokens
        require(0 < steps <= room, f"tokens: {steps} is not in [1, {room}], the room for a target")
        rules = rules_of(
            facts,
            spelled(facts.target, forbid),
            repetition_penalty=repetition_penalty,
            min_tokens=min_tokens,
            forced=forced,
        )
        settings = {"beams": beams, "best": best, "steps": steps}
        return settings | {"length_penalty": float(length_penalty), **rules._asdict()}

    def read(text, options) -> list[dict]:
        text = text_of(text).strip()
        require(bool(text), "it is blank")
        (ids,) = encode([text])
        unknown = facts.source.special["unk"]
        require(any(i != unknown for i in ids), "it has no token that the model knows")
        source = np.array([*before, *ids, *after], np.int32)
        require(
            len(source) <= longest,
            f"{len(source)} tokens, and the model was trained on {longest}: divide it into parts, "
            "such as sentences",
        )
        return [{"source": source, "source_segments": np.ones(len(source), np.int32)}]

    def apply(params, extra, batch, options):
        settings = {name: options[name] for name in ("beams", "best", "steps", "length_penalty")}
        inputs = batch["source"], batch["source_segments"]
        rules = Rules(**{name: options[name] for name in Rules._fields})
        frame = {"start": facts.start, "end": facts.end, "rules": rules}
        made = decoding.translate(model, params, *inputs, **frame, **settings)
        none = jnp.finfo(made.scores.dtype).min  # where there are fewer hypotheses
        likely = jnp.where(made.scores == -jnp.inf, none, made.scores)
        return {"tokens": made.tokens, "lengths": made.lengths, "scores": likely}

    def result(text, rows, outputs, options) -> dict:
        made = outputs[0]
        texts = texts_of(facts, made["tokens"], made["lengths"])
        each = zip(texts, made["scores"].tolist(), strict=True)
        none = np.finfo(made["scores"].dtype).min
        best = [{"text": text, "score": score} for text, score in each if score > none]
        return best[0] if options["best"] == 1 else {**best[0], "best": best}

    def line(result) -> str:
        if "best" not in result:
            return result["text"]
        return "\n".join(f"{each['score']:.3f}  {each['text']}" for each in result["best"])

    def inputs(params, extra, rows: dict) -> dict:
        names = "source", "source_segments"
        return {name: rows[name].astype(np.int32) for name in names}

    lengths = {"source": "l", "source_segments": "l"}
    return Predictor(
        *(read, apply, result, line, options),
        pads={"source": facts.pads[0], "source_segments": 0},
        longest=longest,
        model=model,
        exports={"predict": Function(apply, inputs, lengths)},
    )
