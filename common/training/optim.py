"""An optimizer from a config: clip, direction, decay, multipliers, schedule, freezing.

    update = -lr * shape(step) * multiplier * (direction(clip(gradient) + l2 * p) + weight_decay *
    p)

`direction` is an optax transformation without its learning rate; decoupled weight decay
(Loshchilov & Hutter 2019, in the convention of torch and optax, multiplied by the rate) is a key
of its own, so that Adam with decay is `adamw` whatever else is set. Decay, multipliers and freezing
select parameters by path. Every float may be a traced number, so code here branches only on
`is None`, never on a value.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from common import tree
from common.errors import BadInput, nearest, require
from common.sections import parameters
from common.training import depths, directions
from common.training.schedules import Schedule, schedule_steps, unit_shape

MOST = {"ns_steps": 100}  # of a direction's integers; of the others 2^31 - 1
DECAYED = ((r"(.*/)?(kernel|embedding)", 1.0),)


class Optimizer(NamedTuple):
    """An optimizer as pure functions.

    Attributes:
      init: params -> state.
      update: (gradients, state, params, step) -> (updates, state); add updates to the parameters.
      eval_params: (state, params) -> the parameters to evaluate (schedule-free has its own).
      learning_rate: step -> the rate of that step.
      trained: params -> params with the gradients of frozen ones stopped, so that none are computed
        in vain.
      live: params -> those of which gradients, state and averages are kept at all; `update` takes
        these, and returns updates of these. Nested dicts.
      zeroed: (state, params) -> params with exact zeros where the state's masks have them.
      sparsity: state -> f32[], the share of zeros that they make; None without masks.
    """

    init: Callable
    update: Callable
    eval_params: Callable
    learning_rate: Callable
    trained: Callable = lambda params: params
    live: Callable = lambda params: params
    zeroed: Callable = lambda state, params: params
    sparsity: Callable | None = None


# --------------------------------------------------------------------------------------------- make


def make_optimizer(
    total_steps: int,
    to_steps: Callable[[str, str], int],
    direction_arguments: dict,
    *,
    name: str = "adamw",
    lr: float = 1e-3,
    schedule: Schedule = "cosine",
    warmup: str = "0 steps",
    decay: str | None = None,
    final: float = 0.0,
    clip: float | None = None,
    weight_decay: float | None = None,
    l2: float | None = None,
    decayed: tuple[tuple[str, float], ...] = DECAYED,
    multipliers: tuple[tuple[str, float], ...] = (),
    layer_decay: float | None = None,
    freeze: tuple[str, ...] = (),
    lookahead: str | None = None,
) -> Optimizer:
    """Builds the optimizer: its direction, learning rate, clipping, decay and freezing.

    Args:
      total_steps: steps in the whole run, for the schedule.
      to_steps: (duration, key for messages) -> steps.
      direction_arguments: the section `optim.direction`: keyword arguments of that direction.
      name: sgd, adamw, lamb, lion, rmsprop, adafactor, muon or schedule_free; chooses the keys of
        `optim.direction`.
      lr: peak learning rate.
      schedule: shape of the learning rate after the warmup: constant; a linear or cosine fall;
        1 / sqrt(step) (`rsqrt`); or constant, then a linear fall (`wsd`).
      warmup: duration of the learning rate's linear warmup, such as "5%" or "500 steps".
      decay: duration of the linear fall at the end: required by `wsd`, optional for `rsqrt`; other
        schedules have none.
      final: fraction of the peak rate at which `linear`, `cosine` and `wsd` end.
      clip: largest global norm of the gradient, which is scaled down to it (Pascanu et al. 2013);
        None does not clip.
      weight_decay: decoupled weight decay, multiplied by the learning rate; None is none.
      l2: L2 penalty, added to the gradient before the direction sees it; None is none.
      decayed: rows (path regex, factor): the parameters that `weight_decay` and `l2` apply to, and
        a factor for each.
      multipliers: rows (path regex, factor of the learning rate); 1 where no row matches.
      layer_decay: factor of the learning rate a layer from the head down, between 0 and 1: block i
        of n has layer_decay^(n - i) of it, embeddings or stem layer_decay^(n + 1), the head all of
        it (Clark et al. 2020; Bao et al. 2022); see `common.training.depths`. None is none.
      freeze: path regexes of parameters to leave unchanged, without optimizer state.
      lookahead: duration between Lookahead's moves (Zhang et al. 2019), such as "5 steps"; None is
        no Lookahead.

    Raises:
      BadInput: for an unknown name or schedule, a value out of range, or incompatible keys.
    """
    tail = (schedule, warmup, decay, final)
    warmup_steps, decay_steps = schedule_steps(total_steps, to_steps, *tail)
    _check_ranges(
        positive={"lr": lr, "clip": clip, "layer_decay": layer_decay},
        at_least_zero={"weight_decay": weight_decay, "l2": l2, "final": final},
    )
    in_range = not isinstance(layer_decay, int | float) or layer_decay <= 1
    require(in_range, f"config.optim.layer_decay: {layer_decay} is above 1")
    _check_arguments(name, direction_arguments)

    def learning_rate(step):
        return lr * unit_shape(schedule, step, total_steps, warmup_steps, decay_steps, final)

    transform = _transform(
        name,
        direction_arguments,
        clip=clip,
        l2=l2,
        weight_decay=weight_decay,
        decayed=decayed,
        multipliers=multipliers,
    )
    if name == "schedule_free":
        require(
            not freeze, "config.optim.freeze: schedule_free keeps an average of every parameter"
        )
        require(lookahead is None, "config.optim.lookahead: schedule_free already averages")
        require(
            schedule == "constant",
            f"config.optim.schedule: schedule_free needs 'constant', got {schedule!r}",
        )
        arguments = {k: v for k, v in direction_arguments.items() if k in ("b1", "weight_lr_power")}
        # Its count starts at 1, and its base applies the learning rate itself.
        rate = lambda count: learning_rate(count - 1)
        chain = [transform, optax.scale_by_schedule(lambda s: -learning_rate(s))]
        if layer_decay is not None:
            by_layer = lambda updates, _: _by_layer(updates, layer_decay)
            chain.insert(1, optax.stateless(by_layer))
        base = optax.chain(*chain)
        wrapped = contrib.schedule_free(base, rate, **arguments)
        return Optimizer(
            init=wrapped.init,
            update=lambda grads, state, params, step: wrapped.update(grads, state, params),
            eval_params=contrib.schedule_free_eval_params,
            learning_rate=learning_rate,
        )

    trained = lambda params: params
    if freeze:
        rows = tuple((regex, True) for regex in freeze)
        is_fixed = lambda path: tree.lookup(rows, path, False)
        live = lambda params: tree.map_paths(lambda p, _: not is_fixed(p), params)
        fixed = lambda params: tree.map_paths(lambda p, _: is_fixed(p), params)
        stop = lambda path, x: jax.lax.stop_gradient(x) if is_fixed(path) else x
        trained = lambda params: tree.map_paths(stop, params)
        transform = optax.chain(
            optax.masked(transform, live), optax.masked(optax.set_to_zero(), fixed)
        )

    def update(grads, state, params, step):
        updates, state = transform.update(grads, state, params)
        updates, rate = _by_layer(updates, layer_decay), learning_rate(step)
        return jax.tree.map(lambda u: (-rate * u).astype(u.dtype), updates), state

    itself = lambda state, params: params
    optimizer = Optimizer(transform.init, update, itself, learning_rate, trained)
    if lookahead is None:
        return optimizer
    return look_ahead(optimizer, to_steps(lookahead, "config.optim.lookahead"))


def limited(optimizer: Optimizer, trained: Callable[[str], bool] | None) -> Optimizer:
    """The optimizer of the parameters at paths that `trained` wants; None is all of them. Unlike
    `freeze`, it keeps nothing of the others."""
    if trained is None:
        return optimizer
    live = lambda params: tree.part(params, trained)
    evaluated = lambda state, params: optimizer.eval_params(state, live(params))
    return optimizer._replace(
        init=lambda params: optimizer.init(live(params)),
        eval_params=lambda state, params: tree.joined(params, evaluated(state, params)),
        live=live,
    )


def keeps_own(section: dict) -> bool:
    """Whether the parameters to evaluate are part of the optimizer's state; see
    `Optimizer.eval_params`."""
    return section["name"] == "schedule_free" or section["lookahead"] is not None


def look_ahead(fast: Optimizer, steps: int) -> Optimizer:
    """Lookahead (Zhang et al. 2019): every `steps` updates, slow parameters move half-way to the
    fast ones, which continue from there. Evaluation uses the slow ones."""
    require(steps > 0, "config.optim.lookahead: shorter than one step")

    def init(params):
        # A copy: the step donates its state, and no buffer can be donated twice.
        return {"fast": fast.init(params), "slow": jax.tree.map(jnp.copy, params)}

    def update(grads, state, params, step):
        updates, inner = fast.update(grads, state["fast"], params, step)
        moves = (step + 1) % steps == 0

        def increments(slow, param, update):
            """The increments of the slow parameter and of the fast one."""
            half = 0.5 * (param + update - slow)
            return jnp.where(moves, half, 0), jnp.where(moves, slow + half - param, update)

        pairs = jax.tree.map(increments, state["slow"], params, updates)
        add_slow, add_fast = jax.tree.transpose(
            jax.tree.structure(params), jax.tree.structure((0, 0)), pairs
        )
        slow = jax.tree.map(jnp.add, state["slow"], add_slow)
        return add_fast, {"fast": inner, "slow": slow}

    return fast._replace(init=init, update=update, eval_params=lambda state, _: state["slow"])


def _transform(name, direction_arguments, *, clip, l2, weight_decay, decayed, multipliers):
    """The chain of transformations that the learning rate multiplies."""
    chain = []
    if clip is not None:
        chain.append(optax.clip_by_global_norm(clip))
    if l2 is not None:
        chain.append(_add_decay(l2, decayed))
    chain.append(directions.direction(name)(**direction_arguments))
    if weight_decay is not None:
        chain.append(_add_decay(weight_decay, decayed))
    if name == "lamb":
        chain.append(optax.scale_by_trust_ratio())
    if multipliers:
        chain.append(
            optax.stateless(
                lambda updates, _: tree.map_paths(
                    lambda path, u: u * tree.lookup(multipliers, path, 1.0), updates
                )
            )
        )
    return optax.chain(*chain)


def _by_layer(updates, layer_decay):
    """Scales the updates of all parameters, frozen ones among them, by their depth."""
    if layer_decay is None:
        return updates
    heights = depths.heights(tree.flatten(updates))
    return tree.map_paths(lambda path, u: u * layer_decay ** heights[path], updates)


def _add_decay(strength, decayed) -> optax.GradientTransformation:
    """Adds strength * factor * parameter where a row of `decayed` matches; leaves the others
    unchanged."""

    def add(updates, params):
        def add_one(path, update, param):
            factor = tree.lookup(decayed, path)
            return update if factor is None else update + strength * factor * param

        return tree.map_paths(add_one, updates, params)

    return optax.stateless(add)


def _check_ranges(positive: dict, at_least_zero: dict) -> None:
    """Raises `BadInput` for a number out of range; None and traced numbers pass."""
    for key, value in (positive | at_least_zero).items():
        if isinstance(value, int | float):
            ok = math.isfinite(value) and (value > 0 or (value == 0 and key in at_least_zero))
            least = "0 or more" if key in at_least_zero else "above 0"
            require(ok, f"config.optim.{key}: {value} is not a finite number {least}")


def _check_arguments(name: str, arguments: dict) -> None:
    known = parameters(directions.direction(name))
    for key, value in arguments.items():
        if key not in known:
            raise BadInput(f"config.optim.direction.{key}: unknown key; {nearest(key, known)}")
        if key in ("b1", "b2", "beta", "momentum", "adam_b1", "adam_b2") and isinstance(
            value, float
        ):
            ok = 0 <= value < 1 and not (name == "schedule_free" and key == "b1" and value == 0)
            require(ok, f"config.optim.direction.{key}: {value} is not in [0, 1)")
        if type(value) is int:
            most = MOST.get(key, 2**31 - 1)
            ok = 0 < value <= most
            require(ok, f"config.optim.direction.{key}: {value} is not in 1 to {most:,}")


def check_patterns(config: dict) -> None:
    """Raises `BadInput` if a table of the section `optim` has a row that is no regular
    expression."""
    for key in ("multipliers", "decayed"):
        tree.check_patterns(f"config.optim.{key}", (regex for regex, _ in config[key]))
    tree.check_patterns("config.optim.freeze", config["freeze"])


def check_tables(config: dict, params) -> None:
    """Raises `BadInput` if a row of the section `optim` matches no parameter, or a model without
    blocks is to have a decay by layer."""
    paths = tree.flatten(params)
    tree.check_table("config.optim.multipliers", config["multipliers"], paths)
    if config["layer_decay"] is not None:
        depths.heights(paths)
    freeze = tuple((regex, True) for regex in config["freeze"])
    tree.check_table("config.optim.freeze", freeze, paths)
    if config["weight_decay"] is not None or config["l2"] is not None:
        tree.check_table("config.optim.decayed", config["decayed"], paths)


def flags_of(config: dict, paths: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How the section `optim` treats each parameter: {path: {"decay", "multiplier", "frozen"}}."""
    decays = config["weight_decay"] is not None or config["l2"] is not None
    factors = {path: tree.lookup(config["multipliers"], path, 1.0) for path in paths}
    if config["layer_decay"] is not None:
        for path, height in depths.heights(factors).items():
            factors[path] *= config["layer_decay"] ** height
    return {
        path: {
            "decay": tree.lookup(config["decayed"], path, 0.0) if decays else 0.0,
            "multiplier": factor,
            "frozen": tree.lookup(tuple((r, True) for r in config["freeze"]), path, False),
        }
        for path, factor in factors.items()
    }
