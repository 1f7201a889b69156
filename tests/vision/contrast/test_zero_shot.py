"""Classes by words: the names that become sentences."""

import jax
import numpy as np
import pytest

from common.errors import BadInput
from common.task import Source
from vision.contrast import zero_shot
from vision.contrast.data import PairFacts
from vision.data.sets import ImageFacts

IDS = ("n01440764", "n01443537", "n01484850")


def made(classes, **options):
    """The evaluator of three rows whose pictures and sentences are e_k, and what it encodes."""
    facts = PairFacts(ImageFacts(tuple(classes), (0.5,), (0.5,)), None)
    rows = {"label": np.arange(3, dtype=np.int32)}
    spec = {"label": jax.ShapeDtypeStruct((), np.int32)}
    read = lambda at: {name: array[at] for name, array in rows.items()}
    source, sentences = Source(3, read, None, spec, "", facts), []

    def rows_of(texts):
        sentences.extend(texts)
        return {"tokens": np.eye(3, dtype=np.float32)}

    vectors = lambda params, extra, batch, key: (jax.nn.one_hot(batch["label"], 3), None)
    words = lambda params, extra, rows: rows["tokens"]
    return zero_shot.evaluator(source, vectors, words, rows_of, **options), sentences


def test_words_of_a_file_stand_for_the_ids_of_classes(tmp_path):
    with pytest.raises(BadInput, match="'n01440764' is a WordNet id.* set `names`"):
        made(IDS)
    path = tmp_path / "names.txt"
    path.write_text("tench\ngreat_white shark\nhammerhead\n")
    _, sentences = made(IDS, names=str(path), prompts=("a {}",))
    assert sentences == ["a tench", "a great white shark", "a hammerhead"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("a\nb\n", "has 2 lines, and the set 3 classes"), ("a\n\nb\n", "line 2 is empty")],
)
def test_a_file_of_other_names_is_refused(tmp_path, text, said):
    path = tmp_path / "names.txt"
    path.write_text(text)
    with pytest.raises(BadInput, match=said):
        made(("x", "y", "z"), names=str(path))
