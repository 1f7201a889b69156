"""preprocessor_config.json: prepared images are those of `transformers`, and what is refused."""

import json
import re

import numpy as np
import pytest

from common.errors import BadInput
from vision.weights import preprocessor

WIDE, TALL = (
    np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    for shape in ((37, 53), (41, 30))
)
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def write(folder, **settings):
    (folder / preprocessor.FILE).write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViT", {"size": 29}),
        ("ViT", {"size": {"height": 17, "width": 45}, "resample": 0, "do_normalize": False}),
        ("ViT", {"size": 24, "do_rescale": False, "image_mean": [99, 120, 130]}),
        ("ViT", {"size": {"shortest_edge": 23}, "resample": 1, "rescale_factor": 1 / 127.5}),
        ("ViT", {"do_resize": False, "do_center_crop": True, "crop_size": 32}),
        ("DeiT", {"size": 33, "crop_size": {"height": 21, "width": 28}, "image_mean": MEAN}),
        ("DeiT", {"size": {"height": 18, "width": 21}, "crop_size": 25, "resample": 4}),
        ("Bit", {"size": 31, "crop_size": 25, "resample": 5}),
        ("Bit", {"size": {"shortest_edge": 20}, "crop_size": {"height": 33, "width": 27}}),
        ("ConvNext", {"size": 30, "crop_pct": 0.9, "image_std": STD}),
        ("ConvNext", {"size": {"shortest_edge": 26}, "resample": 2}),
        ("ConvNext", {"size": 385}),
        ("ViT", {}),
        ("DeiT", {}),
        ("Bit", {}),
        ("ConvNext", {}),
    ],
)
def test_prepared_images_are_theirs(kind, settings, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, f"{kind}ImageProcessorPil")(**settings)
    theirs.save_pretrained(tmp_path / "saved")
    (tmp_path / "bare").mkdir()
    write(tmp_path / "bare", feature_extractor_type=f"{kind}FeatureExtractor", **settings)
    for image in WIDE, TALL:
        expected = theirs(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        for folder in tmp_path / "saved", tmp_path / "bare":
            found = preprocessor.prepare(preprocessor.read(folder), image)
            assert found.dtype == np.float32
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_file_may_be_missing_or_leave_its_kind_to_the_model(tmp_path):
    assert preprocessor.read(tmp_path) is None
    write(tmp_path, image_mean=MEAN, image_std=STD)
    with pytest.raises(BadInput, match="no image_processor_type, and no config.json"):
        preprocessor.read(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    found = preprocessor.read(tmp_path)
    assert found == (tuple(MEAN), tuple(STD), 224, (224, 224), 3, 1 / 255)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_processor_type": "CLIPSegProcessor"}, "'CLIPSegProcessor' is not supported"),
        ({"image_processor_type": 3}, "image_processor_type is 3, not a string"),
        ({"image_mean": [0.5, 0.5]}, "image_mean and image_std differ in length"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std = [0.5, 0.5, 0.0] has to be positive"),
        ({"image_mean": [0.5, "a", 0.5]}, "is not numbers"),
        ({"image_mean": 0.5}, "image_mean is 0.5, not a list"),
        ({"size": {"longest_edge": 3}}, 'size = {"longest_edge": 3} is not a number'),
        ({"size": [3, 3]}, "size is [3, 3], not a whole number"),
        ({"size": 40_000}, "size = 40,000 is more than 32,768 pixels"),
        ({"size": -1}, "size = -1 is not a positive size"),
        ({"resample": 6}, "resample = 6 is none of Pillow's filters, 0 to 5"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
        ({"do_resize": "yes"}, 'do_resize is "yes", not true or false'),
        ({"do_center_crop": True}, "do_center_crop: no crop_size"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "crop_size = "),
        ({"pad_size": {"height": 3, "width": 3}}, "pad_size: padding is not supported"),
        ({"do_reduce_labels": True}, "labels of segmentation is not supported"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"height": 3, "width": 3}},
            "size of a ConvNextImageProcessor is shortest_edge",
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": 9, "crop_pct": 1.5},
            "crop_pct = 1.5 is not in (0, 1]",
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 1e-9, "size": 9},
            "crop_pct = 1e-09 of 9 is of more than 32,768 pixels",
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "do_center_crop": True},
            "a ConvNextImageProcessor crops by crop_pct",
        ),
    ],
)
def test_files_that_are_refused(settings, message, tmp_path):
    write(tmp_path, **{"image_processor_type": "ViTImageProcessor"} | settings)
    with pytest.raises(BadInput, match=re.escape(message)) as error:
        preprocessor.read(tmp_path)
    assert "\n" not in str(error.value)


def test_images_that_are_refused(tmp_path):
    setup = preprocessor.read(write(tmp_path, image_processor_type="ViTImageProcessor"))
    for image in WIDE / 255, WIDE[..., 0], WIDE[..., :2], WIDE[:0]:
        with pytest.raises(BadInput, match="an image to prepare is u8"):
            preprocessor.prepare(setup, image)
    with pytest.raises(BadInput, match="image_mean is of 3 channels, and the image has 1"):
        preprocessor.prepare(setup, WIDE[..., :1])
    grey = setup._replace(mean=(), std=())
    assert preprocessor.prepare(grey, WIDE[..., :1]).shape == (224, 224, 1)
