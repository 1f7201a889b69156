"""scripts/predict.py on runs of language models: it says what their models say."""

import contextlib
import errno
import io
import json
import os
import pathlib

import jax
import language_config
import numpy as np
import pytest
from helpers import ROOT, exit_code, finish, load, script, start

from common import predict
from common.devices import mesh
from common.errors import BadInput
from common.runs import checkpoint, workdir
from common.task import Predictor, purpose_key, row_keys
from common.training import program
from common.training.saved import evaluate_run, read_config
from lm import clm, masking, mlm

CONFIG = str(ROOT / "tests/support/language_config.py")
TASKS = {"clm": clm, "mlm": mlm}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Overrides that name a small corpus."""
    folder = tmp_path_factory.mktemp("language")
    name = language_config.write(folder / "texts")
    return {"data.name": name, "data.folder": str(folder / "data")}


def begun(task: str, data: dict, folder: pathlib.Path):
    """(workdir, tokenizer, model, params) of a run that has taken no step; it keeps an average of
    the parameters, which is what scripts are to use."""
    changes = {"train.average": 0.9, "optim.name": "sgd", "evals.test.batch_size": 8}
    config = load(f"{CONFIG}:{task}", **data, **changes)
    prepared = program.prepare(config)
    with jax.set_mesh(prepared.layout.mesh):
        state = prepared.create(prepared.hypers)
        wide = lambda tree: jax.tree.map(lambda p: p * 20 if p.ndim == 2 else p, tree)
        state = state._replace(average=jax.jit(wide)(state.average))
        workdir.claim(folder, config, {}, write=True)
        with contextlib.closing(checkpoint.Checkpoints(folder, prepared.saving)) as checkpoints:
            checkpoints.save(0, state)
    facts = prepared.task.sources["train"].facts
    model = TASKS[task].model_of(config, facts)
    return str(folder), facts.tokenizer, model, jax.device_get(state.average["params"])


@pytest.fixture(scope="module")
def writer(data, tmp_path_factory):
    return begun("clm", data, tmp_path_factory.mktemp("clm") / "run")


@pytest.fixture(scope="module")
def filler(data, tmp_path_factory):
    return begun("mlm", data, tmp_path_factory.mktemp("mlm") / "run")


@pytest.mark.slow  # test_generate.py has the law without the script
def test_texts_are_what_the_model_finds_likeliest(writer, capsys):
    folder, tokenizer, model, params = writer
    forward = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    prompts = ["one two", "seven", ""]
    expected = []
    for prompt in prompts:
        ids = [0, *tokenizer.encode(prompt).ids]
        for _ in range(8):
            padded = np.zeros((1, 16), np.int32)
            padded[0, : len(ids)] = ids
            ids.append(int(np.argmax(np.asarray(forward(padded))[0, len(ids) - 1])))
            if ids[-1] == 0:
                break
        expected.append(tokenizer.decode(ids).rstrip("\N{REPLACEMENT CHARACTER}"))
    words = ("--workdir", folder, "--tokens", "8")
    assert exit_code("predict", *words, "--greedy", *prompts) == 0
    assert capsys.readouterr().out == "\n\n".join(expected) + "\n\n"
    drawn = []
    for seed in "12":
        assert exit_code("predict", *words, "--temperature", "2", "--seed", seed, *prompts) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] != drawn[1]
    assert drawn[0].startswith("one two")
    assert exit_code("predict", *words, "--temperature", "0", *prompts) == 0
    assert capsys.readouterr().out == "\n\n".join(expected) + "\n\n"


@pytest.mark.slow
def test_a_beam_tells_its_best_and_a_draft_its_passes(writer, capsys):
    folder = writer[0]

    def told(*words) -> list[dict]:
        words = ("--workdir", folder, "--json", "--tokens", "8", *words, "one two", "seven")
        assert exit_code("predict", *words) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    for each in told("--beams", "4", "--best", "3", "--length-penalty", "0"):
        scores = [best["score"] for best in each["best"]]
        assert len(scores) == len({best["text"] for best in each["best"]}) == 3
        assert each["text"] == each["best"][0]["text"]
        assert scores == sorted(scores, reverse=True)
    greedy = told("--greedy")
    drafted = told("--greedy", "--draft", folder, "--draft-tokens", "3")
    assert [each["text"] for each in drafted] == [each["text"] for each in greedy]
    assert all(each["passes"] <= 2 for each in drafted)
    assert greedy[1]["text"].removeprefix("seven").count("seven") > 0
    without = told("--greedy", "--forbid", "one;seven")
    assert without[1]["text"].count("seven") == 1  # the prompt's


def test_masks_are_filled_with_what_the_model_finds_likeliest(filler, capsys):
    folder, tokenizer, model, params = filler
    texts = ["one [MASK] three [MASK]", "[MASK] eight nine ten one two"]
    expected = []
    forward = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs))
    for text in texts:
        ids = np.zeros((1, 12), int)
        found = tokenizer.encode(text).ids  # with [CLS] and [SEP]
        ids[0, : len(found)] = found
        shares = np.asarray(jax.nn.softmax(forward(ids, (ids > 0).astype(int))))[0]
        lines = []
        for at in np.flatnonzero(ids[0] == 4):
            best = np.argsort(-shares[at])[:3]
            named = [f"{tokenizer.id_to_token(int(i))} {shares[at, i]:.1%}" for i in best]
            lines.append("    " + ", ".join(named))
            ids[0, at] = best[0]
        whole = tokenizer.decode(ids[0, 1 : len(found) - 1].tolist(), skip_special_tokens=False)
        expected += [whole, *lines]
    assert exit_code("predict", "--workdir", folder, "--top", "3", *texts) == 0
    assert capsys.readouterr().out == "\n".join(expected) + "\n"


def predicted(folder: str, rows: list[dict], result, **options) -> list:
    """What the predictor of a run makes of rows that are read already."""
    loaded = predict.load(folder)
    made = loaded.predictor._replace(read=lambda row, options: [row], result=result)
    params = loaded.variables["params"]
    return predict.loaded(made, mesh.make_layout(), params, {}).predict(rows, **options)


@pytest.mark.slow
def test_tokens_are_predicted_as_evaluation_does(writer, filler):
    """All of some rows of the test set: the share that is right is that of evaluation."""
    at = np.arange(3, dtype=np.uint32)
    told = [
        evaluate_run(run, sets=["test[:3]"])["eval"]["test[:3]"] for run, *_ in (writer, filler)
    ]
    rows = clm.sources(read_config(writer[0]))["test"].read(at)
    prefixes, targets = [], []
    for tokens, segments in zip(rows["tokens"], rows["segments"], strict=True):
        for i in range(1, len(tokens)):
            if segments[i] and segments[i] == segments[i - 1]:
                start = int(np.argmax(segments == segments[i]))
                prefix = tokens[start:i].astype(np.int32)
                prefixes.append({"tokens": prefix, "length": np.int32(len(prefix))})
                targets.append(int(tokens[i]))
    first = lambda given, rows, outputs, options: int(outputs[0]["tokens"][0])
    found = predicted(writer[0], prefixes, first, greedy=True, tokens=1)
    assert np.mean(np.equal(found, targets)) == pytest.approx(told[0]["accuracy"])
    source = mlm.sources(config := read_config(filler[0]))["test"]
    rows = source.read(at)
    keys = row_keys(purpose_key(config["seed"], "evaluate"), {"index": at})
    hidden = masking.make_masking(source.facts, source.facts.length)(
        keys, rows["tokens"], rows["segments"]
    )
    inputs = [
        {"tokens": tokens, "segments": segments.astype(np.int32), "picked": picked}
        for tokens, segments, picked in zip(
            np.asarray(hidden.tokens), rows["segments"], np.asarray(hidden.picked), strict=True
        )
    ]
    best = lambda given, rows, outputs, options: outputs[0]["ids"][: len(given["picked"]), 0]
    right = np.equal(predicted(filler[0], inputs, best), hidden.targets)[hidden.weights > 0]
    assert right.mean() == pytest.approx(told[1]["accuracy"])


@pytest.mark.slow
def test_a_run_whose_corpus_is_gone_speaks_with_the_tokenizer_that_it_keeps(
    writer, filler, data, capsys, tmp_path, monkeypatch
):
    def said(folder, *words):
        assert exit_code("predict", "--workdir", folder, *words) == 0
        return capsys.readouterr().out

    commands = (
        (writer[0], "--greedy", "--tokens", "8", "one two", "seven"),
        (filler[0], "one [MASK] three"),
    )
    before = [said(*words) for words in commands]  # also keeps tokenizers that are not there yet
    corpus = pathlib.Path(data["data.name"].removeprefix("folder:"))
    monkeypatch.chdir(tmp_path)
    moved = [(corpus, tmp_path / "moved"), (pathlib.Path(data["data.folder"]), tmp_path / "data")]
    for old, new in moved:
        old.rename(new)
    try:
        assert [said(*words) for words in commands] == before
    finally:
        for old, new in moved:
            new.rename(old)


def test_what_cannot_be_predicted_is_one_line(writer, filler, tmp_path, capsys):
    empty = tmp_path / "empty"
    config = read_config(writer[0])
    workdir.claim(empty, config, {}, write=True)
    os.mkfifo(tmp_path / "texts")
    for where, words, message in (
        (empty, ["one"], "no checkpoint there"),
        (tmp_path, ["one"], "no run there"),
        (writer[0], ["one", "--step", "7"], "no checkpoint of step 7"),
        (writer[0], ["one", "--tokens", "99"], "the model has 16 positions; write 14 or"),
        (writer[0], ["one", "--top-p", "2"], "top-p: 2.0 is not in (0, 1]"),
        (writer[0], ["one", "--seed", "-1"], "seed: -1 is not in"),
        (writer[0], ["one", "--top", "3"], "unrecognized arguments: --top"),
        (writer[0], ["one", "--beams", "2", "--top-k", "3"], "top-k: a beam search draws nothing"),
        (writer[0], ["one", "--best", "2"], "best: 2 of 1 beams"),
        (
            writer[0],
            ["one", "--length-penalty", "2"],
            "length-penalty: it is for --beams 2 or more",
        ),
        (writer[0], ["one", "--forbid", "two;"], "forbid: '' holds no token"),
        (writer[0], ["one", "--draft-tokens", "3"], "no model drafts; name one with --draft"),
        (writer[0], ["one", "--draft", filler[0]], "draft: it is no causal model with the token"),
        (writer[0], ["one", "--draft", writer[0], "--beams", "2"], "beams: not with --draft"),
        (filler[0], ["[MASK]", "--draft", writer[0]], "what this model predicts is no text"),
        (writer[0], [], "an input is needed"),
        (filler[0], ["two three"], "'two three': it has no [MASK]"),
        (filler[0], ["[MASK]", "--top", "0"], "top: 0 is not in [1, "),
        (filler[0], [f"[MASK] {'one ' * 20}"], "23 tokens, and the model has 16"),
        (filler[0], ["[MASK]", str(tmp_path / "texts")], "is a FIFO"),
    ):
        assert exit_code("predict", "--workdir", str(where), *words) == 2, message
        lines = capsys.readouterr().err.strip().splitlines()
        (error,) = (line for line in lines if not line.startswith("WARNING: "))
        assert message in error
        assert error.startswith("error: ")


def test_inputs_are_texts_files_tables_folders_and_standard_input(
    filler, tmp_path, capsys, monkeypatch
):
    """All in the order in which they are named; what is bad does not stop the others."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "10.txt").write_text("ten [MASK]\n\neight [MASK]\n")
    (tmp_path / "texts" / "9.csv").write_text("said,text\nx,nine [MASK]\n")
    (tmp_path / "texts" / "more.png").write_text("no text")
    (tmp_path / "torn.jsonl").write_text('{"text": "[MASK] four"}\n{"text": "[MA\n')
    monkeypatch.setattr("sys.stdin", io.StringIO("five [MASK]\nno mask\n"))
    words = ["[MASK] one", str(tmp_path / "torn.jsonl"), "-", str(tmp_path / "texts"), "--json"]
    assert exit_code("predict", "--workdir", filler[0], *words, "--top", "1") == 2
    out, err = capsys.readouterr()
    results = [json.loads(line) for line in out.splitlines()]
    expected = ["[MASK] one", "[MASK] four", "five [MASK]", "nine [MASK]", "ten [MASK]"]
    assert [each["input"] for each in results] == [*expected, "eight [MASK]"]
    assert all(len(each["masks"][0]) == 1 for each in results)
    for message in (
        "torn.jsonl, line 2, is not JSON",
        "error: standard input, line 2: it has no [MASK]",
        "passed over: .png (once)",
        "10.txt: blank line passed over (once)",
    ):
        assert message in err
    table = str(tmp_path / "texts" / "9.csv")
    assert exit_code("predict", "--workdir", filler[0], table, "--column", "said") == 2
    assert "9.csv, line 2: it has no [MASK]" in capsys.readouterr().err
    assert exit_code("predict", "--workdir", filler[0], table, "--column", "none") == 2
    assert "no column 'none': its columns are 'said', 'text'" in capsys.readouterr().err


TEXTS = Predictor(*[None] * 5)
PAIRS = TEXTS._replace(columns=("text", "text_b"), optional=("text_b",))
PICTURES = TEXTS._replace(columns=("path",), suffixes=frozenset({".png"}))

BOTH = PICTURES._replace(columns=("text", "path"), optional=("text", "path"), texts=True)


def named(predictor, *words, columns=None) -> list:
    """The inputs that words name, or why they are none."""
    values = [each.value for each in script("predict").named_inputs(words, predictor, columns)]
    return [str(value) if isinstance(value, BadInput) else value for value in values]


def test_a_table_may_hold_texts_or_paths(tmp_path):
    path = tmp_path / "a.jsonl"
    records = [{"text": "a"}, {"path": "b.png"}, {"text": "a", "path": "b.png"}, {"text": "b.png"}]
    path.write_text("\n".join(map(json.dumps, records)))
    picture = tmp_path / "b.png"
    both = "it has both 'text' and 'path': choose by --column"
    assert named(BOTH, str(path)) == ["a", picture, both, picture]
    assert named(BOTH, str(path), columns=["text"])[2] == "a"
    path.write_text(json.dumps(records[2]))
    assert named(BOTH, str(path), columns=["path"]) == [picture]


def test_what_is_bad_in_a_folder_does_not_end_it(tmp_path, monkeypatch, caplog):
    """Neither a record, a table, nor a folder that cannot be listed; links are not followed."""
    for name in ("2.csv", "b/3.jsonl", "closed/4.txt", "d/5.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / "1.jsonl").write_text('{"text": "a"}\n{"te\n[1]\n{"said": 1}\n{"text": "b"}\n')
    (tmp_path / "2.csv").write_text("text,x\nc,1\nd\ne,1\n")
    (tmp_path / "b/3.jsonl").write_text('{"said": 1}\n{"text": "none"}\n')
    (tmp_path / "d/5.txt").write_text("f\n")
    (tmp_path / "link").symlink_to(tmp_path)
    scan = os.scandir

    def closed(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    values = named(TEXTS, str(tmp_path))
    assert [value for value in values if len(value) == 1] == ["a", "b", "c", "e", "f"]
    for i, message in (
        (1, "1.jsonl, line 2, is not JSON"),
        (2, "1.jsonl, line 3, is not a JSON object"),
        (3, "there is no column 'text': its columns are 'said'"),
        (6, "2.csv, line 3, has 1 field, but the header has 2"),
        (8, "3.jsonl, line 1: there is no column 'text'"),
        (10, "closed cannot be read: permission denied"),
    ):
        assert message in values[i]
    assert "passed over: link to a folder (once)" in caplog.text


def test_a_record_is_read_as_it_stands(tmp_path, monkeypatch):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text('text,text_b,more\n"",b,c\na,"",""\n')
    assert named(PAIRS, str(pairs)) == [{"text": "", "text_b": "b"}, "a"]
    assert named(PAIRS._replace(optional=()), str(pairs))[1] == {"text": "a", "text_b": ""}
    (wrong,) = named(PAIRS, str(pairs), columns=["text", "wrong"])
    assert "line 2: there is no column 'wrong': its columns are" in wrong
    free = PAIRS._replace(columns=("tokens", "text"), optional=("tokens", "text"))
    (tmp_path / "more.csv").write_text("more\nx\n")
    assert "there is no column 'tokens'" in named(free, str(tmp_path / "more.csv"))[0]
    paths = tmp_path / "paths.jsonl"
    paths.write_text('{"path": [[1], [2, 3]]}\n{"path": ""}\n{"path": "a.png"}\n')
    assert named(PICTURES, str(paths)) == [
        "path is [[1], [2, 3]], not a path",
        "path is '', not a path",
        str(tmp_path / "a.png"),
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert named(TEXTS, "-") == ["standard input has no line that is an input"]
    with pytest.raises(BadInput, match="can be read once"):
        named(TEXTS, "-", "-")


def test_the_options_of_a_run_are_in_its_help(writer, capsys):
    assert exit_code("predict", "--workdir", writer[0], "--help") == 0
    told = capsys.readouterr().out
    assert "--top-k" in told
    assert "lower favours likely tokens. (default: 0.8)" in " ".join(told.split())
    assert exit_code("predict", "--help") == 0
    assert "--top-k" not in capsys.readouterr().out


@pytest.mark.slow
def test_models_that_have_learned_to_count(data, tmp_path):
    """From the training script to the text, each a process of its own."""
    words = [f"--config.{key}={value}" for key, value in data.items()]
    folders = {task: str(tmp_path / task) for task in TASKS}
    longer = ("--config.train.duration=600 steps", "--config.model.positions=rotary")
    for task, more in (("clm", ()), ("mlm", longer)):
        given = ("--config", f"{CONFIG}:{task}", "--workdir", folders[task], *words, *more)
        finish(start("train", *given))
    prompts = ("three four", "nine ten one", "six")
    write = ("predict", "--workdir", folders["clm"], *prompts)
    out = finish(start(*write, "--greedy"))
    loaded = predict.load(folders["clm"])
    texts = loaded.predict(prompts, greedy=True)
    assert out == "".join(f"{each['text']}\n\n" for each in texts)
    for surely in ({"top_k": 1}, {"top_p": 0.01}):
        assert loaded.predict(prompts, **surely) == texts
    assert loaded.predict(prompts) == loaded.predict(prompts)
    numbers = language_config.NUMBERS
    for prompt, text in zip(prompts, out.strip().split("\n\n"), strict=True):
        found = text.split()
        first = numbers.index(found[0])
        assert text.startswith(prompt)
        assert len(found) > 8
        assert found[:9] == [numbers[(first + i) % 10] for i in range(9)]
    texts = ("two three [MASK] five six seven eight nine [MASK] one", "six [MASK] eight nine")
    out = finish(start("predict", "--workdir", folders["mlm"], *texts, "--top", "2"))
    lines = out.splitlines()
    assert lines[0] == "two three four five six seven eight nine ten one"
    assert lines[3] == "six seven eight nine"
    assert [line.split()[0] for line in (lines[1], lines[2], lines[4])] == ["four", "ten", "seven"]
