"""The laws, on our tasks, on the toy and on a task of a user's own, by the program's own checks;
and that they can fail."""

import functools
import os
import pathlib
import subprocess
import sys

import corpus
import jax
import numpy as np
import pytest
from helpers import DIGITS, ROOT, TOY, load

from common import tree
from common.devices import mesh
from common.errors import BadInput
from common.laws import checks as laws
from common.laws import measure, report, rows
from common.runs import checkpoint
from common.training.program import initial_state, prepare

CONFIGS = {
    "mlp": (
        f"{DIGITS}:mlp",
        {
            "model.dropout": 0.1,
            "augment.crop_padding": 1,
            "train.sampling": "balanced",
            "loss.class_weights": "balanced",
        },
    ),
    "cnn": (f"{DIGITS}:cnn", {"augment.flip": "random", "model.widths": "(4, 8)"}),
    "resnet": (
        f"{DIGITS}:cnn",
        {
            "model.module": "vision.resnet:ResNet",
            "model.block": "basic",
            "model.stages": "(1, 1)",
            "model.widths": "(8, 16)",
            "model.stem": "small",
            "model.stem_width": 8,
            "augment.flip": "alternating",
            "augment.mixup": 0.2,
        },
    ),
    "vit": (
        f"{DIGITS}:cnn",
        {
            "model.module": "vision.vit:ViT",
            "model.image_size": 8,
            "model.patch_size": 2,
            "model.width": 32,
            "model.layers": 1,
            "model.heads": 4,
            "model.hidden": 64,
            "model.dropout": 0.1,
        },
    ),
    "toy": (TOY, {}),
    "toy_calls": (TOY, {"train.steps_per_call": 4}),
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
IMAGES = ("resnet", "vit")
LARGE = ("cnn", "mlp", "toy_calls", *IMAGES, *TEXT)


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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow if n not in ("toy", "mlp", "clm") else ())
        for n in CONFIGS
    ],
)
def test_position_is_step(name):
    laws.position_is_step(config(name))


@pytest.mark.parametrize("name", ["toy", pytest.param("mlp", marks=pytest.mark.slow)])
def test_position_is_step_with_worker_processes(name):
    laws.position_is_step(config(name, **{"data.resident": False}), workers=(0, 2))


@pytest.mark.parametrize("name", MOSTLY)
def test_resume_is_exact(name):
    laws.resume_is_exact(config(name), devices=jax.devices()[:1])


@pytest.mark.slow
def test_resume_is_exact_on_eight_devices():
    laws.resume_is_exact(config("toy"))


@pytest.mark.parametrize("name", MOSTLY)
def test_loop_ends_where_steps_do(name):
    laws.loop_ends_where_steps_do(config(name))


@pytest.mark.parametrize("name", MOSTLY)
def test_data_parallel_changes_nothing(name, compiled_in_haste):
    laws.mesh_changes_nothing(config(name), [(8, 1, 1)])


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT)
def test_three_axes_at_once_change_nothing(name, compiled_in_haste):
    laws.mesh_changes_nothing(config(name), [(2, 2, 2)])


@pytest.fixture
def undivided(monkeypatch):
    """The dimensions that a mesh was to split, and that stayed whole because it does not divide
    them."""
    found, spec = set(), mesh.spec

    def watched(layout, names, shape, where=""):
        parts = spec(layout, names, shape, where)
        for name, size, part in zip(names, shape, parts, strict=True):
            ways = [layout.mesh.shape[axis] for axis in layout.rules.get(name, ())]
            if part is None and size > 1 and max(ways, default=1) > 1:
                found.add((where or "an activation", name, size))
        return parts

    monkeypatch.setattr(mesh, "spec", watched)
    return found


# Small, and every dimension that a table names is a multiple of eight. SGD, as Adam would hide a
# gradient that is wrong by a factor; no dropout, which accumulation draws anew for each part.
STEEP = {"optim.name": "sgd", "optim.lr": 0.3, "optim.direction.momentum": 0.9}
STEEP |= {"optim.schedule": "constant", "optim.warmup": "0 steps", "train.batch_size": 32}
BLOCK = {"model.layers": 1, "model.width": 64, "model.hidden": 64, "data.length": 16}
BLOCK |= {"optim.multipliers": "()"}
DIVIDED = {
    "cnn": STEEP | {"model.widths": "(8, 16)"},
    "mlm": STEEP | BLOCK | {"model.heads": 8, "model.dropout": None, "data.vocab_size": 144},
    "clm": STEEP | BLOCK | {"model.heads": 16, "model.kv_heads": 8, "data.vocab_size": 304},
}


@functools.cache
def losses_alone(name: str) -> list[float]:
    losses, _ = measure.train_losses(measure.on_mesh(config(name, **DIVIDED[name]), (1, 1, 1)), 10)
    assert max(losses) - min(losses) > 0.01 * max(losses)  # else equality would say little
    return losses


# CI has a cover: every mesh with every model, and either with every number of parts. The rest of
# the grid is a measure.
GRID = [
    pytest.param(
        *(name, shape, parts),
        marks=() if (i + j + k) % 2 == 0 else pytest.mark.measure("grid"),
        id=f"{name}-{'x'.join(map(str, shape))}-{parts}",
    )
    for i, name in enumerate(DIVIDED)
    for j, shape in enumerate(report.meshes(8))
    for k, parts in enumerate((1, 4))
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "accumulate"), GRID)
def test_no_mesh_changes_anything(name, shape, accumulate, compiled_in_haste, undivided):
    divided = config(name, **DIVIDED[name], **{"train.accumulate": accumulate})
    laws.mesh_changes_nothing(divided, [shape], alone=losses_alone(name))
    assert not undivided


@pytest.mark.slow
def test_no_mesh_changes_the_toy(compiled_in_haste):
    laws.mesh_changes_nothing(config("toy"), report.meshes(8))


def test_batch_statistics_are_those_of_the_whole_batch(compiled_in_haste):
    # After one step: Adam then moves the bias in front of the norm, whose gradient is noise.
    _, one = measure.train_losses(measure.on_mesh(config("toy"), (1, 1, 1)), 1)
    _, eight = measure.train_losses(measure.on_mesh(config("toy"), (8, 1, 1)), 1)
    assert set(one.extra["batch_stats"]["norm"]) == {"mean", "var"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-7), one.extra, eight.extra)


ALL_MESHES = pytest.mark.slow, pytest.mark.measure("grid")


@pytest.mark.parametrize(
    ("name", "shapes", "apart"),
    [
        pytest.param("mlp", [(1, 8, 1), (2, 2, 2)], None, marks=pytest.mark.slow),
        # A cover: each mesh gives a checkpoint to two others and gets one of two others.
        *(pytest.param(n, report.meshes(8), (1, 3), marks=pytest.mark.slow) for n in DIVIDED),
        *(pytest.param(n, report.meshes(8), None, marks=ALL_MESHES) for n in DIVIDED),
    ],
)
def test_checkpoint_fits_any_mesh(name, shapes, apart, compiled_in_haste):
    laws.checkpoint_fits_any_mesh(config(name, **DIVIDED.get(name, {})), shapes, apart=apart)


@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_optimizer_and_average_live_where_their_parameters_live(shape):
    # Muon has momenta for the matrices and Adam's for the rest.
    muon = {"optim.name": "muon", "train.average": 0.9}
    like = measure.on_mesh(config("clm", **BLOCK | {"model.heads": 8} | muon), shape).like
    params = tree.flatten(like.params)
    assert any(not leaf.sharding.is_fully_replicated for leaf in params.values())
    for part in (like.opt_state, like.average):
        found = set()
        for path, leaf in tree.flatten(part).items():
            for name, owner in params.items():
                if path.endswith(f"/{name}") and leaf.shape == owner.shape:
                    assert leaf.sharding.is_equivalent_to(owner.sharding, leaf.ndim), path
                    found.add(name)
        assert found == set(params)


def test_fsdp_divides_the_memory_of_the_state():
    muon = {"optim.name": "muon", "train.average": 0.9}
    made = measure.on_mesh(config("clm", **BLOCK | {"model.heads": 8} | muon), (1, 8, 1))
    with jax.set_mesh(made.layout.mesh):
        leaves = jax.tree.leaves(initial_state(made))
    total = sum(leaf.nbytes for leaf in leaves)
    for device in jax.devices():
        here = sum(
            s.data.nbytes for x in leaves for s in x.addressable_shards if s.device == device
        )
        assert here < 1.35 * total / 8


@pytest.mark.parametrize("name", [pytest.param("mlm", marks=pytest.mark.slow), "clm"])
def test_bfloat16_is_for_the_computation_alone(name):
    made = prepare(config(name, **{"model.dtype": "bfloat16", "train.average": 0.9}))
    with jax.set_mesh(made.layout.mesh):
        step = jax.make_jaxpr(made.step, return_shape=True)
        program, (state, terms, _) = step(made.hypers, made.like, {}, made.resident)
    assert "bf16[" in str(program)
    kept = tree.flatten(state) | tree.flatten(terms)
    assert {str(leaf.dtype) for leaf in kept.values()} <= {"float32", "int32", "uint32"}
    for like, leaf in zip(jax.tree.leaves(made.like), jax.tree.leaves(state), strict=True):
        assert like.dtype == leaf.dtype


@pytest.mark.parametrize("name", [p for p in MOSTLY if p.values != ("resnet",)])
def test_accumulation_changes_nothing(name, compiled_in_haste):
    laws.accumulation_changes_nothing(config(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CONFIGS if n not in ("toy", "toy_calls", "resnet")])
def test_rows_are_independent(name, compiled_in_haste):
    rows.rows_are_independent(config(name))


@pytest.mark.parametrize("name", ["toy", "resnet"])  # batch norm mixes rows
def test_rows_that_are_said_to_mix_are_left_alone(name):
    with pytest.raises(measure.DoesNotApply, match="rows_independent=False"):
        rows.rows_are_independent(config(name))


@pytest.mark.parametrize("name", MOSTLY)
def test_means_are_exact(name, compiled_in_haste):
    laws.means_are_exact(config(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tag", "answer"])
def test_tasks_of_words_obey(name, tmp_path, compiled_in_haste):
    """What depends on a task's own functions; the encoder is that of `mlm`."""
    make = {"tag": corpus.tagged, "answer": corpus.questions}[name]
    sizes = {"data.length": 24, "model.layers": 1, "model.width": 32, "model.hidden": 48}
    sizes |= {"model.heads": 4, "init.path": "", "init.skip": "()", "train.batch_size": 16}
    sizes |= {"data.stride": 8, "data.question_length": 4} if name == "answer" else {}
    sizes |= {"data.name": make(tmp_path, 60), "evals.test.batch_size": 16, "evals.valid": None}
    sizes |= {"data.tokenizer": corpus.tokenizer(tmp_path, "wordpiece", 300)}
    task = load(f"{ROOT}/configs/lm/{name}.py", **sizes)
    laws.means_are_exact(task)
    rows.rows_are_independent(task)
    laws.parameters_are_plain(task)
    laws.no_dead_knob(task)


RECURRENT = pytest.param("lstm", marks=pytest.mark.measure("grid"))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["transformer", RECURRENT])
def test_translation_obeys(variant, tmp_path, compiled_in_haste):
    """The laws, on rows of several pairs and with decoding in evaluation."""
    sizes = {"model.layers": 1, "model.width": 32, "data.length": 16, "data.target_length": 16}
    sizes |= {"model.heads": 4, "model.hidden": 32} if variant == "transformer" else {}
    sizes |= {"train.batch_size": 16, "evals.test.batch_size": 16, "evals.valid": None}
    sizes |= {"data.name": corpus.pairs(tmp_path, 100), "evals.test.show": 2}
    sizes |= {"optim.warmup": "5%"}
    task = load(f"{ROOT}/configs/lm/g2p_cmudict.py:{variant}", **sizes)
    laws.position_is_step(task)
    laws.resume_is_exact(task, devices=jax.devices()[:1])
    laws.mesh_changes_nothing(task, [(2, 2, 2)])
    laws.accumulation_changes_nothing(task)
    laws.means_are_exact(task)
    rows.rows_are_independent(task)
    laws.parameters_are_plain(task)
    laws.no_dead_knob(task)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "toy_calls"])
def test_no_dead_knob(name):
    laws.no_dead_knob(config(name))


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "toy_calls"])
def test_parameters_are_plain(name):
    laws.parameters_are_plain(config(name))


@pytest.mark.slow  # of what may be damaged, test_damage.py has it all
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
            more = lambda i, weight: weight + params["hidden"]["bias"].sum()  # not seen at start
            return terms | {"label": (total, jax.lax.fori_loop(0, 1, more, weight))}, extra

        return other

    with pytest.raises(measure.Broken, match="depend on the parameters"):
        laws.means_are_exact(broken_toy(monkeypatch, loss=change))


@pytest.mark.slow
def test_a_loss_that_keeps_state_is_seen(monkeypatch):
    count = iter(range(1000))

    def change(prepare):
        return lambda key, batch, train: (
            prepare(key, batch, train) | {"x": batch["x"] + 0.01 * next(count)}
        )

    with pytest.raises(measure.Broken):
        laws.resume_is_exact(broken_toy(monkeypatch, prepare=change), 1, jax.devices()[:1])


@pytest.mark.slow
def test_a_loss_that_counts_devices_is_seen(monkeypatch):
    def change(loss):
        def other(params, extra, batch, key):
            terms, extra = loss(params, extra, batch, key)
            devices = jax.sharding.get_abstract_mesh().size
            total, weight = terms["label"]
            return terms | {"label": (total * (1 + 0.001 * devices), weight)}, extra

        return other

    with pytest.raises(measure.Broken, match="losses differ"):
        laws.mesh_changes_nothing(broken_toy(monkeypatch, loss=change), [(2, 1, 1)], steps=1)


@pytest.mark.slow
def test_accumulation_that_is_not_exact_is_seen(monkeypatch):
    broken_toy(monkeypatch, rows_independent=lambda _: True)
    with pytest.raises(measure.Broken, match="parts"):
        laws.accumulation_changes_nothing(config("toy", **{"model.dropout": 0.0}))


def test_an_unread_argument_is_seen(monkeypatch):
    import toy

    def weights(*, value: float = 0.5, idle: int = 3) -> float:
        return value

    monkeypatch.setattr(toy, "weights", weights)
    with pytest.raises(measure.Broken, match="nothing reads idle"):
        laws.no_dead_knob(config("toy"))


def test_an_idle_partition_row_is_seen(monkeypatch):
    with pytest.raises(BadInput, match="matches no parameter"):
        laws.parameters_are_plain(
            broken_toy(monkeypatch, partition=lambda t: (*t, ("nowhere/kernel", (None,))))
        )


def test_a_state_that_restores_as_another_is_seen(monkeypatch, compiled_in_haste):
    restore = checkpoint.Checkpoints.restore

    def other(self, like):
        state, step = restore(self, like)
        first = lambda path, x: -x if path == "head/bias" else x
        return state._replace(params=tree.map_paths(first, state.params)), step

    monkeypatch.setattr(checkpoint.Checkpoints, "restore", other)
    with pytest.raises(measure.Broken, match="another state"):
        laws.checkpoint_fits_any_mesh(config("mlp"), [(1, 8, 1), (2, 2, 2)], steps=1)


# -------------------------------------------------------------------------- a task of a user's own

PRICES = pathlib.Path(ROOT, "tests/support/toy_prices.py")
ERROR = 'batch["x"]) - batch["y"]'
ROW_NOISE = (
    "jax.vmap(jax.random.normal)(jax.vmap(jax.random.fold_in, (None, 0))(key, batch['index']))"
)
TERM = '(jnp.sum(batch["valid"] * error**2), batch["valid"].sum())'


def own(folder, name: str, old: str = "", new: str = "") -> str:
    """The path of a task in a file of its own, with a part of it replaced."""
    text = PRICES.read_text().replace("import jax.numpy", "import jax\nimport jax.numpy", 1)
    assert not old or text.count(old) == 1
    path = pathlib.Path(folder, f"{name}.py")
    path.write_text(text.replace(old, new) if old else text)
    return str(path)


@pytest.fixture
def some_laws(monkeypatch):
    """Those that take no training; and a path that is as before when the test ends."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    names = ("1 position is step", "3 rows independent", "4 means are exact", "5 no dead knob")
    monkeypatch.setattr(report, "LAWS", {name: report.LAWS[name] for name in names})


def test_a_task_of_ones_own_holds_them(tmp_path, capsys, some_laws):
    batch = "prepare=lambda key, batch, train: batch"
    more = "{'pair': (batch['x'] + np.nan, {'one': np.float32(1)}), 'none': None}"
    file = own(tmp_path, "prices", batch, f"{batch} | {more}")
    one = '"one": (params["out"]["bias"][0] + 1, jnp.float32(1))'  # does not depend on the rows
    path = pathlib.Path(file)
    path.write_text(path.read_text().replace(TERM, f"{TERM}, {one}"))
    assert report.main([file, "--config.data.size=70"]) == 0
    said = capsys.readouterr().out
    assert "prices, on 8 devices" in said
    assert "evals.test.batch_size=16" in said  # it is 10 there
    assert said.count("holds") == 4
    assert said.endswith("4 of 4 laws hold\n")


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (ERROR, f"{ERROR}\n        error = error - error.mean()", "replaced: .*; rows mix$"),
        (TERM, TERM.replace("jnp.sum", "jnp.mean"), "and alone: .*; a mean in place of a sum"),
        (
            ERROR,
            f"{ERROR}\n        key = jax.random.fold_in(key, batch['index'][0])"
            "\n        error += jax.random.normal(key, error.shape)",
            "`index` of the others changes: .*; random numbers are drawn that change with",
        ),
        (
            ERROR,
            f"{ERROR}\n        key = jax.random.fold_in(key, batch['x'].sum().astype(int))"
            "\n        error += jax.random.normal(key, error.shape)",
            "replaced: .*; rows mix, or random numbers depend on them",
        ),
    ],
    ids=["centred", "mean", "keyed_by_index", "keyed_by_content"],
)
def test_a_loss_that_mixes_rows_is_seen(tmp_path, request, some_laws, old, new, found):
    name = f"prices_{request.node.callspec.id}"
    task = report.bare(own(tmp_path, name, old, new), [])
    with pytest.raises(measure.Broken, match=found):
        rows.rows_are_independent(task)


SIZED_NOISE = "jax.random.normal(jax.random.fold_in(key, len(error)), error.shape)"


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [SIZED_NOISE, ROW_NOISE])
def test_random_numbers_in_the_loss_break_no_law(tmp_path, some_laws, drawn):
    name = f"prices_random_{len(drawn)}"
    task = report.bare(own(tmp_path, name, ERROR, f"{ERROR}\n        error += {drawn}"), [])
    assert ("sizes are not compared" in rows.rows_are_independent(task)) == (drawn == SIZED_NOISE)
    with pytest.raises(measure.DoesNotApply, match="draws from `key`, anew in each part"):
        laws.accumulation_changes_nothing(task)


@pytest.mark.slow
def test_an_evaluator_whose_random_numbers_depend_on_the_batch_is_told_so(tmp_path, some_laws):
    old = "return loss(params, extra, batch, key)[0]"
    noise = "batch = batch | {'x': batch['x'] + jax.random.normal(key, batch['x'].shape)}"
    file = own(tmp_path, "prices_noisy", old, f"{noise}\n        {old}")
    with pytest.raises(measure.Broken, match="draw them from row_keys"):
        laws.means_are_exact(report.bare(file, []))


def test_what_the_program_reads_is_no_dead_knob_and_lambdas_are_read(tmp_path, some_laws):
    text = PRICES.read_text().replace(
        'every: str = "1 epoch"', 'split: str = "a", every: str = "1"'
    )
    text = text.replace("return call(load", "return call(LOAD").replace(
        '"data": load', '"data": LOAD'
    )
    text = text.replace(
        "def evaluator", "LOAD = lambda *, size=100, workers=0: load(size=size)\n\ndef evaluator"
    )
    (tmp_path / "prices_lambda.py").write_text(text)
    task = report.bare(str(tmp_path / "prices_lambda.py"), [])
    assert "each read" in laws.no_dead_knob(task)
    idle = text.replace("load(size=size)", "load()")
    (tmp_path / "prices_idle.py").write_text(idle)
    with pytest.raises(measure.Broken, match=r"config\.data: nothing reads size"):
        laws.no_dead_knob(report.bare(str(tmp_path / "prices_idle.py"), []))


def test_a_task_that_raises_is_broken_and_told_where(tmp_path, capsys, some_laws):
    old = 'model.apply({"params": params}, batch["x"])'
    file = own(tmp_path, "prices_raises", old, old.replace('batch["x"]', 'batch["x"], 3'))
    line = 1 + pathlib.Path(file).read_text().split('batch["x"], 3)')[0].count("\n")
    assert report.main([file]) == 1
    said = capsys.readouterr().out
    said = " ".join(said.split())
    assert f"prices_raises.py, line {line}: TypeError: Net.__call__() takes 2 positional" in said
    assert "as above" in said
    assert said.endswith("1 of 4 laws hold")


def test_required_keys_of_a_bare_task_are_named_and_taken(some_laws):
    with pytest.raises(BadInput) as raised:
        report.bare("lm.tag", [])
    flags = "--config.data.name=… --config.data.tokenizer=…"
    keys = "config.data.name, config.data.tokenizer"
    assert str(raised.value) == f"{keys}: required, but not set: give {flags}"
    assert report.bare("lm.tag", flags.split()).data.name == "…"


@pytest.mark.slow
def test_the_laws_are_a_command_for_a_task_of_ones_own(tmp_path):
    (tmp_path / "my").mkdir()
    own(tmp_path / "my", "prices")
    env = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    command = [sys.executable, "-m", "common.laws", "my.prices", "--config.train.batch_size", "30"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "my.prices, on 8 devices (cpu)" in done.stdout
    assert "train.batch_size=32" in done.stdout
    assert f"{len(report.LAWS)} of {len(report.LAWS)} laws hold" in done.stdout
