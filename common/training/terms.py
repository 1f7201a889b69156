"""What a task's `init`, `prepare` and `loss` return, against the contract, by tracing them once for
abstract arrays: shapes, structures, and what each term depends on."""

import contextlib
import functools
import numbers
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from common import tree
from common.compress import quantize
from common.data import loading
from common.errors import choice, nearest, require
from common.runs.history import metric_keys
from common.task import Task, Terms
from common.training.contract import (
    READ_MEANS,
    READ_PARAMETERS,
    READ_TASK,
    RESERVED,
    explained_in,
    kind_of,
)
from common.training.step import STEP_TERMS, Plan

LOOPS = ("scan", "while")  # whose outputs come of several passes

# Of primitives that join or pick elements, the operands whose elements these are; the others are
# indices.
ELEMENTS = {
    "concatenate": slice(None),
    "stack": slice(None),
    "dynamic_update_slice": slice(2),
    "dynamic_slice": slice(1),
    "gather": slice(1),
    "scatter": slice(0, 3, 2),
}

# What the outputs of a traced loss depend on.
PARAMETERS, VALID, ROWS, UNKNOWN = 1, 2, 4, 8


def check_task(config: dict, task: Task, schedule: Plan) -> Terms:
    """The task's abstract Terms. Raises `BadInput` if what it computes breaks the contract or does
    not fit the config.

    The keys for early stopping and for the best checkpoint must name existing terms or evaluators.
    An evaluator's metrics are only known once it has run: `common.training.watched` checks them.
    """
    require(
        schedule.accumulate == 1 or task.rows_independent,
        "config.train.accumulate: this loss mixes rows (batch norm), so it cannot be split",
    )
    require(
        schedule.accumulate == 1 or task.gradients is None,
        "config.train.accumulate: this task computes its own gradients, which cannot be split",
    )
    abstract = _check_loss(config, task, schedule)
    shapes, terms = {term: total.shape for term, (total, _) in abstract.items()}, set(abstract)
    valid = {"eval": task.evaluators, "train": terms | STEP_TERMS}
    for where, key in metric_keys(config).items():
        kind, *names = key.split("/")
        kinds = ("eval",) if where == "config.checkpoint.best" else ("eval", "train")
        require(kind in kinds, f"{where}: {key!r}: a key here begins with {' or '.join(kinds)}")
        name = names[0] if names else ""
        if kind == "eval":
            require(
                name in valid[kind],
                f"{where}: {key!r}: unknown evaluator {name!r}; {nearest(name, valid[kind])}; "
                f"--config.evals.{name or 'NAME'}.split=… adds one",
            )
        else:
            choice(where, name, valid[kind])
            require(
                not shapes.get(names[0], ()) or names[0] in STEP_TERMS,
                f"{where}: {key!r} is no single number, which never improves",
            )
            choice(where, key, [f"train/{name}" for name in valid[kind]])
    return abstract


def _initial(config: dict, task: Task):
    """(params, extra) of `task.init` as ShapeDtypeStructs. Raises `BadInput` unless both are nested
    dicts of arrays, those of params of floats, or of the integers of a quantized run."""
    where = f"config.task: {config['task']}: init"

    def init(key):
        with explained_in(config, "init"):
            values = task.init(key)
        require(
            isinstance(values, tuple | list) and len(values) == 2,
            f"{where} returns {kind_of(values)}, not (params, extra), where extra may be {{}}; "
            f"{READ_TASK}",
        )
        for field, nested in zip(("params", "extra"), values, strict=True):
            _check_nested(f"{where}: {field}", nested)
        return tuple(values)

    params, extra = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)))
    integers = quantize.of(config).after
    for path, leaf in tree.flatten(params).items():
        require(
            integers or jnp.issubdtype(leaf.dtype, jnp.floating),
            f"{where}: the parameter {path} is {leaf.dtype}, which has no gradient; put it into "
            f"extra; {READ_PARAMETERS}",
        )
    return params, extra


def _check_nested(at: str, node) -> None:
    require(
        isinstance(node, dict),
        f"{at} is {type(node).__name__}, not a nested dict of arrays; {READ_PARAMETERS}",
    )
    for key, value in node.items():
        if isinstance(value, dict):
            _check_nested(f"{at}/{key}", value)
        else:
            require(
                isinstance(value, jax.Array | np.ndarray | np.generic),
                f"{at}/{key} is a {type(value).__name__}, not an array; {READ_PARAMETERS}",
            )


def _check_loss(config: dict, task: Task, schedule: Plan) -> Terms:
    """Traces `prepare` and `loss` as a step does; returns their abstract Terms.

    Raises:
      BadInput: if they break the contract.
    """
    params, extra = _initial(config, task)
    size, parts = schedule.batch_size, schedule.accumulate
    terms, program = _traced(config, task, params, extra, size, parts)
    where = f"config.task: {config['task']}"
    unknown = sorted(set(task.objective) - set(terms))
    require(
        not unknown,
        f"{where}: the objective names {unknown}, not among its terms {', '.join(terms)}; "
        f"{READ_TASK}",
    )
    marks = [
        *[PARAMETERS] * len(jax.tree.leaves(params)),
        *[0] * len(jax.tree.leaves(extra)),
        *[VALID if key == "valid" else ROWS for key in sorted(_batch(task, 1))],
        0,  # the key
    ]
    flows = iter(_flows(program.jaxpr, marks))
    for term, (total, _) in terms.items():
        at, minimised = f"{where}: the term {term!r}", term in task.objective
        of_sum, of_weight = next(flows), next(flows)
        require(
            of_weight & (PARAMETERS | UNKNOWN) != PARAMETERS,
            f"{at}: its weight depends on the parameters, which it never may; {READ_MEANS}",
        )
        require(
            not minimised or total.shape == (),
            f"{at} is minimised, and its sum is float32{list(total.shape)}, not one number: sum it "
            f"over the rows; {READ_MEANS}",
        )
        if of_sum & ROWS:
            require(
                bool(of_sum & VALID),
                f"{at}: its sum does not read batch['valid'], so rows of padding would count: "
                f"multiply the rows by it, then sum them; {READ_MEANS}",
            )
            require(
                bool(of_weight & VALID),
                f"{at}: its weight does not read batch['valid']: a term is no mean, but the sum of "
                f"valid rows and their weight, such as sum(batch['valid']); {READ_MEANS}",
            )
        elif minimised and parts > 1:
            require(
                bool(of_sum & of_weight & VALID),
                f"{at} does not depend on the rows, so each of the {parts} parts of a batch "
                "(config.train.accumulate) would add it again: multiply its sum and its weight by "
                f"sum(batch['valid']); {READ_MEANS}",
            )
    arrays = [term for term, (total, _) in terms.items() if total.shape]
    other = {}
    # A loss that is made for this size of the batch fails at another, which proves nothing.
    with contextlib.suppress(Exception):
        other = _traced(config, task, params, extra, 2 * size, parts)[0] if arrays else {}
    for term in filter(other.get, arrays):
        shape = list(terms[term][0].shape)
        require(
            list(other[term][0].shape) == shape,
            f"{where}: the term {term!r}: its sum is float32{shape}, a number per row: sum it "
            f"over the rows; {READ_MEANS}",
        )
    return terms


def _batch(task: Task, size: int) -> dict:
    return loading.batch_shapes(task.sources["train"], size)


def _traced(config: dict, task: Task, params, extra, size: int, parts: int):
    """({term: (sum, weight)} as ShapeDtypeStructs, the jaxpr (params, extra, batch, key) -> terms)
    of a batch of `size` rows whose loss is computed in `parts`."""
    where, batch = f"config.task: {config['task']}", _batch(task, size)
    known = f"{', '.join(batch)} in the batch"

    def traced(params, extra, batch, key):
        with explained_in(config, "prepare", known):
            batch = task.prepare(key, batch, True)
        _check_batch(f"{where}: prepare", batch, size, parts)
        if parts > 1:
            batch = jax.tree.map(lambda x: x[: size // parts], batch)
        with explained_in(config, "loss", f"{', '.join(batch)} in the batch"):
            values = task.loss(params, extra, batch, key)
        _check_values(f"{where}: loss", values, extra)
        return {term: tuple(pair) for term, pair in values[0].items()}

    key = jax.eval_shape(lambda: jax.random.key(0))
    program, terms = jax.make_jaxpr(traced, return_shape=True)(params, extra, batch, key)
    return terms, program


def _check_batch(at: str, batch, size: int, parts: int) -> None:
    """Raises `BadInput` unless `prepare` returned a batch of `size` rows with the reserved keys."""
    require(isinstance(batch, dict), f"{at} returns {kind_of(batch)}, no batch; {READ_TASK}")
    for key in RESERVED:
        require(key in batch, f"{at} drops {key!r}: return batch | {{…}}; {READ_TASK}")
    for key, value in batch.items():
        for leaf in [value] if key in RESERVED else jax.tree.leaves(value):
            require(
                isinstance(leaf, jax.Array | np.ndarray | np.generic | numbers.Number),
                f"{at} makes {key!r} {kind_of(leaf)}, not an array; {READ_TASK}",
            )
            shape = jnp.shape(leaf)
            require(
                shape[:1] == (size,) or (parts == 1 and key not in RESERVED),
                f"{at} makes {key!r} of {size} rows {list(shape)}; the number of rows stays; "
                f"{READ_TASK}",
            )


def _check_values(at: str, values, before) -> None:
    """Raises `BadInput` unless `loss` returned (Terms, extra), and this extra has the structure of
    the one `before`."""
    require(
        isinstance(values, tuple | list) and len(values) == 2,
        f"{at} returns {kind_of(values)}, not (Terms, extra); {READ_TASK}",
    )
    terms, extra = values
    require(
        isinstance(terms, dict) and bool(terms),
        f"{at}: its Terms are {kind_of(terms)}, not {{name: (sum, weight)}}; {READ_MEANS}",
    )
    for term, pair in terms.items():
        name = f"{at}: the term {term!r}"
        require(
            isinstance(pair, tuple | list) and len(pair) == 2,
            f"{name} is {kind_of(pair)}, not a pair (sum, weight); {READ_MEANS}",
        )
        for part, value in zip(("sum", "weight"), pair, strict=True):
            require(
                isinstance(value, jax.Array | np.ndarray | np.generic),
                f"{name}: its {part} is {kind_of(value)}, not an array f32[]: sum it over the "
                f"valid rows; {READ_MEANS}",
            )
            require(
                value.dtype == jnp.float32,
                f"{name}: its {part} is {value.dtype}{list(value.shape)}, no float32; {READ_MEANS}",
            )
        weight = pair[1]
        require(
            weight.shape == (),
            f"{name}: its weight is float32{list(weight.shape)}, not one number: sum it over the "
            f"rows; {READ_MEANS}",
        )
    old, new = _structure(before), _structure(extra)
    differ = sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))
    require(
        not differ,
        f"{at} returns an extra unlike that of init: "
        + ", ".join(
            f"{p} was {old.get(p, 'not there')} and is {new.get(p, 'gone')}" for p in differ[:2]
        )
        + f"; {READ_TASK}",
    )


def _structure(extra) -> dict[str, str]:
    """{path: "float32[3]"} of the arrays of `extra`; of no dict, {"extra": its type}."""
    if not isinstance(extra, dict):
        return {"extra": kind_of(extra)}
    return {
        path: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in tree.flatten(extra).items()
    }


def _flows(program, marks: list[int]) -> list[int]:
    """What each output of a jaxpr depends on: the union of the `marks` of its inputs.

    Calls are followed. What may depend on some of its inputs alone is marked UNKNOWN, too
    (`_is_unknown`), and so is all that goes through a mutable array.
    """
    known = dict(zip(program.invars, marks, strict=True))

    def read(variable) -> int:
        return 0 if isinstance(variable, core.Literal) else known.get(variable, 0)

    for equation in program.eqns:
        given = [read(variable) for variable in equation.invars]
        refs = [v for v in equation.invars if isinstance(v.aval, jax.ref.AbstractRef)]
        inner = equation.params.get("call_jaxpr", equation.params.get("jaxpr"))
        inner = getattr(inner, "jaxpr", inner)
        follows = equation.primitive.name not in LOOPS and inner is not None and not refs
        sizes = len(given), len(equation.outvars)
        if follows and (len(inner.invars), len(inner.outvars)) == sizes:
            outputs = _flows(inner, given)
        else:
            opaque = UNKNOWN if refs or _is_unknown(equation, given) else 0
            union = functools.reduce(operator.or_, given, opaque)
            outputs = [union] * len(equation.outvars)
            known |= dict.fromkeys(refs, union)
        known |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in program.outvars]


def _is_unknown(equation, given: list[int]) -> bool:
    """Whether an element of what a primitive returns may depend on some of its inputs alone, so
    that one of an array of (sum, weight) would be taken for the other: it returns several arrays,
    runs a program (scan, cond), or joins, or picks, elements that differ in whether they depend on
    the parameters."""
    name, kind, _ = equation.primitive.name.partition("-")
    if name not in ELEMENTS:
        return len(equation.outvars) > 1 or any(core.jaxprs_in_params(equation.params))
    # What is added up usually begins with constants.
    elements = [mark for mark in given[ELEMENTS[name]] if mark or not kind]
    differ = {mark & PARAMETERS for mark in elements} | {m & PARAMETERS for m in given} - {0}
    return len(differ) > 1
