"""The log: whole after a crash, in parts where files cannot be appended to, and in TensorBoard and
W&B."""

import errno
import json
import pathlib
import re
import sys

import corpus
import numpy as np
import pytest
from etils import epath
from helpers import DIGITS, ROOT, load

from common.devices import chips
from common.errors import BadInput
from common.runs import history, lines, log, place, trackers
from common.runs.files import replace_text
from common.runs.progress import Progress, duration, speeds
from common.task import Shown
from common.training import train


@epath.register_path_cls("bucket://")
class Bucket:
    """A path of a file system like an object store, which takes whole objects: bucket:///tmp/x is
    /tmp/x. It has what the log uses, and nothing that appends."""

    def __init__(self, path):
        self.real = pathlib.Path(str(path).removeprefix("bucket://"))
        self.name = self.real.name

    def __fspath__(self):
        return f"bucket://{self.real}"

    __str__ = __fspath__

    def joinpath(self, *parts):
        return Bucket(self.real.joinpath(*parts))

    __truediv__ = joinpath

    @property
    def parent(self):
        return Bucket(self.real.parent)

    def __lt__(self, other):
        return self.real < other.real

    def glob(self, pattern):
        return [Bucket(path) for path in self.real.glob(pattern)]

    def __getattr__(self, name):
        if name in ("exists", "mkdir", "unlink", "read_bytes", "write_bytes", "write_text"):
            return getattr(self.real, name)
        raise AttributeError(f"an object store has no {name}")


def make(folder, step=0, **options):
    options = {"tensorboard": False, "wandb": "", "name": "test"} | options
    config = {"seed": 1, "optim": {"lr": 0.1, "clip": None}}
    return log.Log(folder, step, writing=True, config=config, **options)


@pytest.fixture(params=["files", "objects"])
def folder(request, tmp_path):
    return epath.Path(f"bucket://{tmp_path}" if request.param == "objects" else tmp_path)


def test_a_log_goes_on_where_the_state_does(folder):
    first = make(folder)
    for step in range(1, 7):
        first.write(step, {"train/loss": 1 / step})
        if step in (2, 4):
            first.sync()
    first.close()
    second = make(folder, step=3)
    assert [line["step"] for line in second.history] == [1, 2, 3]
    for step in (4, 5):
        second.write(step, {"train/loss": 1 / step})
    second.close()
    assert [line["step"] for line in log.read_lines(folder)] == [1, 2, 3, 4, 5]
    assert log.read_lines(folder)[2] == {"step": 3, "train/loss": 1 / 3}
    assert second.has(5, "train/")
    assert not second.has(5, "eval/")


def test_a_torn_last_line_is_dropped(tmp_path):
    (tmp_path / lines.NAME).write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "tra')
    resumed = make(tmp_path, step=3)
    resumed.write(3, {"x": 1})
    resumed.close()
    assert log.read_lines(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3, "x": 1}]


def test_what_is_synced_is_there_without_closing(folder):
    metrics = make(folder)
    metrics.write(1, {"x": 1})
    metrics.sync()
    assert log.read_lines(folder) == [{"step": 1, "x": 1}]


def test_arrays_text_and_what_is_not_finite(folder):
    metrics = make(folder)
    metrics.write(1, {"a": np.arange(3), "b": "text", "c": np.float32("nan"), "d": float("inf")})
    metrics.close()
    assert log.read_lines(folder) == [
        {"step": 1, "a": [0, 1, 2], "b": "text", "c": None, "d": None}
    ]


def test_nothing_is_written_by_another_process(tmp_path):
    metrics = log.Log(tmp_path, 0, writing=False, name="", config={}, tensorboard=False, wandb="")
    metrics.write(1, {"x": 1})
    metrics.close()
    assert metrics.history == [{"step": 1, "x": 1}]
    assert not list(tmp_path.iterdir())


def events(folder) -> dict:
    """{(tag, step): value} of TensorBoard's files as its reader sees them: a new session drops what
    is there of its first step and later ones. Nothing is there twice."""
    reader = pytest.importorskip("tensorboardX.proto.event_pb2")
    seen = {}
    for file in sorted(folder.glob(trackers.EVENTS)):
        raw, at = file.read_bytes(), 0
        while at < len(raw):
            length = int.from_bytes(raw[at : at + 8], "little")
            event = reader.Event.FromString(raw[at + 12 : at + 12 + length])
            if event.HasField("session_log"):
                seen = {key: value for key, value in seen.items() if key[1] < event.step}
            for value in event.summary.value:
                assert (value.tag, event.step) not in seen
                seen[value.tag, event.step] = value
            at += 16 + length
    return seen


def test_tensorboard_files_hold_the_numbers(tmp_path):
    metrics = make(tmp_path, tensorboard=True)
    odd = {"eval/a b, c/loss": 1.0, "eval/a_b_c/loss": 2.0, "eval/größe/loss": 3.0}
    metrics.write(7, {"train/loss": 0.25, "eval/test/text": "words"} | odd)
    picture = np.zeros((2, 3, 3), np.uint8)
    metrics.show(7, {"eval/a/image": Shown(lambda: picture), "eval/a/said": Shown(lambda: "hello")})
    metrics.close()
    values = {tag: value for (tag, step), value in events(tmp_path).items() if step == 7}
    assert values["train/loss"].simple_value == 0.25
    assert any("eval/test/text" in tag for tag in values)
    assert (values["eval/a/image"].image.height, values["eval/a/image"].image.width) == (2, 3)
    assert b"hello" in values["eval/a/said/text_summary"].tensor.string_val[0]
    # Tags may hold few characters, and different names have different ones.
    assert sorted(v.simple_value for v in values.values() if v.simple_value >= 1) == [1, 2, 3]
    assert values["eval/größe/loss"].simple_value == 3.0
    assert "eval/a/image" not in log.read_lines(tmp_path)[0]


@pytest.mark.parametrize("at", [0, 3])
def test_a_run_that_goes_on_doubles_nothing_in_tensorboard(tmp_path, at):
    for begin in (0, at):
        metrics = make(tmp_path, step=begin, tensorboard=True)
        for step in range(begin, 6):
            metrics.write(step + 1, {"train/loss": float(step + begin)})
        metrics.close()
    seen = events(tmp_path)
    losses = {step: value.simple_value for (tag, step), value in seen.items() if "loss" in tag}
    assert losses == {step + 1: float(step + at * (step >= at)) for step in range(6)}
    assert ("config/text_summary", 0) in seen
    start = seen["_hparams_/session_start_info", 0].metadata.plugin_data
    assert b"seed" in start.content


@pytest.mark.slow
def test_a_run_shows_trackers_rows_mistakes_and_confusion(tmp_path):
    quick = {"train.duration": "2 steps", "log.tensorboard": True}
    train.run(load(f"{DIGITS}:mlp", **quick), tmp_path / "run", show=False)
    seen = events(tmp_path / "run")
    pictures = {tag: value.image for (tag, _), value in seen.items() if value.HasField("image")}
    assert set(pictures) == {"train/images", "eval/test/mistakes", "eval/test/confusion_matrix"}
    assert min(picture.height for picture in pictures.values()) > 300
    lines = [line for line in log.read_lines(tmp_path / "run") if "eval/test/loss" in line]
    assert not {"eval/test/mistakes", "eval/test/confusion_matrix"} & set(lines[0])


def test_a_full_disk_leaves_tensorboard_out(tmp_path, monkeypatch, caplog):
    metrics = make(tmp_path, tensorboard=True)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(metrics._trackers["TensorBoard"]._writer._py_recordio_writer, "write", full)
    for step in range(1, 30):  # more than a queue of the library's holds
        metrics.write(step, {"train/loss": 1.0})
    metrics.close()
    assert len(log.read_lines(tmp_path)) == 29
    (line,) = caplog.messages
    assert line.startswith("TensorBoard is left out: OSError: ")


class Failing:
    """A tracker without a network."""

    def __init__(self, *_):
        self.calls = 0

    def __getattr__(self, name):
        raise ConnectionError(f"no network for {name}\nmore")


def test_a_tracker_that_fails_is_left_out_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(log.trackers, "WandB", Failing)
    metrics = make(tmp_path, wandb="project", tensorboard=True)
    for step in (1, 2):
        metrics.write(step, {"train/loss": 1.0})
        metrics.show(step, {"picture": Shown(lambda: 1 / 0)})
    metrics.close()
    assert [line["step"] for line in log.read_lines(tmp_path)] == [1, 2]
    assert caplog.text.count("W&B is left out: ConnectionError: no network for numbers") == 1
    assert "more" not in caplog.text
    assert "picture is left out: ZeroDivisionError" in caplog.text
    assert ("train/loss", 2) in events(tmp_path)  # the other goes on


def test_a_tracker_that_cannot_begin_is_left_out_or_refused(tmp_path, monkeypatch, caplog):
    wandb = pytest.importorskip("wandb")

    def begin(error):
        def init(**_):
            raise error

        monkeypatch.setattr(wandb, "init", init)
        make(tmp_path, wandb="project").close()

    begin(wandb.errors.CommError("timed out"))
    assert "W&B is left out: CommError: timed out" in caplog.text
    with pytest.raises(BadInput, match="config.log.wandb: UsageError: no key; WANDB_MODE=offline"):
        begin(wandb.errors.UsageError("no key"))


@pytest.mark.slow
def test_wandb_offline_keeps_a_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for count, name in enumerate(("lr=0.001,seed=0", "größe/a b:#%?" * 20), 1):
        for step in (0, 1):  # it goes on
            metrics = make(tmp_path, step=step, wandb="touchstone-test", name=name)
            metrics.write(step + 1, {"train/loss": 0.25, "eval/a b, c/loss": 1.0})
            metrics.show(step + 1, {"a/picture": Shown(lambda: np.zeros((9, 9, 3), np.uint8))})
            metrics.show(step + 1, {"a/text": Shown(lambda: "<b>\n&")})
            metrics.close()
        files = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
        assert len({file.name for file in files}) == count  # the name is the run's id
        assert len(list((tmp_path / "wandb").rglob("picture_*.png"))) >= count
        assert any("&lt;b&gt;" in file.read_text() for file in (tmp_path / "wandb").rglob("*.html"))


def test_an_id_of_wandbs_has_few_characters_and_different_names_have_different_ones():
    names = [
        "lr=0.001,seed=0",
        "lr=0.001 seed=0",
        "größe",
        "grösse",
        "a/b",
        "a/" + "b" * 500,
        "a_b",
    ]
    names += ["a/" + "b" * 501, "\ud800", "日本語" * 60, "x" * 128, "plain-name_1"]
    ids = [place.fitting(name, trackers.UNFIT_ID, trackers.LONGEST) for name in names]
    assert all(re.fullmatch("[a-zA-Z0-9_-]{1,128}", each) for each in ids)
    assert len(set(ids)) == len(names)
    assert ids[-1] == names[-1]  # a run that was begun goes on


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(BadInput, match=r"pip install -e '\.\[tensorboard\]'"):
        log.log_section(tensorboard=True)


def test_replaced_files_are_whole_or_old(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / "x.json")
    replace_text(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        replace_text(path, "new" * 1000)
    assert path.read_text() == "old"


def test_durations_and_progress_lines(capsys):
    assert duration(187) == "3:07"
    assert duration(7387) == "2:03:07"
    progress = Progress(total_steps=10, batch_size=4, step=0, seconds=0.0, show=True)
    progress.done(1)
    progress.done(2)
    progress.show(2, {"train/loss": 0.5, "train/learning_rate": 1.0})
    line = capsys.readouterr().err
    assert line.startswith("step 2/10 (20%)  loss 0.5  ")
    assert "ETA" in line
    assert "examples/s  ETA" in line
    json.dumps(progress.examples_per_second())


def test_speeds_say_what_is_known():
    chip = chips.of("NVIDIA H100 80GB HBM3")
    assert speeds(10.0) == {"examples_per_second": 10.0}
    assert speeds(10.0, flops=1e12) == {"examples_per_second": 10.0}  # of what share?
    assert speeds(10.0, chip=chip) == {"examples_per_second": 10.0}
    text = {"examples_per_second": 10.0, "tokens_per_second": 1280.0}
    assert speeds(10.0, tokens=128) == text
    # A tenth of the peak of eight devices, done in examples of half the peak of one.
    found = speeds(1.6, chip.flops / 2, 128, chip, devices=8)
    assert found == {"examples_per_second": 1.6, "tokens_per_second": 204.8, "mfu": 0.1}


def test_progress_of_text_shows_tokens_and_mfu(capsys):
    chip = chips.of("TPU v5 lite")
    progress = Progress(10, 4, 0, 0.0, True, flops=chip.flops, tokens=100, chip=chip, devices=2)
    progress.done(1)
    progress.done(2)
    progress.pause()
    known = progress.speeds()
    assert known["tokens_per_second"] == pytest.approx(100 * known["examples_per_second"], rel=1e-3)
    assert known["mfu"] == pytest.approx(known["examples_per_second"] / 2, rel=1e-3)
    progress.show(2, {"train/loss": 0.5})
    line = capsys.readouterr().err
    tokens, mfu = f"{known['tokens_per_second']:,.0f} tokens/s", f"{known['mfu']:.1%} MFU"
    assert line.startswith(f"step 2/10 (20%)  loss 0.5  {tokens}  {mfu}  ETA ")
    assert "examples" not in line


@pytest.mark.slow
def test_a_run_of_text_says_tokens_a_second_and_on_cpu_no_mfu(tmp_path):
    small = {"model.width": 16, "model.hidden": 16, "data.vocab_size": 290, "data.length": 16}
    data = {"data.name": corpus.write(tmp_path / "texts"), "data.folder": str(tmp_path / "data")}
    often = {"train.duration": "3 steps", "train.batch_size": 8, "train.log_every": "1 steps"}
    config = load(f"{ROOT}/tests/support/language_config.py:clm", **small, **data, **often)
    result = train.run(config, tmp_path / "run", show=False)
    lines = log.read_lines(tmp_path / "run")
    assert not any("time/mfu" in line for line in lines)
    assert "mfu" not in result
    last = lines[-1]
    assert last["time/tokens_per_second"] == pytest.approx(
        16 * last["time/examples_per_second"], 0.01
    )
    for name in ("examples_per_second", "tokens_per_second"):
        assert result[name] == last[f"time/{name}"] > 0


@pytest.mark.parametrize("start", [{"steps": {}, "config": {"train.log_every": []}}, {"config": 3}])
def test_records_of_no_sense_ask_for_no_line(start):
    lines = [{"step": step, "train/loss": 1.0} for step in (2, 4)]
    assert history.missing(lines, 6, 0, [start]) is None
    assert history.missing(lines, 6, 2, [start]) == (6, "training")
