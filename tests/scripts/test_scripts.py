"""The command lines as a user meets them: what they print, their exit codes, what they leave
behind."""

import json
import subprocess

import pytest
import yaml
from helpers import DIGITS, ROOT, exit_code, finish, result, start, timeless

from common.devices import processes
from common.laws import report

MLP = f"{DIGITS}:mlp"
NOWHERE = "--config.data.folder=/nowhere"
SHORT = ("--config.train.duration=8 steps", "--config.evals.test.every=4 steps")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.optim.lrr=1"], "optim.lrr: unknown key; did you mean 'optim.lr'"),
        (["--config.evals.test.evry=1"], "did you mean 'evals.test.every'"),
        (["--config.optim.lr=fast"], "'fast' does not fit"),
        (["--config.optim.lr"], "no value given"),
        (["--config.optim.lr=-1"], "config.optim.lr: -1.0 is not a finite number above 0"),
        (["--config.train.batch_size=-1"], "-1 is not a positive number of examples"),
        (["--config.train.batch_size=36"], "36 examples cannot be divided over 8 devices; take 32"),
        (["--config.evals.test.batch_size=9"], "config.evals.test.batch_size: 9 examples cannot"),
        (["--config.train.duration=long"], "'long' is not a duration"),
        (["--config.train.average=1.5"], "1.5 is not between 0 and 1"),
        (["--config.mesh.data=3"], "is not the number of devices"),
        (["--config.seed=-1"], "config.seed: -1"),
        (["--config.loss.label_smoothing=1.0"], "1.0 is not in [0, 1)"),
        (["--config.data.name=fashion_mnist", NOWHERE], "run: python scripts/prepare.py fashion"),
        (["--config.data.name=tfds:cifar10", NOWHERE], "run: tfds build cifar10"),
        (["--config.init.path=/nowhere"], "no such workdir, folder or file"),
        (["--config.model.dropout=1.5"], "config.model.dropout: 1.5 is not in [0, 1)"),
        (["--config.runtime.profile=20:10"], "holds no step"),
        (["--config.runtime.profile=ten"], "write the steps as '10:20'"),
        (["--nonsense"], "unknown argument '--nonsense'"),
        (["nonsense"], "unknown argument 'nonsense'"),
    ],
)
def test_bad_input_is_one_line_exit_code_two_and_nothing_written(tmp_path, capsys, words, message):
    workdir = tmp_path / "run"
    assert exit_code("train", "--config", MLP, "--workdir", str(workdir), *words) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert message in error
    assert "\n" not in error
    assert not workdir.exists()


def test_other_bad_command_lines(tmp_path, capsys):
    for words, message in (
        (["--config", "nowhere.py", "--workdir", "x"], "no such file: nowhere.py"),
        (["--config", f"{DIGITS}:ccn", "--workdir", "x"], "did you mean 'cnn'"),
        (["--config", MLP], "--workdir: required"),
        ([], "required: --config"),
        (["--config", MLP, "--workdir", "/proc/run"], "--workdir: /proc/run"),
        (["--config", str(ROOT / "README.md"), "--workdir", "x"], "is not a Python file"),
    ):
        assert exit_code("train", *words) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error


def test_a_run_and_its_evaluation_agree_exactly(tmp_path, capsys, monkeypatch):
    workdir = str(tmp_path / "run")
    words = (*SHORT, "--config.evals.test.per_class=true", "--config.checkpoint.every=4 steps",
             "--config.checkpoint.best=max eval/test/accuracy")  # fmt: skip
    assert exit_code("train", "--config", MLP, "--workdir", workdir, *words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == result(workdir)
    logged = {
        line["step"]: {k[10:]: v for k, v in line.items() if k.startswith("eval/")}
        for line in timeless(workdir)
        if any(k.startswith("eval/") for k in line)
    }
    for step, wanted in (("latest", 8), ("4", 4)):
        assert exit_code("evaluate", "--workdir", workdir, "--step", step) == 0
        found = json.loads(capsys.readouterr().out)
        assert found == {"step": wanted, "eval": {"test": logged[wanted]}}
    assert exit_code("evaluate", "--workdir", workdir, "--step", "best") == 0
    best = json.loads(capsys.readouterr().out)
    assert best["eval"]["test"]["accuracy"] == max(v["accuracy"] for v in logged.values())
    monkeypatch.chdir(tmp_path)
    sets = ("--set", "train[:100]", "test", "train")
    assert exit_code("evaluate", "--workdir", "run", *sets) == 0
    found = json.loads(capsys.readouterr().out)["eval"]
    assert sum(map(sum, found["train"]["confusion"])) == 1437
    assert sum(map(sum, found["train[:100]"]["confusion"])) == 100
    assert found["test"] == logged[8]
    for words, message in (
        (["--step", "5"], "no checkpoint of step 5"),
        (["--step", "last"], "is not 'latest', 'best' or a number"),
        (["--set", "tset"], "--set: unknown split 'tset'"),
    ):
        assert exit_code("evaluate", "--workdir", workdir, *words) == 2
        assert message in capsys.readouterr().err
    assert exit_code("evaluate", "--workdir", str(tmp_path / "nowhere")) == 2
    assert "no run there" in capsys.readouterr().err


def test_a_dry_run_shows_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert exit_code("train", "--config", MLP, "--dry-run") == 0
    shown = capsys.readouterr().out
    for part in (
        "dense_0/kernel",
        "embed mlp",
        "4,810 parameters",
        "working memory",
        "learning rate",
        "first rows: ",
    ):
        assert part in shown
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_script_is_a_process(tmp_path):
    out = finish(start("train", "--config", MLP, "--workdir", str(tmp_path), *SHORT, devices=2))
    assert json.loads(out)["steps"] == 8
    assert "did you mean" in finish(
        start("train", "--config", MLP, "--workdir", "x", "--config.sead=1"), 2
    )


def test_the_laws_are_a_command(capsys, monkeypatch):
    from common import cli

    monkeypatch.setattr(
        report, "LAWS", {k: report.LAWS[k] for k in ("5 no dead knob", "6 plain parameters")}
    )
    with pytest.raises(SystemExit) as ended:
        cli.exit(lambda: report.main(["--config", MLP]))
    assert ended.value.code == 0
    assert "2 of 2 laws hold" in capsys.readouterr().out
    for words, message in (
        ([], "name a task, my.task or FILE.py, or --config"),
        (["nowhere.py"], "no such file: nowhere.py"),
        (["my.task"], "there is no module 'my.task'"),
        (["vision.classify", "--config.data.foldr=3"], "did you mean 'data.folder'"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.exit(lambda words=words: report.main(words))
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_the_recipes_for_pods_can_be_read():
    folder = ROOT / "scripts/pods"
    for path in folder.glob("*.sh"):
        subprocess.run(["bash", "-n", path], check=True)
    (jobset,) = yaml.safe_load_all((folder / "jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    rules = job["podFailurePolicy"]["rules"]
    assert [rule["onExitCodes"]["values"] for rule in rules] == [[1, 2]]
    for name in ("tpu.sh", "slurm.sh"):
        assert f"{processes.LOST} | " in (folder / name).read_text()
    compile((folder / "ray_train.py").read_text(), "ray_train.py", "exec")
