"""MobileNetV2: its size, torch's padding and norms, and the published weights."""

import jax
import numpy as np
import pytest
from PIL import Image
from tensor_files import same, write

from common import predict, tree
from common.data import fetch
from common.errors import BadInput
from vision import published, weights
from vision.mobilenet import MobileNetV2
from vision.pretrained import WEIGHTS
from vision.weights.preprocessor import Preprocessor, prepare

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODEL = MobileNetV2(1000)
SMALL = MobileNetV2(5, stages=(1, 2, 1, 1, 1, 1, 1), widths=(8,) * 7)


def random(images) -> dict:
    """Variables, all random, variances positive."""
    rng = np.random.default_rng(0)

    def value(path, x):
        if path.endswith("kernel"):
            return rng.normal(size=x.shape) * np.sqrt(2 / np.prod(x.shape[:-1]))
        return rng.uniform(0.5, 1.5, x.shape) * (1 if path.endswith(("scale", "var")) else 0.3)

    shapes = jax.eval_shape(SMALL.init, jax.random.key(0), images)
    return tree.map_paths(lambda path, x: value(path, x).astype(np.float32), shapes)


def test_size_and_names():
    """3.4M parameters and 300M multiply-adds in the paper's table 4; 314 tensors in torchvision."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), np.zeros((1, 32, 32, 3)))
    assert tree.count(shapes["params"]) == 3_504_872
    assert MODEL.flops((224, 224, 3)) == 2 * 300_774_272
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes)
    found = weights.export(MODEL, zeros)
    assert len(found) == 314
    some = {
        "features.0.0.weight": (32, 3, 3, 3),
        "features.1.conv.0.0.weight": (32, 1, 3, 3),
        "features.1.conv.1.weight": (16, 32, 1, 1),
        "features.2.conv.0.0.weight": (96, 16, 1, 1),
        "features.17.conv.3.running_var": (320,),
        "features.18.1.num_batches_tracked": (),
        "classifier.1.weight": (1000, 1280),
    }
    assert {name: found[name].shape for name in some} == some


def test_it_computes_what_torch_does():
    """Its first layers, which the others repeat: padded convolutions and norms, in inference."""
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    images = np.random.default_rng(1).normal(size=(2, 33, 38, 3)).astype(np.float32)
    variables = random(images)
    there = {k: torch.tensor(x) for k, x in weights.export(SMALL, variables).items()}

    def layer(x, conv, norm, active=True, **options):
        kernel = there[f"{conv}.weight"]
        x = f.conv2d(x, kernel, padding=kernel.shape[-1] // 2, **options)
        names = "running_mean", "running_var", "weight", "bias"
        x = f.batch_norm(x, *(there[f"{norm}.{name}"] for name in names))
        return f.relu6(x) if active else x

    x = layer(torch.tensor(images).permute(0, 3, 1, 2), "features.0.0", "features.0.1", stride=2)
    x = layer(x, "features.1.conv.0.0", "features.1.conv.0.1", groups=32)
    x = layer(x, "features.1.conv.1", "features.1.conv.2", active=False)
    x = layer(x, "features.2.conv.0.0", "features.2.conv.0.1")
    x = layer(x, "features.2.conv.1.0", "features.2.conv.1.1", stride=2, groups=48)
    x = layer(x, "features.2.conv.2", "features.2.conv.3", active=False)
    y = layer(x, "features.3.conv.0.0", "features.3.conv.0.1")
    y = layer(y, "features.3.conv.1.0", "features.3.conv.1.1", groups=48)
    x = x + layer(y, "features.3.conv.2", "features.3.conv.3", active=False)
    run = jax.jit(lambda v: SMALL.apply(v, images, mutable=["intermediates"])[1]["intermediates"])
    ours = run(variables)["stage_1"][0]
    np.testing.assert_allclose(ours, x.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4)


def test_fetched_weights_predict_without_a_config_of_their_own(tmp_path, monkeypatch):
    setup = Preprocessor(*IMAGENET, 37, (32, 32), Image.BILINEAR, 1 / 255)
    monkeypatch.setitem(published.FETCHED, "small", published.Fetched(SMALL, setup))
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    image = prepare(setup, picture)[None]
    variables = random(image)
    (tmp_path / "small").mkdir()
    write(tmp_path / "small/model.safetensors", weights.export(SMALL, variables))
    made = published.published(tmp_path / "small")
    (row,) = made.predictor.read(picture, {})
    np.testing.assert_array_equal(row["image"], image[0])
    assert same({"params": made.params, **made.extra}, variables)
    told = made.predictor.result(picture, [row], [{"logits": np.arange(5.0)}], {"top": 1})
    assert told["class"] == "4"
    (tmp_path / "small").rename(tmp_path / "other")
    (tmp_path / "other/preprocessor_config.json").write_text("{}")
    with pytest.raises(BadInput, match="no config.json says what model it is of"):
        published.published(tmp_path / "other")


@pytest.mark.slow
def test_the_published_weights_know_a_cup_and_a_cat():
    data = pytest.importorskip("skimage").data
    try:
        folder = fetch.weights("mobilenet_v2", WEIGHTS)
    except BadInput as error:
        pytest.skip(f"mobilenet_v2 cannot be had: {error}")
    coffee, chelsea = predict.load(folder).predict([data.coffee(), data.chelsea()])
    assert coffee["class"] == "967"  # espresso
    assert coffee["probability"] == pytest.approx(0.992, abs=0.001)
    cats = {"285": 0.717, "282": 0.147, "281": 0.130}  # Egyptian cat, tiger cat, tabby
    likeliest = dict(list(chelsea["probabilities"].items())[:3])
    assert likeliest == pytest.approx(cats, abs=0.002)
