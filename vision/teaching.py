"""Teachers of image classifiers: runs of `vision.classify`, or published weights, with the same
classes. See `common.compress.distill` and `common.training.teachers`.

Letters: B batch, H height, W width, C channels, K classes.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common.compress import distill
from common.compress.distill import Lesson, Outputs, Taught
from common.data import fetch
from common.errors import require
from common.nn import model as models
from common.nn.layers import Dense
from common.task import Frozen
from common.training import teachers
from common.training.teachers import WHERE
from common.weights import engine
from vision import weights
from vision.data.sets import ImageFacts
from vision.pretrained import WEIGHTS
from vision.weights import preprocessor


class Teacher(NamedTuple):
    """What the task needs of its teacher.

    Attributes:
      model: its model.
      frozen: its parameters and statistics; see `common.task.Frozen`.
      seen: images f32[B, H, W, C], normalised for the student -> for the teacher.
    """

    model: nn.Module
    frozen: Frozen
    seen: Callable


def teacher(
    config: dict, name: str, facts: ImageFacts, model_of: Callable, constrain: Callable
) -> Teacher:
    """The teacher that a section `loss` names.

    Args:
      config: the student's.
      name: the workdir of a run, or published weights.
      facts: of the student's images.
      model_of: (config, facts) -> the model of a run.
      constrain: pins activations to the student's mesh.

    Raises:
      BadInput: if it is of another task, or has other classes.
    """
    if teachers.is_run(name):
        own, theirs, frozen = teachers.of_run(name, config["task"])
        model, classes, scale = model_of(own, theirs), theirs.classes, (theirs.mean, theirs.std)
    else:
        model, variables, classes, scale = _published(name)
        if "constrain" in models.fields_of(type(model)):
            model = model.clone(constrain=constrain)
        extra = {key: value for key, value in variables.items() if key != "params"}
        frozen = teachers.of_arrays(model, variables["params"], extra)
    distill.same_classes(name, facts.classes, classes, getattr(model, "num_classes", 0))
    if scale == (facts.mean, facts.std):
        return Teacher(model, frozen, lambda images: images)
    (mean, std), (old_mean, old_std) = (
        tuple(map(np.float32, numbers)) for numbers in (scale, (facts.mean, facts.std))
    )
    return Teacher(model, frozen, lambda images: (images * old_std + old_mean - mean) / std)


@teachers.once
def _published(name: str) -> tuple:
    """(model, variables, names of classes, (mean, std)) of published weights."""
    folder = fetch.find_pretrained(name, known=WEIGHTS, where=WHERE)
    described = engine.describe(folder, weights.DESCRIBED)
    model = described.family.model(**weights.sizes(folder))
    setup = preprocessor.read(folder)
    text = f"{WHERE}: {folder}: no {preprocessor.FILE} says how its images are scaled"
    require(setup is not None, text)
    scale = weights.normalisation(setup)
    variables = weights.pretrained(folder)
    head = any(path.startswith(weights.HEADS) for path in weights.flat(variables))
    require(head, f"{WHERE}: {name}: it has no head for classes")
    return model, variables, described.classes, (scale["mean"], scale["std"])


def taught(
    lesson: Lesson,
    teacher: Teacher,
    model: nn.Module,
    shape: tuple[int, int, int],
    objective: dict,
    facts: ImageFacts,
    constrain: Callable,
) -> Taught:
    """What a lesson adds to the loss; see `common.compress.distill.taught`.

    Args:
      lesson, objective: as there.
      teacher, model: the teacher, and the student's model.
      shape: (H, W, C) of an image as the models see it.
      facts: of the images.
      constrain: pins activations to a mesh.
    """

    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    own, theirs = (distill.abstract(m, images) for m in (model, teacher.model))
    arguments = {
        "several": facts.multi_label,
        "dense": partial(Dense, names=distill.NAMES, constrain=constrain),
    }
    return distill.taught(lesson, own, theirs, objective, "hard", **arguments)


def terms(
    taught: Taught, teacher: Teacher, params, frozen, batch: dict, logits, intermediates
) -> dict:
    """The Terms of a lesson for a batch.

    Args:
      taught, teacher: of the task.
      params: the student's.
      frozen: the teacher's arrays.
      batch: with `image` f32[B, H, W, C] and `valid` f32[B].
      logits, intermediates: of the student: f32[B, K], and what `apply` captured.
    """
    own = Outputs(logits, distill.hidden_states(intermediates))
    images, variables = teacher.seen(batch["image"]), teachers.variables(frozen)
    theirs = distill.outputs(teacher.model, variables, images, captures=taught.captures)
    return taught.terms(params, own, theirs, batch["valid"], batch["valid"])
