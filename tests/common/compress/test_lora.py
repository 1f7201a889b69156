"""Low-rank updates: their numbers, what is trained and summed over the devices, and runs of them,
whose checkpoints hold nothing else."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from helpers import DIGITS, TOY, load, result
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from common import predict, tree
from common.compress import lora
from common.errors import BadInput
from common.laws import checks as laws
from common.nn.layers import Dense
from common.planning import hlo
from common.runs import checkpoint
from common.sweeps import population
from common.training import optim, saved, train, unsaved
from common.training.program import abstract_arguments, initial_state, prepare
from lm import bert, gpt


def config(rank=3, **keys) -> dict:
    return {"compress": {"lora": {"rank": rank, **keys}}}


def moved(params: dict) -> dict:
    """Parameters with random B."""
    random = lambda x: jnp.asarray(np.random.default_rng(x.size).normal(size=x.shape), x.dtype)
    return tree.map_paths(lambda p, x: 0.1 * random(x) if "lora_b" in p else x, params)


class Two(nn.Module):
    """A dense layer of each kind, of which the second is applied twice."""

    PARTITION = ((r"ours/kernel", ("embed", "mlp")), (r"theirs/kernel", ("mlp", None)))
    dtype: str | None = None

    @nn.compact
    def __call__(self, x):
        """f32[B, L, 5] -> f32[B, L, 4]."""
        theirs = nn.Dense(4, dtype=self.dtype, name="theirs")
        x = Dense(4, dtype=self.dtype, name="ours")(x)
        return theirs(theirs(x))


X = np.random.default_rng(0).normal(size=(3, 2, 5)).astype(np.float32)


def compute(model):
    return jax.jit(lambda params, x: model.apply({"params": params}, x))


def test_an_update_is_that_of_the_paper():
    own, model = Two(), lora.applied(Two(), config(alpha=6.0))
    fresh, plain = (jax.jit(m.init)(jax.random.key(0), X)["params"] for m in (model, own))
    kept = tree.part(fresh, lambda path: not lora.is_factor(path))
    assert jax.tree.all(jax.tree.map(np.array_equal, kept, plain))
    np.testing.assert_array_equal(compute(model)(fresh, X), compute(own)(plain, X))
    assert np.any(fresh["ours"]["lora_a"]["kernel"])
    updated = moved(fresh)
    params = jax.tree.map(np.float64, updated)
    assert params["theirs"]["lora_b"]["kernel"].shape == (3, 4)
    y = np.float64(X)
    for name in ("ours", "theirs", "theirs"):
        a, b = (params[name][factor]["kernel"] for factor in ("lora_a", "lora_b"))
        y = y @ params[name]["kernel"] + params[name]["bias"] + 2 * (y @ a) @ b
    np.testing.assert_allclose(compute(model)(updated, X), y, rtol=1e-5, atol=1e-6)
    together = lora.merged(updated, config(alpha=6.0))
    np.testing.assert_allclose(compute(own)(together, X), y, rtol=1e-5, atol=1e-6)
    half = compute(lora.applied(Two("bfloat16"), config(alpha=6.0)))(updated, X)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(half), y, rtol=0.1, atol=0.1)


@pytest.mark.slow
def test_explicit_axes():
    model = lora.applied(Two(), config())
    params = moved(jax.jit(model.init)(jax.random.key(0), X)["params"])
    gradient = jax.jit(jax.grad(lambda params, x: jnp.sum(model.apply({"params": params}, x) ** 2)))
    x = np.concatenate([X, X[:1]])
    mesh = jax.make_mesh(
        (4,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:4]
    )
    with jax.set_mesh(mesh):
        rows, everywhere = (NamedSharding(mesh, spec) for spec in (P("data"), P()))
        split = gradient(jax.device_put(params, everywhere), jax.device_put(x, rows))
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(near, split, gradient(params, x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classifier", "gpt"])
def test_merged_parameters_compute_the_same(name):
    """A classifier, looped over recomputed blocks, and a GPT that continues from a cache."""
    classifies = name == "classifier"
    fields = {"num_classes": 3, "scan": True, "remat": "block"} if classifies else {}
    cls = bert.Classifier if classifies else gpt.GPT
    model, plain = (cls(**models.TEXT, **fields) for _ in range(2))
    model = lora.applied(model, config())

    def outputs(model, params):
        if classifies:
            return model.apply({"params": params}, models.TOKENS)
        cache = model.empty_cache(len(models.TOKENS), 8)
        return model.apply({"params": params}, models.TOKENS[:, :5], cache, method="decode")[0]

    @jax.jit
    def both():
        params = moved(model.init(jax.random.key(0), models.TOKENS)["params"])
        base = tree.part(params, lambda path: not lora.is_factor(path))
        merged = outputs(plain, lora.merged(params, config()))
        return outputs(model, params), merged, outputs(plain, base)

    updated, merged, before = both()
    np.testing.assert_allclose(updated, merged, rtol=1e-5, atol=1e-5)
    assert np.abs(before - updated).max() > 1e-3
    assert lora.without(config())["compress"] == {}


def test_factors_are_divided_as_their_kernels_are():
    model = lora.applied(Two(), config())
    params = jax.eval_shape(model.init, jax.random.key(0), X)["params"]
    rows = lora.partition(Two.PARTITION, params)
    found = {path: tree.lookup(rows, path) for path in tree.flatten(params) if "bias" not in path}
    assert found == {
        "ours/kernel": ("embed", "mlp"),
        "ours/lora_a/kernel": ("embed", None),
        "ours/lora_b/kernel": (None, "mlp"),
        "theirs/kernel": ("mlp", None),
        "theirs/lora_a/kernel": ("mlp", None),
        "theirs/lora_b/kernel": (None, None),
    }
    assert lora.partition(Two.PARTITION, {}) == Two.PARTITION


@pytest.mark.parametrize(
    ("path", "overrides", "message"),
    [
        (f"{DIGITS}:mlp", {"paths": "nothing"}, r"matches no kernel .*; one of this model is \w+/"),
        (f"{DIGITS}:mlp", {"paths": "("}, r"lora\.paths: .* regular expression"),
        (f"{DIGITS}:mlp", {"train": "('x',)"}, r"lora\.train: row 'x' matches no parameter"),
        (f"{DIGITS}:mlp", {"rank": 0, "train": "('x',)"}, r"lora\.train: set .*rank"),
        (f"{DIGITS}:mlp", {"alpha": -1.0}, r"lora\.alpha: -1.0 is not positive"),
        (TOY, {}, r"does not build its model by common\.nn\.model\.build"),
    ],
)  # fmt: skip
def test_refusals(path, overrides, message):
    keys = {f"compress.lora.{k}": v for k, v in ({"rank": 2} | overrides).items()}
    with pytest.raises(BadInput, match=message):
        prepare(load(path, **keys), jax.devices()[:1])


def test_one_block_for_all_needs_the_same_updates():
    some = lora.applied(gpt.GPT(**models.TEXT, scan=True), config(paths="block_0/.*kernel"))
    with pytest.raises(BadInput, match=r"kernels of some blocks alone"):
        jax.eval_shape(some.init, jax.random.key(0), models.TOKENS)


def test_the_optimizer_knows_only_what_is_trained():
    params = {"a": jnp.ones((2, 2)), "b": jnp.full((3,), 2.0)}
    for keys in ({"lookahead": "1 steps"}, {"name": "schedule_free", "schedule": "constant"}):
        duration = lambda text, where: int(text.split()[0])
        every = optim.make_optimizer(10, duration, {}, **keys)
        limited = optim.limited(every, lambda path: path == "a")
        state, live = limited.init(params), limited.live(params)
        assert list(live) == ["a"]
        assert not any("b" in path.split("/") for path in tree.flatten(state))
        updates, state = jax.jit(limited.update)(
            {"a": jnp.ones((2, 2))}, state, live, jnp.uint32(0)
        )
        alone, _ = jax.jit(every.update)(
            {"a": jnp.ones((2, 2))}, every.init(live), live, jnp.uint32(0)
        )
        np.testing.assert_array_equal(updates["a"], alone["a"])
        np.testing.assert_array_equal(limited.eval_params(state, params)["b"], params["b"])


# --------------------------------------------------------------------------------------------- runs


def short(path="mlp", **overrides) -> dict:
    base = {
        "train.duration": "4 steps", "train.log_every": "1 steps", "checkpoint.every": "2 steps",
        "evals.test.every": "100%", "compress.lora.rank": 2,
    }  # fmt: skip
    return load(f"{DIGITS}:{path}", **(base | overrides))


def test_a_new_head_is_trained():
    keys = {"init.path": "anywhere", "init.skip": "('head/.*',)", "train.average": 0.5}
    made = prepare(short(**keys), jax.devices()[:1])
    held = tree.flatten(unsaved.kept(made, made.like))
    own = {path.removeprefix("params/") for path in held if path.startswith("params/")}
    assert {"head/kernel", "head/bias"} == {path for path in own if not lora.is_factor(path)}
    assert not any("head/lora" in path for path in own)
    average = {path.removeprefix("average/params/") for path in held if path.startswith("average")}
    assert average == own


@pytest.mark.slow
def test_devices_sum_and_multiply_for_what_is_trained_alone():
    keys = {"model.hidden": "(48, 24)", "compress.lora.train": "('head/bias',)"}
    made = prepare(short(**keys))
    with jax.set_mesh(made.layout.mesh):
        compiled = made.step.lower(*abstract_arguments(made)).compile().as_text()
    sums = [c for c in hlo.collectives(hlo.parse(compiled)) if c.kind == "all-reduce"]
    trained = tree.count(made.optimizer.live(made.like.params))
    scalars = sum(c.bytes for c in sums) // 4 - trained
    assert 0 <= scalars <= 4  # loss, accuracy, the weights
    products = re.findall(r"f32\[([\d,]+)\]\S* dot\(", compiled)
    shapes = {
        path: ",".join(map(str, x.shape)) for path, x in tree.flatten(made.like.params).items()
    }
    both = lambda shape: {shape, ",".join(reversed(shape.split(",")))}
    for path, shape in shapes.items():
        if path.endswith("kernel"):
            assert lora.is_factor(path) == bool(both(shape) & set(products)), path


def updating(folder, steps: int = 6, **overrides) -> dict:
    base = {"init.path": folder / "base", "optim.lr": 0.1, "optim.schedule": "constant"}
    base |= {"optim.warmup": "0 steps", "train.average": 0.5, "train.duration": f"{steps} steps"}
    return short(**(base | overrides))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run `base`, and two that update it: `lora`, interrupted and resumed, and
    `straight`."""
    folder = tmp_path_factory.mktemp("runs")
    train.run(short(**{"compress.lora.rank": 0}), folder / "base", show=False)
    for steps in (4, 6):
        train.run(updating(folder, steps), folder / "lora", show=False)
    train.run(updating(folder), folder / "straight", show=False)
    return folder


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_from_what_is_trained(runs):
    def sizes(name, step):
        shapes = checkpoint.Checkpoints(runs / name).shapes(step)
        return {path: np.prod(s.shape) for path, s in shapes.items()}

    straight, resumed = (result(runs / name) for name in ("straight", "lora"))
    assert resumed["digest"] == straight["digest"]
    assert resumed["eval"] == straight["eval"] == saved.evaluate_run(runs / "lora")["eval"]
    held = sizes("lora", 6)
    assert all(map(lora.is_factor, (path for path in held if path.endswith("kernel"))))
    assert not any("bias" in path for path in held)
    assert sum(held.values()) < sum(sizes("base", 4).values()) / 3


@pytest.mark.slow
def test_the_base_is_that_of_the_beginning(runs):
    newest, longer = runs / "base/checkpoints/4", updating(runs, 8)
    acts = (
        lambda: train.run(longer, runs / "lora", show=False),
        lambda: saved.evaluate_run(runs / "lora"),
        lambda: predict.load(runs / "lora"),
        lambda: initial_state(prepare(short(**{"init.path": runs / "lora"}))),
    )
    newest.rename(runs / "aside")
    for act in acts:
        changed = r"the parameters in \S+base have changed since the run in \S+lora began"
        with pytest.raises(BadInput, match=changed):
            act()
    (runs / "base").rename(runs / "gone")
    for act in acts[:3]:
        with pytest.raises(BadInput, match=r"config\.init\.path: \S+base': no such"):
            act()
    (runs / "gone").rename(runs / "base")
    (runs / "aside").rename(newest)
    assert checkpoint.steps_in(runs / "lora") == [4, 6]
    assert saved.evaluate_run(runs / "lora")["eval"] == result(runs / "lora")["eval"]


@pytest.mark.slow
def test_others_begin_with_merged_parameters_and_predictions_are_of_the_average(runs):
    with saved.opened(saved.read_config(runs / "lora"), runs / "lora") as (program, state, _):
        merged = jax.device_get(lora.merged(state.params, program.config))
        average = tree.joined(state.params, state.average["params"])
    for rank in (0, 2):
        keys = {"init.path": runs / "lora", "compress.lora.rank": rank}
        params = tree.flatten(initial_state(prepare(short(**keys))).params)
        for path, x in tree.flatten(merged).items():
            np.testing.assert_array_equal(params[path], x)
    loaded = predict.load(runs / "lora")
    assert tree.hexdigest(loaded.variables["params"]) == tree.hexdigest(average)


@pytest.mark.slow
def test_a_population_trains_as_one_by_one(runs, tmp_path):
    configs = [updating(runs, seed=seed) for seed in (1, 0)]
    results = population.run(configs, [tmp_path / "0", tmp_path / "1"])
    alone = result(runs / "straight")["eval"]["test"]
    assert results[1]["eval"]["test"]["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert results[0]["eval"]["test"]["loss"] != results[1]["eval"]["test"]["loss"]
    held = checkpoint.Checkpoints(tmp_path / "0").shapes(6)
    assert "params/head/lora_a/kernel" in held
    assert "params/head/kernel" not in held


@pytest.mark.slow
def test_the_laws_hold():
    config = short(**{"compress.lora.train": "('head/bias',)", "optim.warmup": "0 steps"})
    laws.mesh_changes_nothing(config, [(8, 1, 1), (2, 2, 2)], steps=3)
    laws.accumulation_changes_nothing(config, steps=3)
    laws.no_dead_knob(config)
