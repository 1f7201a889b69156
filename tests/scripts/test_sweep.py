"""Sweeps as processes: launchers agree, nothing is done twice, bad trials end alone."""

import json
import pathlib
import re
import shutil
import signal
import time

import finished
import pytest
import slurm
from helpers import ROOT, exit_code, finish, result, same, script, start, timeless

from common.runs import checkpoint, workdir
from common.sweeps import launch, trials

CONFIG = str(ROOT / "tests/support/sweep_config.py")
GOOD = [trial.name for trial in trials.of(CONFIG)]


def sweep(root, *words: str, **env: str):
    """Starts scripts/sweep.py."""
    return start("sweep", "--config", CONFIG, "--workdir", str(root), *words, **env)


def starts(folder) -> int:
    """How often a run was begun."""
    return len(json.loads((folder / "environment.json").read_text()))


def wait_for_saves(process, folder, count: int) -> None:
    """Returns when a run holds so many checkpoints."""
    end = time.monotonic() + 200
    while len(checkpoint.steps_in(folder)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The good trials, each by a process of its own."""
    root = tmp_path_factory.mktemp("local")
    table = finish(sweep(root, "--jobs", "2"))
    return root, table


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    """The environment by which commands find a SLURM."""
    if slurm.missing():
        pytest.skip(f"no {', '.join(slurm.missing())}: apt-get install slurm-wlm munge")
    with slurm.running(tmp_path_factory.mktemp("slurm")) as env:
        yield env


@pytest.mark.slow
def test_slurms_jobs_outlive_the_sweep_and_are_not_submitted_twice(local, queue, tmp_path):
    root, _ = local
    words = "--launcher", "slurm", "--jobs", "2", "--slurm", "time=10"
    process = sweep(tmp_path, *words, **queue)
    while not (tmp_path / "slurm/jobs.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    submitted = (tmp_path / "slurm/jobs.json").read_text()
    table = finish(sweep(tmp_path, *words, **queue))
    assert (tmp_path / "slurm/jobs.json").read_text() == submitted
    for name in GOOD:
        assert re.search(rf"{re.escape(name)} +finished +120 ", table)
        assert starts(tmp_path / name) == 1
        same(tmp_path / name, root / name)


@pytest.mark.slow
def test_ray_gives_the_same_results(local, tmp_path):
    root, _ = local
    table = finish(sweep(tmp_path, "--launcher", "ray", "--jobs", "2"))
    for name in GOOD:
        assert re.search(rf"{re.escape(name)} +finished +120 ", table)
        same(tmp_path / name, root / name)


@pytest.mark.slow
def test_ray_ends_what_falls_behind_and_optuna_chooses_the_rest(tmp_path):
    pytest.importorskip("ray")
    words = ["--launcher", "ray", "--sweep", "space", "--optuna", "--asha", "400"]
    words += ["--metric", "min eval/test/loss", "--config.evals.test.every=400 steps"]
    # Long enough that Ray ends what it stops before it is finished.
    words += ["--config.train.duration=10000 steps", "--config.checkpoint.every=50%"]
    states = []
    for count in (2, 4):
        table = finish(sweep(tmp_path, *words, "--trials", str(count)))
        rows = re.findall(r"^\d+ +(optim\.lr=\S+) +(finished|stopped) +(\d+)", table, re.MULTILINE)
        assert len(rows) == count  # none twice
        for name, state, step in rows:
            assert (int(step) == 10_000) == (state == "finished")
            assert (tmp_path / name / "result.json").exists() == (state == "finished")
            assert (state == "stopped") == (f"{name}: ended by ASHA at step" in table)
        states.append({name: (state, step) for name, state, step in rows})
    assert states[0].items() <= states[1].items()  # what was done is left as it is
    assert any(state == "stopped" for state, _ in states[1].values())


@pytest.mark.slow
def test_a_process_a_trial_and_one_for_all_agree(local, tmp_path):
    root, table = local
    together = finish(sweep(tmp_path, "--launcher", "vmap"))
    for name in GOOD:
        assert re.search(rf"{re.escape(name)} +finished +120 ", table)
        assert re.search(rf"{re.escape(name)} +finished +120 ", together)
        assert (tmp_path / "output/0.txt").exists()
        stacked, alone = timeless(tmp_path / name), timeless(root / name)
        assert [line["step"] for line in stacked] == [line["step"] for line in alone]
        for a, b in zip(stacked, alone, strict=True):
            if "train/loss" in a:
                assert a["train/loss"] == pytest.approx(b["train/loss"], abs=1e-4)
        assert result(tmp_path / name)["eval"]["test"]["loss"] == pytest.approx(
            result(root / name)["eval"]["test"]["loss"], abs=1e-4
        )
    facts = [json.loads((r / GOOD[0] / "environment.json").read_text()) for r in (root, tmp_path)]
    assert [f[0]["population"] for f in facts] == [1, 4]


@pytest.mark.slow
def test_a_finished_sweep_does_nothing_and_can_be_extended(local, tmp_path):
    root = shutil.copytree(local[0], tmp_path / "copy")
    before = {name: (root / name / "result.json").stat().st_mtime_ns for name in GOOD}
    finish(sweep(root))
    assert {name: (root / name / "result.json").stat().st_mtime_ns for name in GOOD} == before
    assert {starts(root / name) for name in GOOD} == {1}
    longer = [trial.name for trial in trials.of(CONFIG, ["--config.train.duration=140 steps"])]
    assert longer == GOOD
    finish(sweep(root, "--index", "1", "--config.train.duration=140 steps"))
    assert result(root / GOOD[1])["steps"] == 140
    assert [starts(root / name) for name in GOOD] == [1, 2, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "vmap", "ray"])
def test_a_killed_sweep_goes_on_where_it_was(launcher, tmp_path):
    count = {"local": 2, "vmap": 4, "ray": 2}[launcher]
    words = "--launcher", launcher, "--trials", str(count), "--config.train.duration=1000 steps"
    whole, cut, names = tmp_path / "whole", tmp_path / "cut", GOOD[:count]
    finish(sweep(whole, *words))
    process = sweep(cut, *words)
    # One after the other: in the second trial. All as one: in the middle of all.
    wait_for_saves(process, cut / names[-1], 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = [name for name in names if (cut / name / "result.json").exists()]
    assert finished == ([] if launcher == "vmap" else names[:1])
    finish(sweep(cut, *words))
    for name in names:
        same(cut / name, whole / name)
    begun_again = [name for name in names if starts(cut / name) > 1]
    assert begun_again == (names if launcher == "vmap" else names[1:])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "vmap", "ray", "slurm"])
def test_bad_trials_end_alone_and_say_why(launcher, tmp_path, request):
    env = request.getfixturevalue("queue") if launcher == "slurm" else {}
    process = sweep(tmp_path, "--sweep", "bad", "--launcher", launcher, "--jobs", "2", **env)
    table, err = process.communicate(timeout=300)
    assert process.returncode == 1, err
    bad = [trial.name for trial in trials.of(CONFIG, name="bad")]
    for k in (0, 4):
        assert result(tmp_path / bad[k])["steps"] == 120
    for k, words in (
        (1, "loss or update is not finite"),
        (2, "config.optim.warmup: '500 steps' is longer than the run of 120 steps"),
        (3, "killed by SIGABRT"),
    ):
        assert re.search(rf"{re.escape(bad[k])} +failed", table)
        line = next(line for line in table.splitlines() if line.startswith(f"{bad[k]}: "))
        assert words in line
        assert line.endswith((tmp_path / bad[k] / trials.FAILED).read_text().strip())
        assert f"{bad[k]}: failed" in err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "vmap", "ray"])
def test_a_sweep_that_is_told_to_end_saves_and_begins_nothing(launcher, tmp_path):
    words = "--launcher", launcher, "--config.train.duration=100000 steps"
    process = sweep(tmp_path, *words)
    begun = GOOD if launcher == "vmap" else GOOD[:1]
    wait_for_saves(process, tmp_path / begun[-1], 1)
    process.send_signal(signal.SIGTERM)
    assert "saved" in finish(process, 75)
    while any(workdir.in_use(tmp_path / name) for name in begun):
        time.sleep(0.1)  # Ray's children are told by its end
    for name in begun:
        last = timeless(tmp_path / name)[-1]["step"]
        assert checkpoint.steps_in(tmp_path / name)[-1] >= last
    assert not any((tmp_path / name / trials.FAILED).exists() for name in GOOD)
    assert not any((tmp_path / name / trials.STOPPED).exists() for name in GOOD)
    assert not any((tmp_path / name).exists() for name in set(GOOD) - set(begun))


@pytest.mark.slow
def test_two_launchers_share_a_sweep(tmp_path):
    both = [sweep(tmp_path) for _ in range(2)]
    for process in both:
        table = finish(process)
        assert all(re.search(rf"{re.escape(name)} +finished +120 ", table) for name in GOOD)
    # A trial that the other has just trained may be opened again, and is found finished.
    said = [(tmp_path / name / "console.log").read_text() for name in GOOD]
    assert [text.count("; starting, in ") for text in said] == [1] * len(GOOD)
    assert not any("; resuming at " in text for text in said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--index", "9"), "trials 0 to 3"),
        (("--index", "one"), "trials 0 to 3"),
        (("--overrides", "x"), "--overrides: 'x' is not JSON like"),
        (("--overrides", "[1]"), "--overrides: '[1]' is not JSON like"),
        (("--sweep", "none"), "defines no none()"),
        (("--sweep", "mistyped"), "trial 2, optim.rate=1: --config.optim.rate: unknown key"),
        (("--sweep", "mistyped"), "; 1 more of 4 trials are refused"),
        (("--sweep", "out_of_range"), "trial 1, optim.lr=-1.0: config.optim.lr: -1.0 is not a"),
        (("--folds", "1"), "--folds: '1'; write a number of at least 2"),
        (("--folds", "100000"), "--folds: 1 x 100000 trials are more than 10,000"),
        (("--folds", "many"), "--folds: 'many'"),
        (("--folds", "5:tset"), "--folds: unknown evaluator 'tset'; did you mean 'test'"),
        (("--folds", "5", "--sweep", "of_rows"), "a sweep sets data.train twice"),
        (
            (
                "--folds",
                "5",
                "--config.evals.test=None",
                "--config.evals.a.split=test",
                "--config.evals.b.split=test",
            ),
            "which evaluator reads the fold? write --folds 5:NAME with one of a, b",
        ),
        (("--folds", "5", "--config.data.train=train[fold 1/2]"), "is of folds already"),
        (("--jobs", "0"), "--jobs: 0"),
        (("--jbos", "4"), "unknown argument '--jbos'"),
        (("--config.optim.lrr=1",), "did you mean 'optim.lr'"),
        (("--gpus", "1"), "--gpus: for --launcher ray"),
        (("--population", "0"), "--population: 0"),
        (("--population", "2"), "--population: for --launcher vmap"),
        (("--launcher", "magic"), "invalid choice"),
        (("--asha", "5"), "--asha: for --launcher ray"),
        (("--slurm", "time=5"), "--slurm: for --launcher slurm"),
        (("--launcher", "ray", "--asha", "5"), "--metric: required"),
        (("--launcher", "ray", "--optuna", "--metric", "min train/loss"), "--trials: say how many"),
        (
            ("--launcher", "ray", "--optuna", "--metric", "min train/loss", "--trials", "2"),
            "a space is needed",
        ),
    ],
)
def test_what_is_wrong_with_the_command_is_one_line(words, said, tmp_path, capsys):
    assert exit_code("sweep", "--config", CONFIG, "--workdir", str(tmp_path), *words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_folds_are_trials_of_the_config_or_of_a_sweep():
    alone = trials.of(CONFIG, name=None, folds=(3, ""))
    assert [trial.name for trial in alone] == [f"fold={i}of3" for i in (1, 2, 3)]
    for i, trial in enumerate(alone):
        assert trial.config["data"]["train"] == f"train[not fold {i + 1}/3]"
        assert trial.config["evals"]["test"]["split"] == f"train[fold {i + 1}/3]"
    both = trials.of(CONFIG, ["--config.data.train=train[:90%]"], folds=(2, "test"))
    assert len(both) == 2 * len(GOOD)
    assert both[1].config["evals"]["test"]["split"] == "train[:90%][fold 2/2]"
    trials.check(both)


def test_the_table_begins_with_the_best_of_those_that_are_finished(tmp_path):
    made = [trial._replace(config=finished.config() | {"seed": k})
            for k, trial in enumerate(trials.of(CONFIG))]  # fmt: skip
    for trial, value in zip(made, (0.5, 0.2, 0.9), strict=False):
        folder = finished.write(tmp_path / trial.name, trial.index)
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 8, "eval/test/loss": value}) + "\n")
    for sign, order in ((-1, [1, 0, 2, 3]), (1, [2, 0, 1, 3]), (0, [0, 1, 2, 3])):
        header, _, *rows = launch.Board(made, tmp_path, "eval/test/loss", sign).final().splitlines()
        assert [int(row.split()[0]) for row in rows[:4]] == order
        which = {1: "eval/test/loss (max)", -1: "eval/test/loss (min)", 0: "eval/test/loss  "}
        assert which[sign] in header
        best = [f"best by its last eval/test/loss: {made[order[0]].name} "] if sign else []
        assert [row.partition("(")[0] for row in rows[4:]] == best
    folds = [trial._replace(overrides={"data.train": "train[not fold 1/4]"}) for trial in made]
    assert "best" not in launch.Board(folds, tmp_path, "eval/test/loss", -1).final()


@pytest.mark.parametrize(
    ("words", "metric"),
    [
        ((), ("eval/test/loss", -1)),
        (("--metric", "eval/test/accuracy"), ("eval/test/accuracy", 1)),
        (("--metric", "min eval/test/accuracy"), ("eval/test/accuracy", -1)),
        (("--config.checkpoint.best=max eval/test/f1",), ("eval/test/f1", 1)),
        (("--config.train.stop.metric=max eval/test/top_5",), ("eval/test/top_5", 1)),
        (("--config.evals.valid.split=train[:9]",), ("eval/valid/loss", -1)),
        (("--config.evals.test=None",), ("train/loss", -1)),
    ],
)
def test_the_metric_that_chooses_is_the_one_that_is_shown(words, metric):
    made = script("sweep")
    args, more = made._parser().parse_known_args(
        ["--config", CONFIG, "--workdir", "runs", "--trials", "1", *words]
    )
    assert made._metric(args, made._trials(args, more)) == metric


@pytest.mark.parametrize("variant", ["", ":", ":mlp:a"])
def test_processes_that_start_elsewhere_have_the_same_config(variant, tmp_path):
    made = script("sweep")
    words = "--config", f"theirs.py{variant}", "--workdir", str(tmp_path)
    own = made._absolute(made._parser().parse_args(words), [])
    assert own[own.index("--config") + 1] == f"{pathlib.Path('theirs.py').absolute()}{variant}"
