"""The training step: a pure function (hypers, state, batch, resident) -> (state, Terms, finite);
and what the loop calls, one or several steps as one computation.

A config's floats enter as traced numbers, `hypers`, from which task and optimizer are built during
tracing: a new learning rate recompiles nothing, and `jax.vmap` over hypers, states and seeds trains
a population. Everything random is keyed by (seed, purpose, step).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from common import tree
from common.data import loading
from common.devices import mesh
from common.task import Task, Terms, purpose_key
from common.training import interval
from common.training.optim import Optimizer

# Terms that the step adds to the task's.
STEP_TERMS = {"loss", "learning_rate", "gradient_norm", "update_norm"}


def with_step_terms(terms: Terms, optimizer: Optimizer) -> Terms:
    """The abstract Terms of a step, from those of its task."""
    number = jax.ShapeDtypeStruct((), jnp.float32)
    own = STEP_TERMS if optimizer.sparsity is None else STEP_TERMS | {"sparsity"}
    return terms | dict.fromkeys(own, (number, number))


class TrainState(NamedTuple):
    """Arrays only. `step` counts completed updates; `average` is {} or {"params", "extra"}, of the
    parameters that are trained (`Optimizer.live`)."""

    step: jax.Array
    params: dict
    extra: dict
    opt_state: Any
    average: dict


class Plan(NamedTuple):
    """The section `train`, checked, with durations in steps."""

    batch_size: int
    total: int
    accumulate: int
    average: float | None
    log_every: int
    steps_per_call: int
    sampling: str = "uniform"


def _gradients(
    task: Task,
    params,
    extra,
    batch: dict,
    key,
    *,
    accumulate: int,
    split: Callable,
    unroll: bool,
):
    """(gradients, loss, Terms, extra) of the objective sum_i c_i S_i / W_i over the whole batch."""

    def objective(terms, weights):
        return sum(
            c * terms[n][0] / jnp.maximum(jax.lax.stop_gradient(weights[n]), 1e-30)
            for n, c in task.objective.items()
        )

    def loss(params, extra, batch, key, weights=None):
        terms, extra = task.loss(params, extra, batch, key)
        weights = {n: w for n, (_, w) in terms.items()} if weights is None else weights
        return objective(terms, weights), (terms, extra)

    if task.gradients is not None:
        grads, terms, extra = task.gradients(loss, params, extra, batch, key)
        return grads, objective(terms, {n: w for n, (_, w) in terms.items()}), terms, extra
    if accumulate == 1:
        (value, (terms, extra)), grads = jax.value_and_grad(loss, has_aux=True)(
            params, extra, batch, key
        )
        return grads, value, terms, extra

    # The whole batch's weights come first, so that the parts sum to the exact objective. They do
    # not depend on the parameters, so the compiler drops the rest of this pass.
    weights = {n: w for n, (_, w) in task.loss(params, extra, batch, key)[0].items()}

    def part(carry, inputs):
        grads, value, extra = carry
        number, rows = inputs
        (v, (terms, extra)), g = jax.value_and_grad(loss, has_aux=True)(
            params, extra, rows, jax.random.fold_in(key, number), weights
        )
        return (jax.tree.map(jnp.add, grads, g), value + v, extra), terms

    start = (jax.tree.map(jnp.zeros_like, params), jnp.float32(0), extra)
    (grads, value, extra), terms = jax.lax.scan(
        part, start, (jnp.arange(accumulate), split(batch)), unroll=unroll
    )
    return grads, value, jax.tree.map(lambda x: x.sum(axis=0), terms), extra


def make_step(build: Callable, layout: mesh.Layout, plan: Plan, order) -> Callable:
    """The pure step: (hypers, state, batch, resident) -> (state, Terms, finite).

    Args:
      build: hypers -> (Task, Optimizer), called while tracing.
      layout: where batches live.
      plan: batch size, accumulation, average.
      order: of the training set: `Source.order`.

    The step takes its batch from `resident` ({name: [N, ...]}) or, if that is empty, from `batch`.
    The Terms are the task's plus `loss` (the objective), `learning_rate`, `gradient_norm`,
    `update_norm` and, where weights are pruned, `sparsity`. `finite` is whether loss, gradients and
    update all are.
    """
    by_rows = mesh.batch_sharding(layout)
    # Parts are unrolled on CPU, where XLA's convolutions are ten times slower inside a loop.
    unroll = layout.mesh.devices.flat[0].platform == "cpu"

    def split(batch):
        """[B, ...] -> [accumulate, B / accumulate, ...], strided, so that rows stay on their
        devices."""

        def split_leaf(x):
            parts = x.reshape(-1, plan.accumulate, *x.shape[1:])
            parts = jax.lax.with_sharding_constraint(parts, by_rows)
            return jnp.swapaxes(parts, 0, 1)

        return jax.tree.map(split_leaf, batch)

    def step(hypers, state: TrainState, batch: dict, resident: dict):
        task, optimizer = build(hypers)
        seed = hypers["seed"]
        if resident:
            batch = loading.gather(seed, state.step, plan.batch_size, order, resident)
            batch = jax.lax.with_sharding_constraint(batch, by_rows)
        batch = task.prepare(purpose_key(seed, "prepare", state.step), batch, True)
        live = optimizer.live(state.params)
        whole = lambda live: tree.joined(state.params, live)
        trained = lambda live: optimizer.trained(whole(live))
        grads, loss, terms, extra = _gradients(
            task._replace(loss=lambda live, *rest: task.loss(trained(live), *rest)),
            live,
            state.extra,
            batch,
            purpose_key(seed, "loss", state.step),
            accumulate=plan.accumulate,
            split=split,
            unroll=unroll,
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, live, state.step)
        live = jax.tree.map(jnp.add, live, updates)
        average = state.average
        if plan.average is not None:
            count = state.step.astype(jnp.float32)
            keep = jnp.minimum(plan.average, (1 + count) / (10 + count))
            average = jax.tree.map(
                lambda old, new: (keep * old + (1 - keep) * new).astype(old.dtype),
                average,
                {"params": live, "extra": extra},
            )
            average["params"] = optimizer.zeroed(opt_state, average["params"])
        weight = jnp.float32(1)
        norms = {"gradient_norm": _norm(grads), "update_norm": _norm(updates)}
        terms = {
            **terms,
            "loss": (loss, weight),
            "learning_rate": (optimizer.learning_rate(state.step), weight),
            **{name: (norm, weight) for name, norm in norms.items()},
        }
        if optimizer.sparsity is not None:
            terms["sparsity"] = optimizer.sparsity(opt_state), weight
        finite = jnp.isfinite(loss) & jnp.isfinite(sum(norms.values()))
        return TrainState(state.step + 1, whole(live), extra, opt_state, average), terms, finite

    return step


def make_update(step: Callable, plan: Plan) -> Callable:
    """A call of the loop: (hypers, state, sums, inputs, resident) -> (state, sums, Terms, finite).

    `sums` f32[2, N] accumulate the Terms (`common.training.interval`). If a call makes one step,
    `inputs` is its batch. Otherwise it is the number of steps, i32[]: the same program runs each
    step whatever that is, so the bits do not depend on how steps are grouped. `finite` i32[] counts
    the steps before the first that is not finite; the Terms are those of that step, or of the last.

    Args:
      step: from `make_step`.
      plan: how many steps a call may make.
    """

    def one(hypers, state: TrainState, sums, batch: dict, resident: dict):
        state, terms, finite = step(hypers, state, batch, resident)
        return state, interval.add(sums, terms), terms, finite

    def several(hypers, state: TrainState, sums, count, resident: dict):
        def body(i, carry):
            state, sums, before, good = carry
            state, sums, terms, finite = one(hypers, state, sums, {}, resident)
            terms = jax.tree.map(lambda new, old: jnp.where(good == i, new, old), terms, before)
            return state, sums, terms, jnp.where(finite & (good == i), good + 1, good)

        _, terms, _ = jax.eval_shape(step, hypers, state, {}, resident)
        terms = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), terms)
        return jax.lax.fori_loop(0, count, body, (state, sums, terms, jnp.int32(0)))

    return one if plan.steps_per_call == 1 else several


def _norm(grads) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads)))
