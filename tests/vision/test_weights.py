"""Weights of image models in and out: names, shapes, settings, damage, and a real model."""

import json
import os
import re

import jax
import numpy as np
import pytest
from tensor_files import random, rewrite, same, settle, write

from common import tree
from common.data import fetch
from common.errors import BadInput
from common.weights import tensors
from common.weights.names import KINDS
from vision import efficientnet_lite, weights
from vision.efficientnet_lite import EfficientNetLite
from vision.pretrained import WEIGHTS
from vision.resnet import SIZES, ResNet
from vision.vit import ViT
from vision.weights.efficientnet_lite import EFFICIENTNET_LITE
from vision.weights.resnet import TORCHVISION

K = 3
BASIC = ResNet(K, stages=(2, 1), widths=(8, 12), block="basic", stem_width=8)
BOTTLENECK = ResNet(K, stages=(1, 2), widths=(16, 24), stem_width=8)
VIT = ViT(num_classes=K, image_size=16, patch_size=4, width=16, layers=2, heads=2, hidden=24)
MODELS = {"basic": BASIC, "bottleneck": BOTTLENECK, "vit": VIT}
LITE = EfficientNetLite(K, stages=(1, 1, 2, 1, 1, 1, 1), widths=(8, 8, 8, 16, 16, 16, 24))


@pytest.fixture
def folder(tmp_path):
    """A small ResNet, saved; and its variables."""
    variables = random(BASIC)
    weights.save(tmp_path / "resnet", BASIC, variables)
    return tmp_path / "resnet", variables


# ------------------------------------------------------------------------------------- there, back


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_saved_is_loaded(name, channels, tmp_path):
    model, variables = MODELS[name], random(MODELS[name], channels)
    weights.save(tmp_path, model, variables)
    assert type(model)(**weights.sizes(tmp_path)) == model
    assert same(weights.pretrained(tmp_path), variables)
    assert same(weights.pretrained(tmp_path / "model.safetensors", model), variables)
    assert json.loads((tmp_path / "config.json").read_text())["num_channels"] == channels


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        (BASIC, TORCHVISION),
        (BOTTLENECK, TORCHVISION),
        (BASIC.clone(stem="small"), TORCHVISION),
        (LITE, EFFICIENTNET_LITE.names[0]),
    ],
    ids=["basic", "bottleneck", "small", "lite"],
)
def test_exported_is_loaded(model, layout, tmp_path):
    variables = random(model)
    exported = weights.export(model, variables, layout)
    numbers = {k: x for k, x in exported.items() if "num_batches_tracked" not in k}
    assert len(numbers) == len(tree.flatten(variables))
    assert same(weights.pretrained(write(tmp_path / "x.safetensors", exported), model), variables)
    assert same(weights.pretrained(write(tmp_path / "y.safetensors", numbers), model), variables)


def test_names_and_shapes_of_torchvision():
    model = ResNet(1000, **SIZES["resnet18"])
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    found = weights.export(model, zeros, TORCHVISION)
    assert len(found) == 122  # of its state_dict: 20 norms of 5 tensors, 20 kernels, the head
    some = {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.num_batches_tracked": (),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.running_mean": (128,),
        "layer4.1.bn2.running_var": (512,),
        "fc.weight": (1000, 512),
        "fc.bias": (1000,),
    }
    assert {name: found[name].shape for name in some} == some


def test_kernels_that_are_moved_not_only_reshaped():
    # Each number says where it is: output channel, input channel, row, column.
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    ours = lambda kind, x: KINDS[kind][0].ours(x)
    assert ours("conv", x)[3, 4, 2, 1] == x[1, 2, 3, 4]
    patches = ours("patch", x[..., :4])
    assert patches.shape == (4 * 4 * 3, 2)
    assert patches[(3 * 4 + 2) * 3 + 1, 1] == x[1, 1, 3, 2]
    assert ours("conv", x[:, :1]).shape == (4, 5, 1, 2)  # of a depthwise convolution
    np.testing.assert_array_equal(ours("dense", x[0, 0]), x[0, 0].T)


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_it_and_computes_the_same(name, tmp_path):
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, variables = MODELS[name], random(MODELS[name])
    weights.save(tmp_path, model, variables)
    settings = json.loads((tmp_path / "config.json").read_text())
    kind = getattr(transformers, settings["architectures"][0])
    loaded, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    theirs = loaded.eval()(torch.tensor(images).permute(0, 3, 1, 2)).logits.detach().numpy()
    logits = jax.jit(model.apply)(variables, images)
    np.testing.assert_allclose(logits, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    loaded.save_pretrained(tmp_path / "theirs")
    assert same(weights.pretrained(tmp_path / "theirs"), variables)
    assert type(model)(**weights.sizes(tmp_path / "theirs")) == model


def test_models_without_head(tmp_path, folder):
    """As `ResNetModel` and `ViTModel` are written: names have no prefix, and a ViT has a pooler."""
    bare = lambda found: {
        k.removeprefix("resnet.").removeprefix("vit."): x
        for k, x in found.items()
        if not k.startswith("classifier")
    }
    path, variables = folder
    rewrite(path, bare)
    del variables["params"]["head"]
    assert same(weights.pretrained(path), variables)
    variables = random(VIT)
    weights.save(tmp_path / "vit", VIT, variables)
    rewrite(tmp_path / "vit", lambda x: bare(x) | {"pooler.dense.bias": np.zeros(16)})
    del variables["params"]["head"]
    assert same(weights.pretrained(tmp_path / "vit"), variables)


def test_the_head_may_be_for_other_classes(folder):
    path, variables = folder
    assert same(weights.pretrained(path, BASIC.clone(num_classes=7)), variables)


def test_half_precision_becomes_float32(folder):
    path, variables = folder
    narrow = jax.tree.map(lambda x: x.astype(np.float16), variables)
    weights.save(path, BASIC, narrow)
    assert same(weights.pretrained(path), jax.tree.map(lambda x: x.astype(np.float32), narrow))


# ---------------------------------------------------------------------------------------- bad files


def without(*names):
    return lambda found: {k: x for k, x in found.items() if k not in names}


STEM = "resnet.embedder.embedder.convolution.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(STEM), f"tensors of ResNet are missing: {STEM}"),
        (without("classifier.1.bias"), "tensors of ResNet are missing: classifier.1.bias"),
        (
            lambda found: {k: x for k, x in found.items() if "stages.1" not in k},
            "resnet.encoder.stages.1.layers.0.layer.0.normalization.running_mean, ",
        ),
        (
            lambda found: found | {"resnet.encoder.stages.2.layers.0.x": np.zeros(3)},
            "holds tensors that no resnet has: resnet.encoder.stages.2.layers.0.x",
        ),
        (
            lambda found: found | {STEM: np.zeros((8, 3, 3, 3), np.float32)},
            f"tensors do not fit ResNet: {STEM}, here stem/kernel, is [3, 3, 3, 8] there",
        ),
        (
            lambda found: found | {STEM: np.zeros((), np.float32)},
            f"{STEM.removeprefix('resnet.')} is [], and should have 4 dimensions",
        ),
        (
            lambda found: found | {"classifier.1.bias": np.zeros(3, np.int8)},
            "classifier.1.bias is int8; quantised weights are not supported",
        ),
        (
            lambda found: {f"other.{k}": x for k, x in found.items()},
            "tensors none is one of resnet",
        ),
    ],
)
def test_files_that_are_not_whole(change, message, folder):
    path, _ = folder
    rewrite(path, change)
    with pytest.raises(BadInput, match=re.escape(message)) as error:
        weights.pretrained(path)
    assert "\n" not in str(error.value)


def test_another_model_s_file(folder, tmp_path):
    path, _ = folder
    file = tmp_path / "alone.safetensors"
    file.write_bytes((path / "model.safetensors").read_bytes())
    with pytest.raises(BadInput, match=r"stages = \(2, 1\) there and \(3, 1\) here"):
        weights.pretrained(path / file.with_stem("model").name, BASIC.clone(stages=(3, 1)))
    with pytest.raises(BadInput, match="tensors of ResNet are missing"):
        weights.pretrained(file, BASIC.clone(stages=(3, 1)))
    with pytest.raises(
        BadInput, match="has parameters that this model lacks: stage_0_block_1/conv_0/kernel"
    ):
        weights.pretrained(file, BASIC.clone(stages=(1, 1)))
    with pytest.raises(BadInput, match="tensors do not fit ResNet"):
        weights.pretrained(file, BASIC.clone(widths=(8, 16)))
    with pytest.raises(BadInput, match="is a resnet, and the model is a ViT"):
        weights.pretrained(path, VIT)
    with pytest.raises(BadInput, match="there is no config.json to identify the model; name it"):
        weights.pretrained(file)
    with pytest.raises(BadInput, match=r"config\.json: not there"):
        weights.sizes(path.parent)
    weights.save(tmp_path, VIT, random(VIT))
    message = r" is of another model: heads = 2 there and 1 here"
    with pytest.raises(BadInput, match=message):
        weights.pretrained(tmp_path, VIT.clone(heads=1))


def test_another_library_s_config_says_nothing(folder):
    path, variables = folder
    (path / "config.json").write_text('{"architecture": "resnet18"}')
    assert same(weights.pretrained(path, BASIC), variables)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported, only 'relu'"),
        ({"downsample_in_bottleneck": True}, "downsample_in_bottleneck = True is not supported"),
        (
            {"model_type": "resnext"},
            "model_type 'resnext' is not a family that is read here; those are: resnet, vit",
        ),
    ],
)
def test_settings_that_are_not_here(settings, message, folder):
    settle(folder[0], **settings)
    for function in weights.sizes, weights.pretrained:
        with pytest.raises(BadInput, match=re.escape(message)):
            function(folder[0])


def test_what_a_config_leaves_out_is_as_usual_there(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    assert ResNet(**weights.sizes(tmp_path)) == ResNet(2, **SIZES["resnet50"])
    (tmp_path / "config.json").write_text('{"model_type": "vit", "num_labels": 5}')
    assert ViT(**weights.sizes(tmp_path)) == ViT(num_classes=5, norm_eps=1e-12)


def test_models_that_they_do_not_have(tmp_path):
    for model, message in (
        (BASIC.clone(stem="small"), "resnet of transformers has no stem = 'small'"),
        (BASIC.clone(preactivation=True), "resnet of transformers has no preactivation = True"),
        (VIT.clone(pooling="mean"), "vit of transformers has no pooling = 'mean'"),
        (VIT.clone(positions="sine"), "vit of transformers has no positions = 'sine'"),
        (LITE, "EfficientNetLite: no such model there"),
    ):
        with pytest.raises(BadInput, match=message):
            weights.save(tmp_path, model, random(model))
    wide = BASIC.clone(preactivation=True)
    with pytest.raises(BadInput, match=r"final_norm/mean: this layout has no such parameter"):
        weights.export(wide, random(wide), TORCHVISION)


# ------------------------------------------------------------------------------------- a real model


@pytest.mark.slow
def test_efficientnet_lite0_there_and_back():
    try:
        path = fetch.weights("efficientnet_lite0", WEIGHTS)
    except BadInput as error:
        pytest.skip(f"efficientnet_lite0 cannot be had: {error}")
    model = EfficientNetLite(1000, **efficientnet_lite.SIZES["lite0"])
    variables = weights.pretrained(path, model)
    old, new = tensors.read(path), weights.export(model, variables)
    counters = {name for name in old if name.endswith("num_batches_tracked")}
    assert old.keys() == new.keys()
    assert same(without(*counters)(old), without(*counters)(new))
    assert tree.count(variables["params"]) == 4_652_008
