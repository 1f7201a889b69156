"""The Vision Transformer against `transformers`, against numpy, and its laws."""

import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import tree
from common.errors import BadInput
from common.nn import flops
from vision import vit

SMALL = {"width": 32, "layers": 1, "heads": 4, "hidden": 48, "image_size": 12, "patch_size": 4}
VARIANTS = {
    "class, learned": {},
    "class, sine": {"positions": "sine"},
    "mean, learned": {"pooling": "mean"},
    "mean, sine": {"pooling": "mean", "positions": "sine"},
    "dinov2": {"pooling": "class_mean", "registers": 2, "layer_scale": 0.1},
    "deit": {"distilled": True},
}
IMAGES = np.random.default_rng(0).normal(size=(3, 12, 12, 3)).astype(np.float32)


def made(seed: int = 0, **fields):
    """A small model, and parameters of it that are all random: none is zero."""
    model = vit.ViT(num_classes=5, **SMALL | fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    rng = np.random.default_rng(seed)
    draw = lambda leaf: (rng.normal(size=leaf.shape) * 0.3).astype(np.float32)
    return model, jax.tree.map(draw, shapes)


@functools.cache
def compiled(model):
    return jax.jit(lambda params, images: model.apply({"params": params}, images))


def logits_of(model, params, images=IMAGES):
    return np.asarray(compiled(model)(params, images))


# ------------------------------------------------------------------------------------------- sizes


def test_the_sizes_have_their_parameters():
    # DeiT-Ti and DeiT-S (Touvron et al. 2021), and timm's count of the other two.
    for name, parameters in (
        ("ti16", 5_717_416),
        ("s16", 22_050_664),
        ("b16", 86_567_656),
        ("l16", 304_326_632),
    ):
        model = vit.ViT(**vit.SIZES[name], num_classes=1000)
        images = jnp.zeros((1, 224, 224, 3))
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
        assert tree.count(shapes) == parameters, name


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_have_places_and_the_flops_are_those_traced(name):
    model, params = made(**VARIANTS[name])
    tree.check_table("PARTITION", model.PARTITION, tree.flatten(params))
    for path, leaf in tree.flatten(params).items():
        names = tree.lookup(model.PARTITION, path)
        assert leaf.ndim < 2 or len(names) == leaf.ndim, path
    traced = jax.make_jaxpr(lambda p: model.apply({"params": p}, IMAGES))(params)
    said = model.flops((12, 12, 3))
    assert said * len(IMAGES) == flops.traced(traced.jaxpr)
    assert type(said) is int


def test_images_that_do_not_fit_are_one_line():
    for fields, shape, message in (
        ({}, (1, 16, 16, 3), "config.model.image_size: 12, but the images are 16 x 16 pixels"),
        ({}, (1, 12, 8, 3), "are 12 x 8 pixels;.* of config.model.patch_size, which is 4"),
        ({"patch_size": 5}, (1, 12, 12, 3), "config.model.patch_size: 5 does not divide"),
        ({"positions": "sine"}, (1, 12, 6, 3), "config.model.patch_size: 4 does not divide"),
        ({"positions": "sine", "width": 34, "heads": 1}, (1, 12, 12, 3), "is not a multiple of 4"),
        ({"patch_size": 0}, (1, 12, 12, 3), "config.model.patch_size: 0 is not positive"),
        ({"registers": -1}, (1, 12, 12, 3), "config.model.registers: -1 is negative"),
        (
            {"distilled": True, "pooling": "mean"},
            (1, 12, 12, 3),
            "config.model.distilled: pooling must be 'class', not 'mean'",
        ),
    ):
        model = vit.ViT(num_classes=5, **SMALL | fields)
        with pytest.raises(BadInput, match=message):
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    with pytest.raises(TypeError):
        vit.ViT(num_classes=5, window=3)  # of sequences; a field that would do nothing here


# --------------------------------------------------------------------------------------- agreement

PLACES = {
    "embeddings.cls_token": "class_token",
    "embeddings.distillation_token": "distillation_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.position_embeddings": "position/embedding",
    "embeddings.patch_embeddings.projection": "patch",
    "layernorm": "final_norm",
    "classifier": "head",
    "cls_classifier": "head",
    "distillation_classifier": "distillation_head",
    "layer_scale1.lambda1": "attention_scale",
    "layer_scale2.lambda1": "mlp_scale",
    "norm1": "attention_norm",
    "norm2": "mlp_norm",
    "attention.q_proj": "attention/query",
    "attention.k_proj": "attention/key",
    "attention.v_proj": "attention/value",
    "attention.o_proj": "attention/out",
    "layernorm_before": "attention_norm",
    "layernorm_after": "mlp_norm",
    "mlp.fc1": "mlp/up",
    "mlp.fc2": "mlp/down",
}


def crossed(state: dict) -> dict:
    """Their tensors, by name, as our parameters; gradients just as well."""
    found = {}
    for name, value in state.items():
        if name.endswith("mask_token"):
            continue
        name = re.sub(r"^(vit|deit|dinov2_with_registers)\.", "", name)
        _, number, name = re.fullmatch(r"((?:encoder\.)?layers?\.(\d+)\.)?(.*)", name).groups()
        block = "" if number is None else f"block_{number}/"
        inner, _, kind = name.rpartition(".")
        if name in PLACES:  # no layer, a tensor: [1, N, D] or [D]
            found[f"{block}{PLACES[name]}"] = value[0] if value.ndim == 3 else value
            continue
        if value.ndim == 4:  # [D, C, p, p]
            value = value.transpose(2, 3, 1, 0).reshape(-1, len(value))
        elif value.ndim == 2:
            value = value.T
        kind = {"weight": "scale" if "norm" in inner else "kernel"}.get(kind, kind)
        found[f"{block}{PLACES[inner]}/{kind}"] = value
    return tree.unflatten(found)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "b16"])
def test_outputs_and_gradients_of_transformers_in_float64(size):
    torch = pytest.importorskip("torch")
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    fields, batch, classes = SMALL | {"layers": 2}, 3, 5
    if size != "small":
        fields, batch, classes = vit.SIZES[size], 1, 1000
    model = vit.ViT(num_classes=classes, **fields)
    config = transformers.ViTConfig(
        hidden_size=model.width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        intermediate_size=model.hidden,
        image_size=model.image_size,
        patch_size=model.patch_size,
        layer_norm_eps=model.norm_eps,
        num_labels=classes,
    )
    # Their own attention has its softmax in float32; PyTorch's is of the type that it is given.
    kind = transformers.ViTForImageClassification
    theirs = kind._from_config(config, attn_implementation="sdpa").eval().double()
    rng = np.random.default_rng(0)
    side = model.image_size
    images, labels = rng.normal(size=(batch, side, side, 3)), rng.integers(0, classes, batch)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.tensor(rng.normal(size=parameter.shape) * 0.02))
    outputs = theirs(torch.tensor(images.transpose(0, 3, 1, 2))).logits
    torch.nn.functional.cross_entropy(outputs, torch.tensor(labels)).backward()
    state = {name: p.detach().numpy() for name, p in theirs.named_parameters()}
    gradients = {name: p.grad.numpy() for name, p in theirs.named_parameters()}

    def objective(params):
        logits = model.apply({"params": params}, images)
        shares = jax.nn.log_softmax(logits)
        return -jnp.mean(shares[jnp.arange(batch), labels]), logits

    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        params = jax.tree.map(jnp.asarray, crossed(state))
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
        found = jax.jit(jax.grad(objective, has_aux=True))(params)
        found, logits = jax.tree.map(np.asarray, found)
    assert logits.dtype == np.float64
    expected = outputs.detach().numpy()
    assert np.linalg.norm(logits - expected) < 1e-7 * np.linalg.norm(expected)
    found, gradients = tree.flatten(found), tree.flatten(crossed(gradients))
    # Some are zero but for rounding: a key's bias moves all logits of a softmax alike.
    floor = 1e-6 * np.sqrt(sum(np.sum(np.square(g)) for g in gradients.values()))
    for path, wanted in gradients.items():
        error = np.linalg.norm(found[path] - wanted) / max(np.linalg.norm(wanted), floor)
        assert error < 1e-7, (path, error)


@pytest.mark.parametrize("name", ["dinov2", "deit"])
def test_logits_of_the_descendants_in_float64(name):
    torch = pytest.importorskip("torch")
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    model = vit.ViT(num_classes=5, **SMALL | VARIANTS[name] | {"layers": 2, "hidden": 64})
    kind, more = {
        "dinov2": (
            transformers.Dinov2WithRegistersForImageClassification,
            {"num_register_tokens": 2, "mlp_ratio": 2},
        ),
        "deit": (transformers.DeiTForImageClassificationWithTeacher, {}),
    }[name]
    config = kind.config_class(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=12,
        patch_size=4,
        layer_norm_eps=1e-6,
        num_labels=5,
        **more,
    )
    theirs = kind._from_config(config, attn_implementation="sdpa").eval().double()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.tensor(rng.normal(size=parameter.shape) * 0.2))
        expected = theirs(torch.tensor(IMAGES.transpose(0, 3, 1, 2)).double()).logits.numpy()
    params = crossed({name: p.detach().numpy() for name, p in theirs.named_parameters()})
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        images = IMAGES.astype(np.float64)
        shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
        found = np.asarray(jax.jit(model.apply)({"params": params}, images))
    assert np.linalg.norm(found - expected) < 1e-7 * np.linalg.norm(expected)


@pytest.mark.parametrize("new", [(5, 7), (2, 3), (12, 4), (3, 3)])
@pytest.mark.parametrize("antialias", [False, True])
def test_resized_positions_are_those_of_transformers(new, antialias):
    torch = pytest.importorskip("torch")
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers = pytest.importorskip("transformers")
    if antialias:
        from transformers.models.dinov2_with_registers import (
            modeling_dinov2_with_registers as module,
        )

        kind, config = module.Dinov2WithRegistersEmbeddings, transformers.Dinov2WithRegistersConfig
    else:
        from transformers.models.vit.modeling_vit import ViTEmbeddings as kind

        config = transformers.ViTConfig
    embeddings = kind(config(hidden_size=8, image_size=16, patch_size=4))
    table = np.random.default_rng(0).normal(size=(17, 8)).astype(np.float32)
    embeddings.position_embeddings.data = torch.tensor(table)[None]
    rows, columns = new
    shape = torch.zeros(1, 1 + rows * columns, 8)
    with torch.no_grad():
        expected = embeddings.interpolate_pos_encoding(shape, 4 * rows, 4 * columns)[0].numpy()
    found = vit.resized_positions(table, (4, 4), new, 1, antialias)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_positions_of_one_grid_stay_and_of_another_are_refused():
    table = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    for antialias in (False, True):
        found = vit.resized_positions(table, (2, 3), (2, 3), 2, antialias)
        assert np.array_equal(found, table)
    with pytest.raises(BadInput, match="8 rows, and a grid of 3 x 3 patches needs 10"):
        vit.resized_positions(table, (3, 3), (4, 4))
    with pytest.raises(BadInput, match="no grid has 0 x 4"):
        vit.resized_positions(table, (2, 3), (0, 4), 2)


# -------------------------------------------------------------------------------------------- laws


def test_sine_positions_are_those_of_a_formula_and_tell_rows_from_columns():
    rows, columns, width = 3, 5, 16
    found = np.asarray(jax.jit(lambda: vit.sines(rows, columns, width))())
    found = found.reshape(rows, columns, width)
    for row in range(rows):
        for column in range(columns):
            for i in range(width // 4):
                wave = 10000 ** (-i / (width // 4))
                expected = [np.sin(row * wave), np.cos(row * wave)]
                np.testing.assert_allclose(found[row, column, 2 * i : 2 * i + 2], expected, 1e-5)
                expected = [np.sin(column * wave), np.cos(column * wave)]
                at = width // 2 + 2 * i
                np.testing.assert_allclose(found[row, column, at : at + 2], expected, 1e-5)
    flat = found.reshape(-1, width)
    distances = np.linalg.norm(flat[:, None] - flat, axis=-1) + np.eye(len(flat))
    assert distances.min() > 0.1  # no two places are alike


def shuffled(images, side: int, seed: int = 1):
    """Images with their patches in another order."""
    batch, height, width, channels = images.shape
    x = images.reshape(batch, height // side, side, width // side, side, channels)
    x = x.swapaxes(2, 3).reshape(batch, -1, side, side, channels)
    x = x[:, np.random.default_rng(seed).permutation(x.shape[1])]
    x = x.reshape(batch, height // side, width // side, side, side, channels)
    return x.swapaxes(2, 3).reshape(images.shape)


@pytest.mark.parametrize("name", VARIANTS)
def test_only_positions_tell_the_order_of_patches(name):
    model, params = made(**VARIANTS[name])
    other = shuffled(IMAGES, model.patch_size)
    assert np.abs(logits_of(model, params) - logits_of(model, params, other)).max() > 1e-3
    if model.positions == "learned":
        params["position"]["embedding"][-9:] = params["position"]["embedding"][-1]
        found = logits_of(model, params, other)
        np.testing.assert_allclose(found, logits_of(model, params), rtol=1e-4, atol=1e-5)


def test_sine_positions_are_added_to_the_patches_and_not_to_the_class_token():
    model, params = made(positions="sine")
    learned, _ = made()
    sines = np.asarray(jax.jit(lambda: vit.sines(3, 3, 32))())
    more = params | {"position": {"embedding": np.concatenate([np.zeros((1, 32)), sines])}}
    found = logits_of(learned, jax.tree.map(np.float32, more))
    np.testing.assert_allclose(logits_of(model, params), found, rtol=1e-5, atol=1e-5)


def test_sine_positions_take_images_of_any_size():
    model, params = made(positions="sine")
    assert jax.eval_shape(model.apply, {"params": params}, jnp.ones((2, 8, 20, 3))).shape == (2, 5)
    assert model.flops((8, 24, 3)) > model.flops((8, 20, 3)) > model.flops((8, 16, 3))


def test_the_class_token_has_the_first_position():
    model, params = made()
    logits = logits_of(model, params)
    params["class_token"] += params["position"]["embedding"][:1]
    params["position"]["embedding"][0] = 0
    np.testing.assert_allclose(logits_of(model, params), logits, rtol=1e-5, atol=1e-5)


def test_rows_do_not_interact_and_the_first_logits_are_zero():
    model, params = made()
    logits = logits_of(model, params)
    np.testing.assert_allclose(logits_of(model, params, IMAGES[::-1])[::-1], logits, 1e-4, 1e-5)
    other = logits_of(model, params, np.concatenate([IMAGES[:1], 1 - IMAGES[1:]]))
    np.testing.assert_allclose(other[0], logits[0], 1e-4, 1e-5)
    assert np.abs(other[1:] - logits[1:]).max() > 1e-2
    first = jax.jit(lambda key: model.init(key, IMAGES)["params"]["head"])(jax.random.key(0))
    assert not np.any(logits_of(model, params | {"head": first}))


def test_dropout_acts_in_training_alone():
    model, params = made(dropout=0.3)
    call = lambda key, train: model.apply({"params": params}, IMAGES, train, rngs={"dropout": key})
    run = jax.jit(lambda seed: call(jax.random.key(seed), True))
    assert np.abs(run(0) - run(1)).max() > 1e-2
    # In evaluation it is the very program that it is without.
    key, without = jax.random.key(0), made()[0].apply
    found = jax.make_jaxpr(lambda: call(key, False))()
    assert str(found) == str(jax.make_jaxpr(lambda: without({"params": params}, IMAGES))())


def test_bfloat16_stays_near_float32():
    _, params = made()
    wide, narrow = (logits_of(made(dtype=d)[0], params) for d in (None, "bfloat16"))
    assert narrow.dtype == np.float32
    error = np.linalg.norm(narrow - wide) / np.linalg.norm(wide)
    assert 1e-5 < error < 0.05


def test_a_scan_over_the_blocks_is_the_same_model():
    unrolled, params = made(layers=2, layer_scale=0.1)
    scanned, _ = made(layers=2, layer_scale=0.1, scan=True)
    found = logits_of(scanned, params)
    np.testing.assert_allclose(found, logits_of(unrolled, params), rtol=1e-4, atol=1e-5)


def test_what_has_a_name_and_what_passes_the_constraint():
    seen = []

    def constrain(x, *names):
        seen.append((x.ndim, names))
        return x

    model, params = made(constrain=constrain)
    seen.clear()
    shapes = jax.eval_shape(
        lambda: model.apply({"params": params}, IMAGES, mutable=["intermediates"])[1]
    )
    shapes = {path: leaf.shape for path, leaf in tree.flatten(shapes["intermediates"]).items()}
    assert shapes == {
        "patches/0": (3, 9, 32),
        "hidden_0/0": (3, 10, 32),
        "features/0": (3, 32),
        "block_0/attention/attention/0": (3, 4, 10, 10),
    }
    assert seen.count((3, ("batch", None, None))) == 3  # embeddings, and two in a block
    assert (2, ("batch", None)) in seen
