"""The tagging task: its metrics are those of whole sentences, and it learns."""

import json
import random
import shutil

import corpus
import jax
import numpy as np
import pytest
from helpers import ROOT, load

from common.errors import BadInput
from common.losses import macro_f1
from common.training import program, saved, train
from common.training.loop import eval_context
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


@pytest.mark.slow
def test_it_learns_from_a_masked_language_model(tmp_path, tokenizer, compiled_in_haste):
    """Also in the layout of transformers, which it goes back to."""
    facts = tokenizers.facts(tokenizers.load(tokenizer))
    sizes = {k.removeprefix("model."): v for k, v in SMALL.items() if k.startswith("model.")}
    masked = bert.Bert(vocab_size=facts.vocab_size, **sizes)
    params = masked.init(jax.random.key(0), np.zeros((1, 4), np.int32))["params"]
    weights.save(tmp_path / "bert", masked, params)
    shutil.copy(f"{tokenizer}/vocab.txt", tmp_path / "bert")
    begin = {"init.path": str(tmp_path / "bert"), "init.skip": "('token_classifier/.*',)"}
    quick = {"train.duration": "10 epochs", "optim.lr": 0.01, "checkpoint.every": "100%"}
    quick |= {"evals.valid": None, "evals.test.every": "100%", "model.dropout": 0.0}
    name = corpus.tagged(tmp_path, 200)
    learning = config(name, str(tmp_path / "bert"), **begin, **quick)
    result = train.run(learning, tmp_path / "run", show=False)
    test = result["eval"]["test"]
    assert test["f1"] > 0.95
    assert test["accuracy"] > 0.97
    with saved.opened(saved.read_config(tmp_path / "run"), tmp_path / "run") as (made, state, _):
        facts, model = made.task.sources["test"].facts, bert.TokenClassifier(
            vocab_size=facts.vocab_size, num_classes=5, **sizes
        )  # fmt: skip
        weights.save(
            tmp_path / "tagger", model, jax.device_get(state.params), "bert", facts.classes
        )
    for path in (tmp_path / "run", tmp_path / "tagger"):
        begin = {"init.path": str(path), "init.skip": "()"}
        shutil.copy(f"{tokenizer}/vocab.txt", tmp_path / "tagger")
        again = evaluated(*begun(config(name, str(tmp_path / "tagger"), **begin)))
        assert again == pytest.approx(test, rel=1e-5)
    others = config(write(tmp_path / "a.jsonl", "B-PER I-PER O B-X I-X"), tokenizer, **begin)
    with pytest.raises(
        BadInput, match="has other classes, or in another order: class 0 is 'B-ORG'"
    ):
        begun(others)
