"""Maps obey the laws of their papers, pictures show something, and the script tells the truth."""

import contextlib
import io
import sys

import fabricated
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIGITS, exit_code, load
from PIL import Image

from common.errors import BadInput
from common.nn.layers import named
from common.runs import checkpoint, workdir
from common.training import program
from common.training.saved import evaluate_run
from vision import cnn, explain, vit

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 8, 8, 2)).astype(np.float32)
LABELS = np.array([2, 0, 1])


class Pooled(nn.Module):
    """A convolution, global average pooling, a linear head; names that do not sort by place."""

    @nn.compact
    def __call__(self, images):
        x = named(self, "stage_2", nn.Conv(4, (3, 3))(images))
        x = named(self, "stage_10", nn.relu(nn.Conv(6, (3, 3), strides=2)(x)))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


def variables_of(model) -> dict:
    """Random variables of a model."""
    draw = lambda leaf: np.float32(RNG.normal(size=leaf.shape) * 0.2)
    return jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(0), IMAGES))


# -------------------------------------------------------------------------------------------- maps


def test_integrated_gradients_add_up_to_what_the_logit_gained():
    # The gradient of a square is linear, for which the midpoint rule is exact.
    kernel = jnp.asarray(RNG.normal(size=(128, 3)), jnp.float32)
    square = lambda x: jnp.square(x.reshape(len(x), -1) @ kernel)
    gained = lambda f, x, start: (f(x) - f(start))[np.arange(3), LABELS]
    start = np.float32(0.1 + 0 * IMAGES)
    found = explain.integrated_gradients(square, IMAGES, LABELS, baseline=0.1, steps=4)
    assert found.shape == IMAGES.shape
    expected = gained(square, IMAGES, start)
    np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), expected, rtol=1e-4, atol=1e-3)
    # Of a network with kinks it is near.
    model = cnn.CNN(3, widths=(8,), padding="SAME", hidden=())
    logits_of = jax.tree_util.Partial(model.apply, variables_of(model))
    found = explain.integrated_gradients(logits_of, IMAGES, LABELS, steps=64)
    expected = gained(jax.jit(logits_of), IMAGES, 0 * IMAGES)
    np.testing.assert_allclose(found.sum(axis=(1, 2, 3)), expected, atol=0.02)
    assert np.abs(expected).min() > 0.1


def test_grad_cam_of_pooling_and_a_linear_head_is_the_class_activation_map():
    model = Pooled()
    variables = variables_of(model)
    assert list(explain.spatial(model.apply, variables, IMAGES)) == ["stage_2", "stage_10"]

    @jax.jit
    def both(variables):
        kept = model.apply(variables, IMAGES, mutable=["intermediates"])[1]["intermediates"]
        return explain.grad_cam(model.apply, variables, IMAGES, LABELS), kept["stage_10"][0]

    found, layer = both(variables)
    kernel = variables["params"]["head"]["kernel"][:, LABELS]
    activation = np.einsum("bhwc,cb->bhw", layer, kernel)  # Zhou et al. 2016
    assert (activation < 0).any()
    assert found.shape == (3, 4, 4)
    np.testing.assert_allclose(found, np.maximum(activation, 0) / 16, rtol=1e-4, atol=1e-5)


def test_grad_cam_is_at_the_last_layer_whose_map_tells_where():
    model = cnn.CNN(3, widths=(4, 4, 4), padding="SAME", hidden=())  # maps of 4 x 4, 2 x 2, 1 x 1
    variables = variables_of(model)
    layers = explain.spatial(model.apply, variables, IMAGES)
    assert list(layers) == ["stage_0", "stage_1", "stage_2"]
    assert explain.layer_of(layers) == "stage_0"
    cam = jax.eval_shape(lambda v: explain.grad_cam(model.apply, v, IMAGES, LABELS), variables)
    assert cam.shape == (3, 4, 4)
    coarse = {key: layers[key] for key in ("stage_1", "stage_2")}
    for some, name, message in (
        (layers, "stage_2", r"stage_2 is 1 x 1, too coarse to tell where; use stage_0$"),
        (coarse, None, r"stage_1 is 2 x 2, too coarse to tell where$"),
        (coarse, "stage_2", r"stage_2 is 1 x 1, too coarse to tell where$"),
    ):
        with pytest.raises(BadInput, match=message):
            explain.layer_of(some, name)


def test_grad_cam_needs_a_layer_that_has_a_name():
    for model, name, message in (
        (Pooled(), "stage_1", "grad_cam: name: unknown 'stage_1'; did you mean 'stage_10'"),
        (cnn.MLP(3), None, "no layer [B, h, w, C] of this model has a name"),
        (
            vit.ViT(num_classes=3, width=8, heads=1, layers=1, image_size=8, patch_size=4),
            None,
            "no",
        ),
    ):
        variables = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
        with pytest.raises(BadInput) as error:
            explain.grad_cam(model.apply, variables, IMAGES, LABELS, name)
        assert message in str(error.value)


def maps_of(layers: int, length: int) -> list:
    return [np.float32(RNG.dirichlet(np.ones(length), (2, 3, length))) for _ in range(layers)]


def test_a_rollout_of_rows_that_sum_to_one_has_such_rows_and_goes_from_block_to_block():
    maps = maps_of(3, 7)
    found = explain.rollout(maps)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)
    expected = np.eye(7)
    for each in maps:
        expected = (each.mean(axis=1) + np.eye(7)) / 2 @ expected
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.abs(found - explain.rollout(maps[::-1])).max() > 0.01
    straight = np.broadcast_to(np.eye(7, dtype=np.float32), maps[0].shape)
    np.testing.assert_array_equal(explain.rollout([straight] * 3), straight[:, 0])
    # As pictures: of two rows with three patches each, and of one row.
    image = explain.attention_rollout(maps, "class", sides=(16, 24))
    np.testing.assert_array_equal(image, np.asarray(found)[:, 0, 1:].reshape(2, 2, 3))
    image = explain.attention_rollout(maps, "mean", sides=(4, 28))
    np.testing.assert_allclose(image[:, 0], expected.mean(axis=1), rtol=1e-4)
    for pooling, sides in (("class", (1, 1)), ("mean", (2, 3)), ("mean", (63, 1))):
        with pytest.raises(BadInput, match="patches do not fill a rectangle"):
            explain.attention_rollout(maps, pooling, sides)


def test_attention_maps_come_in_the_order_of_blocks():
    def apply(variables, images, mutable):
        kept = {f"block_{i}": {"attention": {"attention": (variables[i],)}} for i in range(11)}
        return None, {"intermediates": kept | {"hidden_0": (images,)}}

    maps = [np.full((1, 1, 2, 2), i) for i in range(11)]
    found = jax.jit(lambda maps: explain.attention_maps(apply, maps, IMAGES))(maps)
    assert [int(each[0, 0, 0, 0]) for each in found] == list(range(11))
    assert explain.attention_maps(lambda *_, mutable: (None, {}), {}, IMAGES) == []


def test_the_worst_are_the_mistakes_with_the_largest_loss():
    logits = np.array([[9, 0, 0], [0, 1, 0], [5, 0, 0], [0, 0, 1000], [0.1, 0, 0]])
    labels = np.array([0, 0, 1, 0, 2])
    assert explain.worst(logits, labels, 9).tolist() == [3, 2, 1, 4]
    assert explain.worst(logits, labels, 2).tolist() == [3, 2]
    assert explain.worst(logits[:1], labels[:1], 2).tolist() == []


def test_a_mistake_is_seen_beside_correct_ones_of_both_classes():
    draw = np.random.default_rng(1)
    logits, labels = draw.normal(size=(80, 4)), draw.integers(0, 3, 80)  # class 3 is only predicted
    predicted, rows = logits.argmax(axis=1), explain.worst(logits, labels, 12)
    beside = explain.counterparts(logits, labels, rows)
    assert beside.shape == (12, 2)
    taken = set()
    for row, pair in zip(rows, beside, strict=True):
        for other, kind in zip(pair, (labels[row], predicted[row]), strict=True):
            pool = np.flatnonzero((labels == kind) & (predicted == kind))
            assert (other == -1) == (len(pool) == 0)
            if other >= 0:
                assert other in pool
                new = [i for i in pool if i not in taken] or pool
                distance = lambda i, row=row: np.square(logits[i] - logits[row]).sum()
                assert other == min(new, key=distance)
                taken.add(other)
    assert (beside == -1).any()
    assert explain.counterparts(logits, labels, []).shape == (0, 2)


# ---------------------------------------------------------------------------------------- pictures


def pixels(data) -> np.ndarray:
    """A PNG's: from a file or a figure."""
    if hasattr(data, "savefig"):
        file = io.BytesIO()
        data.savefig(file, format="png", dpi=50)
        data = file
    with Image.open(data) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def texts_of(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in (axes.title, *axes.texts)]


def test_figures_show_what_they_are_given():
    pytest.importorskip("matplotlib")
    images = RNG.integers(0, 256, (3, 8, 6, 3)).astype(np.uint8)
    texts = [explain.title("cat", "dog", 0.987), explain.title("x" * 30, "y" * 30, 0.5), "a"]
    assert texts[0] == "cat → dog  99%"
    assert len(texts[1].split("\n")) == 2
    assert explain.title("cat", "cat", 0.5) == "cat ✓  50%"
    beside = [((images[i - 1], f"right {i}"), None) for i in range(3)]
    figure = explain.draw_mistakes(images, texts, beside)
    shown = texts_of(figure)
    assert {*texts, *(f"right {i}" for i in range(3)), "no correct one"} <= set(shown)
    assert shown.count("no correct one") == 3
    assert shown.index(texts[0]) < shown.index("right 0") < shown.index(texts[1])
    assert pixels(figure).std() > 20
    turned = explain.draw_mistakes(images[::-1], texts, beside)
    assert not np.array_equal(pixels(figure), pixels(turned))
    assert pixels(explain.draw_mistakes(images[:0], [], [])).std() > 0  # it says there are none
    matrix = np.array([[8, 2, 0], [0, 10, 0], [0, 0, 0]])
    figure = explain.draw_confusion(matrix, ["cat", "dog", "owl"])
    assert sorted(texts_of(figure)) == ["", "10", "18 of 20 right (90.00%)", "2", "8"]
    assert pixels(figure).std() > 20
    many = explain.draw_confusion(np.eye(100, dtype=int), [str(i) for i in range(100)])
    assert len(texts_of(many)) == 2  # a hundred counts could not be read
    heat = np.zeros((3, 2, 2), np.float32)
    dark = pixels(explain.draw_maps(images / 255.0, {"one": heat}, texts))
    heat[:, 0, 0] = 1
    assert not np.array_equal(dark, pixels(explain.draw_maps(images / 255.0, {"one": heat}, texts)))


def test_without_matplotlib_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert exit_code("explain", "--workdir", str(tmp_path)) == 2
    error = capsys.readouterr().err.strip()
    assert "pip install -e '.[plots]'" in error
    assert "\n" not in error


# ------------------------------------------------------------------------------------------ script


SHAPES = {
    "cnn": {"model.widths": (8, 8), "model.hidden": (8,)},
    "vit": {
        "model.module": "vision.vit:ViT",
        "model.image_size": 8,
        "model.patch_size": 2,
        "model.width": 16,
        "model.layers": 1,
        "model.heads": 2,
        "model.hidden": 32,
    },
}
KINDS = {
    "cnn": "Grad-CAM at stage_0; Grad-CAM not at stage_1, whose map is too coarse",
    "vit": "attention rollout",
}
ROWS = {"cnn": 48, "vit": 12}  # mirrored, one of the 48 is taken for another class


def begun(folder, **changes) -> str:
    """The workdir of a run on digits that has taken no step, every parameter random; evaluated on
    crops, mirrored too."""
    config = load(DIGITS, **{"augment.resized_crop": 8, "evals.test.views": "flip"} | changes)
    prepared = program.prepare(config, jax.devices()[:1])
    with jax.set_mesh(prepared.layout.mesh):
        state = prepared.create(prepared.hypers)
        draw = lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape)
        state = state._replace(params=jax.jit(lambda tree: jax.tree.map(draw, tree))(state.params))
        prints = {name: source.fingerprint for name, source in prepared.task.sources.items()}
        workdir.claim(folder, config, prints, write=True)
        with contextlib.closing(checkpoint.Checkpoints(folder, prepared.saving)) as checkpoints:
            checkpoints.save(0, state)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_the_script_draws_three_pictures_and_finds_the_accuracy_of_the_run(
    name, tmp_path, capsys, compiled_in_haste
):
    pytest.importorskip("matplotlib")
    run, rows = begun(tmp_path / "run", **SHAPES[name]), ROWS[name]
    split = f"test[:{rows}]"
    assert exit_code("explain", "--workdir", run, "--set", split, "--count", "12") == 0
    first, *lines = capsys.readouterr().out.splitlines()
    accuracy = evaluate_run(run, sets=[split])["eval"][split]["accuracy"]
    right = round(rows * accuracy)
    assert 0 < right < rows
    assert first == f"step 0, {split}: accuracy {accuracy:.4f} ({right} of {rows})"
    for picture, what, line in zip(
        ("mistakes", "confusion", "saliency"),
        (
            f"{min(rows - right, 12)} of {rows - right} mistakes",
            "10 classes",
            "12 images under integrated gradients, " + KINDS[name],
        ),
        lines,
        strict=True,
    ):
        assert line.startswith(f"{run}/explain/{picture}.png: {what}")
        assert pixels(f"{run}/explain/{picture}.png").std() > 20


@pytest.mark.slow
def test_a_run_on_a_prepared_set_is_explained(tmp_path):
    pytest.importorskip("matplotlib")
    fabricated.prepare(tmp_path, "clothes", (8, 8, 3), {"train": 30, "test": 20})
    folder = {"data.name": "tfds:clothes", "data.folder": str(tmp_path)}
    run = begun(tmp_path / "run", **SHAPES["cnn"], **folder)
    assert exit_code("explain", "--workdir", run, "--count", "4") == 0


def test_what_cannot_be_explained_is_one_line(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    config = load(DIGITS)
    for name, changes in (("empty", {}), ("text", {"task": "lm.mlm"}), ("blind", {"evals": {}})):
        workdir.claim(tmp_path / name, config | changes, {}, write=True)
    for name, words, message in (
        (".", [], "no run there"),
        ("empty", [], "no checkpoint there"),
        ("empty", ["--step", "best"], "config.checkpoint.best is not set"),
        ("empty", ["--set", "tset"], "--set: unknown split 'tset'"),
        ("empty", ["--count", "0"], "--count: 0 is not from 1 to 200"),
        ("empty", ["--count", "201"], "--count: 201 is not from 1 to 200"),
        ("text", [], "a run of lm.mlm; only vision.classify is explained"),
        ("blind", [], "the run has no evaluators"),
    ):
        assert exit_code("explain", "--workdir", str(tmp_path / name), *words) == 2, message
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error
