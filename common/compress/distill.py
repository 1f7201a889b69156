"""Distillation: a model that also learns from what another one, its teacher, says of each example.

    lesson = distill.lesson(teacher="runs/large", distill=0.5, temperature=2.0)
    pair = distill.soft_targets(logits, teachers_logits, valid, temperature=2.0)

Soft targets are those of Hinton et al. 2015; hidden states are compared as in TinyBERT (Jiao et al.
2020), through a learned projection where widths differ, with layers mapped evenly. Which runs and
weights can teach, and how they are read: `common.training.teachers`.

Letters: B rows, C classes, D width of hidden states, L layers.
"""

import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from common import losses
from common.errors import require
from common.task import Table, Terms

SECTION = "distill"  # of the parameters: the projections of hidden states
NAMES = "embed", "mlp"  # of the dimensions of their kernels
PARTITION: Table = ((rf"{SECTION}/layer_\d+/kernel", NAMES),)
LAYER = re.compile(r"[a-z]+_([0-9]+)")  # names of hidden states: hidden_3, stage_1
KEYS = "teacher", "temperature", "distill", "hidden"


class Lesson(NamedTuple):
    """The keys of a section `loss` that are about a teacher; see `lesson`."""

    teacher: str
    temperature: float | None
    distill: float | None
    hidden: float | None


def lesson(
    *,
    teacher: str = "",
    temperature: float | None = None,
    distill: float | None = None,
    hidden: float | None = None,
) -> Lesson | None:
    """What a section `loss` says of a teacher; None without one.

    Args:
      teacher: the workdir of a run, or published weights, whose outputs are learnt as well.
      temperature: by which both models' logits are divided; None is 1. May be traced.
      distill: share of the soft targets in the objective, the labels having the rest; None is none
        of them. May be traced.
      hidden: weight of the mean squared error of hidden states; None is no such term. May be
        traced.

    Raises:
      BadInput: for a value out of range, or keys that teach nothing.
    """
    if not teacher:
        for name, value in {
            "temperature": temperature,
            "distill": distill,
            "hidden": hidden,
        }.items():
            require(value is None, f"config.loss.{name}: set config.loss.teacher as well")
        return None
    teaches = distill is not None or hidden is not None
    require(teaches, "config.loss.teacher: it teaches nothing: set config.loss.distill or .hidden")
    if isinstance(temperature, float):
        require(temperature > 0, f"config.loss.temperature: {temperature} is not positive")
    if isinstance(distill, float):
        require(0 <= distill <= 1, f"config.loss.distill: {distill} is not in [0, 1]")
    if isinstance(hidden, float):
        require(hidden >= 0, f"config.loss.hidden: {hidden} is negative")
    useless = temperature is not None and distill is None
    require(
        not useless, "config.loss.temperature: it is that of soft targets: set .distill as well"
    )
    return Lesson(teacher, temperature, distill, hidden)


def untaught(config: dict, whole: bool = True) -> dict:
    """A config without its teacher, for whatever does not train: the model is the same.

    Args:
      config: nested dicts.
      whole: False keeps the teacher of hidden states, whose projections are parameters.
    """
    section = config.get("loss") or {}
    ours = all(key in section for key in KEYS)  # and not those of a task of somebody's own
    if not ours or not section["teacher"] or not (whole or section["hidden"] is None):
        return config
    none = dict.fromkeys(KEYS) | {"teacher": ""}
    return config | {"loss": section | none}


def without_projections(params: dict, config: dict) -> dict:
    """The parameters of a run's model alone: those of a run with a teacher of hidden states have
    projections beside them."""
    taught = untaught(config) is not config
    return {k: x for k, x in params.items() if not taught or k != SECTION}


# ------------------------------------------------------------------------------------------- losses


def soft_targets(logits, targets, valid, temperature=None, several: bool = False):
    """T^2 KL(teacher || student) of distributions over classes at temperature T: (sum f32[], weight
    f32[]) in nats. The factor keeps the size of gradients (Hinton et al. 2015, section 2).

    Args:
      logits: f32[B, C], of the student.
      targets: f32[B, C], of the teacher.
      valid: f32[B].
      temperature: T; None is 1.
      several: whether a row has any number of classes: a Bernoulli distribution for each, over
        whose KL the mean is taken, as in `losses.multi_label_cross_entropy`.
    """
    heat = 1.0 if temperature is None else temperature
    logits, targets = (x.astype(jnp.float32) / heat for x in (logits, targets))
    if several:
        shares = jax.nn.sigmoid(targets)
        yes = jax.nn.log_sigmoid(targets) - jax.nn.log_sigmoid(logits)
        no = jax.nn.log_sigmoid(-targets) - jax.nn.log_sigmoid(-logits)
        divergence = jnp.mean(shares * yes + (1 - shares) * no, axis=-1)
    else:
        own, theirs = jax.nn.log_softmax(logits), jax.nn.log_softmax(targets)
        divergence = jnp.sum(jnp.exp(theirs) * (theirs - own), axis=-1)
    total, weight = losses.weighted(divergence, valid)
    return heat**2 * total, weight


def mapped(own: int, theirs: int) -> list[int]:
    """The teacher's layer for each of the student's, evenly, from the end: the last is the last."""
    return [-(-(i + 1) * theirs // own) - 1 for i in range(own)]


def hidden_states(intermediates: Mapping) -> list[jax.Array]:
    """The activations that a model names with a number ("hidden_0", "stage_1"), in order."""
    numbered = {
        int(found[1]): value[0]
        for name, value in intermediates.items()
        if (found := LAYER.fullmatch(name)) and isinstance(value, tuple)
    }
    return [numbered[i] for i in sorted(numbered)]


# ------------------------------------------------------------------------------------------ teacher


class Outputs(NamedTuple):
    """Of a model: its result, the logits [..., C] or a tuple that begins with them, and hidden
    states, a list of [..., D]."""

    result: Any
    hidden: list

    @property
    def logits(self) -> jax.Array:
        """[..., C]."""
        return self.result[0] if isinstance(self.result, tuple) else self.result


class Taught(NamedTuple):
    """What a task adds to its loss.

    Attributes:
      init: key -> parameters beside the model's: {"distill": …}, the projections, or {}.
      partition: rows for these.
      terms: (params, own Outputs, the teacher's, valid, each) -> Terms "soft" and "hidden", as far
        as the lesson has them. `valid` f32[...] weights logits, `each` f32[...] hidden states:
        leading dimensions that it lacks are weighted alike.
      objective: the coefficients of all terms, those of the task among them.
      captures: the collections that `apply` has to return: ["intermediates"], or [].
    """

    init: Callable
    partition: Table
    terms: Callable
    objective: dict
    captures: list[str]


def taught(
    lesson: Lesson,
    own: Outputs,
    theirs: Outputs,
    objective: dict,
    hard: str,
    *,
    several: bool = False,
    dense: Callable[..., nn.Module] = nn.Dense,
) -> Taught:
    """The loss of a lesson.

    Args:
      lesson: the section's keys.
      own, theirs: abstract Outputs of student and teacher, for the same rows.
      objective: the task's own {term: coefficient}.
      hard: the term of it that soft targets take a share of.
      several: see `soft_targets`.
      dense: features -> a linen module that projects hidden states; on a mesh, one that shards its
        kernel as `PARTITION` says.

    Raises:
      BadInput: if hidden states cannot be compared.
    """
    pairs: list[tuple[int, int]] = []
    if lesson.hidden is not None:
        pairs = list(enumerate(_layers(own.hidden, theirs.hidden)))
    projections = {
        i: dense(theirs.hidden[j].shape[-1])
        for i, j in pairs
        if own.hidden[i].shape[-1] != theirs.hidden[j].shape[-1]
    }

    def init(key):
        made, key = {}, jax.random.fold_in(key, zlib.crc32(SECTION.encode()))
        for i, dense in projections.items():
            row = jnp.zeros((1, own.hidden[i].shape[-1]))
            made[f"layer_{i}"] = dense.init(jax.random.fold_in(key, i), row)["params"]
        return {SECTION: made} if made else {}

    def terms(params, own: Outputs, theirs: Outputs, valid, each) -> Terms:
        made: Terms = {}
        if lesson.distill is not None:
            rows = (x.reshape(-1, x.shape[-1]) for x in (own.logits, theirs.logits))
            made["soft"] = soft_targets(*rows, valid.reshape(-1), lesson.temperature, several)
        if pairs:
            errors = 0.0
            for i, j in pairs:
                x = own.hidden[i]
                if i in projections:
                    x = projections[i].apply({"params": params[SECTION][f"layer_{i}"]}, x)
                squares = jnp.square(x.astype(jnp.float32) - theirs.hidden[j].astype(jnp.float32))
                inner = tuple(range(each.ndim, squares.ndim))
                errors += jnp.mean(squares, axis=inner) / len(pairs)
            made["hidden"] = losses.weighted(errors, each)
        return made

    objective = dict(objective)
    if lesson.distill is not None:
        objective |= {hard: objective[hard] * (1.0 - lesson.distill), "soft": lesson.distill}
    if pairs:
        objective["hidden"] = lesson.hidden
    partition = PARTITION if projections else ()
    return Taught(init, partition, terms, objective, ["intermediates"] if pairs else [])


def _layers(own: list, theirs: list) -> list[int]:
    """`mapped` for hidden states that can be compared."""
    where = "config.loss.hidden"
    require(bool(own), f"{where}: the model names no hidden states with a number, such as hidden_0")
    require(bool(theirs), f"{where}: the teacher names no hidden states with a number")
    layers = mapped(len(own), len(theirs))
    for i, j in enumerate(layers):
        same = own[i].shape[:-1] == theirs[j].shape[:-1]
        require(
            same,
            f"{where}: hidden states of layer {i} are {list(own[i].shape[1:])} here and, of the "
            f"teacher's layer {j}, {list(theirs[j].shape[1:])}: only the last number may differ",
        )
    return layers


def outputs(model: nn.Module, variables: dict, *inputs, captures=(), **options) -> Outputs:
    """A model's Outputs; without `captures` (`Taught`), what `apply` does and no hidden states."""
    if not captures:
        return Outputs(model.apply(variables, *inputs, **options), [])
    result, changed = model.apply(variables, *inputs, mutable=captures, **options)
    return Outputs(result, hidden_states(changed.get("intermediates", {})))


def abstract(model: nn.Module, *inputs) -> Outputs:
    """A model's Outputs as shapes, for inputs or their shapes."""

    def run(key, *inputs):
        return outputs(model, model.init(key, *inputs), *inputs, captures=["intermediates"])

    return jax.eval_shape(run, jax.random.key(0), *inputs)


def same_classes(teacher: str, own: tuple[str, ...], theirs: tuple[str, ...], count: int) -> None:
    """Raises `BadInput` unless a teacher predicts the classes `own`, in this order.

    Args:
      teacher: names it.
      own: of the student.
      theirs: of the teacher; () if nobody knows their names, but only their `count`.
    """
    where = f"config.loss.teacher: {teacher}"
    if not theirs:
        require(
            count == len(own), f"{where} predicts {count} classes, and the data have {len(own)}"
        )
        return
    odd = sorted(set(own) ^ set(theirs))
    differ = f"such as {odd[0]!r}" if odd else "in another order"
    require(own == theirs, f"{where} predicts other classes than the data have ({differ})")
