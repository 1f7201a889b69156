"""The masked autoencoder: what it sees, what it is compared with, and that its encoder is a ViT.

Outputs and gradients beside those of `transformers` are in tests/common/weights/test_parity.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensor_files import random, rewrite, same, settle

from common import tree
from common.errors import BadInput
from common.nn import flops
from common.serving import huggingface
from vision import published, vit, weights
from vision.data import sets
from vision.masked import mae, masking, predict
from vision.masked.losses import reconstruction
from vision.masked.mae import MAE

SIDE, PATCHES, COUNT = 16, 16, 5
ENCODER = {"image_size": SIDE, "patch_size": 4, "width": 16, "layers": 2, "heads": 2, "hidden": 24}
DECODER = {"decoder_width": 8, "decoder_layers": 1, "decoder_heads": 2, "decoder_hidden": 16}
MODEL = MAE(channels=3, **ENCODER, **DECODER)
IMAGES = np.random.default_rng(0).normal(size=(3, SIDE, SIDE, 3)).astype(np.float32)
KEYS = 4000


@functools.cache
def drawn() -> np.ndarray:
    """i32[KEYS, COUNT]."""
    keys = jax.random.split(jax.random.key(7), KEYS)
    return np.asarray(jax.jit(lambda: masking.visible(keys, PATCHES, COUNT))())


def visible() -> np.ndarray:
    """i32[3, COUNT]."""
    return drawn()[:3]


@functools.cache
def made():
    """(its parameters, all random; jitted: images, visible -> (predicted, features))."""
    variables = random(MODEL)

    @jax.jit
    def apply(images, visible):
        predicted, state = MODEL.apply(variables, images, visible, mutable=["intermediates"])
        return predicted, state["intermediates"]["features"][0]

    return variables, apply


def visible_pixels() -> np.ndarray:
    """bool[3, SIDE, SIDE, 1]."""
    grid = np.zeros((3, PATCHES), bool)
    np.put_along_axis(grid, visible(), True, axis=1)
    return grid.reshape(3, 4, 4).repeat(4, axis=1).repeat(4, axis=2)[..., None]


# ---------------------------------------------------------------------------------------- masking


def test_a_mask_is_of_its_key_alone_and_each_patch_is_equally_likely():
    assert drawn().shape == (KEYS, COUNT)
    assert all(len(set(row)) == COUNT for row in drawn())
    key = jax.random.split(jax.random.key(7), KEYS)[5:6]
    assert np.array_equal(masking.visible(key, PATCHES, COUNT), drawn()[5:6])
    shares = np.bincount(drawn().ravel(), minlength=PATCHES) / KEYS
    np.testing.assert_allclose(shares, COUNT / PATCHES, atol=0.04)  # five deviations


def test_a_share_becomes_whole_patches():
    assert masking.count_visible(196, 0.75) == 49
    assert masking.count_visible(49, 0.75) == 12
    for patches, ratio, told in ((16, 0.99, "hides all"), (4, 0.1, "hides none")):
        with pytest.raises(BadInput, match=f"of {patches} patches, a share of {ratio} {told}"):
            masking.count_visible(patches, ratio)
    for ratio in (0.0, 1.0, float("nan")):
        with pytest.raises(BadInput, match=r"config.masking.ratio: .* is not between 0 and 1"):
            masking.ratio_section(ratio=ratio)


# ------------------------------------------------------------------------------------------ model


def test_hidden_pixels_are_not_seen_and_the_order_of_the_others_does_not_matter():
    _, apply = made()
    predicted, features = apply(IMAGES, visible())
    noise = np.random.default_rng(1).normal(size=IMAGES.shape).astype(np.float32)
    elsewhere = apply(np.where(visible_pixels(), IMAGES, noise), visible())
    assert np.array_equal(elsewhere[0], predicted)
    turned = apply(IMAGES, visible()[:, ::-1])
    np.testing.assert_allclose(turned[0], predicted, atol=1e-4)
    np.testing.assert_allclose(turned[1], features, atol=1e-4)
    others = apply(np.where(visible_pixels(), noise, IMAGES), visible())
    assert np.abs(others[0] - predicted).max(axis=(1, 2)).min() > 1e-3


@pytest.mark.parametrize("positions", ["learned", pytest.param("sine", marks=pytest.mark.slow)])
def test_parameters_have_places_and_the_flops_are_those_of_what_is_seen(positions):
    model = MODEL.clone(positions=positions)
    params = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    tree.check_table("PARTITION", model.PARTITION, tree.flatten(params))
    for path, leaf in tree.flatten(params).items():
        assert leaf.ndim < 2 or len(tree.lookup(model.PARTITION, path)) == leaf.ndim, path
    for count in (COUNT, PATCHES - 1):
        some = jnp.zeros((3, count), jnp.int32)
        traced = jax.make_jaxpr(lambda p, s=some: model.apply({"params": p}, IMAGES, s))(params)
        assert 3 * model.flops((SIDE, SIDE, 3), count) == flops.traced(traced.jaxpr)


@pytest.mark.slow
def test_the_base_has_its_parameters():
    # Of ViT-B's encoder and the decoder, positions not counted, as of the published checkpoint.
    model = MAE(channels=3, **vit.SIZES["b16"], **mae.DECODER)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))["params"]
    shapes = {k: v for k, v in tree.flatten(shapes).items() if "position" not in k}
    assert tree.count(shapes) == 111_655_680


@pytest.mark.slow
def test_its_encoder_is_a_vit():
    variables, _ = made()
    model = vit.ViT(num_classes=3, **ENCODER, pooling="patch_mean")
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    own = {p: x for p, x in tree.flatten(variables["params"]).items() if p in tree.flatten(shapes)}
    assert {p for p in tree.flatten(shapes) if p not in own} == {"head/kernel", "head/bias"}
    own |= {p: np.zeros(tree.flatten(shapes)[p].shape) for p in ("head/kernel", "head/bias")}
    apply = lambda m, v: m.apply(v, IMAGES, mutable=["intermediates"])[1]["intermediates"]
    features = lambda m, v: jax.jit(lambda: apply(m, v)["features"][0])()
    ours = features(MODEL, variables)
    np.testing.assert_allclose(features(model, {"params": tree.unflatten(own)}), ours, rtol=1e-5)


def test_a_model_of_odd_sizes_is_one_line():
    for fields, told in (
        ({"decoder_layers": 0}, "config.model.decoder_layers: 0 is not positive"),
        ({"decoder_heads": 3}, "decoder_heads: 3 does not divide the decoder_width 8"),
        ({"decoder_width": 6, "positions": "sine"}, "decoder_width: 6 is not a multiple of 4"),
        ({"patch_size": 1, "channels": 1}, "config.model.normalised: a patch of one grey pixel"),
    ):
        with pytest.raises(BadInput, match=told):
            jax.eval_shape(MODEL.clone(**fields).init, jax.random.key(0), IMAGES)


# ------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("normalised", [False, True])
def test_the_loss_is_of_hidden_patches_alone(normalised):
    model = MODEL.clone(normalised=normalised)
    targets, hidden = np.array(model.targets(IMAGES)), np.ones((3, PATCHES), bool)
    np.put_along_axis(hidden, visible(), False, axis=1)
    predicted = targets + np.where(hidden, 0, 7.0)[..., None]
    valid = np.float32([1, 1, 0])
    terms = reconstruction(model, IMAGES, predicted, visible(), valid)
    assert terms["loss"] == (0, 2)
    predicted[0] += np.where(hidden[0], 2.0, 0)[:, None]
    predicted[2] += 100
    total, weight = reconstruction(model, IMAGES, predicted, visible(), valid)["loss"]
    assert float(total) == pytest.approx(4, rel=1e-5)
    assert float(weight) == 2
    baseline = np.square(targets[:2][hidden[:2]]).mean() * 2
    assert float(terms["baseline"][0]) == pytest.approx(baseline, rel=1e-5)
    if normalised:
        np.testing.assert_allclose(targets.mean(axis=-1), 0, atol=1e-5)
        np.testing.assert_allclose(targets.std(axis=-1, ddof=1), 1, atol=1e-3)


@pytest.mark.parametrize("normalised", [False, True])
def test_what_is_predicted_stands_where_it_was_hidden(normalised):
    model = MODEL.clone(normalised=normalised)
    targets = model.targets(IMAGES)
    np.testing.assert_allclose(model.reconstructed(IMAGES, targets, visible()), IMAGES, atol=1e-5)
    wrong = model.reconstructed(IMAGES, targets + 5, visible())
    differs = np.any(np.asarray(wrong) != IMAGES, axis=-1, keepdims=True)
    assert np.array_equal(differs, ~visible_pixels())
    assert np.array_equal(model.masked(IMAGES, visible()), np.where(visible_pixels(), IMAGES, 0))


# ---------------------------------------------------------------------------------------- weights


def test_weights_are_read_as_an_autoencoder_and_as_an_encoder(tmp_path):
    variables, _ = made()
    weights.save(tmp_path, MODEL, variables)
    assert MAE(**weights.sizes(tmp_path)) == MODEL
    assert same(weights.pretrained(tmp_path), variables)
    assert same(weights.pretrained(tmp_path, MODEL), variables)
    # As transformers 5 writes the decoder's blocks.
    other = lambda name: name.replace("decoder_layers", "decoder_encoder.layer")
    rewrite(tmp_path, lambda found: {other(name): x for name, x in found.items()})
    assert same(weights.pretrained(tmp_path, MODEL), variables)
    for fields in ({}, {"pooling": "patch_mean", "head_norm": True}):
        model = vit.ViT(num_classes=3, **ENCODER, **fields)
        own = weights.pretrained(tmp_path, model)
        paths = {p for p in tree.flatten(variables) if p.split("/")[1] in own["params"]}
        paths = {p for p in paths if "decoder" not in p}
        assert own.keys() == {"params"}
        assert same(own, tree.unflatten({p: tree.flatten(variables)[p] for p in paths}))
    with pytest.raises(BadInput, match="parameters that this model lacks"):
        weights.pretrained(tmp_path, model.clone(pooling="mean"))


def test_what_is_exported_hides_as_much_as_it_was_trained_with(tmp_path):
    scale = (0.5,), (0.5,)
    facts = sets.ImageFacts((), *scale)
    shape, as_it_is = (SIDE, SIDE, 3), lambda images: images
    made = predict.reconstructor(MODEL, None, as_it_is, shape, scale, 0.6)
    source = sets.outline(shape, 1, facts, False)
    huggingface.write(tmp_path, made, source, random(MODEL))
    again = published.published(str(tmp_path)).predictor
    assert again.options()["count"] == made.options()["count"] == 6


def test_weights_of_another_model_are_refused(tmp_path):
    weights.save(tmp_path, MODEL, random(MODEL))
    for fields, told in (
        ({"normalised": False}, "normalised = True there and False here"),
        ({"decoder_heads": 1}, "decoder_heads = 2 there and 1 here"),
        ({"positions": "sine"}, "positions = 'learned' there and 'sine' here"),
    ):
        with pytest.raises(BadInput, match=told):
            weights.pretrained(tmp_path, MODEL.clone(**fields))
    settle(tmp_path, qkv_bias=False)
    with pytest.raises(BadInput, match="qkv_bias = False is not supported"):
        weights.pretrained(tmp_path, MODEL)
    rewrite(tmp_path, lambda found: {k: x for k, x in found.items() if "decoder_pred" not in k})
    settle(tmp_path, qkv_bias=True)
    with pytest.raises(BadInput, match=r"tensors of MAE are missing: decoder.decoder_pred"):
        weights.pretrained(tmp_path, MODEL)
