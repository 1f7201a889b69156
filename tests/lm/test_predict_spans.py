"""Tags and answers from raw inputs are those of evaluation, without the data."""

import json
import pathlib
import types

import corpus
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, load

from common import predict
from common.devices import mesh
from common.errors import BadInput
from common.training import saved, train
from lm import entities, predict_spans, spans
from lm.data import squad, tagged, tokenizer

SMALL = {
    "model.layers": 1, "model.width": 32, "model.hidden": 48, "model.heads": 2, "init.path": "",
    "init.skip": "()", "data.length": 24, "train.batch_size": 16, "train.duration": "1 step",
    "evals.valid": None, "evals.test.every": "1 step", "optim.lr": 0.05, "optim.warmup": "0 steps",
}  # fmt: skip


def trained(folder, name: str, **overrides) -> tuple[pathlib.Path, dict, pathlib.Path]:
    """(workdir, the test's metrics, the file of the set) of a run on a set of its own."""
    make = {"tag": corpus.tagged, "answer": corpus.questions}[name]
    data = {
        "data.name": make(folder, 60),
        "data.tokenizer": corpus.tokenizer(folder, "wordpiece", 300),
    }
    config = load(f"{ROOT}/configs/lm/{name}.py", **(SMALL | data | overrides))
    result = train.run(config, folder / "run", show=False)
    return folder / "run", result["eval"]["test"], data["data.name"].removeprefix("file:")


def test_words_and_texts_have_their_characters():
    text = "Don't panic, it's 1.5 km."
    assert [text[a:b] for a, b in predict_spans.words_of(text)[1]] == [
        "Don't", "panic", ",", "it's", "1.5", "km", "."
    ]  # fmt: skip
    for raw in ({"tokens": ["a b", "c"]}, '{"tokens": ["a b", "c"]}', ["a b", "c"]):
        assert predict_spans.words_of(raw) == ("a b c", [(0, 3), (4, 5)])
    for raw in ("q\tc\td", ("q", "c\td"), {"question": "q", "context": "c\td"}):
        assert predict_spans.question_of(raw) == ("q", "c\td")
    for bad in ("", {"tokens": []}, {"tokens": [1]}, {"tokens": ["a"], "tags": ["O"]}, 3):
        with pytest.raises(BadInput):
            predict_spans.words_of(bad)
    for bad in ("question alone", ("q", " "), {"question": "q"}):
        with pytest.raises(BadInput):
            predict_spans.question_of(bad)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_no_answer(value):
    facts = tokenizer.facts(tokenizer.train("wordpiece", 60, ["one two three " * 9]))
    where = lambda tokens: jnp.where(tokens == facts.tokenizer.token_to_id("two"), value, 0.0)
    model = types.SimpleNamespace(apply=lambda params, tokens, *_: (where(tokens), where(tokens)))
    made = predict_spans.answers(model, facts._replace(length=16), False, 4, 4)
    loaded = predict.loaded(made._replace(longest=16), mesh.make_layout(jax.devices()[:1]), {}, {})
    (_, good), *bad = loaded.each([("one", "one three"), ("one", "two three"), ("two", "two")])
    assert good["answer"] == "one"
    assert all("not finite" in str(result) for _, result in bad)


@pytest.mark.slow
def test_tags_are_those_of_evaluation(tmp_path, compiled_in_haste):
    longer = {"train.duration": "25 steps", "optim.lr": 0.01}  # to more than one tag
    run, found, file = trained(tmp_path, "tag", **longer)
    sentences, _, _ = tagged.read(f"file:{file}")
    held = [each for each in sentences if each.split == "test"]
    other = str(pathlib.Path(file).rename(tmp_path / "other.jsonl"))
    again = saved.evaluate_run(run, data={"name": f"file:{other}"})["eval"]["test"]
    assert again == pytest.approx(found, rel=1e-6)
    pathlib.Path(other).unlink()
    (tmp_path / "wordpiece_300/vocab.txt").unlink()
    results = predict.load(run).predict([{"tokens": [*each.words]} for each in held])
    named = [[word["tag"] for word in each["words"]] for each in results]
    assert len(set().union(*named)) > 1
    scores = entities.scores(zip((each.tags for each in held), named, strict=True))
    assert {key: found[key] for key in scores} == pytest.approx(scores)
    right = [
        a == b
        for each, tags in zip(held, named, strict=True)
        for a, b in zip(each.tags, tags, strict=True)
    ]
    assert found["accuracy"] == pytest.approx(np.mean(right))
    for each, words in zip(results, held, strict=True):
        text = " ".join(words.words)
        assert [word["word"] for word in each["words"]] == [*words.words]
        for part in each["entities"]:
            assert text[part["start"] : part["end"]] == part["text"]
    json.dumps(results)


@pytest.mark.slow
def test_answers_are_those_of_evaluation(tmp_path, compiled_in_haste):
    windows = {"data.stride": 7, "data.question_length": 5}
    run, found, file = trained(tmp_path, "answer", **windows)
    held = [each for each in squad.read(f"file:{file}") if each.split == "test"]
    other = str(pathlib.Path(file).rename(tmp_path / "other.jsonl"))
    again = saved.evaluate_run(run, data={"name": f"file:{other}"})["eval"]["test"]
    assert again == pytest.approx(found, rel=1e-6)
    pathlib.Path(other).unlink()
    inputs = [{"question": each.text, "context": each.context} for each in held]
    loaded = predict.load(run)
    results = loaded.predict(inputs)
    scores = np.array([
        spans.scores(answer["answer"] or "", [text for text, _ in each.answers])
        for answer, each in zip(results, held, strict=True)
    ])  # fmt: skip
    assert (found["exact_match"], found["f1"]) == pytest.approx(tuple(scores.mean(axis=0)))
    always = loaded.predict(inputs, null_threshold=1e9, top=4)
    never = loaded.predict(inputs, null_threshold=-1e9, top=4)
    for a, b, each in zip(always, never, held, strict=True):
        assert b["answer"] is None
        assert each.context[a["start"] : a["end"]] == a["answer"] == a["answers"][0]["text"]
        assert a["answers"] == b["answers"]
        order = [part["score"] for part in a["answers"]]
        assert len(order) == 4 == len({(part["start"], part["end"]) for part in a["answers"]})
        assert order == sorted(order, reverse=True)
    json.dumps(results)
