"""Each part of the optimizer against formulas, on tiny trees; every direction learns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common.errors import BadInput
from common.sections import parameters
from common.training import directions, optim
from common.training.schedules import unit_shape

PARAMS = {
    "a": {"kernel": jnp.full((3, 2), 2.0), "bias": jnp.ones(2)},
    "b": {"kernel": jnp.full((2, 2), -1.0)},
}
KERNELS = {"a": {"kernel": True, "bias": False}, "b": {"kernel": True}}
GRADS = jax.tree.map(lambda p: 0.1 * p + 0.3, PARAMS)


def steps(text, where):
    return int(text.split()[0])


def make(total=10, direction=None, **section):
    section = {"schedule": "constant", "lr": 0.1} | section
    return optim.make_optimizer(total, steps, direction or {}, **section)


def one_update(optimizer, step=0):
    updates, _ = optimizer.update(GRADS, optimizer.init(PARAMS), PARAMS, jnp.uint32(step))
    return updates


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)


def test_agreement_of_lookahead_with_optax():
    optimizer = make(name="adamw", lookahead="3 steps")
    theirs = optax.lookahead(optax.adam(0.1), 3, 0.5)
    params, other = PARAMS, optax.LookaheadParams.init_synced(PARAMS)
    state, its_state = optimizer.init(params), theirs.init(other)
    for step in range(7):
        updates, state = optimizer.update(GRADS, state, params, jnp.uint32(step))
        params = optax.apply_updates(params, updates)
        updates, its_state = theirs.update(GRADS, its_state, other)
        other = optax.apply_updates(other, updates)
        close(params, other.fast)
        close(optimizer.eval_params(state, params), other.slow)
    with pytest.raises(BadInput, match=r"config\.optim\.lookahead: schedule_free"):
        make(name="schedule_free", lookahead="3 steps")


def test_plain_sgd_is_minus_rate_times_gradient():
    close(one_update(make(name="sgd")), jax.tree.map(lambda g: -0.1 * g, GRADS))


@pytest.mark.parametrize(
    ("ours", "direction", "theirs"),
    [
        (
            {"name": "adamw", "weight_decay": 0.2},
            {"b1": 0.8},
            optax.adamw(0.1, b1=0.8, weight_decay=0.2, mask=KERNELS),
        ),
        ({"name": "sgd"}, {"momentum": 0.9, "nesterov": True}, optax.sgd(0.1, 0.9, True)),
        ({"name": "lion"}, {}, optax.lion(0.1, weight_decay=0.0)),
        ({"name": "lamb"}, {}, optax.lamb(0.1, eps=1e-8)),
        ({"name": "rmsprop"}, {}, optax.rmsprop(0.1)),
        ({"name": "adafactor"}, {}, optax.adafactor(0.1)),
        ({"name": "schedule_free"}, {}, optax.contrib.schedule_free_adamw(0.1)),
        (
            {"name": "adamw", "clip": 0.1},
            {},
            optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1)),
        ),
    ],
)
def test_agreement_with_optax_over_five_steps(ours, direction, theirs):
    optimizer = make(direction=direction, **ours)
    params, other = PARAMS, PARAMS
    state, its_state = optimizer.init(params), theirs.init(other)
    for step in range(5):
        grads = jax.tree.map(lambda p, i=step: 0.1 * p + 0.3 * np.sin(i), params)
        updates, state = optimizer.update(grads, state, params, jnp.uint32(step))
        params = optax.apply_updates(params, updates)
        updates, its_state = theirs.update(grads, its_state, other)
        other = optax.apply_updates(other, updates)
        close(params, other)
    if ours["name"] == "schedule_free":
        its = optax.contrib.schedule_free_eval_params(its_state, other)
        close(optimizer.eval_params(state, params), its)
    else:
        close(optimizer.eval_params(state, params), params)


def test_decay_reaches_only_its_rows():
    updates = one_update(make(name="sgd", weight_decay=0.5, decayed=((r"a/kernel", 2.0),)))
    close(updates["a"]["kernel"], -0.1 * (GRADS["a"]["kernel"] + 0.5 * 2.0 * PARAMS["a"]["kernel"]))
    close(updates["b"]["kernel"], -0.1 * GRADS["b"]["kernel"])


def test_l2_passes_through_the_direction_and_decay_does_not():
    l2 = one_update(make(name="lion", l2=10.0))
    decay = one_update(make(name="lion", weight_decay=10.0))
    assert float(jnp.abs(l2["b"]["kernel"]).max()) == pytest.approx(0.1)
    assert float(jnp.abs(decay["b"]["kernel"]).max()) > 0.5


def test_multipliers_and_freezing():
    optimizer = make(
        name="adamw", multipliers=((r"a/.*", 3.0),), freeze=(r"b/.*",), weight_decay=0.1
    )
    plain = one_update(make(name="adamw", weight_decay=0.1))
    updates = one_update(optimizer)
    close(updates["a"], jax.tree.map(lambda u: 3 * u, plain["a"]))
    assert not jnp.any(updates["b"]["kernel"])
    paths = [str(p) for p, _ in jax.tree_util.tree_leaves_with_path(optimizer.init(PARAMS))]
    assert not any("'b'" in p for p in paths)  # no state for what is frozen
    loss = lambda params: sum(jnp.sum(x**2) for x in jax.tree.leaves(optimizer.trained(params)))
    grads = jax.grad(loss)(PARAMS)
    close(grads["a"], jax.tree.map(lambda x: 2 * x, PARAMS["a"]))
    assert not jnp.any(grads["b"]["kernel"])  # and no gradient


def test_decay_by_layer_multiplies_rates_of_frozen_trees_too():
    names = "token", "block_0", "block_1", "block_2", "head"
    params = {name: {"kernel": jnp.full((2, 2), 1.0 + i)} for i, name in enumerate(names)}
    grads = jax.tree.map(lambda p: 0.1 * p, params)
    plain = {"name": "sgd", "multipliers": ((r"head/.*", 3.0),)}

    def updates(**section):
        def update(decay):
            decay = {} if decay is None else {"layer_decay": decay}
            optimizer = make(**plain, **section, **decay)
            return optimizer.update(grads, optimizer.init(params), params, jnp.uint32(0))[0]

        return update

    for section in ({}, {"freeze": (r"block_2/.*",)}, {"lookahead": "2 steps"}):
        expected, found = updates(**section)(None), jax.jit(updates(**section))(0.5)
        factors = dict(zip(names, (0.5**4, 0.5**3, 0.5**2, 0.5, 1.0), strict=True))
        scaled = {
            name: jax.tree.map(partial(jnp.multiply, factors[name]), update)
            for name, update in expected.items()
        }
        close(found, scaled)
    free = make(name="schedule_free", layer_decay=0.5), make(name="schedule_free")
    found, expected = (o.update(grads, o.init(params), params, 0)[0] for o in free)
    close(found["block_0"]["kernel"], expected["block_0"]["kernel"] * 0.5**3)
    close(found["head"], expected["head"])


@pytest.mark.parametrize("name", directions.DIRECTIONS)
def test_every_direction_learns_with_traced_numbers(name):
    target = {"a": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
    start = jax.tree.map(lambda t: t * 0 + 0.1, target)
    loss = lambda p: sum(jnp.sum((x - t) ** 2) for x, t in zip(
        jax.tree.leaves(p), jax.tree.leaves(target), strict=True))  # fmt: skip
    known = parameters(directions.direction(name))
    direction = {k: p.default for k, p in known.items() if isinstance(p.default, float)}

    @jax.jit
    def run(lr, decay, direction):
        optimizer = optim.make_optimizer(
            200, steps, direction, name=name, lr=lr, schedule="constant", weight_decay=decay
        )

        def body(carry, step):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state, params, step)
            return (optax.apply_updates(params, updates), state), loss(params)

        (params, state), _ = jax.lax.scan(
            body, (start, optimizer.init(start)), jnp.arange(200, dtype=jnp.uint32)
        )
        return loss(optimizer.eval_params(state, params))

    assert run(0.03, 0.0, direction) < 0.2 * loss(start)
    run(0.01, 0.1, direction)
    assert run._cache_size() == 1


def test_muon_orthogonalises_convolutions_and_sends_vectors_to_adam():
    params = {"conv": jax.random.normal(jax.random.key(0), (3, 3, 4, 8)), "bias": jnp.ones(8)}
    optimizer = make(name="muon", lr=1.0)
    updates = jax.jit(lambda p: optimizer.update(p, optimizer.init(p), p, jnp.uint32(0))[0])(params)
    values = jnp.linalg.svd(updates["conv"].reshape(36, 8), compute_uv=False)
    assert float(values.min()) > 0.5 * float(values.max())
    # Adam's first step, with the Nesterov look-ahead that optax gives both: (1 + b1 / (1 + b1)) /
    # 1.
    close(updates["bias"], jnp.full(8, -(1 + 0.9 / 1.9)))


SHAPES = {
    "constant": [1, 1, 1, 1],
    "linear": [1, 0.75, 0.25, 0],
    "cosine": [1, 0.5 + 0.5 * np.cos(np.pi / 4), 0.5 + 0.5 * np.cos(3 * np.pi / 4), 0],
}


@pytest.mark.parametrize("schedule", SHAPES)
def test_schedules_without_warmup(schedule):
    rates = [unit_shape(schedule, s, 100, 0, None, 0.0) for s in (0, 25, 75, 100)]
    np.testing.assert_allclose(rates, SHAPES[schedule], atol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "rsqrt"])
def test_the_warmup_rises_from_the_first_step_to_its_last(schedule):
    rates = [float(unit_shape(schedule, s, 100, 10, None, 0.0)) for s in range(10)]
    np.testing.assert_allclose(rates, np.arange(1, 11) / 10, rtol=1e-6)


def test_tails_and_final_rates():
    shape = lambda name, s, tail, final=0.0: float(unit_shape(name, s, 100, 10, tail, final))
    assert shape("wsd", 79, 20) == 1
    assert shape("wsd", 90, 20) == pytest.approx(0.5)
    assert shape("wsd", 100, 20, 0.1) == pytest.approx(0.1)
    assert shape("linear", 100, None, 0.25) == pytest.approx(0.25)
    assert shape("rsqrt", 39, None) == pytest.approx(0.5)
    assert shape("rsqrt", 100, 20) == 0


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "adamm"}, "did you mean 'adamw'"),
        ({"lr": 0.0}, "lr: 0.0 is not a finite number above 0"),
        ({"lr": float("nan")}, "lr: nan is not a finite number above 0"),
        ({"clip": -1.0}, "clip: -1.0 is not a finite number above 0"),
        ({"weight_decay": -0.1}, "weight_decay: -0.1"),
        ({"warmup": "11 steps"}, "longer than the run"),
        ({"schedule": "wsd"}, "required by 'wsd'"),
        ({"schedule": "cosine", "decay": "3 steps"}, "has no final decay"),
        (
            {"schedule": "wsd", "decay": "8 steps", "warmup": "3 steps"},
            "exceeds the run of 10 steps",
        ),
        ({"schedule": "constant", "final": 0.1}, "does not fall"),
        ({"name": "schedule_free", "schedule": "cosine"}, "needs 'constant'"),
        ({"name": "schedule_free", "freeze": ("a/.*",)}, "keeps an average"),
    ],
)
def test_bad_sections(section, message):
    with pytest.raises(BadInput, match=message):
        make(**section)


def test_bad_direction_arguments():
    with pytest.raises(BadInput, match="did you mean 'b1'"):
        make(direction={"b11": 0.9})
    with pytest.raises(BadInput, match="not in"):
        make(direction={"b2": 1.0})
