"""The contrastive task: what it refuses, that it learns, its laws and evaluators."""

import pathlib
from types import SimpleNamespace

import emoji_slice
import fabricated
import flax
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from helpers import load

from common import predict, tree
from common.data import order
from common.errors import BadInput
from common.laws import checks as laws
from common.laws import measure
from common.training import program, train
from vision.contrast import losses, task
from vision.contrast.model import CLIP, Towers, Vectors
from vision.weights import contrast as weights

SIGMOID = {"loss.kind": "sigmoid", "model.score_bias": True}
STEEP = {"optim.name": "sgd", "optim.lr": 0.3, "optim.schedule": "constant", "model.dropout": None}


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    return emoji_slice.write(tmp_path_factory.mktemp("emoji"))


@pytest.fixture
def config(name):
    return lambda **more: load(
        emoji_slice.CONFIG, **{**emoji_slice.SMALL, "data.name": name, **more}
    )


def test_accumulation_is_refused(config):
    with pytest.raises(BadInput, match="accumulate"):
        program.prepare(config(**{"train.accumulate": 2}), jax.devices()[:1])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss.kind": "sigmoid"}, "score_bias"),
        ({"model.score_bias": True}, "no use for a bias"),
        ({"augment.mixup": 0.2}, "augment.mixup"),
        ({"train.batch_size": 19}, "train.batch_size: 19 is more than the 18 pairs"),
        ({"model.image_projection": False}, "vector_width"),
        ({"model.image_heads": 3}, "image_heads"),
        ({"model.temperature": -1.0}, "temperature"),
        ({"model.temperature": 0.001}, "max_scale, which is 100"),
    ],
)
def test_what_is_refused(config, settings, said):
    made = config(**settings)
    sources = task.sources(made)

    def build():
        one = task.make(made, sources, lambda x, *names: x)
        jax.eval_shape(one.init, jax.random.key(0))

    with pytest.raises(BadInput, match=said):
        build()


def test_the_loss_is_told_which_rows_a_batch_holds(config, monkeypatch):
    """The second batch of 16 of 18 rows: two end an epoch, and are there again."""
    made, told = config(), []
    sources = task.sources(made)
    vectors = Vectors(jnp.zeros((16, 2)), jnp.zeros((16, 2)), jnp.float32(1), None)
    model = SimpleNamespace(apply=lambda *args, **more: vectors, PARTITION=())
    monkeypatch.setattr(task, "model_of", lambda *args: model)
    monkeypatch.setattr(losses, "softmax", lambda *args: told.append(args[4]) or (None, None))
    index = order.stream_index(1, 16)
    batch = {"index": index, "valid": np.ones(16, np.float32)}
    batch |= dict.fromkeys(("image", "tokens", "segments"))
    task.make(made, sources, lambda x, *names: x).loss({}, {}, batch, jax.random.key(0))
    assert np.array_equal(told[0], order.rows(made["seed"], 1, 16, sources["train"].size))


def test_sets_of_evaluators_are_in_the_folder_of_data(config, tmp_path, caplog):
    fabricated.prepare(tmp_path, "shapes", (12, 9, 3), {"test": 4})
    own = {"kind": "vision.contrast.zero_shot", "data": "tfds:shapes", "split": "test"}
    own = {f"evals.shapes.{key}": value for key, value in own.items()}
    made = config(**own, **{"data.folder": str(tmp_path), "data.resize": "squash"})
    assert task.sources(made)["shapes"].read(np.arange(4))["image"].shape == (4, 32, 32, 3)
    assert "config.evals.shapes.data: of pictures that are no squares" in caplog.text


def test_predictions_see_pictures_as_evaluation_does(config, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 60, 3), np.uint8)
    monkeypatch.setattr(task.predict, "vectors", lambda *arguments: arguments)
    for resize, fit in task.data.FITS.items():
        made = config(**{"data.resize": resize})
        _, read, _, _ = task.embedder(made, task.sources(made), lambda x, *names: x)
        assert np.array_equal(read(pixels), fit(pixels, 32))


GRID = pytest.mark.slow, pytest.mark.measure("grid")


# That of the losses alone, on meshes, is in test_losses.py.
@pytest.mark.slow
@pytest.mark.measure("grid")
@pytest.mark.parametrize("kind", [{}, SIGMOID])
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_no_mesh_changes_anything(config, kind, shape, compiled_in_haste):
    laws.mesh_changes_nothing(config(**STEEP, **kind), [shape])


@pytest.mark.slow
@pytest.mark.parametrize(
    "law",
    [
        *[
            pytest.param(law, marks=GRID)
            for law in (
                laws.position_is_step,
                laws.resume_is_exact,
                laws.loop_ends_where_steps_do,
            )
        ],
        laws.means_are_exact,
        laws.parameters_are_plain,
        laws.no_dead_knob,
    ],
)
def test_laws(config, law, compiled_in_haste):
    law(config())


@pytest.mark.slow
@pytest.mark.measure("grid")
def test_it_learns_the_names_of_a_few_emoji(config, compiled_in_haste):
    """By heart: 18 pictures, of which 16 are told apart."""
    more = {"optim.lr": 1e-2, "optim.schedule": "constant", "model.dropout": None}
    more |= {"augment.crop_padding": 0, "augment.rotation": None}
    losses, _ = measure.train_losses(program.prepare(config(**more), jax.devices()[:1]), 80)
    assert np.mean(losses[:3]) > 2.5
    assert np.mean(losses[-10:]) < 1.9  # by chance 2.77


def test_a_locked_tower_has_no_dropout():
    """It does without its random numbers."""
    sizes = CLIP | models.TOWERS | {"image_layers": 1, "text_layers": 1, "dropout": 0.5}
    params = tree.unflatten(weights.shapes_of(Towers(**sizes), {}))
    params = jax.tree.map(np.zeros, params, is_leaf=lambda x: isinstance(x, tuple))

    def train(locked, method, inputs):
        model = Towers(**sizes, locked=locked)
        apply = lambda params: model.apply({"params": params}, inputs, train=True, method=method)
        return jax.eval_shape(apply, params)

    towers = {"image": models.images(8), "text": models.TOKENS}
    for locked, inputs in towers.items():
        method = f"encode_{locked}s"
        assert train(locked, method, inputs).shape == (len(inputs), 16)
        with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
            train("none", method, inputs)


@pytest.mark.slow
def test_a_locked_tower_gets_no_gradient():
    sizes = models.TOWERS | {"image_layers": 1, "text_layers": 1}
    model = Towers(**CLIP | sizes, locked="image")
    shapes = weights.shapes_of(model, {})
    rng = np.random.default_rng(0)
    values = {path: np.float32(rng.normal(0, 0.1, shape)) for path, shape in shapes.items()}
    inputs = models.images(8), models.TOKENS

    def score(params):
        vectors = model.apply({"params": params}, *inputs)
        return (vectors.scale * vectors.images * vectors.texts).sum()

    gradients = jax.jit(jax.grad(score))(tree.unflatten(values))
    size = lambda part: max(float(np.abs(x).max()) for x in jax.tree.leaves(gradients[part]))
    assert size("image") == 0 < size("text")


@pytest.mark.slow
def test_zero_shot_and_predictions_of_a_run(config, tmp_path, name, compiled_in_haste):
    """Four steps, then classes by words, and both directions of predictions from the workdir."""
    zero = {"kind": "vision.contrast.zero_shot", "prompts": ("{}", "a drawing of {}")}
    own = {f"evals.classes.{key}": value for key, value in zero.items()}
    own |= {"evals.classes.split": "twitter_seen", "evals.classes.batch_size": 16}
    made = config(**own, **{"train.duration": "4 steps"})
    values = train.run(made, tmp_path / "run", show=False)["eval"]
    assert 0 <= values["classes"]["accuracy"] <= 1
    assert {"f1", "accuracy"} == set(values["classes"])
    metrics = values["unseen"]
    assert metrics["image_to_text_r10"] == metrics["text_to_image_r10"] == 1.0  # of six
    loaded = predict.load(str(tmp_path / "run"))
    pictures = pathlib.Path(name.removeprefix("captions:")).parent / "twitter"
    (found,) = loaded.predict(["hot dog"], among=str(pictures), top=3)
    assert len(found["nearest"]) == 3
