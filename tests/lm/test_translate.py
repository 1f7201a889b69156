"""The task of translation: its metrics are those of single pairs, whatever the rows; it learns, and
translates from its workdir alone."""

import json
import random
import shutil

import corpus
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, exit_code, load, result

from common import losses, predict
from common.errors import BadInput
from common.runs import workdir
from common.training import program, train
from common.training.loop import eval_context
from lm import translate
from lm.data import packing, pairs, sides, tokenizer, trained
from lm.seq2seq import scores

SMALL = {
    "model.layers": 1, "model.width": 16, "model.dropout": None, "data.length": 16,
    "data.target_length": 12, "train.batch_size": 8, "optim.warmup": "5%",
}  # fmt: skip
OWN = {"transformer": {"model.heads": 2, "model.hidden": 24}, "lstm": {"model.embedding_width": 8}}
GRID = pytest.mark.slow, pytest.mark.measure("grid")
VARIANTS = [
    pytest.param("transformer", marks=pytest.mark.slow),
    pytest.param("lstm", marks=GRID),
]


def config(name: str, variant: str = "transformer", **overrides) -> dict:
    path = f"{ROOT}/configs/lm/g2p_cmudict.py:{variant}"
    return load(path, **(SMALL | OWN[variant] | {"data.name": name} | overrides))


def begun(config: dict, times: float = 1.0):
    """(Program on one device, its first state, with larger parameters)."""
    made = program.prepare(config, jax.devices()[:1])
    with jax.set_mesh(made.layout.mesh):
        state = program.initial_state(made)
    params = jax.tree.map(lambda x: x * times, state.params)
    return made, state._replace(params=params, average={"params": params, "extra": {}})


@pytest.mark.parametrize("variant", VARIANTS)
def test_metrics_are_of_pairs_whatever_the_rows(tmp_path, variant, compiled_in_haste):
    made, state = begun(config(corpus.pairs(tmp_path, 100), variant), 3.0)
    task, source = made.task, made.task.sources["test"]
    facts = source.facts
    with jax.set_mesh(made.layout.mesh):
        values = task.evaluators["test"].run(eval_context(made, state, 0))
    model = translate.model_of(made.config, facts)
    apply = jax.jit(model.apply)
    read = sides.readers_of(facts)
    nats = hits = count = 0
    written = []
    for pair in facts.texts:
        (source_ids,), (target_ids,) = (of([text]) for of, text in zip(read, pair, strict=True))
        row = np.array([[*source_ids, facts.source.special["end"]]], np.int32)
        padded = np.pad(row, ((0, 0), (0, 16 - row.shape[1])))
        seen = (np.arange(16) < row.shape[1])[None].astype(np.int32)

        def logits(tokens, padded=padded, seen=seen):
            """Of the position after each of these tokens, which the decoder reads."""
            inputs = np.zeros((1, 12), np.int32)
            inputs[0, : len(tokens)] = tokens
            segments = (np.arange(12) < len(tokens))[None].astype(np.int32)
            rows = apply({"params": state.params}, padded, seen, inputs, segments)
            return np.asarray(rows[0, : len(tokens)], np.float64)

        rows, targets = logits([facts.start, *target_ids]), [*target_ids, facts.end]
        shares = rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))
        nats -= shares[np.arange(len(targets)), targets].sum()
        hits += (rows.argmax(axis=-1) == targets).sum()
        count += len(targets)
        made_of = [facts.start]
        while len(made_of) < 13 and (len(made_of) == 1 or made_of[-1] != facts.end):
            made_of.append(int(logits(made_of)[-1].argmax()))
        ids = [i for i in made_of[1:] if i not in facts.target.structural]
        written.append(facts.target.tokenizer.decode(ids, skip_special_tokens=False))
    assert len(set(written)) > 2
    assert values["loss"] == pytest.approx(nats / count, rel=1e-5)
    assert values["accuracy"] == pytest.approx(hits / count)
    assert values["perplexity"] == pytest.approx(np.exp(nats / count), rel=1e-4)
    listed = [facts.targets[word] for word, _ in facts.texts]
    expected = scores.of_pronunciations(written, listed) | {"exact_match": 0.0}
    assert {key: values[key] for key in expected} == pytest.approx(expected)
    assert values["translated"].startswith(f"{facts.texts[0][0]}\n  -> {written[0]}")
    # Several in a row are as they are alone.
    packed = task.sources["train"]
    reader = packed.read
    alone = pairs._Reader(reader.encoded, packing.alone(len(reader.encoded.rows)), packed.facts)
    sums = []
    for read, size in ((reader, packed.size), (alone, len(reader.encoded.rows))):
        batch = read(np.arange(size)) | {"valid": np.ones(size, np.float32)}
        names = "source", "source_segments", "tokens", "segments"
        rows = apply({"params": state.params}, *(batch[name].astype(np.int32) for name in names))
        flat = rows.reshape(-1, rows.shape[-1]), jnp.asarray(batch["targets"].reshape(-1), int)
        weights = jnp.asarray(batch["segments"].reshape(-1) > 0, jnp.float32)
        sums.append(losses.softmax_cross_entropy(*flat, weights))
    assert size > 2 * packed.size
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-5)


def learnable(folder) -> str:
    """Words of the letters a to d, each with its letters in upper case."""
    rng, path = random.Random(0), folder / "learnable.tsv"
    words = {"".join(rng.choices("abcd", k=rng.randint(1, 4))) for _ in range(200)}
    path.write_text("\n".join(f"{word}\t{' '.join(word.upper())}" for word in sorted(words)))
    return f"pairs:{path}"


@pytest.mark.slow
def test_it_learns_and_translates_from_its_workdir_alone(tmp_path, capsys, compiled_in_haste):
    quick = {"model.width": 32, "train.duration": "400 steps", "optim.lr": 5e-3}
    quick |= {"train.average": 0.98, "evals.valid": None, "checkpoint.every": "100%"}
    quick |= {"evals.test.every": "100%", "loss.label_smoothing": None}
    name, run = learnable(tmp_path), tmp_path / "run"
    ended = train.run(config(name, **quick), run, show=False)["eval"]["test"]
    assert ended["word_error"] < 0.2
    assert ended["exact_match"] == pytest.approx(1 - ended["word_error"])
    assert result(run)["eval"]["test"]["translated"]
    kept = sorted(str(path.relative_to(run)) for path in run.rglob("*.json"))
    kept = [name for name in kept if "token" in name]
    assert kept == ["target_tokenizer/tokenizer.json", "tokenizer.json"]
    shutil.copy(tmp_path / "learnable.tsv", tmp_path / "other.tsv")
    (tmp_path / "learnable.tsv").unlink()
    loaded = predict.of_run(run)
    words = [line.split("\t") for line in (tmp_path / "other.tsv").read_text().splitlines()]
    written = loaded.predict([word for word, _ in words], beams=2)
    right = [each["text"] == target for each, (_, target) in zip(written, words, strict=True)]
    assert np.mean(right) > 0.8
    (several,) = loaded.predict(["abc"], best=3)
    assert len({each["text"] for each in several["best"]}) == 3
    assert several["text"] == several["best"][0]["text"]
    ordered = [each["score"] for each in several["best"]]
    assert ordered == sorted(ordered, reverse=True)
    one_by_one = [loaded.predict([word])[0]["text"] for word in ("a", "abcd")]
    assert one_by_one == [each["text"] for each in loaded.predict(["a", "abcd"])]
    ruled = loaded.predict(["abc"], forbid="A;C")[0]["text"].split()
    assert not {"A", "C"} & {*ruled}
    assert len(loaded.predict(["a"], min_tokens=5)[0]["text"].split()) >= 5
    outcomes = ("  ", "blank"), ("XYZ", "no token that the model knows")
    for bad, says in (*outcomes, ("a" * 30, "31 tokens, and the model was trained on 16")):
        with pytest.raises(BadInput, match=says):
            loaded.predict([bad])
    # By the scripts: lines and files in, JSON out; and other pairs, by the run's tokenizers.
    capsys.readouterr()
    (tmp_path / "lines.txt").write_text("ab\nba\n")
    assert exit_code("predict", "--workdir", str(run), "--json", str(tmp_path / "lines.txt")) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["input"] for line in lines] == ["ab", "ba"]
    assert lines[0]["text"] == loaded.predict(["ab"])[0]["text"]
    other = f"--config.data.name=pairs:{tmp_path}/other.tsv"
    assert exit_code("evaluate", "--workdir", str(run), other) == 0
    assert f"{ended['loss']:.4f}"[:5] in capsys.readouterr().out


def test_a_tokenizer_of_targets_keeps_the_roles_of_its_tokens(tmp_path):
    """Those that its files name otherwise than is usual, in the workdir too."""
    (tmp_path / "own").mkdir()
    words = trained.train("words", 100, ["A B C D", "[SEP]"])  # [SEP] usually ends a text
    (tmp_path / "own/tokenizer.json").write_text(words.to_str().replace("</s>", "<end>"))
    named = {"eos_token": "<end>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (tmp_path / "own/tokenizer_config.json").write_text(json.dumps(named))
    own = {"data.target_tokenizer": str(tmp_path / "own")}
    made = begun(config(learnable(tmp_path), **own))[0]
    facts = made.task.sources["train"].facts
    assert facts.target.tokenizer.id_to_token(facts.end) == "<end>"
    run = workdir.claim(tmp_path / "run", made.config, {}, write=True, keep=made.task.files)
    again = tokenizer.facts(tokenizer.kept(run, translate.TARGET_FOLDER))
    assert again.special == facts.target.special


@pytest.mark.parametrize(
    ("function", "section", "says"),
    [
        (translate.evaluator, {"beams": 0}, "beams = 0 is not positive"),
        (translate.evaluator, {"show": -1}, "show = -1 is negative"),
        (translate.evaluator, {"show": 1, "scores": "none"}, "'none' writes nothing"),
        (translate.loss_section, {"label_smoothing": 1.5}, r"1.5 is not in \[0, 1\)"),
        (pairs.load_sources, {"length": 4}, "config.data.length: 4 is not in 8 to"),
    ],
)
def test_settings_out_of_range_are_refused(function, section, says):
    runtime = {translate.evaluator: (None,) * 3, pairs.load_sources: ({},)}.get(function, ())
    with pytest.raises(BadInput, match=says):
        function(*runtime, **section)
