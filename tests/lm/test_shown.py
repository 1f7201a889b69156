"""What trackers get of a language model: rows of its data, continued texts, a classifier's
mistakes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np

from common.task import EvalContext, Source
from lm import shown

LENGTH, VOCAB = 12, 20
TOKENIZER = SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids)))
FACTS = SimpleNamespace(tokenizer=TOKENIZER, special={"pad": 0}, classes=("calm", "loud"))
TOKENS = np.arange(8 * LENGTH).reshape(8, LENGTH) % (VOCAB - 1) + 1
LABELS = np.int32(np.arange(8) % 2)
SOURCE = Source(
    size=8,
    read=lambda rows: {"tokens": TOKENS[rows], "label": LABELS[rows]},
    resident=None,
    spec={"tokens": jax.ShapeDtypeStruct((LENGTH,), np.int32)},
    fingerprint="",
    facts=FACTS,
)


def context(params):
    key = jax.random.key(0)
    return EvalContext(params, extra={}, step=1, key=key, batches=None, workdir=None, show=True)


def test_training_rows_are_texts_without_padding():
    rows = {"tokens": np.array([[5, 6, 0, 0], [7, 8, 9, 0]]), "label": np.array([1, 0])}
    (text,) = (value.draw() for value in shown.training(FACTS, rows).values())
    assert text == "loud: 5 6\n\ncalm: 7 8 9"


def test_a_text_is_continued_token_by_token():
    """A model that counts on from the token before."""

    def predict(params, batch):
        following = (batch["tokens"][:, :-1] + params) % VOCAB
        return 1e3 * jax.nn.one_hot(following, VOCAB)

    with jax.set_mesh(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])):
        value = shown.continued(SOURCE, predict)(context(jnp.int32(1)))["generated"].draw()
    first = value.split("\n\n")[0]
    assert first == "1 2 3 4 5 6 |7 8 9 10 11 12"
    assert len(value.split("\n\n")) == shown.MOST


def test_the_gravest_mistakes_come_first():
    """Rows 1, 3 and 5 are loud, and taken for calm, the more surely the later they are."""

    def logits(params, extra, batch, key):
        sure = jnp.where(batch["label"] == 1, batch["index"], 9).astype(jnp.float32)
        sure = jnp.where(batch["index"] == 7, -5.0, sure)
        return jnp.stack([sure * params, jnp.zeros_like(sure)], axis=1)

    with jax.set_mesh(jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])):
        show = shown.classified(SOURCE, logits)
        values = show(context(jnp.float32(1)), np.array([[4, 0], [3, 1]]))
        texts = values["mistakes"].draw().split("\n\n")
    assert [text.split(": ")[0] for text in texts] == [
        "loud as calm, 99%",
        "loud as calm, 95%",
        "loud as calm, 73%",
    ]
    assert texts[0].endswith(" ".join(map(str, TOKENS[5])))
    picture = values["confusion_matrix"].draw()
    assert (picture.dtype, picture.shape[-1]) == (np.uint8, 3)
