"""Pruning against numpy: schedule, masks of every structure, and exact zeros all along a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DIGITS, load

from common import tree
from common.compress import prune
from common.errors import BadInput
from common.training import optim
from common.training.program import abstract_arguments, prepare

RNG = np.random.default_rng(0)
HEADS, WIDTH, HIDDEN = 3, 6, 6  # of one shape: each shape is compiled
MODEL = {"heads": HEADS, "kv_heads": None}


def steps(text, where, low=0):
    return int(text.split()[0])


def rule(**keys):
    whole = {"kind": "magnitude", "begin": "0 steps", "end": "1 steps", "frequency": "1 steps"}
    return prune.pruning(steps, **(whole | keys))


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def block():
    square = {k: {"kernel": normal(WIDTH, WIDTH)} for k in ("query", "key", "value", "out")}
    square["query"]["bias"] = normal(WIDTH)
    mlp = {"up": {"kernel": normal(WIDTH, HIDDEN)}, "down": {"kernel": normal(HIDDEN, WIDTH)}}
    return {"attention": square, "mlp": mlp}


PARAMS = {"block_0": block(), "block_1": block(), "head": {"kernel": normal(WIDTH, WIDTH)}}


def masks_after(chosen, updates=1, params=PARAMS, slopes=None, model=MODEL):
    """(masks, parameters) after so many updates of plain descent."""
    plain = optim.make_optimizer(10, steps, {}, name="sgd", lr=0.1, schedule="constant")
    optimizer = prune.pruned(plain, chosen, model)

    @jax.jit
    def updated(params, grads):
        state = optimizer.init(params)
        for step in range(updates):
            moved, state = optimizer.update(grads, state, params, jnp.uint32(step))
            params = jax.tree.map(jnp.add, params, moved)
        return state["masks"], params

    slopes = slopes or jax.tree.map(lambda p: 0.1 * np.asarray(p) + 0.3, params)
    return map(tree.flatten, jax.device_get(updated(params, slopes)))


def test_the_share_of_zeros_rises_as_zhu_and_gupta_have_it():
    chosen = rule(sparsity=0.9, begin="10 steps", end="50 steps", frequency="8 steps")
    t = np.array([0, 10, 18, 30, 49, 50, 90])
    wanted = 0.9 * (1 - (1 - np.clip((t - 10) / 40, 0, 1)) ** 3)
    np.testing.assert_allclose(prune.sparsity_at(chosen, t), wanted, atol=1e-6)
    due = lambda rule: np.flatnonzero(prune.is_due(rule, np.arange(100))).tolist()
    assert due(chosen) == [10, 18, 26, 34, 42, 50]
    uneven = rule(sparsity=0.9, begin="10 steps", end="50 steps", frequency="16 steps")
    assert due(uneven) == [10, 26, 42, 50]


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_smallest_weights_go(scope):
    masks, after = masks_after(rule(sparsity=0.7, scope=scope))
    sizes = {p: np.abs(np.asarray(x)) for p, x in tree.flatten(PARAMS).items()}
    sizes = {p: x for p, x in sizes.items() if p.endswith("kernel")}
    assert masks.keys() == sizes.keys()
    groups = [[p] for p in sizes] if scope == "layer" else [list(sizes)]
    for paths in groups:
        together = np.concatenate([sizes[p].ravel() for p in paths])
        order = np.argsort(together)
        wanted = np.ones(len(together), bool)
        wanted[order[: int(0.7 * len(together) + 0.5)]] = False
        np.testing.assert_array_equal(wanted, np.concatenate([masks[p].ravel() for p in paths]))
    for path, mask in masks.items():
        assert np.all(np.asarray(after[path])[~mask] == 0)
    again, _ = masks_after(rule(sparsity=0.7, scope=scope), params=tree.unflatten(after))
    for path, mask in masks.items():
        np.testing.assert_array_equal(mask, again[path])


def test_movement_ranks_by_the_sum_of_gradient_times_weight():
    slopes = jax.tree.map(lambda p: normal(*p.shape), PARAMS)
    chosen = rule(kind="movement", sparsity=0.5, begin="3 steps", end="3 steps")
    masks, _ = masks_after(chosen, updates=3, slopes=slopes)
    for path, mask in masks.items():
        start, slope = (
            np.asarray(tree.flatten(PARAMS)[path]),
            np.asarray(tree.flatten(slopes)[path]),
        )
        scores = sum(-slope * (start - 0.1 * k * slope) for k in range(3))
        wanted = scores > np.sort(scores.ravel())[scores.size // 2 - 1]
        np.testing.assert_array_equal(mask, wanted)


@pytest.mark.parametrize(("structure", "shape"), [("2:4", (8, 6)), ("1:4", (3, 3, 8, 5))])
def test_n_of_m_inputs_stay(structure, shape):
    kernel, (n, m) = normal(*shape), map(int, structure.split(":"))
    masks, after = masks_after(rule(structure=structure), params={"conv": {"kernel": kernel}})
    mask, size = np.asarray(masks["conv/kernel"]), np.abs(kernel)
    for place in np.ndindex(*shape[:-2], shape[-1]):
        column = (*place[:-1], slice(None), place[-1])
        for group in range(0, shape[-2], m):
            kept = mask[column][group : group + m]
            assert kept.sum() == n
            sizes = np.asarray(size[column][group : group + m])
            assert sizes[kept].min() > sizes[~kept].max()
    assert np.all(np.asarray(after["conv/kernel"])[~mask] == 0)
    with pytest.raises(BadInput, match=r"2:4 does not divide the 6 inputs of a/kernel"):
        masks_after(rule(structure="2:4"), params={"a": {"kernel": normal(6, 4)}})


def test_whole_heads_and_hidden_units_go():
    still = jax.tree.map(np.zeros_like, PARAMS)
    masks, after = masks_after(rule(structure="heads", sparsity=0.34), slopes=still)
    size = WIDTH // HEADS
    for name in ("block_0", "block_1"):
        parts = PARAMS[name]["attention"]
        heads = [slice(size * h, size * (h + 1)) for h in range(HEADS)]
        norms = [
            sum(np.sum(np.square(parts[k]["kernel"][:, h])) for k in ("query", "key", "value"))
            + np.sum(np.square(parts["out"]["kernel"][h]))
            + np.sum(np.square(parts["query"]["bias"][h]))
            for h in heads
        ]
        lost = heads[int(np.argmin(norms))]
        wanted = np.ones((WIDTH, WIDTH), bool)
        wanted[:, lost] = False
        np.testing.assert_array_equal(masks[f"{name}/attention/key/kernel"], wanted)
        np.testing.assert_array_equal(masks[f"{name}/attention/out/kernel"], wanted.T)
        np.testing.assert_array_equal(masks[f"{name}/attention/query/bias"], wanted[0])
        assert np.all(np.asarray(after[f"{name}/attention/query/bias"])[lost] == 0)
    masks, _ = masks_after(rule(structure="rows", sparsity=0.5, scope="global"), slopes=still)
    norms = np.stack([
        np.sum(np.square(PARAMS[b]["mlp"]["up"]["kernel"]), axis=0)
        + np.sum(np.square(PARAMS[b]["mlp"]["down"]["kernel"]), axis=1)
        for b in ("block_0", "block_1")
    ])  # fmt: skip
    wanted = norms > np.sort(norms.ravel())[HIDDEN - 1]
    for i in range(2):
        np.testing.assert_array_equal(masks[f"block_{i}/mlp/up/kernel"][0], wanted[i])
        np.testing.assert_array_equal(masks[f"block_{i}/mlp/down/kernel"][:, 0], wanted[i])


def test_what_is_frozen_of_a_head_stays():
    found = prune.chosen(rule(structure="heads", sparsity=0.34), PARAMS, MODEL, (".*/bias",))
    paths = {part.path for module in found for part in module.parts}
    assert paths == {
        f"block_{i}/attention/{name}/kernel"
        for i in range(2)
        for name in ("query", "key", "value", "out")
    }


@pytest.mark.slow
def test_a_layer_keeps_a_head_and_grouped_heads_go_with_their_key():
    masks, _ = masks_after(rule(structure="heads", sparsity=0.99))
    assert np.asarray(masks["block_0/attention/query/bias"]).sum() == WIDTH // HEADS
    grouped = {"attention": {k: {"kernel": normal(8, w)} for k, w in
                             {"query": 8, "key": 4, "value": 4}.items()}}  # fmt: skip
    grouped["attention"]["out"] = {"kernel": normal(8, 8)}
    model = {"heads": 4, "kv_heads": 2}
    masks, _ = masks_after(rule(structure="heads", sparsity=0.5), params=grouped, model=model)
    query, key = masks["attention/query/kernel"][0], masks["attention/key/kernel"][0]
    np.testing.assert_array_equal(query, np.repeat(key, 2))


@pytest.mark.slow
def test_zeros_stay_zero_whatever_the_optimizer_keeps(compiled_in_haste):
    """Momentum, an average of its own and slow weights would all bring a weight back."""
    for section in (
        {"name": "sgd"},
        {"name": "adamw", "lookahead": "2 steps", "weight_decay": 0.1},
        {"name": "schedule_free"},
        {"name": "muon"},
    ):
        direction = {"momentum": 0.9} if section["name"] == "sgd" else {}
        plain = optim.make_optimizer(20, steps, direction, lr=0.1, schedule="constant", **section)
        optimizer = prune.pruned(plain, rule(sparsity=0.5, end="4 steps"), MODEL)

        @jax.jit
        def once(params, state, step, optimizer=optimizer):
            slopes = jax.tree.map(lambda p: jnp.sin(7.0 * p + step), params)
            updates, state = optimizer.update(slopes, state, params, step)
            return jax.tree.map(jnp.add, params, updates), state

        params, state, before = PARAMS, optimizer.init(PARAMS), None
        for step in range(8):
            params, state = once(params, state, jnp.uint32(step))
            masks = tree.flatten(state["masks"])
            before = before or masks
            for values in (params, optimizer.eval_params(state, params)):
                for path, mask in masks.items():
                    assert not np.any(np.asarray(mask) & ~np.asarray(before[path]))
                    assert np.all(np.asarray(tree.flatten(values)[path])[~mask] == 0)
            before = masks
        assert float(optimizer.sparsity(state)) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"sparsity": 0.0}, "sparsity: 0.0 is not between"),
        ({"structure": "4:2"}, "'4:2' is not 'unstructured'"),
        ({"structure": "2:4", "sparsity": 0.8}, "2:4 makes it 0.5"),
        ({"structure": "2:4", "scope": "global"}, "2:4 is a rule for every kernel"),
        ({"sparsity": 0.5, "begin": "9 steps"}, "end: '1 steps' is before"),
        ({"sparsity": 0.5, "paths": "("}, "is not a regular expression"),
        ({"sparsity": 0.5, "paths": "none"}, "'none' matches no kernel"),
        ({"sparsity": 0.5, "structure": "rows", "paths": ".*up/kernel"}, "no module 'mlp'"),
    ],
)
def test_what_does_not_fit_is_one_line(keys, words):
    with pytest.raises(BadInput, match=words):
        masks_after(rule(**keys))


def test_without_pruning_the_optimizer_is_the_same():
    plain = optim.make_optimizer(10, steps, {}, name="sgd")
    assert prune.pruned(plain, prune.pruning(steps)) is plain
    frozen = prune.kernels(rule(sparsity=0.5), PARAMS, ("head/kernel",))
    assert set(tree.flatten(PARAMS)) - set(frozen) == {
        "head/kernel",
        "block_0/attention/query/bias",
        "block_1/attention/query/bias",
    }


@pytest.mark.slow
def test_the_default_compiles_to_the_same_program():
    """The keys of a rule that is off are no part of the program."""
    key, one = "compress.prune.frequency", jax.devices()[:1]
    made = [prepare(load(f"{DIGITS}:mlp", **{key: f"{n} steps"}), one) for n in (1, 7)]
    programs = {str(m.step.trace(*abstract_arguments(m)).jaxpr) for m in made}
    assert len(programs) == 1
    assert "sort[" not in programs.pop()
    assert "masks" not in str(jax.tree.structure(made[0].like.opt_state))
