"""The laws, on the vision task and on the toy, by the program's own checks; and that they can
fail."""

import corpus
import jax
import pytest
from helpers import DIGITS, ROOT, TOY, load

from common import laws

CONFIGS = {
    "mlp": (f"{DIGITS}:mlp", {"model.dropout": 0.1, "augment.crop_padding": 1}),
    "cnn": (f"{DIGITS}:cnn", {"augment.flip": True, "model.widths": "(4, 8)"}),
    "toy": (TOY, {}),
    "mlm": (
        f"{ROOT}/configs/lm/bert_sotu.py",
        {
            "model.layers": 1,
            "model.width": 32,
            "model.hidden": 64,
            "model.dropout": 0.1,
            "masking.policy": "word",
            "loss.nsp": True,
            "evals.test.show": 2,
        },
    ),
    "clm": (
        f"{ROOT}/configs/lm/gpt_sotu.py",
        {"model.layers": 2, "model.width": 32, "model.hidden": 48, "model.kv_heads": 1},
    ),
}
TEXT = ("mlm", "clm")


# These take the longest to compile: what the others show as well, they show in the slow tests.
LARGE = ("cnn", *TEXT)


MOSTLY = [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in CONFIGS]


SETS = {}  # the folder of a small corpus, once there is one


@pytest.fixture(scope="module", autouse=True)
def small_corpus(tmp_path_factory):
    """A corpus of made-up sentences for the tasks of text."""
    folder = tmp_path_factory.mktemp("corpus")
    SETS.update({"data.name": corpus.write(folder / "texts"), "data.folder": str(folder / "data")})


def config(name: str, **more) -> dict:
    path, overrides = CONFIGS[name]
    if name in TEXT:
        small = {"data.vocab_size": 300, "data.length": 24, "train.batch_size": 16}
        overrides = overrides | SETS | small
    return load(path, **(overrides | more))


@pytest.mark.parametrize("name", CONFIGS)
def test_position_is_step(name):
    laws.position_is_step(config(name))


@pytest.mark.parametrize("name", ["toy", pytest.param("mlp", marks=pytest.mark.slow)])
def test_position_is_step_with_worker_processes(name):
    laws.position_is_step(config(name, **{"data.resident": False}), workers=(0, 2))


@pytest.mark.parametrize("name", MOSTLY)
def test_resume_is_exact(name):
    laws.resume_is_exact(config(name), devices=None if name == "toy" else jax.devices()[:1])


@pytest.mark.parametrize("name", MOSTLY)
def test_loop_ends_where_steps_do(name):
    laws.loop_ends_where_steps_do(config(name))


@pytest.mark.parametrize("name", MOSTLY)
def test_data_parallel_changes_nothing(name):
    laws.mesh_changes_nothing(config(name), [(8, 1, 1)])


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_no_mesh_changes_anything(name):
    laws.mesh_changes_nothing(config(name), laws.meshes(8))


@pytest.mark.parametrize("name", MOSTLY)
def test_accumulation_changes_nothing(name):
    laws.accumulation_changes_nothing(config(name))


@pytest.mark.parametrize("name", MOSTLY)
def test_means_are_exact(name):
    laws.means_are_exact(config(name))


@pytest.mark.parametrize("name", CONFIGS)
def test_no_dead_knob(name):
    laws.no_dead_knob(config(name))


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_plain(name):
    laws.parameters_are_plain(config(name))


def test_damage_is_found():
    laws.damage_is_found(config("mlp"))


# ------------------------------------------------------------------------- each law sees its breach


def broken_toy(monkeypatch, **replaced):
    """The toy with functions of its Task replaced: {"loss": old -> new}."""
    import toy

    make = toy.make

    def other(*args):
        task = make(*args)
        return task._replace(**{k: change(getattr(task, k)) for k, change in replaced.items()})

    monkeypatch.setattr(toy, "make", other)
    return config("toy")


def test_weights_that_read_parameters_are_seen(monkeypatch):
    def change(loss):
        def other(params, extra, batch, key):
            terms, extra = loss(params, extra, batch, key)
            total, weight = terms["label"]
            return terms | {"label": (total, weight + params["hidden"]["bias"].sum())}, extra

        return other

    with pytest.raises(laws.Broken, match="depend on the parameters"):
        laws.means_are_exact(broken_toy(monkeypatch, loss=change))


@pytest.mark.slow
def test_a_loss_that_keeps_state_is_seen(monkeypatch):
    count = iter(range(1000))

    def change(prepare):
        return lambda key, batch, train: (
            prepare(key, batch, train) | {"x": batch["x"] + 0.01 * next(count)}
        )

    with pytest.raises(laws.Broken):
        laws.resume_is_exact(broken_toy(monkeypatch, prepare=change), 1, jax.devices()[:1])


def test_a_loss_that_counts_devices_is_seen(monkeypatch):
    def change(loss):
        def other(params, extra, batch, key):
            terms, extra = loss(params, extra, batch, key)
            devices = jax.sharding.get_abstract_mesh().size
            total, weight = terms["label"]
            return terms | {"label": (total * (1 + 0.001 * devices), weight)}, extra

        return other

    with pytest.raises(laws.Broken, match="losses differ"):
        laws.mesh_changes_nothing(broken_toy(monkeypatch, loss=change), [(2, 1, 1)], steps=1)


def test_accumulation_that_is_not_exact_is_seen(monkeypatch):
    broken_toy(monkeypatch, rows_independent=lambda _: True)
    with pytest.raises(laws.Broken, match="parts"):
        laws.accumulation_changes_nothing(config("toy", **{"model.dropout": 0.0}))


def test_an_unread_argument_is_seen(monkeypatch):
    import toy

    def weights(*, value: float = 0.5, idle: int = 3) -> float:
        return value

    monkeypatch.setattr(toy, "weights", weights)
    with pytest.raises(laws.Broken, match="nothing reads idle"):
        laws.no_dead_knob(config("toy"))


def test_an_idle_partition_row_is_seen(monkeypatch):
    from common.config import BadInput

    with pytest.raises(BadInput, match="matches no parameter"):
        laws.parameters_are_plain(
            broken_toy(monkeypatch, partition=lambda t: (*t, ("nowhere/kernel", (None,))))
        )
