"""The tagging task: its metrics are those of whole sentences, and it learns."""

import json
import random
import shutil

import corpus
import jax
import numpy as np
import pytest
import safetensors.numpy
from helpers import ROOT, load

from common.errors import BadInput
from common.losses import macro_f1
from common.training import program, train
from common.training.loop import eval_context
from common.weights import tensors
from lm import bert, entities, tag, weights
from lm.data import tokenizer as tokenizers

SMALL = {
    "model.layers": 1, "model.width": 32, "model.hidden": 48, "model.heads": 2,
    "init.path": "", "init.skip": "()", "data.length": 24, "train.batch_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return corpus.tokenizer(tmp_path_factory.mktemp("tag"), "wordpiece", 300)


def config(name: str, tokenizer: str, **overrides) -> dict:
    own = {"data.name": name, "data.tokenizer": tokenizer}
    return load(f"{ROOT}/configs/lm/tag.py", **(SMALL | own | overrides))


def begun(config: dict):
    """(Program on one device, its first state)."""
    made = program.prepare(config, jax.devices()[:1])
    with jax.set_mesh(made.layout.mesh):
        return made, program.initial_state(made)


def evaluated(made, state) -> dict:
    with jax.set_mesh(made.layout.mesh):
        return made.task.evaluators["test"].run(eval_context(made, state, 0))


def write(path, tags: str, count: int = 60) -> str:
    """Sentences of up to 40 words with random tags, of which some are longer than a row."""
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(count):
            words = rng.choices(corpus.WORDS, k=rng.randint(1, 40))
            entry = {"tokens": words, "tags": rng.choices(tags.split(), k=len(words))}
            file.write(json.dumps(entry) + "\n")
    return f"file:{path}"


@pytest.mark.parametrize(
    "tags", ["O B-PER I-PER B-LOC I-LOC", pytest.param("NN VB DT O", marks=pytest.mark.slow)]
)
def test_metrics_are_of_sentences_whatever_the_rows(tmp_path, tokenizer, tags):
    made, state = begun(config(write(tmp_path / "a.jsonl", tags), tokenizer))
    params = jax.tree.map(lambda x: x * 3, state.params)  # so that predictions differ
    state = state._replace(params=params)
    source, found = made.task.sources["test"], evaluated(made, state)
    rows = source.read(np.arange(source.size))
    assert 0 < (rows["begins"] == 0).sum() < source.size
    fields = {k: v for k, v in made.config["model"].items() if k != "module"}
    classes = source.facts.classes
    model = bert.TokenClassifier(vocab_size=300, num_classes=len(classes), **fields)
    inputs = rows["tokens"], rows["segments"], rows["types"]
    logits = jax.jit(lambda p, *i: model.apply({"params": p}, *i))(params, *inputs)
    words = rows["label"] >= 0
    logits, label = np.asarray(logits, np.float64)[words], rows["label"][words]
    shares = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    guesses = logits.argmax(axis=-1)
    assert len(set(guesses)) > 2
    assert found["loss"] == pytest.approx(-shares[np.arange(len(label)), label].mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((guesses == label).mean())
    number = np.cumsum(rows["begins"])[np.nonzero(words)[0]]  # of each word's sentence
    if "NN" in tags:
        confusion = np.zeros((len(classes),) * 2)
        np.add.at(confusion, (label, guesses), 1)
        assert found["f1"] == pytest.approx(macro_f1(confusion))
        assert found.keys() == {"loss", "accuracy", "f1"}
        return
    named = lambda values: [[classes[i] for i in values[number == n]] for n in np.unique(number)]
    expected = entities.scores(zip(named(label), named(guesses), strict=True))
    assert 0 < expected["f1"] < 1
    assert {key: found[key] for key in expected} == expected
    apply = lambda params, extra, batch, key: model.apply(
        {"params": params}, *(batch[k] for k in ("tokens", "segments", "types"))
    )
    other = tag.evaluator(source, apply, batch_size=7)
    with jax.set_mesh(made.layout.mesh):
        assert other.run(eval_context(made, state, 0)) == pytest.approx(found, rel=1e-5)


def test_one_tag_is_refused(tmp_path, tokenizer):
    with pytest.raises(BadInput, match=r"every tag is \('O',\); at least two are needed"):
        begun(config(write(tmp_path / "a.jsonl", "O"), tokenizer))


def test_a_tagger_goes_to_transformers_and_back(tmp_path, tokenizer):
    """With its classes; and where the class that config.json names tells it from a classifier of
    texts, or the tensors alone."""
    facts = tokenizers.facts(tokenizers.load(tokenizer))._replace(classes=("B", "I", "O"))
    sizes = {k.removeprefix("model."): v for k, v in SMALL.items() if k.startswith("model.")}
    model = bert.TokenClassifier(vocab_size=facts.vocab_size, num_classes=3, **sizes)
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    params["token"]["embedding"][facts.vocab_size :] = 0
    weights.save(tmp_path, model, params, classes=facts.classes)
    shutil.copy(f"{tokenizer}/vocab.txt", tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["architectures"] == ["BertForTokenClassification"]
    run = {"data": {"folder": ""}, "init": {"allow": (), "skip": (), "rename": ()}}
    for change in ({}, {"architectures": None}):
        (tmp_path / "config.json").write_text(json.dumps(described | change))
        loaded = weights.load(str(tmp_path))
        assert isinstance(loaded.model, bert.TokenClassifier)
        assert loaded.classes == facts.classes
        read = weights.reader(facts, run, model)(str(tmp_path))
        jax.tree.map(np.testing.assert_array_equal, read, params)
    # An older library wrote a pooler, too, which no tagger has.
    pooler = {"bert.pooler.dense.weight": np.ones((32, 32)), "bert.pooler.dense.bias": np.ones(32)}
    pooler = {name: x.astype(np.float32) for name, x in pooler.items()}
    (tmp_path / "config.json").write_text(json.dumps(described))
    safetensors.numpy.save_file(tensors.read(tmp_path) | pooler, tmp_path / "model.safetensors")
    assert isinstance(weights.load(str(tmp_path)).model, bert.TokenClassifier)
    other = facts._replace(classes=("I", "B", "O"))
    with pytest.raises(BadInput, match="in another order: class 0 is 'B' there and 'I' here"):
        weights.reader(other, run, model)(str(tmp_path))
    # Its head is none of a classifier of texts.
    texts = bert.Classifier(vocab_size=facts.vocab_size, num_classes=3, **sizes)
    values = weights.reader(facts, run, texts)(str(tmp_path))
    assert "classifier" not in values


@pytest.mark.slow
def test_it_learns_from_a_masked_language_model(tmp_path, tokenizer, compiled_in_haste):
    facts = tokenizers.facts(tokenizers.load(tokenizer))
    sizes = {k.removeprefix("model."): v for k, v in SMALL.items() if k.startswith("model.")}
    masked = bert.Bert(vocab_size=facts.vocab_size, **sizes)
    params = masked.init(jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
    weights.save(tmp_path / "bert", masked, params)
    shutil.copy(f"{tokenizer}/vocab.txt", tmp_path / "bert")
    begin = {"init.path": str(tmp_path / "bert"), "init.skip": "('token_classifier/.*',)"}
    quick = {"train.duration": "8 epochs", "optim.lr": 0.01, "checkpoint.every": "100%"}
    quick |= {"evals.valid": None, "evals.test.every": "100%", "model.dropout": None}
    learning = config(corpus.tagged(tmp_path, 200), str(tmp_path / "bert"), **begin, **quick)
    test = train.run(learning, tmp_path / "run", show=False)["eval"]["test"]
    assert test["f1"] > 0.9
    assert test["accuracy"] > 0.95
