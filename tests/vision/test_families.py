"""DeiT, DINOv2 and ConvNeXt in and out: heads, refusals, and images of other sizes.

Outputs and gradients beside those of `transformers` are in tests/common/weights/test_parity.py.
"""

import json
import re

import jax
import numpy as np
import pytest
from helpers import DIGITS, exit_code, load
from tensor_files import random, rewrite, same, settle

from common.errors import BadInput
from common.training import program
from vision import weights
from vision.convnext import ConvNeXt
from vision.vit import ViT

K = 3
SHAPE = {"image_size": 16, "patch_size": 4, "width": 16, "layers": 2, "heads": 2}
DINO = SHAPE | {"pooling": "class_mean", "layer_scale": 0.5}
VIT = ViT(num_classes=K, **SHAPE, hidden=24)
BARE = {
    "deit": ViT(num_classes=K, **SHAPE, hidden=24, distilled=True),
    "dinov2": ViT(num_classes=K, **DINO, hidden=24, gated=True, activation="silu"),
    "dinov2_with_registers": ViT(num_classes=K, **DINO, hidden=32, registers=3),
    "convnext": ConvNeXt(K, stages=(1, 2), widths=(8, 12)),
}


@pytest.mark.parametrize("name", BARE)
def test_other_families_with_and_without_heads(name, tmp_path):
    model, variables = BARE[name], random(BARE[name])
    weights.save(tmp_path, model, variables, name)
    assert type(model)(**weights.sizes(tmp_path)) == model
    assert same(weights.pretrained(tmp_path), variables)
    rewrite(
        tmp_path,
        lambda found: {
            k.removeprefix(f"{name}."): x for k, x in found.items() if "classifier" not in k
        },
    )
    del variables["params"]["head"]
    variables["params"].pop("distillation_head", None)
    assert same(weights.pretrained(tmp_path / "model.safetensors", model), variables)


def test_a_distillation_token_without_a_head_is_refused(tmp_path):
    """As `DeiTForImageClassification` is written."""
    model = BARE["deit"]
    weights.save(tmp_path, model, random(model))
    rewrite(
        tmp_path,
        lambda found: {
            k.replace("cls_", ""): x for k, x in found.items() if "distillation_class" not in k
        },
    )
    for path, given in ((tmp_path, None), (tmp_path / "model.safetensors", model)):
        with pytest.raises(BadInput, match="DeiTForImageClassification gives its distillation"):
            weights.pretrained(path, given)


def test_what_a_scale_starts_at_does_not_matter_but_whether_there_is_one(tmp_path):
    model = BARE["dinov2"]
    variables = random(model)
    weights.save(tmp_path, model, variables)
    assert same(weights.pretrained(tmp_path, model.clone(layer_scale=1e-5)), variables)
    with pytest.raises(BadInput, match=r"layer_scale = 0.5 there and None here"):
        weights.pretrained(tmp_path, model.clone(layer_scale=None))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden": 40}, r"no hidden = 40: it is the width 16 times a whole mlp_ratio"),
        ({"gated": True, "hidden": 24}, r"no gated activation = 'gelu'"),
        ({"gated": True, "activation": "silu", "hidden": 30}, "rounded up to a multiple of 8"),
    ],
)
def test_mlps_that_dinov2_does_not_have(fields, message, tmp_path):
    model = ViT(num_classes=K, **DINO).clone(**fields)
    with pytest.raises(BadInput, match=message):
        weights.save(tmp_path, model, random(model))


def test_sides_may_be_pairs(tmp_path):
    weights.save(tmp_path, VIT, random(VIT))
    settle(tmp_path, image_size=[16, 16], patch_size=[4, 4])
    assert ViT(**weights.sizes(tmp_path)) == VIT
    for value in ([16, 20], [16], [], [16, 16, 16]):
        settle(tmp_path, image_size=value)
        with pytest.raises(BadInput, match=re.escape(f"image_size = {value}: only squares")):
            weights.sizes(tmp_path)
    settle(tmp_path, image_size=["a", 16])
    with pytest.raises(BadInput, match='image_size is "a", not a whole number'):
        weights.sizes(tmp_path)


ANY_SIZE = {"allow": ("image_size",)}


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit", 16), ("deit", 40), ("dinov2_with_registers", 16)],
)
def test_positions_for_images_of_another_size_are_theirs(name, size, tmp_path):
    """With the fields named; then as transformers interpolates them."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = {"vit": VIT, **BARE}[name].clone(image_size=24)
    variables = random(model)
    weights.save(tmp_path, model, variables, name)
    other = model.clone(image_size=size)
    with pytest.raises(BadInput, match=f"image_size = 24 there and {size} here"):
        weights.pretrained(tmp_path, other)
    found = weights.pretrained(tmp_path, other, ANY_SIZE)
    assert same(weights.pretrained(tmp_path / "model.safetensors", other, ANY_SIZE), found)
    assert same(weights.pretrained(tmp_path, model, ANY_SIZE), variables)
    kind = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    reference = getattr(transformers, kind).from_pretrained(tmp_path).eval()
    images = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    asked = {} if "dinov2" in name else {"interpolate_pos_encoding": True}
    theirs = reference(torch.tensor(images).permute(0, 3, 1, 2), **asked).logits.detach().numpy()
    logits = jax.jit(other.apply)(found, images)
    np.testing.assert_allclose(logits, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def test_positions_that_cannot_be_resized(tmp_path):
    variables = random(VIT)
    weights.save(tmp_path, VIT, variables)
    table = "vit.embeddings.position_embeddings"
    rewrite(tmp_path, lambda found: found | {table: found[table][:, :-1]})
    with pytest.raises(BadInput, match="16 positions are no square of patches and 1 other tokens"):
        weights.pretrained(tmp_path, VIT.clone(image_size=32), ANY_SIZE)


@pytest.mark.slow
def test_weights_are_evaluated_with_their_own_scaling_and_no_run(tmp_path, capsys):
    """evaluate.py and explain.py take a folder: no run, no field typed by hand."""
    model = ViT(
        num_classes=10, image_size=8, patch_size=2, width=16, layers=1, heads=2, hidden=24,
        activation="relu", norm_eps=1e-3,
    )  # fmt: skip
    variables = random(model, channels=1)
    weights.save(tmp_path, model, variables)
    scaling = {"image_mean": [0.3], "image_std": [0.2], "rescale_factor": 1 / 16}
    named = {"image_processor_type": "ViTImageProcessor", "size": 8}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(named | scaling))
    words = ["--weights", str(tmp_path), "--config", f"{DIGITS}:cnn", "--set", "test"]
    assert exit_code("evaluate", *words, "--config.model.module=vision.vit:ViT") == 0
    found = json.loads(capsys.readouterr().out)["eval"]["test"]
    source = program.prepare(load(f"{DIGITS}:cnn")).task.sources["test"]
    rows = source.read(np.arange(source.size, dtype=np.uint32))
    images = (rows["image"].astype(np.float32) / 16 - 0.3) / 0.2
    logits = np.asarray(jax.jit(model.apply)(variables, images))
    assert found["accuracy"] == pytest.approx(np.mean(logits.argmax(-1) == rows["label"]), abs=1e-6)
    entropy = jax.nn.logsumexp(logits, axis=-1) - logits[np.arange(source.size), rows["label"]]
    assert found["loss"] == pytest.approx(float(entropy.mean()), rel=1e-4)
    drawn = ["--to", str(tmp_path / "drawn"), "--count", "2"]
    assert exit_code("explain", *words, "--config.model.module=vision.vit:ViT", *drawn) == 0
    assert f"accuracy {found['accuracy']:.4f}" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert files == {"mistakes.png", "confusion.png", "saliency.png"}
