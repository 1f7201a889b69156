"""Predictions of what comes next: a causal model continues texts, by sampling, greedily, by a beam
of hypotheses, or with a smaller model that drafts tokens for it.

As in `lm.predict`, a function makes a `common.task.Predictor` of a model and the facts of its
tokenizer.

Letters: B batch, T positions of a cache, N best.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common.errors import require
from common.task import Function, Predictor, purpose_key
from lm import generate
from lm.data.tokenizer import TextFacts
from lm.decoding import beam, checks, speculative
from lm.decoding import rules as logit_rules
from lm.decoding.rules import Rules
from lm.predict import exported, longest_of, pads, spelled, text_of

TOKENS = 64  # the default of `tokens`
TEMPERATURE = 0.8
AHEAD = 4  # of `draft_tokens`
NO_SCORE = float(jnp.finfo(jnp.float32).min)  # where there are fewer continuations


def continues(model: nn.Module, facts: TextFacts, draft: nn.Module | None = None) -> Predictor:
    """Of a text, the start of a document: {"text": the same with the model's continuation}; of a
    beam also "best", [{"text", "score"}, …]; with a draft also "passes", those of the model.

    Args:
      model: with the methods of `lm.generate`.
      facts: of its tokenizer.
      draft: drafts tokens for it; `params` are then {"model": …, "draft": …}.
    """
    models = (model,) if draft is None else (model, draft)
    end, longest = generate.end_of(facts), min(filter(None, map(longest_of, models)), default=None)
    checks.check_model(model)

    def options(
        *,
        tokens: int | None = None,
        temperature: float = TEMPERATURE,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        greedy: bool = False,
        seed: int = 0,
        beams: int = 1,
        best: int = 1,
        length_penalty: float = 1.0,
        min_tokens: int = 0,
        repetition_penalty: float = 1.0,
        forbid: str | None = None,
        draft_tokens: int | None = None,
    ) -> dict:
        """The options of a prediction.

        Args:
          tokens: number of tokens to write; by default 64, or as many as the model has room for.
          temperature: divides the logits: lower favours likely tokens.
          top_k: sample from the K most likely tokens; by default from all.
          top_p: sample from the likeliest tokens that have this probability together; by default
            from all.
          min_p: sample from the tokens at least this share as likely as the likeliest; by default
            from all.
          greedy: always take the most likely token.
          seed: random seed: the same one gives the same text.
          beams: search with as many hypotheses at a time, in place of sampling.
          best: continuations of a beam to tell, best first.
          length_penalty: a beam's score is the sum of log probabilities over the number of tokens
            to this power: larger favours longer texts.
          min_tokens: write at least as many tokens before the end of the text.
          repetition_penalty: divides the logits of tokens that the text holds: above 1 they are
            rarer.
          forbid: texts that are not written, with ; between them, as the tokenizer spells them at
            the start and inside of a text.
          draft_tokens: number of tokens that the model of --draft drafts at a time; by default 4.
        """
        require(0 <= seed < 2**32, f"seed: {seed} is not in [0, 2^32)")
        steps = TOKENS if tokens is None else tokens
        cuts = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
        checks.check_settings(steps, temperature, **cuts)
        beam.check(beams, best, length_penalty)
        sampling = {"temperature": temperature, "greedy": greedy} | cuts
        plain = {"temperature": TEMPERATURE, "greedy": False} | dict.fromkeys(cuts)
        if beams > 1:
            _refuse(sampling, plain, "a beam search draws nothing; leave out --beams")
        alone = {"length_penalty": length_penalty}
        _refuse(alone if beams == 1 else {}, {"length_penalty": 1.0}, "it is for --beams 2 or more")
        rules = logit_rules.make(
            repetition_penalty=repetition_penalty,
            min_tokens=min_tokens,
            forbidden=spelled(facts, forbid),
            end=end,
        )
        if draft is None:
            drafts = {"draft_tokens": draft_tokens}
            _refuse(drafts, {"draft_tokens": None}, "no model drafts; name one with --draft")
        else:
            ruled = {"beams": beams, "min_tokens": min_tokens, "forbid": forbid}
            ruled |= {"repetition_penalty": repetition_penalty}
            none = {"beams": 1, "min_tokens": 0, "forbid": None, "repetition_penalty": 1.0}
            _refuse(ruled, none, "not with --draft")
            speculative.check(model, draft, AHEAD if draft_tokens is None else draft_tokens)
        return {
            "steps": steps,
            "temperature": None if greedy else float(temperature),
            "top_k": top_k,
            "top_p": None if top_p is None else float(top_p),
            "min_p": None if min_p is None else float(min_p),
            "key": purpose_key(seed, "generate"),
            "exactly": tokens is not None,
            "beams": beams,
            "best": best,
            "length_penalty": float(length_penalty) if beams > 1 else None,
            "ahead": AHEAD if draft_tokens is None else draft_tokens,
            **rules._asdict(),
        }

    def read(text, options) -> list[dict]:
        (prompt,), (length,) = generate.encode(facts, [text_of(text)])
        wanted = options["steps"] if options["exactly"] else 1
        for each in models:
            checks.check_room(each, int(length), wanted)
        return [{"tokens": prompt, "length": length}]

    def apply(params, extra, batch, options):
        prompts, steps = (batch["tokens"], batch["length"]), options["steps"]
        cuts = {name: options[name] for name in ("temperature", "top_k", "top_p", "min_p")}
        drawn = cuts | {"steps": steps, "end": end, "index": batch["index"]}
        if draft is not None:
            both = model, params["model"], draft, params["draft"]
            rest = {"ahead": options["ahead"]} | drawn
            written = speculative.generate(*both, *prompts, options["key"], **rest)
            passes = {"passes": written.passes}
            return {"tokens": written.tokens, "length": written.lengths} | passes
        rules = Rules(**{name: options[name] for name in Rules._fields})
        if options["beams"] > 1:
            search = {name: options[name] for name in ("beams", "best", "length_penalty", "steps")}
            written = beam.generate(model, params, *prompts, **search, rules=rules, end=end)
            scores = {"score": jnp.maximum(written.scores, NO_SCORE)}
            return {"tokens": written.tokens, "length": written.lengths} | scores
        written = generate.generate(model, params, *prompts, options["key"], rules=rules, **drawn)
        return {"tokens": written.tokens, "length": written.lengths}

    def result(text, rows, outputs, options) -> dict:
        prompt, out = rows[0]["tokens"], outputs[0]
        tokens, counts = (np.asarray(out[name]) for name in ("tokens", "length"))
        tokens, counts = np.atleast_2d(tokens), np.atleast_1d(counts)
        room = checks.room(model, len(prompt))
        counts = counts if room is None else np.minimum(counts, room)
        prompts = np.repeat(prompt[None], len(tokens), axis=0)
        lengths = np.full(len(tokens), len(prompt))
        texts = generate.decode(facts, prompts, lengths, generate.Written(tokens, counts))
        answer = {"text": texts[0]}
        if "score" in out:
            pairs = zip(texts, out["score"].tolist(), strict=True)
            best = [{"text": text, "score": score} for text, score in pairs if score > NO_SCORE]
            answer["best"] = best
        if "passes" in out:
            answer["passes"] = int(out["passes"])
        return answer

    def prompts(params, extra, rows) -> dict:
        """The first halves of rows."""
        tokens = rows["tokens"][:, : max(1, rows["tokens"].shape[1] // 2)].astype(np.int32)
        length = np.full(len(tokens), tokens.shape[1], np.int32)
        return {"tokens": tokens, "length": np.minimum(length, rows.get("length", length))}

    def logits(params, extra, batch, options):
        return {"logits": model.apply({"params": params}, batch["tokens"])}

    def line(result) -> str:
        texts = [each["text"] for each in result.get("best", ())]
        return "".join(f"{text}\n" for text in texts or [result["text"]])

    def drafted(other: Predictor) -> Predictor:
        known = getattr(other.facts, "tokenizer", None)
        same = known is not None and known.get_vocab() == facts.tokenizer.get_vocab()
        require(same, "draft: it is no causal model with the tokenizer of this one")
        speculative.check(model, other.model, AHEAD)
        return continues(model, facts, other.model)

    predict = {"predict": Function(apply, prompts, {"tokens": "l"})}
    more = {"logits": exported(logits, "tokens", longest=longest), "step": _step(model, prompts)}
    return Predictor(
        *(read, apply, result, line, options, pads(facts, "tokens"), longest),
        model=model,
        exports=predict | more if draft is None else {},
        facts=facts,
        drafted=drafted if draft is None else None,
    )


def _refuse(options: dict, plain: dict, why: str) -> None:
    """Raises `BadInput` for the first option that is not what it is where nobody sets it."""
    for name, value in options.items():
        require(value == plain[name], f"{name.replace('_', '-')}: {why}")


def _step(model: nn.Module, prompts: Callable) -> Function:
    """One step of decoding: a token of each row and the cache -> the logits of the next, and the
    cache. Part `keys` of the cache has `keys_i`, f32[B, T, ...], for block i, and so have the
    others; `length` i32[B] is the number of positions that are filled. An empty cache is zeros."""
    dtype = getattr(model, "dtype", None) or jnp.float32
    like = jax.eval_shape(lambda: model.empty_cache(1, 1, dtype))

    def parts(cache) -> dict[str, tuple]:
        return {name: blocks for name, blocks in cache._asdict().items() if type(blocks) is tuple}

    def flat(cache) -> dict:
        arrays = {
            f"{name}_{i}": x.astype(jnp.float32)
            for name, blocks in parts(cache).items()
            for i, x in enumerate(blocks)
        }
        return arrays | {"length": cache.length}

    def apply(params, extra, batch, options):
        read = {
            name: tuple(batch[f"{name}_{i}"].astype(x.dtype) for i, x in enumerate(blocks))
            for name, blocks in parts(like).items()
        }
        cache = type(like)(**read, length=batch["length"])
        logits, cache = model.apply({"params": params}, batch["token"], cache, method="decode")
        return {"logits": logits} | flat(cache)

    def inputs(params, extra, rows) -> dict:
        """The step after the first halves of rows."""
        tokens = prompts(params, extra, rows)["tokens"]
        cache = model.empty_cache(len(tokens), tokens.shape[1] + 1, dtype)
        decode = jax.jit(partial(model.apply, method="decode"))
        logits, cache = decode({"params": params}, tokens, cache)
        token = np.argmax(logits, axis=-1).astype(np.int32)[:, None]
        return {"token": token} | jax.tree.map(np.asarray, flat(cache))

    blocks = [name for name in jax.eval_shape(flat, like) if name != "length"]
    return Function(apply, inputs, dict.fromkeys(blocks, "t"))
