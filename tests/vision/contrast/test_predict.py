"""Pictures for words and words for pictures, of towers whose vectors are known."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from common import predict as predictions
from common.devices import mesh
from common.errors import BadInput
from lm.data import tokenizer
from vision import predict as pictured
from vision.contrast import data, predict

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Named:
    """A picture's vector is its mean colour; a text's is that of the first colour it names."""

    def __init__(self, facts):
        ids = [facts.tokenizer.token_to_id(name) for name in COLOURS]
        self.table = jnp.zeros((facts.vocab_size, 3)).at[jnp.array(ids)].set(jnp.eye(3))

    def apply(self, variables, *arguments, method):
        if method == "encode_images":
            return arguments[0].mean(axis=(1, 2))
        if method == "encode_texts":
            tokens, segments = arguments
            return (self.table[tokens] * (segments > 0)[..., None]).sum(1)
        return variables["params"]["scale"], None


def made(predictor, reader=None):
    """A predictor of `vision.contrast.predict`, loaded."""
    texts = [f"a {name} thing of {name}" for name in COLOURS] * 3
    facts = tokenizer.facts(tokenizer.train("wordpiece", 60, texts))._replace(length=10)
    reader = reader or pictured.reader((4, 4, 3))
    prepare = lambda images: images.astype(np.float32) / 255
    layout = mesh.make_layout()
    params = mesh.put_replicated(layout, {"scale": np.float32(10)})
    return predictions.loaded(predictor(Named(facts), reader, prepare, facts), layout, params, {})


@pytest.fixture(scope="module")
def loaded():
    return made(predict.finds)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures")
    for name, colour in COLOURS.items():
        Image.new("RGB", (9, 6), colour).save(path / f"{name}.png")
    (path / "names.txt").write_text("\n".join(COLOURS) + "\n\n")
    for name, more in (("set", {}), ("both", {"text": "a thing"})):
        rows = [json.dumps({"path": f"{name}.png"} | more) for name in COLOURS]
        (path / f"{name}.jsonl").write_text("\n".join(rows))
    return path


def test_pictures_for_words(loaded, folder):
    for among in (folder, folder / "set.jsonl"):
        found = loaded.predict(["a green thing", "blue"], among=str(among), top=1)
        names = [each["nearest"][0]["name"] for each in found]
        assert names == [str(folder / "green.png"), str(folder / "blue.png")]
    ((first,),) = ([each["nearest"] for each in found[:1]],)
    share = np.exp(10) / (np.exp(10) + 2)
    assert first[0]["probability"] == pytest.approx(share, rel=1e-5)
    assert first[0]["similarity"] == pytest.approx(1)


def test_words_for_pictures(loaded, folder):
    (found,) = loaded.predict([str(folder / "red.png")], among=str(folder / "names.txt"), top=9)
    assert [each["name"] for each in found["nearest"]] == ["red", "green", "blue"]
    assert loaded.predictor.line(found).startswith("red 1.000; ")


def test_a_table_with_texts_and_pictures_is_searched_by_the_column_that_is_chosen(loaded, folder):
    among = str(folder / "both.jsonl")
    for column, name in (("path", str(folder / "red.png")), ("text", "a thing")):
        (found,) = loaded.predict(["red"], among=among, among_column=column, top=1)
        assert found["nearest"][0]["name"] == name
    with pytest.raises(BadInput, match="line 1: it has both 'text' and 'path': choose by --among-"):
        loaded.predict(["red"], among=among)


def test_what_is_searched_is_read_once_and_a_chunk_at_a_time(folder, monkeypatch):
    """By all batches and calls, until a file changes."""
    monkeypatch.setattr(predict, "CHUNK", 2)
    paths, own = [], pictured.reader((4, 4, 3))
    loaded = made(predict.finds, lambda path: paths.append(path) or own(path))
    for inputs in (["red"] * 70, [str(folder / "blue.png"), "blue"]):
        (*_, last) = loaded.predict(inputs, among=str(folder), top=1)
    assert last["nearest"][0]["name"] == str(folder / "blue.png")
    assert len(paths) == 5  # four of two chunks, and the input
    (folder / "red.png").touch()
    loaded.predict(["red"], among=str(folder), top=1)
    assert len(paths) == 9


def test_vectors_of_both(folder):
    vectors = made(predict.vectors).predict(["all is green", str(folder / "blue.png")])
    assert [each["vector"] for each in vectors] == [[0, 1, 0], [0, 0, 1]]


def test_space_around_a_text_is_no_part_of_it():
    trained = tokenizer.train("bpe", 300, ["a red apple", " a  red"])
    facts = tokenizer.facts(trained)._replace(length=12)
    encode = data.text_encoder(facts)
    rows = [predict._rows(text, None, encode)["tokens"] for text in ("a red", " a red \n")]
    assert np.array_equal(*rows)


def test_the_tokenizer_is_built_once(monkeypatch):
    built, build = [], tokenizer.reading
    monkeypatch.setattr(tokenizer, "reading", lambda facts: built.append(1) or build(facts))
    made(predict.vectors).predict(["red", "green", "blue"])
    assert built == [1]


def test_what_is_refused(loaded, folder, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="--among: .*torn.png: no picture"):
        loaded.predict(["red"], among=str(tmp_path))
    with pytest.raises(BadInput, match="--among: name what to search"):
        loaded.predict(["red"])
    with pytest.raises(BadInput, match="neither a text nor a picture"):
        loaded.predict([" "], among=str(folder))
    with pytest.raises(BadInput, match="no such file"):
        loaded.predict(["red"], among=str(folder / "none.txt"))
    with pytest.raises(BadInput, match="red.JPG.*no such file"):
        loaded.predict(["red.JPG"], among=str(folder))
