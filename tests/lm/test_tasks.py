"""The tasks of text: their metrics are what their names say, and they learn."""

import json
import math
import pathlib

import corpus
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, load

from common import losses
from common.errors import BadInput
from common.nn import model as models
from common.task import row_keys
from common.training import program, train
from common.training.loop import eval_context
from common.training.saved import evaluate_run
from lm import bert, masking, weights
from lm.data import corpora

SMALL = {
    "model.layers": 1, "model.width": 32, "model.hidden": 48, "data.vocab_size": 300,
    "data.length": 24, "train.batch_size": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Overrides that name a small corpus."""
    folder = tmp_path_factory.mktemp("tasks")
    return {"data.name": corpus.write(folder / "texts"), "data.folder": str(folder / "data")}


def begun(name: str, **overrides):
    """(Program on one device, its first state)."""
    config = load(f"{ROOT}/configs/lm/{name}.py", **(SMALL | overrides))
    made = program.prepare(config, jax.devices()[:1])
    with jax.set_mesh(made.layout.mesh):
        return made, program.initial_state(made)


def evaluated(made, state, name: str = "test") -> dict:
    with jax.set_mesh(made.layout.mesh):
        return made.task.evaluators[name].run(eval_context(made, state, 0))


def rows_of(source) -> dict:
    """All rows of a set, as one batch."""
    return source.read(np.arange(source.size, dtype=np.uint32)) | {
        "index": np.arange(source.size, dtype=np.uint32),
        "valid": np.ones(source.size, np.float32),
    }


def log_softmax(logits) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.slow
def test_masked_lm_metrics_are_means_over_what_is_hidden(texts, compiled_in_haste):
    made, state = begun("bert_sotu", **texts, **{"evals.test.show": 2})
    found = evaluated(made, state)
    source = made.task.sources["test"]
    batch = rows_of(source)
    key = eval_context(made, state, 0).key
    hidden = masking.make_masking(source.facts, 24)(
        row_keys(key, batch), batch["tokens"], batch["segments"]
    )
    from lm import mlm

    model = mlm.model_of(made.config, source.facts)
    inputs = hidden.tokens, batch["segments"], None, hidden.picked
    logits = jax.jit(lambda p, *i: model.apply({"params": p}, *i))(state.params, *inputs)
    shares, here = log_softmax(logits), np.asarray(hidden.weights) > 0
    picked = np.take_along_axis(shares, np.asarray(hidden.targets)[:, :, None], axis=2)[:, :, 0]
    assert found["loss"] == pytest.approx(-picked[here].mean(), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(-picked[here].mean()), rel=1e-4)
    right = shares.argmax(axis=-1) == hidden.targets
    assert found["accuracy"] == pytest.approx(right[here].mean())
    # The baseline: shares of the training text, special tokens left out.
    counts = np.array(source.facts.counts) + 1.0
    counts[[i for i in source.facts.special.values() if i is not None]] = 0
    targets = np.asarray(hidden.targets)[here]
    expected = -np.log(counts[targets] / counts.sum()).mean()
    assert found["unigram_loss"] == pytest.approx(expected, rel=1e-5)
    assert found["unigram_accuracy"] == pytest.approx((targets == counts.argmax()).mean())
    lines = found["filled"].splitlines()
    assert len(lines) == 2
    assert all("[" in line and "%" in line for line in lines)


def test_causal_lm_metrics_count_every_byte_of_the_held_out_text_once(texts):
    made, state = begun("gpt_sotu", **texts, **{"model.heads": 2})
    found = evaluated(made, state)
    source = made.task.sources["test"]
    held_out = [
        document.text
        for document in corpora.documents(texts["data.name"])
        if corpora.part(document.name) == "test"
    ]
    size = sum(len(text.encode()) for text in held_out)
    tokenizer = source.facts.tokenizer
    count = sum(len(tokenizer.encode(text).ids) + 1 for text in held_out)  # and the end of each
    nats = found["loss"] * count
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    # Before it has learnt anything, the loss is near that of a guess.
    assert found["loss"] == pytest.approx(math.log(source.facts.vocab_size), rel=0.05)


@pytest.mark.slow
def test_next_sentence_prediction_takes_class_0_for_what_follows(texts):
    made, state = begun("bert_sotu", **texts, **{"loss.nsp": True})
    batch = rows_of(made.task.sources["train"])
    assert set(np.unique(batch["next"])) == {0, 1}
    params = jax.device_get(state.params)
    params["next"] = {"kernel": 0 * params["next"]["kernel"], "bias": jnp.array([9.0, -9.0])}
    prepared = made.task.prepare(jax.random.key(0), batch, True)
    terms, _ = jax.jit(made.task.loss)(params, {}, prepared, jax.random.key(0))
    hits, weight = terms["nsp_accuracy"]
    assert float(hits) == batch["next"].sum()
    assert float(weight) == len(batch["next"])


def write(path, examples) -> str:
    path.write_text("\n".join(map(json.dumps, examples)))
    return f"file:{path}"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Overrides of a classifier on sets of its own: texts about war or peace; and pairs with how
    many words they share."""
    folder = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    words = lambda: list(rng.choice(corpus.WORDS[:10], 5))
    one = []
    for i in range(400):
        said = words()
        said[int(rng.integers(5))] = ("war", "peace")[i % 2]
        one.append({"text": " ".join(said), "label": ("bad", "good")[i % 2]})
    two = []
    for _ in range(200):
        a, b = words(), words()
        two.append({"text": " ".join(a), "text_b": " ".join(b), "label": len(set(a) & set(b)) / 5})
    kept = {"data.tokenizer": corpus.tokenizer(folder, "wordpiece", 300), "init.path": ""}
    kept |= {"init.skip": "()", "data.folder": str(folder / "data"), "data.length": 24}
    sizes = {"model.layers": 1, "model.width": 32, "model.hidden": 48, "model.heads": 2}
    return {
        "classes": {"data.name": write(folder / "one.jsonl", one), **kept, **sizes},
        "numbers": {"data.name": write(folder / "two.jsonl", two), **kept, **sizes},
    }


def fine_tuning(overrides: dict, **more) -> dict:
    return load(f"{ROOT}/configs/lm/finetune_reviews.py", **(overrides | more))


def test_metrics_of_numbers_are_numpys(labelled):
    made = program.prepare(fine_tuning(labelled["numbers"]), jax.devices()[:1])
    with jax.set_mesh(made.layout.mesh):
        state = program.initial_state(made)
    found = evaluated(made, state)
    batch = rows_of(made.task.sources["test"])
    assert batch["types"].max() == 1
    terms, _ = jax.jit(made.task.loss)(state.params, {}, batch, jax.random.key(0))
    assert set(terms) == {"loss"}
    model = models.build(made.config, lambda x, *n: x, vocab_size=300, num_classes=1)
    inputs = batch["tokens"], batch["segments"], batch["types"]
    apply = jax.jit(lambda p, *i: model.apply({"params": p}, *i))
    guesses = np.asarray(apply(state.params, *inputs))[:, 0]
    assert found["loss"] == pytest.approx(((guesses - batch["label"]) ** 2).mean(), rel=1e-4)
    assert found["pearson"] == pytest.approx(np.corrcoef(guesses, batch["label"])[0, 1], abs=1e-3)


@pytest.mark.slow
def test_a_classifier_learns_from_one_word(labelled, tmp_path, compiled_in_haste):
    quick = {"train.duration": "6 epochs", "optim.lr": 0.01, "evals.test.every": "6 epochs"}
    quick |= {"checkpoint.every": "6 epochs", "evals.valid.every": "6 epochs"}
    result = train.run(fine_tuning(labelled["classes"], **quick), tmp_path / "run", show=False)
    test = result["eval"]["test"]
    assert test["accuracy"] > 0.95
    assert test["f1"] > 0.95
    assert test["matthews"] > 0.9
    assert (tmp_path / "run/tokenizer.json").exists()
    # Its parameters, and its tokenizer, begin another run.
    again = {"init.path": str(tmp_path / "run"), "data.tokenizer": str(tmp_path / "run")}
    made = program.prepare(fine_tuning(labelled["classes"], **again), jax.devices()[:1])
    with jax.set_mesh(made.layout.mesh):
        state = program.initial_state(made)
    found = evaluated(made, state)
    assert found["accuracy"] == test["accuracy"]


@pytest.mark.slow
def test_metrics_of_several_classes_are_those_of_the_logits(labelled, tmp_path, compiled_in_haste):
    rng, entries = np.random.default_rng(0), []
    for _ in range(200):
        own = [name for name in ("war", "peace") if rng.random() < 0.5]
        words = [*rng.choice(corpus.WORDS[:10], 4), *own]
        entries.append({"text": " ".join(words), "label": own})
    keys = {"data.name": write(tmp_path / "many.jsonl", entries), "loss.class_weights": "war=2"}
    made = program.prepare(fine_tuning(labelled["classes"] | keys), jax.devices()[:1])
    with jax.set_mesh(made.layout.mesh):
        state = program.initial_state(made)
    found = evaluated(made, state)
    batch = rows_of(made.task.sources["test"])
    model = models.build(made.config, lambda x, *n: x, vocab_size=300, num_classes=2)
    inputs = batch["tokens"], batch["segments"], batch["types"]
    logits = jax.jit(lambda p, *i: model.apply({"params": p}, *i))(state.params, *inputs)
    logits, many = np.asarray(logits), batch["label"]
    scores = losses.multi_label_scores(logits, many)
    assert found["macro_f1"] == pytest.approx(scores["f1"].mean())
    assert found["mean_average_precision"] == pytest.approx(scores["average_precision"].mean())
    cost = -np.log(1 / (1 + np.exp(np.where(many, -logits, logits))))
    assert found["loss"] == pytest.approx(cost.mean(), rel=1e-5)
    terms, _ = jax.jit(made.task.loss)(state.params, {}, batch, jax.random.key(0))
    assert made.task.sources["train"].facts.classes == ("peace", "war")
    assert float(terms["loss"][1]) == len(many)


def test_numbers_have_no_class_weights(labelled):
    with pytest.raises(BadInput, match=r"^config\.loss\.class_weights: weights are for classes"):
        program.prepare(fine_tuning(labelled["numbers"], **{"loss.class_weights": "a=2"}))


@pytest.mark.slow
def test_weights_for_another_tokenizer_are_refused(labelled, texts, tmp_path, compiled_in_haste):
    overrides = dict(texts, **{"train.duration": "1 step", "evals.test.every": "1 step"})
    overrides["optim.name"] = "adamw"  # muon takes longer to compile
    run = load(f"{ROOT}/configs/lm/bert_sotu.py", **(SMALL | overrides))
    train.run(run, tmp_path / "run", show=False)
    other = overrides | {"data.vocab_size": 100, "init.path": str(tmp_path / "run")}
    with pytest.raises(BadInput, match=r"init\.path: .* has another tokenizer\.json"):
        begun("bert_sotu", **other)
    model = bert.Bert(vocab_size=99, width=32, layers=1, heads=2, hidden=48, max_length=24)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    weights.save(tmp_path / "hf", model, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    alone = overrides | {"init.path": str(tmp_path / "hf"), "init.adopt": True}
    with pytest.raises(BadInput, match="is for 99 tokens, and the tokenizer has"):
        begun("bert_sotu", **alone)
    # The text of a run has changed: what it was trained on is not what there is.
    changed = pathlib.Path(texts["data.name"].removeprefix("folder:"), "letters", "more.txt")
    changed.write_text("War and peace. " * 40)
    try:
        with pytest.raises(BadInput, match="has changed since the run began"):
            evaluate_run(tmp_path / "run")
    finally:
        changed.unlink()


def test_a_set_of_one_class_is_refused(labelled, tmp_path):
    name = write(tmp_path / "same.jsonl", [{"text": f"a {i}", "label": "x"} for i in range(99)])
    with pytest.raises(BadInput, match="at least two classes are needed"):
        program.prepare(fine_tuning(labelled["classes"] | {"data.name": name}))


def test_what_is_not_prepared_is_said_with_its_command(tmp_path):
    with pytest.raises(BadInput, match="run: python scripts/prepare.py minilm"):
        program.prepare(fine_tuning({"data.folder": str(tmp_path)}))


def test_matthews_is_the_textbook_formula_and_knows_constants():
    tp, fn, fp, tn = 30, 5, 12, 53
    root = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    confusion = np.array([[tp, fn], [fp, tn]], float)
    assert losses.matthews(confusion) == pytest.approx((tp * tn - fp * fn) / root)
    assert losses.matthews(np.diag([3.0, 4.0, 5.0])) == pytest.approx(1)
    assert losses.matthews(np.array([[3.0, 0], [4.0, 0]])) == 0


def test_pearson_is_numpys_and_padding_weighs_nothing():
    x, y = jax.random.normal(jax.random.key(0), (2, 50))
    valid = (jnp.arange(50) < 40).astype(jnp.float32)
    totals = losses.moments(x.at[45].set(jnp.nan), y, valid)
    found = losses.pearson(*map(np.float64, totals))
    assert found == pytest.approx(np.corrcoef(x[:40], y[:40])[0, 1], abs=1e-5)
