"""An optimizer from a config: clip, direction, decay, multipliers, schedule, freezing.

    update = -lr * shape(step) * multiplier * (direction(clip(gradient) + l2 * p) + weight_decay *
    p)

`direction` is an optax transformation without its learning rate; decoupled weight decay
(Loshchilov & Hutter 2019, in the convention of torch and optax, multiplied by the rate) is a key
of its own, so that Adam with decay is `adamw` whatever else is set. Which parameters decay, are
multiplied or are frozen is said by path. Every float may be a traced number: nothing here branches
on a value but on `is None`.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from common import tree
from common.config import parameters
from common.errors import BadInput, choice, nearest, require

DECAYED = ((r"(.*/)?(kernel|embedding)", 1.0),)
Schedule = Literal["constant", "linear", "cosine", "rsqrt", "wsd"]


class Optimizer(NamedTuple):
    """Attributes:
    init: params -> state.
    update: (gradients, state, params, step) -> (updates, state); add the updates to the parameters.
    eval_params: (state, params) -> the parameters to evaluate (other ones for schedule-free).
    learning_rate: step -> the rate of that step.
    trained: params -> the same, with the gradients of frozen ones stopped, which costs less than
      computing them in vain.
    """

    init: Callable
    update: Callable
    eval_params: Callable
    learning_rate: Callable
    trained: Callable = lambda params: params


# -------------------------------------------------------------------------------------- directions


def sgd(*, momentum: float | None = None, nesterov: bool = False):
    """The gradient, or its running sum with `momentum` (Polyak; Nesterov as in Sutskever et al.
    2013)."""
    return optax.identity() if momentum is None else optax.trace(momentum, nesterov)


def adamw(
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    nesterov: bool = False,
):
    """Adam (Kingma & Ba 2015; nesterov: Dozat 2016)."""
    return optax.scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov)


def lion(*, b1: float = 0.9, b2: float = 0.99):
    """Sign of interpolated momentum (Chen et al. 2023)."""
    return optax.scale_by_lion(b1, b2)


def rmsprop(*, decay: float = 0.9, eps: float = 1e-8):
    """Gradient over its running root mean square (Hinton 2012)."""
    return optax.scale_by_rms(decay, eps)


def adafactor(
    *,
    min_dim_size_to_factor: int = 128,
    decay_rate: float = 0.8,
    clipping_threshold: float = 1.0,
    momentum: float | None = None,
    multiply_by_parameter_scale: bool = True,
):
    """Factored second moments (Shazeer & Stern 2018)."""
    # A rate of -1 leaves the sign of the gradient: the chain below multiplies by minus the true
    # rate.
    return optax.adafactor(
        -1.0,
        min_dim_size_to_factor=min_dim_size_to_factor,
        decay_rate=decay_rate,
        clipping_threshold=clipping_threshold,
        momentum=momentum,
        multiply_by_parameter_scale=multiply_by_parameter_scale,
    )


def _muon_dimensions(params):
    """Matrices and convolutions (HWIO) are orthogonalised as [inputs, outputs]; embeddings, whose
    rows are looked up one by one, and the rest go to Adam."""

    def numbers(path, p):
        if p.ndim < 2 or path.split("/")[-1] == "embedding":
            return None
        return contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), p.ndim - 1)

    return tree.map_paths(numbers, params)


def muon(
    *,
    beta: float = 0.95,
    nesterov: bool = True,
    ns_steps: int = 5,
    adam_b1: float = 0.9,
    adam_b2: float = 0.999,
):
    """Orthogonalised momentum for matrices and convolutions, Adam for embeddings and the rest
    (Jordan et al. 2024)."""
    return contrib.muon(
        -1.0,
        beta=beta,
        nesterov=nesterov,
        ns_steps=ns_steps,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        muon_weight_dimension_numbers=_muon_dimensions,
    )


def schedule_free(
    *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_lr_power: float = 2.0
):
    """Schedule-free AdamW (Defazio et al. 2024): `make_optimizer` wraps this base, whose own
    momentum is off."""
    del b1, weight_lr_power  # of the wrapper
    return optax.scale_by_adam(0.0, b2, eps)


DIRECTIONS: dict[str, Callable] = {
    "sgd": sgd,
    "adamw": adamw,
    "lamb": adamw,  # with a trust ratio behind the weight decay (You et al. 2020), see `_transform`
    "lion": lion,
    "rmsprop": rmsprop,
    "adafactor": adafactor,
    "muon": muon,
    "schedule_free": schedule_free,
}


def direction(name: str) -> Callable:
    """The function of the section `optim.direction`. Raises `BadInput` for an unknown name."""
    return DIRECTIONS[choice("config.optim.name", name, DIRECTIONS)]


# --------------------------------------------------------------------------------------- schedules


def unit_shape(
    schedule: Schedule, step, total_steps: int, warmup_steps: int, decay_steps: int | None, final
):
    """The schedule's factor of the rate at `step`, between 0 and 1: f32[].

    The warmup rises linearly and ends at 1 with step `warmup_steps - 1`, so that no step is wasted
    on a rate of zero. `linear` and `cosine` fall from there to `final` at `total_steps`; `wsd`
    (warmup-stable-decay, Hu et al. 2024) falls linearly over the last `decay_steps`; `rsqrt` goes
    as 1 / sqrt(step) behind the warmup (Vaswani et al. 2017), with such a tail if `decay_steps` is
    given.
    """
    step = jnp.asarray(step, jnp.float32)
    rest = max(total_steps - warmup_steps, 1)
    done = jnp.clip((step - warmup_steps) / rest, 0.0, 1.0)
    fall = jnp.float32(0.0)
    scale = jnp.float32(1.0)
    if schedule == "linear":
        fall = done
    elif schedule == "cosine":
        fall = 0.5 - 0.5 * jnp.cos(jnp.pi * done)
    elif schedule == "rsqrt":
        timescale = max(warmup_steps, 1)
        scale = jnp.sqrt(timescale / jnp.maximum(step + 1, timescale))
    if decay_steps is not None:
        fall = jnp.clip((step - (total_steps - decay_steps)) / max(decay_steps, 1), 0.0, 1.0)
    warm = jnp.minimum((step + 1) / max(warmup_steps, 1), 1.0)
    return warm * scale * (1.0 - fall * (1.0 - final))


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
    freeze: tuple[str, ...] = (),
    lookahead: str | None = None,
) -> Optimizer:
    """Builds the optimizer.

    Args:
      total_steps: of the whole run, for the schedule.
      to_steps: (duration, key for messages) -> steps.
      direction_arguments: the section `optim.direction`: keyword arguments of that direction.
      name: one of `DIRECTIONS`.
      lr: the peak learning rate.
      schedule: its shape; see `unit_shape`.
      warmup: a duration.
      decay: the duration of the tail of `wsd` (required) and `rsqrt`; no other schedule has one.
      final: the fraction of the peak at which `linear`, `cosine` and `wsd` end.
      clip: the largest global norm of the gradient (Pascanu et al. 2013).
      weight_decay: decoupled; times the rate.
      l2: plain L2, added to the gradient before the direction sees it.
      decayed: rows (regex, factor): the parameters that both kinds of decay touch, times `factor`.
      multipliers: rows (regex, factor of the learning rate); 1 where no row matches.
      freeze: regexes of parameters that stay as they are, without optimizer state.
      lookahead: a duration k; see `look_ahead`.

    Raises:
      BadInput: for an unknown name or schedule, a value out of range, or keys that do not go
      together.
    """
    tail = (schedule, warmup, decay, final)
    warmup_steps, decay_steps = _schedule_steps(total_steps, to_steps, *tail)
    _check_ranges(
        positive={"lr": lr, "clip": clip},
        at_least_zero={"weight_decay": weight_decay, "l2": l2, "final": final},
    )
    _check_arguments(name, direction_arguments)

    def learning_rate(step):
        return lr * unit_shape(schedule, step, total_steps, warmup_steps, decay_steps, final)

    transform = _transform(name, direction_arguments, clip, l2, weight_decay, decayed, multipliers)
    if name == "schedule_free":
        require(
            not freeze, "config.optim.freeze: schedule_free keeps an average of every parameter"
        )
        require(lookahead is None, "config.optim.lookahead: schedule_free is an average itself")
        require(
            schedule == "constant",
            f"config.optim.schedule: schedule_free needs 'constant', got {schedule!r}",
        )
        arguments = {k: v for k, v in direction_arguments.items() if k in ("b1", "weight_lr_power")}
        # Its count starts at 1, and its base takes the step itself.
        rate = lambda count: learning_rate(count - 1)
        base = optax.chain(transform, optax.scale_by_schedule(lambda s: -learning_rate(s)))
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
        rate = learning_rate(step)
        return jax.tree.map(lambda u: (-rate * u).astype(u.dtype), updates), state

    itself = lambda state, params: params
    optimizer = Optimizer(transform.init, update, itself, learning_rate, trained)
    if lookahead is None:
        return optimizer
    return look_ahead(optimizer, to_steps(lookahead, "config.optim.lookahead"))


def look_ahead(fast: Optimizer, steps: int) -> Optimizer:
    """Lookahead (Zhang et al. 2019): after every `steps` updates, slow parameters go half of the
    way to where the fast ones are, and the fast ones go on from there. The slow ones are
    evaluated."""
    require(steps > 0, "config.optim.lookahead: it is less than a step")

    def init(params):
        # A copy, because the step gives its state away, and no buffer can be given twice.
        return {"fast": fast.init(params), "slow": jax.tree.map(jnp.copy, params)}

    def update(grads, state, params, step):
        updates, inner = fast.update(grads, state["fast"], params, step)
        now = (step + 1) % steps == 0

        def one(slow, param, update):
            """What is added to the slow parameter and to the fast one."""
            half = 0.5 * (param + update - slow)
            return jnp.where(now, half, 0), jnp.where(now, slow + half - param, update)

        both = jax.tree.map(one, state["slow"], params, updates)
        add_slow, add_fast = jax.tree.transpose(
            jax.tree.structure(params), jax.tree.structure((0, 0)), both
        )
        slow = jax.tree.map(jnp.add, state["slow"], add_slow)
        return add_fast, {"fast": inner, "slow": slow}

    return fast._replace(init=init, update=update, eval_params=lambda state, _: state["slow"])


def _transform(name, direction_arguments, clip, l2, weight_decay, decayed, multipliers):
    """The chain in front of the learning rate."""
    chain = []
    if clip is not None:
        chain.append(optax.clip_by_global_norm(clip))
    if l2 is not None:
        chain.append(_add_decay(l2, decayed))
    chain.append(direction(name)(**direction_arguments))
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


def _add_decay(strength, decayed) -> optax.GradientTransformation:
    """Adds strength * factor * parameter, where `decayed` has a row; leaves the others
    untouched."""

    def add(updates, params):
        def one(path, update, param):
            factor = tree.lookup(decayed, path)
            return update if factor is None else update + strength * factor * param

        return tree.map_paths(one, updates, params)

    return optax.stateless(add)


def _check_ranges(positive: dict, at_least_zero: dict) -> None:
    """Raises `BadInput` for a number out of range; None and traced numbers pass."""
    for key, value in (positive | at_least_zero).items():
        if isinstance(value, int | float):
            ok = math.isfinite(value) and (value > 0 or (value == 0 and key in at_least_zero))
            require(ok, f"config.optim.{key}: {value} is out of range")


def _schedule_steps(
    total_steps: int, to_steps: Callable, schedule: str, warmup: str, decay: str | None, final
) -> tuple[int, int | None]:
    """(warmup steps, steps of the tail or None). Raises `BadInput` for what does not go
    together."""
    warmup_steps = to_steps(warmup, "config.optim.warmup")
    require(
        warmup_steps <= total_steps,
        f"config.optim.warmup: {warmup!r} is longer than the run of {total_steps} steps",
    )
    require(
        schedule != "wsd" or decay is not None, "config.optim.decay: 'wsd' needs it, e.g. '20%'"
    )
    if decay is None:
        if isinstance(final, float) and schedule in ("constant", "rsqrt"):
            require(final == 0, f"config.optim.final: {schedule!r} does not fall to a final rate")
        return warmup_steps, None
    require(
        schedule in ("wsd", "rsqrt"),
        f"config.optim.decay: schedule {schedule!r} has no tail; it is for 'wsd' and 'rsqrt'",
    )
    decay_steps = to_steps(decay, "config.optim.decay")
    require(
        warmup_steps + decay_steps <= total_steps,
        f"config.optim.decay: {decay!r} and the warmup are longer than the {total_steps} steps",
    )
    return warmup_steps, decay_steps


def _check_arguments(name: str, arguments: dict) -> None:
    known = parameters(direction(name))
    for key, value in arguments.items():
        if key not in known:
            raise BadInput(f"config.optim.direction.{key}: unknown key; {nearest(key, known)}")
        if key in ("b1", "b2", "beta", "momentum", "adam_b1", "adam_b2") and isinstance(
            value, float
        ):
            ok = 0 <= value < 1 and not (name == "schedule_free" and key == "b1" and value == 0)
            require(ok, f"config.optim.direction.{key}: {value} is not in [0, 1)")


def check_tables(config: dict, params) -> None:
    """Raises `BadInput` if a row of the section `optim` matches no parameter."""
    paths = tree.flatten(params)
    tree.check_table("config.optim.multipliers", config["multipliers"], paths)
    freeze = tuple((regex, True) for regex in config["freeze"])
    tree.check_table("config.optim.freeze", freeze, paths)
    if config["weight_decay"] is not None or config["l2"] is not None:
        tree.check_table("config.optim.decayed", config["decayed"], paths)


def flags_of(config: dict, path: str) -> dict[str, Any]:
    """What the section `optim` does with one parameter: {"decay", "multiplier", "frozen"}."""
    decays = config["weight_decay"] is not None or config["l2"] is not None
    return {
        "decay": tree.lookup(config["decayed"], path, 0.0) if decays else 0.0,
        "multiplier": tree.lookup(config["multipliers"], path, 1.0),
        "frozen": tree.lookup(tuple((r, True) for r in config["freeze"]), path, False),
    }
