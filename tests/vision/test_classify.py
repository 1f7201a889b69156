"""The classification task: what training and evaluation make of images, labels and weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import DIGITS, load
from PIL import Image

from common import tree
from common.data import fetch, loading, order
from common.errors import BadInput
from common.nn import model as models
from common.nn.layers import identity
from common.training import program, train
from common.training.initialise import initialise
from common.training.loop import eval_context
from vision import classify, efficientnet_lite
from vision.data import sets
from vision.pretrained import WEIGHTS


def task_of(constrain=identity, **overrides):
    """A task and its config, on digits; or on sets that hold nothing, named in `overrides`."""
    config = load(DIGITS, **overrides)
    return classify.make(config, classify.outline(config), constrain), config


def batch_of(size: int = 6, shape=(8, 8, 1)) -> dict:
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (size, *shape)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, 10, size), jnp.int32),
        "index": jnp.arange(size, dtype=jnp.uint32),
        "valid": jnp.ones(size),
    }


def prepared(task, batch, train=True):
    return jax.jit(lambda key, batch: task.prepare(key, batch, train))(jax.random.key(0), batch)


def test_labels_stay_numbers_unless_images_are_mixed():
    batch = batch_of()
    plain = prepared(task_of()[0], batch)
    np.testing.assert_array_equal(plain["target"], batch["label"])
    mixed = prepared(task_of(**{"augment.mixup": 0.5})[0], batch)
    assert mixed["target"].shape == (6, 10)
    np.testing.assert_allclose(mixed["target"].sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(mixed["label"], batch["label"])
    assert not np.array_equal(mixed["image"], plain["image"])
    assert "target" not in prepared(task_of(**{"augment.mixup": 0.5})[0], batch, train=False)


def terms_of(task, batch) -> dict:
    """{name: (sum, weight)} of a training batch."""
    params, extra = task.init(jax.random.key(0))
    loss = jax.jit(lambda batch: task.loss(params, extra, batch, jax.random.key(0))[0])
    return jax.device_get(loss(prepared(task, batch)))


def test_class_weights_weigh_rows_of_the_loss_and_of_nothing_else():
    batch = batch_of(6) | {"valid": jnp.array([1.0, 1, 1, 1, 1, 0])}
    keys = {"loss.label_smoothing": 0.1, "loss.class_weights": "3=0.5,8=2.5"}
    found, plain = terms_of(task_of(**keys)[0], batch), terms_of(task_of()[0], batch)
    weights = {3: 0.5, 8: 2.5}
    labels = np.asarray(batch["label"])[:5].tolist()
    assert found["loss"][1] == sum(weights.get(label, 1) for label in labels) != 5
    assert found["accuracy"] == plain["accuracy"]


def many_labelled(**overrides):
    """A task whose images have any number of ten classes."""
    config = load(DIGITS, **overrides)
    sources = classify.outline(config)
    facts = sources["train"].facts._replace(multi_label=True)
    spec = sets.spec((8, 8, 1), facts)
    sources = {k: s._replace(facts=facts, spec=spec, labels=None) for k, s in sources.items()}
    return classify.make(config, sources, identity)


@pytest.mark.parametrize("mixes", [{}, {"augment.mixup": 0.4, "augment.cutmix": 1.0}])
def test_several_labels_can_be_smoothed_mixed_and_weighted(mixes):
    labels = (np.random.default_rng(1).random((6, 10)) < 0.3).astype(np.uint8)
    batch = batch_of(6) | {"label": jnp.asarray(labels)}
    task = many_labelled(**{"loss.label_smoothing": 0.2, "loss.class_weights": "1=3"} | mixes)
    batch = prepared(task, batch)
    target = np.asarray(batch["target"], np.float64)
    assert np.array_equal(target, labels) != bool(mixes)
    params, extra = task.init(jax.random.key(0))
    params = jax.tree.map(jnp.zeros_like, params)  # each decision costs log 2
    terms, _ = jax.jit(task.loss)(params, extra, batch, jax.random.key(0))
    smooth, weights = 0.8 * target + 0.1, np.where(np.arange(10) == 1, 3, 1)
    cost = np.log(2) * (weights * smooth + 1 - smooth)
    np.testing.assert_allclose(terms["loss"], (cost.mean(axis=1).sum(), 6), rtol=1e-5)
    assert tuple(terms["subset_accuracy"]) == (np.sum(~labels.any(axis=1)), 6)


@pytest.mark.slow
def test_pictures_of_several_classes_are_learnt(tmp_path):
    """A class for each channel: whether it is bright."""
    rng, lines = np.random.default_rng(0), ["path,label,split"]
    for i in range(160):
        bright = rng.random(3) < 0.5
        image = np.uint8(rng.integers(0, 60, (8, 8, 3)) + 150 * bright)
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        names = ";".join(name for name, on in zip("rgb", bright, strict=True) if on)
        lines.append(f"{i}.png,{names},{'test' if i % 4 == 0 else 'train'}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    keys = {"data.name": f"images:{tmp_path}/t.csv", "data.label_separator": ";"}
    keys |= {"data.folder": str(tmp_path / "prepared"), "loss.class_weights": "balanced"}
    keys |= {"train.duration": "12 epochs", "train.batch_size": 16, "optim.lr": 0.01}
    keys |= {"evals.test.every": "12 epochs", "evals.test.per_class": True}
    keys |= {"checkpoint.best": "max eval/test/mean_average_precision"}
    result = train.run(load(f"{DIGITS}:mlp", **keys), tmp_path / "run", show=False)
    found = result["eval"]["test"]
    assert found["mean_average_precision"] > 0.99
    assert min(found[f"{kind}_f1"] for kind in ("macro", "micro")) > 0.95
    assert found["subset_accuracy"] > 0.9


def test_the_classes_of_rare_digits_are_drawn_as_often():
    config = load(f"{DIGITS}:mlp", **{"train.sampling": "balanced", "train.batch_size": 50})
    made = program.prepare(config, jax.devices()[:1])
    source = made.task.sources["train"]
    drawn = [source.labels()[order.rows(config["seed"], s, 50, source.order)] for s in range(3)]
    assert [np.bincount(labels).tolist() for labels in drawn] == [[5] * 10] * 3
    epochs = int(config["train"]["duration"].split()[0])
    assert made.plan.total == round(epochs * source.size / 50)  # an epoch is N examples, as ever


def test_several_labels_cannot_be_drawn_equally_often():
    source = classify.outline(load(DIGITS))["train"]
    for labels in (lambda: np.zeros((4, 2), np.uint8), lambda: np.zeros(4, np.float32)):
        with pytest.raises(BadInput, match=r"^config\.train\.sampling: 'balanced' is for"):
            loading.balanced(source._replace(labels=labels))


def test_alternating_flips_know_row_and_epoch():
    task, config = task_of(**{"augment.flip": "alternating"})
    size = task.sources["train"].size
    batch = batch_of(4) | {"index": jnp.arange(4, dtype=jnp.uint32)}
    rows = order.rows_at(config["seed"], np.arange(2 * size, dtype=np.uint32), size)[0]
    for place in range(4):
        again = size + int(np.flatnonzero(rows[size:] == rows[place])[0])  # in the next epoch
        both = batch | {"index": jnp.asarray([place, again, place, again], jnp.uint32)}
        both["image"] = jnp.stack([batch["image"][0]] * 4)
        images = prepared(task, both)["image"]
        np.testing.assert_array_equal(images[0], images[1][:, ::-1])
        np.testing.assert_array_equal(images[0], images[2])


@pytest.mark.slow
def test_evaluation_averages_logits_over_views():
    made = program.prepare(load(DIGITS, **{"evals.test.views": "flip"}), jax.devices()[:1])
    state = made.create(made.hypers)
    with jax.set_mesh(made.layout.mesh):
        context = eval_context(made, state, 0)
        found = made.task.evaluators["test"].run(context)
    model = models.build(made.config, identity, num_classes=10)
    test = made.task.sources["test"]
    batch = test.read(np.arange(test.size))
    images = made.task.prepare(context.key, batch, False)["image"]
    apply = jax.jit(lambda x: model.apply({"params": state.params}, x))
    logits = (apply(images) + apply(images[:, :, ::-1])) / 2
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    assert found["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)
    right = np.argmax(logits, axis=1) == batch["label"]
    assert found["accuracy"] == pytest.approx(right.mean())


def test_evaluation_sees_the_middle_of_what_training_crops():
    task, _ = task_of(**{"augment.resized_crop": 6, "model.padding": "SAME"})
    batch = batch_of()
    assert prepared(task, batch)["image"].shape == (6, 6, 6, 1)
    image = prepared(task, batch, train=False)["image"]
    mean, std = (np.float32(getattr(task.sources["train"].facts, key)) for key in ("mean", "std"))
    np.testing.assert_allclose(image, (batch["image"][:, 1:7, 1:7] / 255.0 - mean) / std, rtol=1e-5)
    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    assert params["dense_0"]["kernel"].shape == (64, 64)  # 6 x 6 pixels, halved twice


def test_convnext_is_a_model_of_this_task():
    small = {"stages": (1, 1), "widths": (8, 12), "patch_size": 2, "drop_path": 0.1}
    fields = {f"model.{key}": value for key, value in small.items()}
    task, _ = task_of(**{"model.module": "vision.convnext:ConvNeXt"}, **fields)
    assert task.rows_independent

    def terms(key):
        params, extra = task.init(key)
        return task.loss(params, extra, task.prepare(key, batch_of(), True), key)[0]

    assert jax.eval_shape(terms, jax.random.key(0)).keys() == {"loss", "accuracy"}


IMAGENET = {"data.name": "tfds:imagenet2012", "data.image_size": 96, "evals.test.split": "train"}


@pytest.mark.slow
def test_an_auxiliary_head_is_part_of_the_objective():
    inception = IMAGENET | {"model.module": "vision.inception:InceptionV3"}
    task, _ = task_of(**inception, **{"loss.auxiliary": 0.4})
    assert task.objective == {"loss": 1.0, "auxiliary": 0.4}
    batch = batch_of(2, (96, 96, 3))

    def terms(key):
        params, extra = task.init(key)
        return task.loss(params, extra, task.prepare(key, batch, True), key)[0]

    assert jax.eval_shape(terms, jax.random.key(0)).keys() == {"loss", "accuracy", "auxiliary"}
    without, key = task_of(**{"loss.auxiliary": 0.4})[0], jax.random.key(0)
    with pytest.raises(BadInput, match=r"config\.loss\.auxiliary: .* has no auxiliary head"):
        without.loss(*without.init(key), without.prepare(key, batch_of(), True), key)


@pytest.mark.slow
def test_a_run_begins_with_published_weights_and_statistics():
    size = efficientnet_lite.SIZES["lite0"]
    fields = {f"model.{key}": value for key, value in size.items()}
    lite = {"model.module": "vision.efficientnet_lite:EfficientNetLite", **fields}
    task, _ = task_of(**IMAGENET, **lite)
    shapes = jax.eval_shape(task.init, jax.random.key(0))
    fresh = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    fetch.weights("efficientnet_lite0", WEIGHTS)
    found = initialise(*fresh, task.pretrained, path="efficientnet_lite0")
    assert jax.tree.map(lambda x: x.shape, found) == jax.tree.map(lambda x: x.shape, fresh)
    assert all(np.any(x) for x in tree.flatten({"p": found[0], "e": found[1]}).values())
