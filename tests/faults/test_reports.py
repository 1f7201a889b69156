"""Reports and comparisons of damaged, odd and foreign folders: one line, or the others go on."""

import json
import shutil

import finished
import pytest
from faults import contents, refused
from helpers import DIGITS, exit_code

from common.reports import compare, plots, reading
from common.sweeps import trials

JUNK = {
    "binary": b"\x80\x00\xff\xfe" * 9,
    "null": b"null",
    "a list": b"[1, 2]",
    "empty": b"",
    "torn": b'[{"seed": 1, "step": 1',
    "deep": b"[" * 100_000,
    "nulls inside": b'{"seed": null, "task": null, "step": null, "eval": null}',
}
FILES = ("config.json", "environment.json", "metrics.jsonl", "result.json")


@pytest.fixture
def sweep(tmp_path):
    """A folder of three finished runs."""
    for seed, name in enumerate(("a", "b", "c")):
        finished.write(tmp_path / "sweep" / name, seed)
    return tmp_path / "sweep"


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_trial_is_named_and_the_others_are_reported(sweep, name, junk, capsys):
    (sweep / "b" / name).write_bytes(junk)
    assert exit_code("report", str(sweep)) == 0
    out, err = capsys.readouterr()
    assert not err
    assert f"b ({sweep / 'b' / name}" in out or ("b (" in out and name in out), out
    assert "0, 2" in out  # the seeds of the others
    refused(capsys, "report", str(sweep / "b"), says=name)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file_is_named(sweep, name, capsys):
    (sweep / "b" / name).unlink()
    (sweep / "b" / name).mkdir()
    _, left_out = reading.find_runs([str(sweep)])
    assert name in left_out[str(sweep / "b")]
    trial = trials.Trial(0, "b", {}, (), finished.config(), "")
    assert not trials.finished(trial, sweep / "b")
    trials.standing(trial, sweep)
    refused(capsys, "diff_runs", str(sweep / "a"), str(sweep / "b"), says=name)


@pytest.mark.parametrize("name", ["config.json", "environment.json", "metrics.jsonl"])
@pytest.mark.parametrize("junk", [JUNK["binary"], JUNK["null"], JUNK["a list"]])
def test_a_damaged_run_is_not_compared(sweep, name, junk, capsys):
    (sweep / "b" / name).write_bytes(junk)
    refused(capsys, "diff_runs", str(sweep / "a"), str(sweep / "b"), says=name)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "junk", [JUNK[n] for n in ("binary", "null", "a list", "nulls inside", "deep")]
)
def test_a_damaged_trial_does_not_stop_a_sweep(tmp_path, name, junk):
    trial = trials.Trial(0, "t", {}, (), finished.config(), "")
    finished.write(tmp_path / "t")
    assert trials.standing(trial, tmp_path).state == "finished"
    (tmp_path / "t" / name).write_bytes(junk)
    (tmp_path / "t" / trials.FAILED).write_bytes(b"\xff broken")
    standing = trials.standing(trial, tmp_path, "eval/test/loss")
    assert standing.state == "failed"
    if name != "config.json" or junk[:1] != b"{":
        assert f"{tmp_path / 't' / name}" in standing.reason


def test_a_file_in_the_place_of_a_trial_is_said(tmp_path, caplog):
    (tmp_path / "t").write_text("here first")
    trial = trials.Trial(0, "t", {}, (), finished.config(), "")
    standing = trials.standing(trial, tmp_path)
    assert (standing.state, standing.reason) == ("failed", f"{tmp_path / 't'} is not a folder")
    trials.note_failure(tmp_path / "t", "broken")
    trials.note_failure(tmp_path / "t", "")
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 4}, "metrics.jsonl ends at step 8, result.json is of 4"),
        ({"eval": {"test": {"loss": 0.0}}}, "last evaluation in metrics.jsonl is not that of"),
        ({"parameters": "many"}, "result.json is damaged: 'parameters' is 'many'"),
        ({"wall_seconds": None}, "result.json is damaged: 'wall_seconds' is None"),
    ],
)
def test_a_result_that_is_not_of_the_log_is_no_result(sweep, change, says, capsys):
    path = sweep / "b/result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(capsys, "report", str(sweep / "b"), says=says)
    runs, left_out = reading.find_runs([str(sweep)])
    assert [run.seed for run in runs] == [0, 2]
    assert says in left_out[str(sweep / "b")]


def test_a_trial_without_a_config_is_left_out_by_name(sweep):
    (sweep / "b/config.json").unlink()
    _, left_out = reading.find_runs([str(sweep)])
    assert left_out == {str(sweep / "b"): "its config.json is missing"}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("train", ("--config", f"{DIGITS}:mlp", "--workdir")),
        ("sweep", ("--config", f"{DIGITS}:mlp", "--workdir")),
        ("evaluate", ("--workdir",)),
        ("report", ()),
        ("reproduce", ()),
    ],
)
@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("", "name is empty"),
        (" ", "name is empty"),
        ("gs://bucket/run", r"gs:// is missing: pip install -e '\.\[gcs\]'"),
        ("foo://bucket/run", "unknown file system foo://"),
        ("a\0b", "unprintable"),
        (__file__, "is not a folder"),
        (f"{__file__}/below", "is not a folder"),
    ],
)
def test_a_place_where_no_run_can_be_is_one_line(script, words, folder, says, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    line = refused(capsys, script, *words, folder, says=says)
    assert line.startswith("error: --workdir: ") == bool(words)


# -------------------------------------------------------------------------------------- reproduce


def test_a_finished_repetition_is_not_taken_for_a_new_one(tmp_path, capsys):
    finished.write(tmp_path / "run")
    finished.write(tmp_path / "run-again")
    before = contents(tmp_path)
    for words in ((), ("--workdir", str(tmp_path / "run-again"))):
        line = refused(capsys, "reproduce", str(tmp_path / "run"), *words, says="is finished")
        assert "nothing was trained" in line
        assert "bit-identical" not in capsys.readouterr().out
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("{run}", "is the run itself"),
        ("{run}/", "is the run itself"),
        ("{run}//", "is the run itself"),
        ("{run}/../run", "is the run itself"),
        ("{run}/.", "is the run itself"),
        ("{link}", "is the run itself"),
        ("{link}/../run", "is the run itself"),
        ("run", "is the run itself"),
        ("./run/", "is the run itself"),
        ("{run}/again", "lie in one another"),
        ("{link}/again", "lie in one another"),
        ("{run}/..", "lie in one another"),
    ],
)
def test_a_run_is_not_reproduced_in_itself(tmp_path, form, says, capsys, monkeypatch):
    finished.write(tmp_path / "run")
    (tmp_path / "link").symlink_to("run")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    places = {"run": tmp_path / "run", "link": tmp_path / "link"}
    for run in ("run", "link", str(tmp_path / "run")):
        refused(capsys, "reproduce", run, "--workdir", form.format(**places), says=says)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ({"code": {"vision/cnn.py": "other"}}, r"was begun otherwise \(code .*: .* and "),
        ({"code": None}, "begun otherwise"),
        ({"versions": {"jax": "0.1"}}, "versions.jax: '0.1' and "),
        ({"python": "2.7"}, "python: '2.7' and"),
    ],
)
def test_a_repetition_begun_otherwise_is_not_resumed(tmp_path, start, says, capsys):
    from common.devices import code, runtime

    now = runtime.versions(code.named({"task": "vision.classify"}))
    finished.write(tmp_path / "run")
    again = finished.write(tmp_path / "run-again", **now)
    starts = json.loads((again / "environment.json").read_text())
    # A later start with the code of now does not undo an earlier one.
    starts[0] = {k: v for k, v in (starts[0] | start).items() if v is not None}
    (again / "environment.json").write_text(json.dumps([*starts, starts[0] | now]))
    (again / "result.json").unlink()
    (again / "metrics.jsonl").write_text(finished.text(*finished.lines(1, **{"time/seconds": 5.0})))
    before = contents(tmp_path)
    refused(capsys, "reproduce", str(tmp_path / "run"), says=says)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("config.json", lambda text: text.replace('"seed": 0', '"seed": 1'), "config.seed differs"),
        ("metrics.jsonl", lambda text: text, "holds a copy of the run"),
        ("metrics.jsonl", lambda text: text.split("\n")[0] + "\n", "holds a copy of the run"),
        ("metrics.jsonl", lambda text: "?\n" + text, "metrics.jsonl is damaged at line 1"),
        ("environment.json", lambda text: "[]", "environment.json is damaged"),
    ],
)
def test_an_interrupted_run_of_another_kind_is_no_repetition(tmp_path, name, change, says, capsys):
    run = finished.write(tmp_path / "run")
    again = finished.write(tmp_path / "run-again")
    (again / "result.json").unlink()
    if name != "metrics.jsonl":
        (again / "metrics.jsonl").unlink()
    (again / name).write_text(change((again / name).read_text()))
    refused(capsys, "reproduce", str(run), says=says)


@pytest.mark.parametrize("result", [None, '{"steps": 4}', "null"])
def test_only_a_finished_run_is_reproduced(tmp_path, result, capsys):
    run = finished.write(tmp_path / "run")
    (run / "result.json").unlink()
    if result:
        (run / "result.json").write_text(result)
    assert exit_code("reproduce", str(run)) == 2
    assert "the run is not finished; run its command again" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- compare


def test_files_of_code_that_differ_are_named_a_few_of_them(tmp_path):
    a = finished.write(tmp_path / "a")
    other = {"common/cli.py": "0", "vision/cnn.py": "2"}
    b = finished.write(tmp_path / "b", code=other)
    assert compare.causes(a, b) == ["code vision/cnn.py: 1 and 2"]
    c = finished.write(tmp_path / "c", code={f"lm/{k}.py": "3" for k in range(9)})
    (line,) = compare.causes(a, c)
    assert line == (
        "code common/cli.py: 0 and not there, lm/0.py: not there and 3, lm/1.py: not there and 3, "
        "lm/2.py: not there and 3, and 7 more files"
    )


def test_code_that_changed_between_two_starts_is_named(tmp_path):
    a = finished.write(tmp_path / "a")
    (start,) = json.loads((a / "environment.json").read_text())
    code = start["code"] | {"vision/cnn.py": "0"}
    (a / "environment.json").write_text(json.dumps([start | {"code": code}, start]))
    assert compare.causes(a, a) == [f"between two starts of {a}: code vision/cnn.py: 0 and 1"]


def test_starts_that_have_recorded_no_code_go_on_working(tmp_path, capsys):
    a, b = finished.write(tmp_path / "a"), finished.write(tmp_path / "b")
    for folder in (a, b):
        (start,) = json.loads((folder / "environment.json").read_text())
        del start["code"]
        (folder / "environment.json").write_text(json.dumps([start]))
        if folder == a:
            assert compare.causes(a, b) == ["code: recorded by one start, not by the other"]
    assert compare.causes(a, b) == []
    assert compare.runs(a, b).verdict == compare.IDENTICAL
    (b / "result.json").write_text((b / "result.json").read_text().replace('"d"', '"e"'))
    assert compare.runs(a, b).causes == ["the code may differ: neither run has recorded its own"]


@pytest.mark.parametrize(
    ("lines", "result", "verdict"),
    [
        (finished.lines(*range(1, 9)), {}, compare.IDENTICAL),
        (finished.lines(*range(1, 9)), {"steps": 4}, compare.EQUAL),  # a result of before
        (finished.lines(*range(1, 9)), {"digest": None}, compare.EQUAL),
        ([{"step": 8}], {"digest": "e"}, compare.DIFFERENT),  # nothing to compare
        ([{"step": 8, "train/loss": None}], {"digest": "e"}, compare.DIFFERENT),
        ([{"step": 8, "eval/test/loss": 1}], {"digest": "e"}, compare.DIFFERENT),
    ],
)
def test_no_verdict_is_better_than_what_was_compared(tmp_path, lines, result, verdict):
    a, b = finished.write(tmp_path / "a"), finished.write(tmp_path / "b")
    (b / "metrics.jsonl").write_text(finished.text(*lines))
    known = json.loads((b / "result.json").read_text()) | result
    (b / "result.json").write_text(json.dumps(known))
    for pair in ((a, b), (b, a)):
        found = compare.runs(*pair)
        assert found.verdict == verdict
        compare.comparison_text(found)


# ------------------------------------------------------------------------------------------- plots


@pytest.mark.parametrize("name", ["a$b", "$x^2_$", r"_\$b$", "$\\frac{$", "_\udcff\t", "__"])
def test_names_are_drawn_to_the_letter(name, tmp_path):
    pytest.importorskip("matplotlib")
    history = [{"step": k, "time/seconds": k, name: k / 9} for k in (1, 2)]
    settings = [{name: name}, {name: "other"}]
    figures = [plots.learning_curves({name: [history], "b": [history]}, name)]
    if "frac" in name or "_" not in name:
        figures += [
            plots.against(settings, [0.1, 0.2], name),
            plots.parallel(settings, [0.1, 0.2], name),
            plots.reliability([[1, 2], [0.2, 0.7], [0.3, 0.6]], name),
        ]
    for figure in figures:
        figure.draw_without_rendering()
    letters = name.encode(errors="replace").decode().replace("\t", "?")
    (legend, *_) = figures[0].axes[0].get_legend().get_texts()
    text, is_math = legend._preprocess_math(legend.get_text())
    assert (text.lstrip("\u200b"), is_math) == (letters, False)


# ------------------------------------------------------------------------------------------ metric


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("max eval/tset/accuracy", "did you mean 'eval/test/accuracy'"),
        ("accuracy", "write 'eval/NAME/METRIC'"),
        ("max eval//accuracy", "write 'eval/NAME/METRIC'"),
    ],
)
def test_a_sweep_refuses_a_metric_that_no_trial_logs(tmp_path, metric, says, capsys):
    words = ("--config", f"{DIGITS}:mlp", "--workdir", str(tmp_path / "s"), "--metric", metric)
    refused(capsys, "sweep", *words, says=f"--metric: .*{says}")
    assert not (tmp_path / "s").exists()


def test_a_report_names_the_nearest_metric(sweep, capsys):
    words = (str(sweep), "--metric", "eval/test/acuracy")
    refused(capsys, "report", *words, says="did you mean 'eval/test/accuracy'")


def test_a_copy_of_a_run_is_not_another_seed(sweep, capsys):
    shutil.copytree(sweep / "a", sweep / "d")
    refused(capsys, "report", str(sweep), says="are the same run, seed 0")
