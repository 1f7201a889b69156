"""Predictions of texts: those of evaluation, text by text, without the data; vectors; and runs
evaluated on other texts."""

import contextlib
import json
import math

import jax
import numpy as np
import pytest
from helpers import ROOT, load

from common import predict
from common.devices import mesh
from common.errors import BadInput
from common.runs import checkpoint, facts, workdir
from common.training import program
from common.training.saved import evaluate_run
from lm import bert
from lm import predict as texts
from lm.data import tokenizer
from lm.weights import sentences

WORDS = ["one", "two", "three", "four", "five", "six", "seven"]
SMALL = {
    "model.width": 16, "model.layers": 1, "model.heads": 2, "model.hidden": 16,
    "model.max_length": 24, "data.length": 12, "train.batch_size": 8, "init.adopt": False,
    "init.path": "", "init.skip": (), "train.duration": "1 epoch", "evals.test.every": "1 epoch",
    "evals.valid": None,
}  # fmt: skip


def examples(kind: str, count: int = 24):
    """Records whose labels are classes or numbers, of one text or two, some too long for a row."""
    rng = np.random.default_rng(len(kind))
    say = lambda: " ".join(rng.choice(WORDS, rng.integers(1, 16)))
    for i in range(count):
        label = float(rng.normal()) if kind == "numbers" else ("yes", "no", "so")[i % 3]
        pair = {"text_b": say()} if kind == "pairs" else {}
        yield {"text": say(), **pair, "label": label, "split": ("train", "test")[i % 2]}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return f"file:{path}"


def begun(root, kind: str):
    """(workdir of a run that has taken no step, the records of its test set)."""
    records = list(examples(kind))
    made = tokenizer.train("wordpiece", 60, [" ".join(WORDS) * 3])
    made.save(str(root / "tokenizer.json"))
    data = {"data.name": write(root / "data.jsonl", records), "data.folder": str(root)}
    keys = data | {"data.tokenizer": str(root / "tokenizer.json")}
    config = load(f"{ROOT}/configs/lm/finetune_reviews.py", **SMALL, **keys)
    prepared = program.prepare(config)
    folder = root / "run"
    with jax.set_mesh(prepared.layout.mesh):
        state = prepared.create(prepared.hypers)
        wide = lambda tree: jax.tree.map(lambda p: p * 20 if p.ndim == 2 else p, tree)
        state = state._replace(params=jax.jit(wide)(state.params))
        fingerprints = {n: source.fingerprint for n, source in prepared.task.sources.items()}
        keep = facts.contents(prepared.task)
        digests = {"kept": facts.digests(prepared.task)}
        workdir.claim(folder, config, fingerprints, write=True, keep=keep, facts=digests)
        with contextlib.closing(checkpoint.Checkpoints(folder, prepared.saving)) as checkpoints:
            checkpoints.save(0, state)
    return str(folder), [record for record in records if record["split"] == "test"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "numbers"])
def test_predictions_are_those_of_evaluation_and_need_no_data(kind, tmp_path):
    run, test = begun(tmp_path, kind)
    rows = ["test[:1]", "test[1:2]"]
    told = evaluate_run(run, sets=[*rows, "test"])["eval"]
    (tmp_path / "data.jsonl").rename(tmp_path / "away.jsonl")
    (tmp_path / "tokenizer.json").unlink()
    names = ("text", "text_b")
    given = [{name: record[name] for name in names if name in record} for record in test]
    results = predict.load(run).predict(given)
    if kind == "numbers":
        losses = [(r["value"] - e["label"]) ** 2 for r, e in zip(results, test, strict=True)]
    else:
        shares = [r["probabilities"][e["label"]] for r, e in zip(results, test, strict=True)]
        losses = [-math.log(share) for share in shares]
    expected = [told[row]["loss"] for row in rows]
    np.testing.assert_allclose(losses[:2], expected, rtol=1e-4, atol=1e-5)
    assert np.mean(losses) == pytest.approx(told["test"]["loss"], rel=1e-4)
    assert np.ptp(expected) > 0.01
    if kind == "pairs":
        spelled = ["\t".join(each.values()) for each in given[:3]]
        written = [json.dumps(each) for each in given[3:]]
        assert predict.load(run).predict(spelled + written) == results
        with pytest.raises(BadInput, match="'one': it has one text, and the model is for two"):
            predict.load(run).predict(["one"])
        # Other texts: classes by name, the tokenizer the run's.
        other = [record | {"split": "test"} for record in test if record["label"] != "no"]
        data = {"name": write(tmp_path / "other.jsonl", other)}
        loss = evaluate_run(run, data=data)["eval"]["test"]["loss"]
        chosen = [x for x, record in zip(losses, test, strict=True) if record["label"] != "no"]
        assert loss == pytest.approx(np.mean(chosen), rel=1e-4)
        strange = [other[0] | {"label": "maybe"}, *other]
        with pytest.raises(BadInput, match="a class that the run has not, 'maybe'"):
            evaluate_run(run, data={"name": write(tmp_path / "strange.jsonl", strange)})
        with pytest.raises(BadInput, match=r"data\.length: texts are read as the run reads"):
            evaluate_run(run, data=data | {"length": 16})


def test_texts_of_an_input_stand_in_several_ways():
    pair = ("a", "b")
    for given in (pair, ["a", "b"], {"text": "a", "text_b": "b"}, '{"text": "a", "text_b": "b"}'):
        assert texts.texts_of(given) == pair
    assert texts.texts_of("a\tb", 2) == pair
    assert texts.texts_of("a\tb", 1) == ("a\tb",)
    assert texts.texts_of("{a}") == ("{a}",)
    for given, count, message in (
        (" ", 0, "it is blank"),
        ("a\udcff", 0, "bytes that are not UTF-8"),
        (pair, 1, "it has two texts, and the model is for one"),
        ({"text": None, "text_b": "b"}, 0, "is neither a text nor two texts"),
        (3, 0, "3 is neither a text nor two texts"),
        ({"text": "a", "label": "b"}, 0, "'label': an input has a 'text'"),
        (("a", "b", "c"), 0, "neither a text"),
    ):
        with pytest.raises(BadInput, match=message):
            texts.texts_of(given, count)


def test_a_vector_is_the_mean_of_the_texts_own_hidden_states():
    """Padding and the other texts of a batch have no part in it."""
    own = tokenizer.facts(tokenizer.train("wordpiece", 60, [" ".join(WORDS) * 3]))
    own = own._replace(length=12)
    model = bert.Encoder(vocab_size=own.vocab_size, width=16, layers=1, heads=2, hidden=16)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
    given = ["one two three", "one", " ".join(WORDS * 3)]
    rows = [texts._reader(own)(text, {})[0]["tokens"] for text in given]
    assert [len(row) for row in rows] == [5, 3, 12]
    tokens = np.array([np.pad(row, (0, 12 - len(row))) for row in rows])
    real = (np.arange(12) < np.array([[5], [3], [12]])).astype(np.int32)
    hidden = np.asarray(jax.jit(model.apply)({"params": params}, tokens, real))
    mean = (hidden * real[..., None]).sum(axis=1) / real.sum(axis=1, keepdims=True)
    layout = mesh.make_layout(jax.devices()[:1])
    state = mesh.put_replicated(layout, jax.device_get(params))
    made = predict.loaded(texts.vectors(model, own, "mean", unit=True), layout, state, {})
    vectors = [each["vector"] for each in made.predict(given)]
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_sentence_transformers_say_how_vectors_are_made(tmp_path):
    assert sentences.vectors(tmp_path) == ("", False, None)
    head = {"classifier/kernel": np.zeros((4, 2)), "classifier/bias": np.zeros(2)}
    sentences.write(tmp_path, 4, head, 77)
    assert sentences.vectors(tmp_path) == ("mean", False, 77)
    modules = json.loads((tmp_path / "modules.json").read_text())
    unit = {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence.models.Normalize"}
    (tmp_path / "modules.json").write_text(json.dumps([*modules, unit]))
    assert sentences.vectors(tmp_path).unit
