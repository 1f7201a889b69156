"""Predictions about parts of a text: tags of its words with their entities, and answers in it.

As in `lm.predict`, each function makes a `common.task.Predictor` of a model and the facts of its
tokenizer. Characters are numbered from 0; `end` is that after the last.

Letters: B batch, L positions, W words, K classes, N spans.
"""

import json
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common.errors import brief, require
from common.task import Predictor
from lm import entities, spans
from lm.data import questions, tagged, tokenizer
from lm.data.tokenizer import TextFacts
from lm.predict import exported, longest_of

NO_SPAN = float(jnp.finfo(jnp.float32).min)  # the score where a text has fewer spans
WORD = re.compile(r"\w+(?:[-.'’]\w+)*|[^\w\s]")  # or a sign


def _object(raw: Any, *keys: str) -> Any:
    """An input, or the object that it is as JSON, if that has one of these keys."""
    if isinstance(raw, str) and raw.lstrip().startswith("{"):
        try:
            value = json.loads(raw)
        except ValueError:
            return raw
        return value if isinstance(value, dict) and set(keys) & set(value) else raw
    return raw


def _row(tokens: np.ndarray, types: np.ndarray) -> dict[str, np.ndarray]:
    """{"tokens", "segments", "types"}: i32[L] each."""
    ones = np.ones(len(tokens), np.int32)
    return {"tokens": tokens.astype(np.int32), "segments": ones, "types": types.astype(np.int32)}


def _pads(facts: TextFacts) -> dict[str, int]:
    """What the arrays of `_row` are padded with; padding is segment 0."""
    return {"tokens": facts.special["pad"] or 0, "segments": 0, "types": 0}


# -------------------------------------------------------------------------------------------- tags


def words_of(raw: Any) -> tuple[str, list[tuple[int, int]]]:
    """(text, the characters of each of its W words) of an input: a text, which is divided into
    words and signs; or its words, as a list or as {"tokens": […]}, a dict or JSON, joined by
    spaces.

    Raises:
      BadInput: if it is neither, or has no word.
    """
    raw = _object(raw, "tokens")
    if isinstance(raw, dict):
        unknown = sorted(raw.keys() - {"tokens"})
        require(not unknown, f"{brief(unknown)[1:-1]}: an input has 'tokens' alone")
        raw = raw.get("tokens")
    if isinstance(raw, str):
        places = [match.span() for match in WORD.finditer(raw)]
        require(bool(places), "it is blank")
        return raw, places
    words = isinstance(raw, list | tuple) and all(isinstance(word, str) for word in raw)
    require(words and bool(raw), f'{brief(raw)} is neither a text nor {{"tokens": ["…"]}}')
    ends = np.cumsum([len(word) + 1 for word in raw]) - 1
    places = [(int(end) - len(word), int(end)) for word, end in zip(raw, ends, strict=True)]
    return " ".join(raw), places


def tags(model: nn.Module, facts: TextFacts) -> Predictor:
    """Of a text, {"words": [{"word", "tag", "probability", "start", "end"}, …]}; and, if tags are
    of entities, {"entities": [{"type", "text", "start", "end"}, …]}.

    Args:
      model: called as `lm.tag` calls it.
      facts: of its tokenizer, with the tags as classes, and the length at which texts are divided
        into rows.
    """
    plain, names = tokenizer.reading(facts), facts.classes
    of_entities = entities.are_entities(names)

    def options() -> dict:
        """No options."""
        return {}

    def read(raw, options) -> list[dict]:
        text, places = words_of(raw)
        words = tuple(text[start:end] for start, end in places)
        encoding = plain.encode(" ".join(words), add_special_tokens=False)
        rows = tagged.rows_of(tagged.tokens_of(words, encoding, facts), facts)
        return [_row(row.tokens, row.types) | {"word": row.word.astype(np.int32)} for row in rows]

    def apply(params, extra, batch, options):
        inputs = batch["tokens"], batch["segments"], batch["types"]
        shares = jax.nn.softmax(model.apply({"params": params}, *inputs))
        return {"tag": jnp.argmax(shares, axis=-1), "probability": jnp.max(shares, axis=-1)}

    def result(raw, rows, outputs, options) -> dict:
        text, places = words_of(raw)
        words = []
        for row, output in zip(rows, outputs, strict=True):
            for at in np.flatnonzero(row["word"] >= 0):
                start, end = places[row["word"][at]]
                tag, share = names[output["tag"][at]], float(output["probability"][at])
                one = {"word": text[start:end], "tag": tag, "probability": share}
                words.append(one | {"start": start, "end": end})
        if not of_entities:
            return {"words": words}
        made = []
        for kind, first, last in entities.spans([word["tag"] for word in words]):
            start, end = words[first]["start"], words[last - 1]["end"]
            made.append({"type": kind, "text": text[start:end], "start": start, "end": end})
        return {"entities": made, "words": words}

    def line(result) -> str:
        if of_entities:
            parts = [f"{each['text']} ({each['type']})" for each in result["entities"]]
            return ", ".join(parts) or "no entity"
        return " ".join(f"{each['word']}/{each['tag']}" for each in result["words"])

    return Predictor(
        *(read, apply, result, line, options, _pads(facts) | {"word": -1}, longest_of(model)),
        columns=("tokens", "text"),
        optional=("tokens", "text"),
        model=model,
        exports={"predict": exported(apply, "tokens", "segments", "types")},
    )


# ----------------------------------------------------------------------------------------- answers


def question_of(raw: Any) -> tuple[str, str]:
    """(question, context) of an input: a pair; a text with a tab between them; or {"question": …,
    "context": …}, a dict or JSON.

    Raises:
      BadInput: if it is none of these, or one of them is blank.
    """
    given, raw = raw, _object(raw, "question", "context")
    if isinstance(raw, dict):
        raw = tuple(raw.get(key) for key in ("question", "context"))
    elif isinstance(raw, str):
        raw = tuple(raw.split("\t", 1))
    pair = isinstance(raw, tuple | list) and len(raw) == 2
    pair = pair and all(isinstance(text, str) for text in raw)
    like = '{"question": "…", "context": "…"}'
    require(pair, f"{brief(given)} is not a question, a tab and its context, and not {like}")
    require(all(map(str.strip, raw)), "its question or its context is blank")
    return tuple(raw)


def answers(
    model: nn.Module, facts: TextFacts, unanswerable: bool, stride: int, question_length: int
) -> Predictor:
    """Of a question and a context, the best span of the context: {"answer": its text, or None for
    no answer, "score": the sum of its logits, "start", "end", "null_score": of no answer,
    "answers": [{"text", "score", "start", "end"}, …], the best spans}.

    Args:
      model: called as `lm.answer` calls it.
      facts: of its tokenizer, with the length of a row.
      unanswerable: whether the model has been trained on questions without an answer.
      stride, question_length: as in `lm.data.questions.load_sources`.
    """
    plain = tokenizer.reading(facts)
    questions.check_room(facts, stride, question_length)

    def options(
        *,
        top: int = 1,
        max_answer_length: int = 30,
        null_threshold: float | None = 0.0 if unanswerable else None,
    ) -> dict:
        """The options of a prediction.

        Args:
          top: number of spans to tell, best first.
          max_answer_length: the most tokens of an answer.
          null_threshold: how far, in logits, the score of no answer must lie above that of the best
            span for the answer to be none; by default 0, or, where no question of the training data
            lacks an answer, there always is one.
        """
        require(top > 0, f"top: {top} is not a positive number of spans")
        positive = f"max-answer-length: {max_answer_length} is not positive"
        require(max_answer_length > 0, positive)
        return {"top": top, "longest": max_answer_length, "threshold": null_threshold}

    def read(raw, options) -> list[dict]:
        question, context = question_of(raw)
        ids, encoding = (
            plain.encode(text, add_special_tokens=False) for text in (question, context)
        )
        require(bool(encoding.ids), "its context has no token")
        characters = questions.characters_of(context, encoding.offsets)
        rows = []
        for row in questions.rows_of(ids.ids[:question_length], encoding.ids, facts, stride):
            begin, end = row.context
            places = np.zeros((len(row.tokens), 2), np.int32)
            places[begin:end] = characters[row.first : row.first + end - begin]
            more = {"context": np.array(row.context, np.int32), "characters": places}
            rows.append(_row(row.tokens, row.types) | more)
        return rows

    def apply(params, extra, batch, options):
        inputs = batch["tokens"], batch["segments"], batch["types"]
        logits = model.apply({"params": params}, *inputs)
        start, end = (jnp.where(jnp.isfinite(x), x, jnp.nan) for x in logits)
        rule = options["longest"], options["top"]
        score, first, last = spans.likeliest(start, end, batch["context"], *rule)
        score = jnp.maximum(score, NO_SPAN)  # -inf would be no output
        return {"score": score, "first": first, "last": last, "null": start[:, 0] + end[:, 0]}

    def result(raw, rows, outputs, options) -> dict:
        _, context = question_of(raw)
        best = {}  # a span may stand in several windows
        for row, output in zip(rows, outputs, strict=True):
            for score, *ends in zip(output["score"], output["first"], output["last"], strict=True):
                if score > NO_SPAN:
                    (start, _), (_, end) = (row["characters"][at].tolist() for at in ends)
                    best[start, end] = max(float(score), best.get((start, end), -np.inf))
        places = sorted(best, key=lambda place: -best[place])[: options["top"]]
        ranked = [
            {"text": context[start:end], "score": best[start, end], "start": start, "end": end}
            for start, end in places
        ]
        null, threshold = min(float(output["null"]) for output in outputs), options["threshold"]
        first = {"answer": ranked[0]["text"]} | {k: ranked[0][k] for k in ("score", "start", "end")}
        if threshold is not None and null - first["score"] > threshold:
            first = {"answer": None, "score": null, "start": None, "end": None}
        return first | {"null_score": null, "answers": ranked}

    def line(result) -> str:
        if len(result["answers"]) == 1:
            return "no answer" if result["answer"] is None else result["answer"]
        lines = [] if result["answer"] is not None else [f"no answer ({result['null_score']:.2f})"]
        lines += [f"{each['text']} ({each['score']:.2f})" for each in result["answers"]]
        return "\n    ".join(lines)

    return Predictor(
        *(read, apply, result, line, options, _pads(facts) | {"characters": 0}, longest_of(model)),
        columns=("question", "context"),
        model=model,
    )
