"""Towers in the layouts of `transformers`: there and back, and what is refused by its name. Parity
is in tests/common/weights/test_parity.py."""

import json

import jax
import models
import numpy as np
import pytest

from common import tree
from common.errors import BadInput
from vision import weights as images
from vision.contrast import model as contrast
from vision.vit import ViT
from vision.weights import contrast as weights
from vision.weights import preprocessor

KINDS = {"clip": contrast.CLIP, "siglip": contrast.SIGLIP, "siglip2": contrast.SIGLIP}


def towers(kind: str, **more) -> contrast.Towers:
    return contrast.Towers(**KINDS[kind] | models.TOWERS | {"max_length": 8} | more)


def random(model, seed=0) -> dict:
    shapes = weights.shapes_of(model, {})
    rng = np.random.default_rng(seed)
    values = {p: rng.normal(size=s).astype(np.float32) for p, s in shapes.items()}
    return tree.unflatten(values | {"logit_scale": np.float32([5 + seed])})


@pytest.fixture
def folder(tmp_path):
    """A CLIP as published."""
    weights.save(tmp_path, towers("clip"), random(towers("clip")), end=39)
    return tmp_path


def edit(folder, part: str, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config[part] if part else config).update(values)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind, tmp_path):
    model = towers(kind)
    params = random(model)
    weights.save(tmp_path, model, params, kind, 39)
    again = contrast.Towers(**weights.sizes(tmp_path))
    assert {k: v for k, v in vars(again).items() if k in models.TOWERS} == models.TOWERS
    found = tree.flatten(weights.pretrained(tmp_path))
    if model.max_scale is not None:
        params["logit_scale"] = np.float32([np.log(100)])
    for path, x in tree.flatten(params).items():
        # Rows that pad the table are no parameters there.
        expected = x[:40] if path == "text/token/embedding" else x
        assert np.array_equal(found[path][: len(expected)], expected), path


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("vision_config", {"use_rope": True}, "not understood: vision_config.use_rope"),
        ("", {"loss_type": "x"}, "not understood: loss_type"),
        ("text_config", {"hidden_act": "relu"}, "vision_config.hidden_act = 'quick_gelu' and"),
        ("vision_config", {"image_size": [8, 4]}, "only squares"),
        ("vision_config", {"patch_size": 3}, "does not divide image_size"),
        ("text_config", {"is_decoder": True}, "text_config.is_decoder"),
        ("vision_config", {"num_attention_heads": 3}, "do not divide"),
        ("vision_config", {"num_hidden_layers": 1}, "lacks"),
    ],
)
def test_what_is_refused(folder, part, values, said):
    edit(folder, part, **values)
    with pytest.raises(BadInput, match=str(folder)) as error:
        weights.pretrained(folder)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("setup", "resize", "warned"),
    [
        ({"image_processor_type": "SiglipImageProcessor", "size": 8}, "squash", False),
        (
            {"image_processor_type": "SiglipImageProcessor", "size": 8, "resample": 2},
            "squash",
            True,
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "size": 8, "crop_size": 8},
            "centre",
            False,
        ),
        ({"image_processor_type": "CLIPImageProcessor", "size": 9, "crop_size": 8}, "centre", True),
    ],
)
def test_pictures_are_resized_as_their_preprocessor_says(folder, setup, resize, warned, caplog):
    (folder / preprocessor.FILE).write_text(json.dumps(setup))
    adopted = weights.settings({"init": {"path": str(folder)}})["data"]
    assert (adopted["resize"], adopted["image_size"]) == (resize, 8)
    assert ("here config.data.resize" in caplog.text) == warned


def test_another_model_is_refused_by_its_fields(folder):
    with pytest.raises(BadInput, match="causal = True there and False here"):
        weights.pretrained(folder, towers("clip", causal=False))


def test_a_clip_says_which_token_ends_a_text(folder):
    assert json.loads((folder / "config.json").read_text())["text_config"]["eos_token_id"] == 39
    for end, said in ((None, "none is 49,407"), (40, "none is 40"), (2, "the highest id")):
        with pytest.raises(BadInput, match=said):
            weights.save(folder, towers("clip"), random(towers("clip")), end=end)


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_the_scale_of_siglip_is_never_limited_in_silence(tmp_path, kind):
    """The published one is 117."""
    params = random(towers(kind)) | {"logit_scale": np.float32([4.76])}
    weights.save(tmp_path, towers(kind), params, kind)
    assert weights.sizes(tmp_path)["max_scale"] is None
    with pytest.raises(BadInput, match="max_scale = None there and 100.0 here"):
        weights.pretrained(tmp_path, towers(kind, max_scale=100.0))


def test_a_locked_tower_begins_as_an_image_classifier(tmp_path):
    sizes = {key.removeprefix("image_"): v for key, v in models.TOWERS.items() if "image" in key}
    vit = ViT(
        num_classes=5, image_size=8, patch_size=4, **{k: v for k, v in sizes.items() if k != "size"}
    )
    shapes = jax.eval_shape(vit.init, jax.random.key(0), models.images(8))["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    images.save(tmp_path, vit, {"params": params})
    plain = {"image_norm": False, "patch_bias": True, "activation": "gelu", "norm_eps": 1e-6}
    model = towers("clip", **plain)
    found = weights.reader({"init": {}}, model, {})(str(tmp_path))
    assert np.array_equal(found["image"]["patch"]["kernel"], params["patch"]["kernel"])
    assert set(found) == {"image"}
    assert "head" not in found["image"]
    locked = towers("clip", **plain, locked="image")
    with pytest.raises(BadInput, match="would stay as random as it starts; set it to false"):
        weights.reader({"init": {}}, locked, {})(str(tmp_path))
    with pytest.raises(BadInput, match="norm_eps"):
        weights.reader({"init": {}}, towers("clip", **plain | {"norm_eps": 1e-5}), {})(
            str(tmp_path)
        )
