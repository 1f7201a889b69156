"""Classes by name: their probabilities as predictions, and the labels of another set as those of a
run. What classifiers of pictures and of texts share.

Letters: K classes, b rows.
"""

import logging
import re
from typing import Any

import jax
import numpy as np

from common.errors import brief, require
from common.task import Source

NUMBER = re.compile(r"[-+]?([0-9]{1,30}\.?[0-9]*|\.[0-9]+)")


def check_top(top: int, count: int) -> int:
    """The number of classes to tell, of `count`. Raises `BadInput` if it is not positive."""
    require(top > 0, f"top: {top} is not a positive number of classes")
    return min(top, count)


def result(logits, names: tuple[str, ...], top: int, multi_label: bool = False) -> dict:
    """{"class": the likeliest, "probability": its, "probabilities": {class: of the likeliest}}.

    With `multi_label` each class is there or not, and "classes" are those that are likelier there
    than not, in place of "class" and "probability".

    Args:
      logits: f32[K].
      names: of the classes.
      top: how many probabilities to tell.
      multi_label: probabilities are sigmoids, not a softmax.
    """
    logits = np.asarray(logits, np.float64)
    if multi_label:
        shares = 1 / (1 + np.exp(-logits))
    else:
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
    best = np.argsort(-logits, kind="stable")
    told = {"probabilities": {names[i]: float(shares[i]) for i in best[:top]}}
    if multi_label:
        return {"classes": [names[i] for i in best if logits[i] > 0]} | told
    return {"class": names[best[0]], "probability": float(shares[best[0]])} | told


def line(result: dict) -> str:
    """'seven 98.2%, one 1.1%': what people read of `result`."""
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result["probabilities"].items())
    return shares if "class" in result else f"[{', '.join(result['classes'])}] {shares}"


# ------------------------------------------------------------------------------------ another set


def renumbered(sources: dict[str, Source], facts: Any) -> dict[str, Source]:
    """Sets whose labels are numbered as a run's, by the names of the classes, with its facts.

    Classes that a set lacks are told in a warning. Where the run predicts numbers, classes that are
    all numbers, such as 1 to 5, are these.

    Args:
      sources: the parts of one set, by name, with `label`: i32[b] or, of words, i32[b, L], below
        0 for none; or, of several classes each, u8[b, K].
      facts: of the run, with `classes`; () for numbers.

    Raises:
      BadInput: if the set has a class that the run has not, or numbers where the run has classes.
    """
    (theirs,) = {source.facts.classes for source in sources.values()}
    ours, where = facts.classes, "config.data.name"
    several = {facts.multi_label, *(source.facts.multi_label for source in sources.values())}
    text = "its examples have several labels each, and those of the run have one, or the reverse"
    require(len(several) == 1, f"{where}: {text}")
    if theirs and not ours and all(map(NUMBER.fullmatch, theirs)):
        values = np.array(theirs, np.float32)
        return {k: _numbered(each, values, 0)._replace(facts=facts) for k, each in sources.items()}
    kinds = {True: "classes", False: "numbers"}
    require(
        bool(theirs) == bool(ours),
        f"{where}: its labels are {kinds[bool(theirs)]}, and those of the run {kinds[bool(ours)]}",
    )
    strange = [name for name in theirs if name not in ours]
    absent = [name for name in ours if name not in theirs]
    counted = lambda names: "a class" if len(names) == 1 else f"{len(names)} classes"
    known = f"; the run has {brief(absent)[1:-1]}, which the set lacks" if absent else ""
    require(
        not strange,
        f"{where}: the set has {counted(strange)} that the run has not, {brief(strange)[1:-1]}"
        f"{known}: rename them",
    )
    if absent:
        logging.warning("%s: it lacks %s: %s", where, counted(absent), brief(absent)[1:-1])
    number = np.array([ours.index(name) for name in theirs], np.int32)
    return {
        name: _numbered(source, number, len(ours))._replace(facts=facts)
        for name, source in sources.items()
    }


def _numbered(source: Source, number: np.ndarray, count: int) -> Source:
    """A set whose class i is the class number[i] of `count`, or the number itself; unchanged if it
    has none."""
    if not len(number):
        return source

    def read(rows):
        batch = source.read(rows)
        label = batch["label"]
        if single:
            return batch | {"label": np.where(label < 0, label, number[label])}
        wide = np.zeros((len(label), count), label.dtype)
        wide[:, number] = label
        return batch | {"label": wide}

    own = source.spec["label"]
    single = np.issubdtype(own.dtype, np.signedinteger)
    label = (own.shape, number.dtype) if single else ((count,), own.dtype)
    label = jax.ShapeDtypeStruct(*label)
    return source._replace(read=read, resident=None, spec=source.spec | {"label": label})
