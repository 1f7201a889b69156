"""Teachers of language models: runs of the same task, or published weights, that read the same
tokens. See `common.compress.distill` and `common.training.teachers`.

Letters: B rows, L positions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from common.compress import distill
from common.compress.distill import Lesson, Outputs, Taught
from common.errors import require
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


def teacher(
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


def taught(
    lesson: Lesson,
    teacher: Teacher,
    model: nn.Module,
    inputs: dict[str, Any],
    objective: dict,
    hard: str,
    *,
    several: bool = False,
    constrain: Callable,
) -> Taught:
    """What a lesson adds to a task's loss; see `common.compress.distill.taught`.

    Args:
      lesson, objective, hard, several, constrain: as there.
      teacher, model: the teacher, and the student's model.
      inputs: keyword arguments of both models, arrays or their shapes.
    """

    def shapes(model):
        init = lambda key, inputs: distill.outputs(
            model, model.init(key, **inputs), captures=["intermediates"], **inputs
        )
        return jax.eval_shape(init, jax.random.key(0), inputs)

    own, theirs = shapes(model), shapes(teacher.model)
    arguments = {"several": several, "constrain": constrain}
    return distill.taught(lesson, own, theirs, objective, hard, **arguments)


def terms(
    taught: Taught, teacher: Teacher, params, frozen, batch: dict, own: Outputs, valid, **inputs
) -> dict:
    """The Terms of a lesson for a batch.

    Args:
      taught, teacher: of the task.
      params: the student's.
      frozen: the teacher's arrays.
      batch: with `segments` i32[B, L] and `valid` f32[B]; padding has no hidden state to learn.
      own: the student's Outputs.
      valid: weights of the logits.
      inputs: keyword arguments of the teacher's model.
    """
    variables, captures = teachers.variables(frozen), taught.captures
    theirs = distill.outputs(teacher.model, variables, captures=captures, **inputs)
    each = batch["valid"][:, None] * (batch["segments"] > 0).astype(jnp.float32)
    return taught.terms(params, own, theirs, valid, each)
