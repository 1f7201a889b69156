"""The task of masked autoencoders: its laws, what it evaluates and predicts, and classifiers that
begin with what it trained."""

import contextlib
import json

import jax
import numpy as np
import pytest
from helpers import ROOT, exit_code, load
from PIL import Image

from common import predict, tree
from common.errors import BadInput
from common.laws import checks as laws
from common.laws import measure, rows
from common.runs import checkpoint, facts, workdir
from common.task import EvalContext, Shown, purpose_key
from common.training import program

CONFIG = f"{ROOT}/configs/vision/fashion_mnist_mae.py"
SIZES = {
    "data.name": "digits",
    "model.patch_size": 2,
    "model.image_size": 8,
    "model.width": 16,
    "model.layers": 1,
    "model.heads": 2,
    "model.hidden": 32,
    "train.batch_size": 32,
    "evals.test.batch_size": 64,
    "augment.crop_padding": 1,
    "runtime.cpu_devices": None,
}
DECODER = {
    "model.decoder_width": 8,
    "model.decoder_layers": 1,
    "model.decoder_heads": 2,
    "model.decoder_hidden": 16,
}
STEEP = {"optim.name": "sgd", "optim.direction.momentum": 0.9, "optim.lr": 0.3}
STEEP |= {"optim.schedule": "constant", "optim.warmup": "0 steps"}


def config(variant: str = "", **more) -> dict:
    """Of a tiny model on digits."""
    sizes = SIZES | ({} if variant else DECODER)
    fresh = {"init.path": "", "init.skip": "()"} if variant else {}
    return load(f"{CONFIG}{':' if variant else ''}{variant}", **(sizes | fresh | more))


# ------------------------------------------------------------------------------------------- laws

CHECKS = {
    "position": lambda: laws.position_is_step(config()),
    "resume": lambda: laws.resume_is_exact(config(), devices=jax.devices()[:1]),
    "mesh": lambda: laws.mesh_changes_nothing(config(**STEEP), [(2, 2, 2)]),
    "accumulation": lambda: laws.accumulation_changes_nothing(config(**STEEP)),
    "loop": lambda: laws.loop_ends_where_steps_do(config()),
    "means": lambda: laws.means_are_exact(config()),
    "rows": lambda: rows.rows_are_independent(config()),
    "knobs": lambda: laws.no_dead_knob(config()),
    "parameters": lambda: laws.parameters_are_plain(config()),
    "damage": lambda: laws.damage_is_found(config()),
}


GRID = pytest.mark.measure("grid")
# The others show most of what these do, which take longer.
LEFT_OUT = "position", "resume", "mesh", "accumulation", "loop", "means", "damage"


@pytest.mark.slow
@pytest.mark.parametrize(
    "law", [pytest.param(name, marks=GRID if name in LEFT_OUT else ()) for name in CHECKS]
)
def test_the_task_obeys(law, compiled_in_haste):
    CHECKS[law]()


@pytest.mark.slow
@GRID
def test_a_probe_obeys(compiled_in_haste):
    """Its batch norm mixes rows, and the encoder has no gradient."""
    laws.mesh_changes_nothing(config("probe"), [(2, 2, 2)], steps=4)
    laws.means_are_exact(config("probe"))


# --------------------------------------------------------------------------------------- a run


def begun(folder, settings: dict) -> str:
    """A run of no steps, with parameters that are not those it would begin with."""
    made = program.prepare(settings, jax.devices()[:1])
    with jax.set_mesh(made.layout.mesh):
        state = made.create(made.hypers)
        rng = np.random.default_rng(0)
        shaken = lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32)
        state = state._replace(params=jax.tree.map(shaken, state.params))
        prints = {name: source.fingerprint for name, source in made.task.sources.items()}
        keep, digests = facts.contents(made.task), {"kept": facts.digests(made.task)}
        workdir.claim(folder, settings, prints, write=True, keep=keep, facts=digests)
        run = workdir.identity(settings, prints)
        with contextlib.closing(checkpoint.Checkpoints(folder, made.saving, run=run)) as all_of:
            all_of.save(0, state)
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(its workdir, a picture, {path: array} of its parameters)."""
    root = tmp_path_factory.mktemp("masked")
    folder = begun(root / "run", config())
    picture = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(picture).save(root / "one.png")
    params = predict.load(folder, embed=True).variables["params"]
    return folder, str(root / "one.png"), tree.flatten(jax.device_get(params))


@pytest.mark.slow
def test_evaluation_hides_the_same_patches_and_draws_them(compiled_in_haste):
    made = program.prepare(config(), jax.devices()[:1])
    source, task = made.task.sources["test"], made.task
    at = np.arange(6, dtype=np.uint32)
    key = purpose_key(0, "eval")
    batch = lambda at: source.read(at) | {"index": at, "valid": np.ones(len(at), np.float32)}
    prepare = jax.jit(task.prepare, static_argnums=2)
    visible = lambda at: np.asarray(prepare(key, batch(at), False)["visible"])
    assert np.array_equal(visible(at)[2:4], visible(at[2:4]))
    assert visible(at).shape == (6, 4)
    with jax.set_mesh(made.layout.mesh):
        state = made.create(made.hypers)
        batches = lambda source, size: [batch(at)]
        context = EvalContext(state.params, {}, 0, key, batches, None, show=True)
        values = task.evaluators["test"].run(context)
    assert values["explained"] == pytest.approx(1 - values["loss"] / values["baseline"])
    assert isinstance(values["reconstructions"], Shown)
    assert values["reconstructions"].draw().ndim == 3
    prepared = jax.device_get(prepare(key, batch(at), True))
    assert task.shown(prepared)["images"].draw().dtype == np.uint8


@pytest.mark.slow
def test_a_run_reconstructs_and_embeds_without_its_data(run, tmp_path, capsys, compiled_in_haste):
    folder, picture, _ = run
    words = ["--workdir", folder, picture, picture, "--json", "--to", str(tmp_path / "new")]
    assert exit_code("predict", *words, "--ratio", "0.5") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["picture"] == str(tmp_path / "new/0_one.png")
    assert first["loss"] != second["loss"]  # of other patches
    page = np.asarray(Image.open(first["picture"]))
    assert page.shape == (96, 3 * 96)
    original, hidden, whole = (page[::12, i : i + 96 : 12] for i in (0, 96, 192))
    assert np.array_equal(original, np.asarray(Image.open(picture)))
    patches = lambda x: x.reshape(4, 2, 4, 2).swapaxes(1, 2).reshape(16, 4)
    same = (patches(hidden) == patches(original)).all(axis=1)
    assert same.sum() == 8
    assert np.array_equal(patches(whole)[same], patches(original)[same])
    loaded = predict.load(folder)
    with pytest.raises(BadInput, match="ratio: of 16 patches, a share of 0.01 hides none"):
        loaded.predict([picture], ratio=0.01)
    (vector,) = predict.load(folder, embed=True).predict([picture])
    assert len(vector["vector"]) == 16


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["probe", pytest.param("finetune", marks=GRID)])
def test_a_classifier_begins_with_its_encoder(run, variant, compiled_in_haste):
    folder, _, params = run
    keys = {"init.path": folder, "init.skip": "('head/.*',)"}
    made = program.prepare(config(variant, **keys), jax.devices()[:1])
    with jax.set_mesh(made.layout.mesh):
        state = program.initial_state(made)
        own = tree.flatten(jax.device_get(state.params))
        assert own.keys() - params.keys() == {"head/kernel", "head/bias"}
        assert all(np.array_equal(own[path], params[path]) for path in own.keys() & params.keys())
    _, state = measure.train_losses(made, 2, state)
    new = tree.flatten(jax.device_get(state.params))
    moved = {path.partition("/")[0] for path in own if np.any(new[path] != own[path])}
    if variant == "probe":
        assert moved == {"head"}
        assert set(tree.flatten(state.extra)) == {
            f"batch_stats/head_batch_norm/{name}" for name in ("mean", "var")
        }
    else:
        assert {"head", "patch", "block_0"} <= moved
