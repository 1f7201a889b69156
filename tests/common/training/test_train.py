"""Whole runs in this process: what a workdir holds, how runs end, go on, stop early and are
refused."""

import errno
import functools
import json
import math
import shutil

import jax
import numpy as np
import pytest
from helpers import DIGITS, TOY, load, result, timeless

from common import tree
from common.config import changed, to_json
from common.devices import mesh
from common.errors import BadInput, CannotWrite, NotFinite
from common.runs import files, log, mending, workdir
from common.runs.history import why_stop
from common.runs.progress import Progress
from common.training import extended, interval, train
from common.training.loop import Run, loop
from common.training.program import prepare
from common.training.saved import read_config

pytestmark = pytest.mark.usefixtures("same_programs")


def short(**overrides) -> dict:
    """A run of the small perceptron: 12 steps, evaluated every 4, saved every 4. It can be
    extended, as its rate does not know its length."""
    base = {
        "train.duration": "12 steps", "train.log_every": "1 steps", "checkpoint.every": "4 steps",
        "evals.test.every": "4 steps", "mesh.data": 8,
        "optim.schedule": "constant", "optim.warmup": "1 steps",
    }  # fmt: skip
    return load(f"{DIGITS}:mlp", **(base | overrides))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, same_programs):
    """(folder of a finished run, to be copied; what running it returned)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return folder, train.run(short(), folder, show=False)


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole[0], tmp_path / "run")


def run_program(made, folder) -> dict:
    with workdir.Lock(folder) as lock:
        return train.run_program(made, folder, lock, show=False)


def test_a_workdir_holds_what_it_should(whole):
    folder, found = whole
    assert found == result(folder)
    assert found["steps"] == 12
    assert found["parameters"] == 4810
    lines = timeless(folder)
    assert [x["step"] for x in lines] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 12]
    assert found["eval"]["test"] == {k[10:]: v for k, v in lines[-1].items() if k != "step"}
    assert json.loads((folder / "config.json").read_text())["train"]["batch_size"] == 64
    (facts,) = json.loads((folder / "environment.json").read_text())
    assert facts["versions"]["jax"] == jax.__version__
    assert set(facts["data"]) == {"train", "test"}
    assert math.isfinite(lines[0]["train/loss"])
    assert {"train/learning_rate", "train/gradient_norm", "train/accuracy"} <= set(lines[0])


def test_a_finished_run_is_not_trained_again_and_can_be_extended(whole, copy, tmp_path):
    (_, first), made = whole, prepare(short())
    assert run_program(made, copy) == first
    (copy / "result.json").write_text(json.dumps(first | {"parameters": 7}))
    assert run_program(made, copy)["parameters"] == first["parameters"]
    longer = short(**{"train.duration": "16 steps"})
    continued = train.run(longer, copy, show=False)
    straight = train.run(longer, tmp_path / "straight", show=False)
    assert continued["digest"] == straight["digest"]
    assert timeless(copy) == timeless(tmp_path / "straight")


@pytest.mark.slow
def test_an_extended_run_warns_once(tmp_path, caplog):
    made = prepare(short(**{"optim.schedule": "linear"}))
    first = made._replace(plan=made.plan._replace(total=4))
    for program, count in ((first, 0), (made, 1), (made, 1)):
        run_program(program, tmp_path)
        assert caplog.text.count("the learning rate jumps from") == count


def test_a_run_cannot_be_made_shorter_than_it_is(copy):
    before = timeless(copy)
    with pytest.raises(BadInput, match=r"config.train.duration: 8 steps, but .* has done \[12\]"):
        train.run(short(**{"train.duration": "8 steps"}), copy, show=False)
    assert timeless(copy) == before


def test_a_changed_batch_size_is_no_matter_of_the_duration(copy):
    length = {"train.duration": "0.53 epochs"}  # 12 steps, as it has
    (copy / "config.json").write_text(to_json(short(**length)))
    other = short(**length, **{"train.batch_size": 128})  # fewer steps
    with pytest.raises(BadInput, match=r"another run: config.train.batch_size was 64 and is 128"):
        train.run(other, copy, show=False)


def test_what_a_refusal_has_written_it_takes_away(tmp_path, monkeypatch):
    def refuses(*_):
        raise BadInput("after all")

    monkeypatch.setattr(mending, "mend_log", refuses)
    (tmp_path / "here").mkdir()
    (tmp_path / "here/note").write_text("mine")
    for folder in ("here", "new/below"):
        with pytest.raises(BadInput, match="after all"):
            train.run(short(), tmp_path / folder, show=False)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["here", "here/note"]


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("train.batch_size", 1 << 15, "a batch of this size"),
        ("evals.test.batch_size", 1 << 15, "a batch of this size"),
        ("model.hidden", (2048,), "the state of this model"),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, key, value, what
):
    monkeypatch.setattr(train.memory, "capacity", lambda device: 2_000_000)
    where = "config.model" if key == "model.hidden" else f"config.{key}"
    with pytest.raises(BadInput, match=rf"{what} takes .* this machine has 1.907 MiB.*\({where}\)"):
        train.run(short(**{key: value}), tmp_path / "run", show=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("full", [None, "/dev/shm"])
def test_the_place_that_is_full_is_the_one_that_is_named(tmp_path, monkeypatch, full):
    monkeypatch.setattr(train.memory, "full_place", lambda *places: full)
    says = pytest.raises(CannotWrite, match=f"no space left on device: {full or tmp_path};")
    with says, train.refusals(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_log_mesh_and_checkpoint_keys_may_change_and_others_may_not(copy):
    train.run(
        short(**{"checkpoint.keep_latest": 1, "mesh.data": 4, "mesh.fsdp": 2}), copy, show=False
    )
    for key, value in (
        ("optim.lr", 0.1),
        ("seed", 1),
        ("model.hidden", "(8,)"),
        ("data.train", "train[:50%]"),
    ):
        with pytest.raises(BadInput, match=rf"belongs to another run: config\.{key} was"):
            train.run(short(**{key: value}), copy, show=False)


def test_a_run_of_before_a_key_was_there_goes_on(copy):
    """A program that is newer has more keys, and their defaults mean what was without them."""
    written = json.loads((copy / "config.json").read_text())
    del written["train"]["steps_per_call"], written["checkpoint"]["keep_latest"]
    (copy / "config.json").write_text(json.dumps(written))
    with pytest.raises(BadInput, match="steps_per_call was 1 and is 2"):
        train.run(short(**{"train.steps_per_call": 2}), copy, show=False)
    before = read_config(copy)
    assert before == short()
    assert train.run(before, copy, show=False)["steps"] == 12
    assert json.loads((copy / "config.json").read_text())["train"]["steps_per_call"] == 1


def test_changed_data_is_another_run(copy):
    path = copy / "environment.json"
    path.write_text(path.read_text().replace(json.loads(path.read_text())[0]["data"]["train"], "x"))
    with pytest.raises(BadInput, match="the data set train has changed"):
        train.run(short(), copy, show=False)


def test_checkpoints_without_a_config_are_not_overwritten(copy):
    (copy / "config.json").unlink()
    with pytest.raises(BadInput, match="holds checkpoints but no config"):
        train.run(short(), copy, show=False)
    (copy / "config.json").write_text("{")
    with pytest.raises(BadInput, match="damaged"):
        train.run(short(), copy, show=False)


def test_a_log_in_parts_is_the_same_log(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "can_append", lambda path: False)
    train.run(short(), tmp_path / "run", show=False)
    assert not (tmp_path / "run/metrics.jsonl").exists()
    assert len(list((tmp_path / "run/metrics").glob("part_*"))) > 2
    strip = lambda line: {k: v for k, v in line.items() if not k.startswith("time/")}
    assert [strip(line) for line in log.read_lines(tmp_path / "run")] == timeless(whole[0])


# -------------------------------------------------------------------------------------- early stop


# ------------------------------------------------------------------------------------- extension


@pytest.fixture(scope="module")
def prepared():
    return prepare(load(f"{DIGITS}:mlp", **{"train.duration": "200 steps"}))


@pytest.mark.parametrize(
    ("schedule", "options", "step", "words"),
    [
        ("cosine", {}, 100, "jumps from 4.93"),
        ("linear", {}, 60, "jumps from 0.082 to 0.14 at step 60"),
        ("linear", {}, 0, ""),
        ("constant", {}, 100, ""),
        ("constant", {"warmup": "10%"}, 15, "jumps from 0.2 to 0.16 at step 15"),
        ("constant", {"warmup": "10 steps"}, 15, ""),
        ("wsd", {"decay": "20 steps"}, 80, ""),
        ("wsd", {"decay": "20 steps"}, 82, "jumps from 0.19 to 0.2 at step 82"),
    ],
)
def test_an_extended_run_says_where_its_rate_jumps(prepared, schedule, options, step, words):
    base = {"warmup": "0 steps", "final": 0.0, "lr": 0.2, "schedule": schedule} | options
    config = changed(prepared.config, **{f"optim.{key}": value for key, value in base.items()})
    made = prepared._replace(config=config)
    assert extended.jump(made, 200, step) == ""
    said = extended.jump(made, 100, step)
    assert words in said
    assert bool(said) == bool(words)


def lines(values, key="eval/v/loss"):
    return [{"step": i, key: v} for i, v in enumerate(values)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3, 2, 1], False),
        ([1, 2], False),
        ([1, 2, 3], True),
        ([3, 1, 2, 0.5, 1], False),
        ([1, None, None], True),
        ([1, 0.99, 0.98], True),  # less than min_delta better
        ([], False),
    ],
)
def test_early_stopping_is_a_function_of_the_log(values, expected):
    found = why_stop(lines(values), metric="min eval/v/loss", patience=2, min_delta=0.05)
    assert bool(found) is expected


def test_early_stopping_ignores_what_it_is_not_told_of():
    assert not why_stop(lines([1, 2, 3, 4, 5, 6, 7]))
    assert why_stop(lines([1, 0, 0]), metric="max eval/v/loss", patience=2)


@pytest.mark.parametrize(
    ("values", "options", "reason"),
    [
        ([1, 2, 3], {}, "v has not fallen below 1 (step 0) in its last 2 values"),
        ([3, 2, 1.99], {"min_delta": 0.1, "patience": 1},
         "v has not fallen by more than 0.1 below 2 (step 1) in its last value"),
        ([1, 3, 2, 2, 2], {"metric": "max v", "patience": 3},
         "v has not risen above 3 (step 1) in its last 3 values"),
        ([None, None], {}, "v is not a finite number in its last 2 values"),
    ],
)  # fmt: skip
def test_the_reason_to_stop_names_the_best_value(values, options, reason):
    assert why_stop(lines(values, "v"), **({"metric": "min v", "patience": 2} | options)) == reason


def test_a_run_that_stops_early_says_so_and_stays_stopped(tmp_path, capsys):
    stop = {"train.stop.metric": "min eval/test/loss", "train.stop.patience": 1, "optim.lr": 30.0}
    config = short(**stop, **{"train.duration": "40 steps", "optim.schedule": "constant"})
    config["checkpoint"]["best"] = "min eval/test/loss"
    first = train.run(config, tmp_path)
    assert first["steps"] in (8, 12, 16, 20)
    assert first["eval"]["test"]
    assert result(tmp_path)["stopped"] == first["stopped"]
    assert first["stopped"]["step"] == first["steps"]
    said = capsys.readouterr().err
    because = f"because {first['stopped']['reason']}"
    assert f"stopped early at step {first['steps']} {because}" in said
    assert "in its last value\nbest: eval/test/loss " in said
    again = train.run(config, tmp_path, show=False)
    assert (again["steps"], again["digest"]) == (first["steps"], first["digest"])


def test_a_run_stops_by_a_metric_of_training_without_evaluations(tmp_path):
    stop = {"train.stop.metric": "min train/learning_rate", "train.stop.patience": 3}
    config = short(**stop, **{"optim.schedule": "constant", "optim.warmup": "0 steps"})
    config["evals"] = {}
    assert train.run(config, tmp_path, show=False)["steps"] == 4


def test_a_metric_that_its_evaluator_lacks_is_named_before_anything_is_written(tmp_path):
    with pytest.raises(BadInput, match="did you mean 'eval/test/accuracy'"):
        train.run(short(**{"checkpoint.best": "max eval/test/acc"}), tmp_path / "a", show=False)
    assert not (tmp_path / "a").exists()


def test_metrics_that_no_evaluator_has_are_refused():
    for key in ("train.stop.metric", "checkpoint.best"):
        with pytest.raises(BadInput, match="did you mean 'test'"):
            prepare(short(**{key: "max eval/tset/accuracy"}))
    with pytest.raises(BadInput, match="did you mean 'loss'"):
        prepare(short(**{"train.stop.metric": "min train/lss"}))


# --------------------------------------------------------------------------------------------- NaN


def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    config = short(
        **{
            "optim.name": "sgd",
            "optim.lr": 1e9,
            "checkpoint.every": "1 steps",
            "train.duration": "40 steps",
        }
    )
    with pytest.raises(
        NotFinite, match=r"step \d+: loss or update is not finite.*newest checkpoint"
    ):
        train.run(config, tmp_path, show=False)
    made = prepare(config)
    from common.runs.checkpoint import Checkpoints

    checkpoints = Checkpoints(tmp_path)
    state, _ = checkpoints.restore(made.like)
    assert all(bool(np.isfinite(x).all()) for x in jax.tree.leaves(jax.device_get(state.params)))
    checkpoints.close()
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("calls", [1, 4])
def test_a_nan_in_the_update_alone_is_seen(tmp_path, monkeypatch, calls):
    from common.training import optim

    make = optim.make_optimizer

    @functools.wraps(make)
    def poisoned(*args, **kwargs):
        found = make(*args, **kwargs)

        def update(grads, state, params, step):
            updates, state = found.update(grads, state, params, step)
            bad = jax.numpy.where(step == 5, jax.numpy.nan, 1.0)
            return jax.tree.map(lambda u: u * bad, updates), state

        return found._replace(update=update)

    saved = 5 if calls == 1 else 4  # a call ends where something is due, and none holds a NaN
    config = short(**{"checkpoint.every": f"{calls} steps", "train.steps_per_call": calls})
    config["train"]["log_every"] = "4 steps"
    monkeypatch.setattr("common.training.program.optim.make_optimizer", poisoned)
    with pytest.raises(NotFinite, match=r"step 6: .*loss \d") as raised:
        train.run(config, tmp_path, show=False)
    assert "loss nan" not in str(raised.value)  # as it is from the next step on
    from common.runs.checkpoint import Checkpoints

    assert Checkpoints(tmp_path).steps()[-1] == saved


# --------------------------------------------------------------------------- several steps a call


@pytest.mark.slow
def test_several_steps_a_call_write_the_same_log(tmp_path):
    """Whatever is due when: every line is where it was, of the same numbers."""
    often = {"train.log_every": "3 steps", "checkpoint.every": "5 steps", "train.average": 0.9}
    for calls in (1, 7):
        config = short(**often, **{"train.steps_per_call": calls})
        train.run(config, tmp_path / str(calls), show=False)
    one, several = timeless(tmp_path / "1"), timeless(tmp_path / "7")
    assert [x["step"] for x in several] == [3, 4, 6, 8, 9, 12, 12]
    for a, b in zip(one, several, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"digests"}:
            np.testing.assert_allclose(a[key], b[key], rtol=1e-4)


def test_how_steps_are_grouped_changes_no_bit():
    """The program of a call does not know how many steps it makes, so a run that was cut ends as
    one that was not."""
    made = prepare(short(**{"train.steps_per_call": 8}))
    count = lambda n: mesh.put_replicated(made.layout, np.int32(n))
    found = set()
    with jax.set_mesh(made.layout.mesh):
        for calls in ((8,), (3, 5), (1,) * 8):
            state = made.create(made.hypers)
            sums = mesh.put_replicated(made.layout, interval.zeros(made.terms))
            for n in calls:
                args = made.hypers, state, sums, count(n), made.resident
                state, sums, _, finite = made.update(*args)
                assert int(finite) == n
            found.add(tree.hexdigest(state) + tree.hexdigest(sums))
    assert len(found) == 1


def test_what_is_read_on_the_host_comes_a_step_at_a_time():
    with pytest.raises(BadInput, match="read on the host, a step at a time"):
        prepare(load(TOY, **{"data.resident": False, "train.steps_per_call": 2}))
    with pytest.raises(BadInput, match="steps_per_call: 0 is not in 1 to"):
        prepare(short(**{"train.steps_per_call": 0}))


# --------------------------------------------------------------------------- the rest of the
# contract


def test_the_toy_trains_with_two_terms_text_and_an_average(tmp_path):
    found = train.run(load(TOY), tmp_path, show=False)
    history = timeless(tmp_path)
    assert history[0]["train/loss"] == pytest.approx(
        history[0]["train/label"] + 0.5 * history[0]["train/value"], rel=1e-6
    )
    assert history[-3]["train/loss"] < history[0]["train/loss"]
    assert found["eval"]["words"]["text"].endswith(" of 37")
    assert np.sum(found["eval"]["words"]["table"]) == 37
    assert set(found["eval"]["scores"]) == {"loss", "accuracy", "rmse"}


def test_the_average_follows_parameters_and_batch_statistics():
    from common.laws.measure import train_losses

    made = prepare(load(TOY), jax.devices()[:1])
    _, one = train_losses(made, 1)
    before = jax.device_get((one.params, one.extra, one.average))
    _, two = train_losses(made, 1, one)
    after = jax.device_get((two.params, two.extra, two.average))
    keep = min(0.9, 2 / 11)
    for part, name in ((0, "params"), (1, "extra")):
        wanted = jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, before[2][name], after[part])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            wanted,
            after[2][name],
        )


def test_another_value_of_a_traced_number_compiles_nothing():
    made = prepare(load(f"{DIGITS}:mlp", **{"loss.label_smoothing": 0.1}), jax.devices()[:1])
    state = made.create(made.hypers)
    for rate in (0.1, 0.01):
        hypers = made.hypers | {
            k: v * 0 + rate
            for k, v in made.hypers.items()
            if k in ("optim.lr", "loss.label_smoothing")
        }
        state, _, _ = made.step(hypers, state, {}, made.resident)
    assert made.step._cache_size() == 1


def test_the_state_is_donated():
    made = prepare(load(f"{DIGITS}:mlp"), jax.devices()[:1])
    compiled = made.step.lower(made.hypers, made.like, {}, made.resident).compile()
    state_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(made.like))
    assert compiled.memory_analysis().alias_size_in_bytes >= state_bytes


@pytest.mark.parametrize("calls", [1, 3])
def test_the_loop_copies_nothing_that_it_was_not_told_to(tmp_path, calls):
    """What waits for the device, or sends to it, would be an implicit transfer."""
    made = prepare(short(**{"train.steps_per_call": calls}))
    with jax.set_mesh(made.layout.mesh):
        zeros = interval.zeros(made.terms)
        one, sums = mesh.put_replicated(made.layout, (np.int32(1), zeros))
        state, given = made.create(made.hypers), one if calls > 1 else {}
        state, *_ = made.update(made.hypers, state, sums, given, made.resident)
        options = {"name": "", "config": {}, "tensorboard": False, "wandb": ""}
        metrics = log.Log(tmp_path, 1, writing=True, **options)
        progress = Progress(12, 64, 1, 0.0, show=False)
        made = made._replace(every={})
        before = made.update._cache_size()
        with jax.transfer_guard("disallow"):
            state = loop(Run(made, metrics, progress), state)
        metrics.close()
    assert int(state.step) == 12
    assert made.update._cache_size() == before == 1


@pytest.mark.slow
def test_runs_begin_from_another_runs_parameters_and_from_pretrained_ones(tmp_path):
    train.run(load(TOY), tmp_path / "a", show=False)
    made = prepare(load(TOY, **{"init.path": str(tmp_path / "a"), "init.skip": "('label/.*',)"}))
    from common.training.program import initial_state

    state = jax.device_get(initial_state(made))
    fresh = jax.device_get(prepare(load(TOY)).create(made.hypers))
    assert tree.hexdigest(state.params["label"]) == tree.hexdigest(fresh.params["label"])
    assert tree.hexdigest(state.params["hidden"]) != tree.hexdigest(fresh.params["hidden"])
    assert int(state.step) == 0
    assert tree.hexdigest(state.average["params"]) == tree.hexdigest(state.params)
    ones = jax.tree.map(np.ones_like, fresh.params)
    np.savez(tmp_path / "ones.npz", **tree.flatten(ones))
    brought = {"init.path": str(tmp_path / "ones.npz"), "init.skip": "('label/.*',)"}
    state = jax.device_get(initial_state(prepare(load(TOY, **brought))))
    assert tree.hexdigest(state.params["label"]) == tree.hexdigest(fresh.params["label"])
    assert tree.hexdigest(state.params["hidden"]) == tree.hexdigest(ones["hidden"])


def test_gradients_of_the_tasks_own_are_used(monkeypatch):
    import toy

    make = toy.make

    def gradients(loss, params, extra, batch, key):
        def half(p):
            return loss(p, extra, batch, key)

        grads, (terms, new) = jax.grad(lambda p: half(p), has_aux=True)(params)
        return jax.tree.map(jax.numpy.zeros_like, grads), terms, new

    monkeypatch.setattr(toy, "make", lambda *a: make(*a)._replace(gradients=gradients))
    from common.laws.measure import train_losses

    made = prepare(load(TOY, **{"optim.weight_decay": 0.0}), jax.devices()[:1])
    _, state = train_losses(made, 1)
    start = prepare(load(TOY, **{"optim.weight_decay": 0.0}), jax.devices()[:1]).create(made.hypers)
    assert tree.hexdigest(state.params) == tree.hexdigest(start.params)


def test_a_profile_is_written(tmp_path):
    train.run(short(**{"runtime.profile": "3:5"}), tmp_path, show=False)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
