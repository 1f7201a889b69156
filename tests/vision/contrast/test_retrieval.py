"""Ranks of retrieval, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from common.task import EvalContext
from vision.contrast import retrieval


def test_ranks_are_places_of_the_right_answer():
    answers = np.eye(4)
    queries = np.array([[3, 2, 1, 0], [3, 2, 1, 0], [0, 1, 2, 3], [9, 8, 7, 6]], float)
    assert retrieval.ranks(queries, answers, np.arange(4), np.arange(4)).tolist() == [1, 2, 2, 4]


def test_any_counterpart_is_right():
    queries = np.array([[1, 2, 3], [3, 2, 1]], float)
    pairs = np.array([0, 0, 1]), np.array([0, 2, 1])
    assert retrieval.ranks(queries, np.eye(3), *pairs).tolist() == [1, 2]


def test_several_captions_of_a_picture_are_all_right():
    """Four pictures, of which one stands in the set as a copy, with three captions each; pictures
    and texts have the same vectors, so that all rows of a picture tie."""
    rows = np.arange(15)
    picture = np.where(rows < 12, rows // 3, 0)
    image = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), np.uint8)[picture]
    image[12:] = image[0]
    batch = {"image": image, "tokens": np.uint16(rows)[:, None], "valid": np.ones(15, np.float32)}
    vectors = lambda params, extra, batch, key: (jnp.eye(4)[picture], jnp.eye(4)[picture])
    evaluator = retrieval.evaluator(None, vectors)
    context = EvalContext({}, {}, 0, jax.random.key(0), lambda *_: [batch], None)
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        values = evaluator.run(context)
    assert values["recall"] == values["text_to_image_median_rank"] == 1.0


def test_pictures_are_the_same_if_all_pixels_are():
    image = np.zeros((4, 3, 3, 3), np.uint8)
    image[1, 2, 2, 2] = image[2, 0, 0, 0] = 128
    prints = np.asarray(retrieval.fingerprint(image))
    assert np.unique(prints, axis=0).shape == (3, 2)
    assert np.array_equal(prints[0], prints[3])


def test_vectors_that_are_all_one_find_nothing():
    ones = np.ones((5, 2))
    assert retrieval.ranks(ones, ones, np.arange(5), np.arange(5)).tolist() == [5] * 5


def test_parts_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(30, 4)), rng.normal(size=(15, 4))
    pairs = np.arange(30), np.arange(30) // 2
    at_once = retrieval.ranks(one, other, *pairs)
    monkeypatch.setattr(retrieval, "CHUNK", 7)
    assert np.array_equal(retrieval.ranks(one, other, *pairs), at_once)
