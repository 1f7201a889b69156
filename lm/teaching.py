"""Teachers of language models: runs of the same task, or published weights, that read the same
tokens. See `common.compress.distill` and `common.training.teachers`.

Letters: B rows, L positions.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from common.compress import distill
from common.compress.distill import Lesson, Outputs
from common.errors import require
from common.nn.layers import Dense
from common.task import Frozen
from common.training import teachers
from common.training.teachers import WHERE
from lm import predict, weights
from lm.data.tokenizer import TextFacts

_published = teachers.once(lambda name: weights.load(name, where=WHERE))


class Teacher(NamedTuple):
    """What a task needs of its teacher.

    Attributes:
      model: its model.
      frozen: its parameters; see `common.task.Frozen`.
      classes: the names of its classes; () if nobody knows them.
    """

    model: nn.Module
    frozen: Frozen
    classes: tuple[str, ...]


def teacher_of(
    config: dict, name: str, facts: TextFacts, model_of: Callable, kind: type, constrain: Callable
) -> Teacher:
    """The teacher that a section `loss` names.

    Args:
      config: the student's.
      name: the workdir of a run, or published weights.
      facts: of the student's texts.
      model_of: (config, facts, constrain) -> the model of a run of this task.
      kind: the class of published models that can teach it.
      constrain: pins activations to the student's mesh.

    Raises:
      BadInput: if it is of another task, or reads other tokens or shorter rows.
    """
    if teachers.is_run(name):
        own, theirs, frozen = teachers.of_run(name, config["task"])
        made = Teacher(model_of(own, theirs, constrain), frozen, theirs.classes)
    else:
        loaded = _published(name)
        theirs, found = loaded.facts, type(loaded.model).__name__
        fits = isinstance(loaded.model, kind)
        require(
            fits, f"{WHERE}: {name} is a {found}, and a {kind.__name__} teaches {config['task']}"
        )
        model = loaded.model.clone(constrain=constrain)
        frozen = teachers.of_arrays(model, loaded.params, {})
        made = Teacher(model, frozen, loaded.classes)
    ours, vocab = (f.tokenizer.get_vocab(with_added_tokens=True) for f in (facts, theirs))
    same = ours == vocab and facts.vocab_size == theirs.vocab_size
    count = len({token for token, _ in ours.items() ^ vocab.items()})
    require(same, f"{WHERE}: {name} reads other tokens than the data have ({count} differ)")
    longest = predict.longest_of(made.model)
    fits = longest is None or longest >= facts.length
    require(fits, f"{WHERE}: {name} reads at most {longest} tokens, and rows have {facts.length}")
    return made


class Teaching(NamedTuple):
    """What a task adds to its own.

    Attributes:
      init: key -> parameters beside the model's; see `common.compress.distill.Taught`.
      partition, objective, captures: as there.
      frozen: for the Task.
      terms: (params, frozen, batch, own Outputs, weights of the logits) -> Terms.
    """

    init: Callable = lambda key: {}
    partition: tuple = ()
    objective: dict = {}  # noqa: RUF012 - nobody changes it
    captures: list | tuple = ()
    frozen: Frozen | None = None
    terms: Callable = lambda *arguments: {}


def teaching(
    lesson: Lesson | None,
    teacher: Teacher | None,
    model: nn.Module,
    inputs: Callable,
    shapes: dict,
    objective: dict,
    hard: str,
    *,
    several: bool = False,
    constrain: Callable,
) -> Teaching:
    """What a lesson adds to a task; without one, nothing.

    Args:
      lesson, objective, hard, several: as `common.compress.distill.taught` takes them.
      teacher, model: the teacher, and the student's model.
      inputs: batch -> what both models are called with.
      shapes: those of a batch of one row.
      constrain: pins activations to a mesh.
    """
    if lesson is None:
        return Teaching(objective=objective)
    own, theirs = (distill.abstract(m, *inputs(shapes)) for m in (model, teacher.model))
    arguments = {
        "several": several,
        "dense": partial(Dense, names=distill.NAMES, constrain=constrain),
    }
    taught = distill.taught(lesson, own, theirs, objective, hard, **arguments)

    def terms(params, frozen, batch, own: Outputs, valid):
        variables, read = teachers.variables(frozen), inputs(batch)
        theirs = distill.outputs(teacher.model, variables, *read, captures=taught.captures)
        # Padding has no hidden states to learn.
        each = batch["valid"][:, None] * (batch["segments"] > 0).astype(jnp.float32)
        return taught.terms(params, own, theirs, valid, each)

    rows = taught.init, taught.partition, taught.objective, taught.captures
    return Teaching(*rows, teacher.frozen, terms)
