"""Transformers: what sees what, caches, packing, padding, and the ways of computing the same."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import tree
from common.devices import mesh
from common.errors import BadInput
from common.nn import attention
from common.nn.layers import Dense, padded
from lm import bert, gpt

SMALL = {"vocab_size": 200, "width": 32, "layers": 2, "heads": 4, "hidden": 48, "max_length": 32}
GPTS = {
    "gpt2": SMALL,
    "llama": SMALL | gpt.LLAMA | {"kv_heads": 2, "tied": False},
    "sinusoidal": SMALL | {"positions": "sinusoidal", "activation": "relu"},
    "scaled": SMALL | {"positions": "scaled_sinusoidal", "pre_norm": False},
    "window": SMALL | {"window": 3, "positions": "rotary"},
    "qwen": SMALL
    | gpt.LLAMA
    | {
        "kv_heads": 2,
        "head_width": 6,
        "qk_norm": True,
        "bias": "qkv",
        "rope_scaling": ("yarn", 4.0, 16),
    },
}
BERTS = {
    "bert": SMALL,
    "crammed": SMALL
    | {
        "pre_norm": True,
        "bias": False,
        "gated": True,
        "positions": "scaled_sinusoidal",
        "types": 0,
        "head": False,
    },
    "rotary": SMALL | {"positions": "rotary", "norm": "rms", "window": 4},
    "electra": SMALL | {"embedding_width": 20},
}
MODELS = {
    **{n: (gpt.GPT, f) for n, f in GPTS.items()},
    **{n: (bert.Bert, f) for n, f in BERTS.items()},
}
TOKENS = jax.random.randint(jax.random.key(7), (3, 12), 5, 200)


def some(names, *quick: str) -> list:
    """All of `names`, the others than `quick` marked slow: each is some programs to compile."""
    slow = pytest.mark.slow
    return [pytest.param(name, marks=() if name in quick else slow) for name in names]


def made(model, std: float = 0.3):
    """A model's parameters, spread wide so that attention is far from even; drawn by numpy, which
    compiles nothing."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    rng = np.random.default_rng(0)

    def draw(path, p):
        x = rng.normal(size=p.shape) * std if p.ndim == 2 else np.full(p.shape, "scale" in path)
        return x.astype(p.dtype)

    return tree.map_paths(draw, shapes)


def run(model, params, *arguments, **more):
    """`apply`, compiled as one program."""
    return jax.jit(lambda p, *a: model.apply({"params": p}, *a, **more))(params, *arguments)


def embedded(model, params, tokens, **more):
    """(logits, a function of additions to the embeddings) to differentiate by position."""

    def logits(added):
        def add(next_function, args, kwargs, context):
            out = next_function(*args, **kwargs)
            lookup = context.module.name == "token" and context.method_name == "__call__"
            return out + added if lookup else out

        with nn.intercept_methods(add):
            return model.apply({"params": params}, tokens, **more)

    return logits


def influence(model, params, tokens, **more):
    """f32[B, L, B, L]: how much each output position moves with each input position."""
    logits = embedded(model, params, tokens, **more)
    zero = jnp.zeros((*tokens.shape, params["token"]["embedding"].shape[1]))
    jacobian = jax.jit(jax.jacrev(lambda a: logits(a).sum(axis=-1)))(zero)
    return np.asarray(jnp.abs(jacobian).sum(axis=-1))


@pytest.mark.parametrize("name", some(GPTS, "gpt2", "window"))
def test_no_position_sees_the_future_and_rows_do_not_interact(name):
    model = gpt.GPT(**GPTS[name])
    seen = influence(model, made(model), TOKENS[:2, :8])
    rows, places = np.arange(2), np.arange(8)
    across = seen.transpose(0, 2, 1, 3)[~np.eye(2, dtype=bool)]
    assert not across.any()
    for row in rows:
        here = seen[row, :, row, :]
        assert not here[places[:, None] < places[None, :]].any()
        past = places[:, None] >= places[None, :]
        if name != "window":
            assert (here[past] > 0).all()


@pytest.mark.parametrize("name", some(BERTS, "rotary"))
def test_an_encoder_sees_both_sides_and_its_rows_do_not_interact(name):
    model = bert.Bert(**BERTS[name] | {"layers": 1})
    seen = influence(model, made(model), TOKENS[:2, :8])
    assert not seen.transpose(0, 2, 1, 3)[~np.eye(2, dtype=bool)].any()
    near = np.abs(np.arange(8)[:, None] - np.arange(8)) < (4 if name == "rotary" else 8)
    for row in range(2):
        assert np.array_equal(seen[row, :, row, :] > 0, near)


@pytest.mark.parametrize("name", some(GPTS, "qwen"))
def test_cached_decoding_is_the_full_forward(name):
    model = gpt.GPT(**GPTS[name])
    params = made(model)
    full = run(model, params, TOKENS)
    lengths = jnp.array([5, 3, 1])
    prompt = jnp.where(jnp.arange(5) < lengths[:, None], TOKENS[:, :5], 0)
    decode = jax.jit(lambda t, c, at: model.apply({"params": params}, t, c, at, method="decode"))
    logits, cache = decode(prompt, model.empty_cache(3, 12), lengths - 1)
    cache = cache._replace(length=lengths)
    for step in range(7):
        places = lengths - 1 + step
        expected = jnp.take_along_axis(full, places[:, None, None], axis=1)[:, 0]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
        following = jnp.take_along_axis(TOKENS, places[:, None] + 1, axis=1)
        logits, cache = decode(following, cache, jnp.zeros(3, jnp.int32))


@pytest.mark.slow
def test_padding_of_a_prompt_stretches_no_wavelength():
    scaling = "longrope", 8, 1.0, (1.0, 1.1, 1.3, 2.0), (1.0, 3.0, 8.0, 12.0)
    model = gpt.GPT(**GPTS["llama"] | {"rope_scaling": scaling, "layers": 1})
    params = made(model)
    decode = jax.jit(lambda t, c, at: model.apply({"params": params}, t, c, at, method="decode"))
    at = jnp.array([11, 5, 2])
    logits, _ = decode(TOKENS, model.empty_cache(3, 12), at)
    alone, _ = decode(TOKENS[:, :6], model.empty_cache(3, 12), jnp.minimum(at, 5))
    np.testing.assert_allclose(alone[1:], logits[1:], rtol=1e-4, atol=1e-4)
    full = run(model, params, TOKENS)
    np.testing.assert_allclose(full[0, 11], logits[0], rtol=1e-4, atol=1e-4)
    assert np.abs(full[1, 5] - logits[1]).max() > 1e-2  # in a longer text, wavelengths are longer


@pytest.mark.parametrize("name", some(MODELS, "gpt2", "crammed"))
def test_packed_is_separate_and_padding_changes_nothing(name):
    cls, fields = MODELS[name]
    model = cls(**fields)
    params = made(model)
    apply = lambda *inputs: run(model, params, *inputs)
    a, b = TOKENS[:1, :7], TOKENS[1:2, :4]
    packed = jnp.concatenate([a, b, jnp.zeros((1, 3), int)], axis=1)
    segments = jnp.array([[1] * 7 + [2] * 4 + [0] * 3])
    found = apply(packed, segments)
    np.testing.assert_allclose(found[:, :7], apply(a), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[:, 7:11], apply(b), rtol=1e-4, atol=1e-4)
    other = packed.at[:, 11:].set(9)
    assert np.array_equal(apply(other, segments)[:, :11], found[:, :11])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen", "bert"])
def test_every_way_of_computing_gives_the_same(name):
    cls, fields = MODELS[name]
    params = made(cls(**fields))
    segments = jnp.array([[1] * 12, [1] * 5 + [2] * 7, [1] * 9 + [0] * 3])

    def found(**way):
        def loss(params):
            model = cls(**fields, **way)
            return (model.apply({"params": params}, TOKENS, segments) ** 2).mean()

        value, gradient = jax.jit(jax.value_and_grad(loss))(params)
        return float(value), tree.flatten(jax.device_get(gradient))

    value, gradient = found()
    for way in ({"scan": True, "remat": "block"}, {"remat": "dots"}):
        other, other_gradient = found(**way)
        assert value == pytest.approx(other, rel=1e-5), way
        for path, leaf in gradient.items():
            norm = np.linalg.norm(leaf)
            assert np.linalg.norm(other_gradient[path] - leaf) < 1e-4 * norm + 1e-6, (way, path)


def test_init_does_not_know_how_blocks_are_run():
    init = lambda **way: tree.hexdigest(
        jax.jit(gpt.GPT(**SMALL, **way).init)(jax.random.key(0), TOKENS)
    )
    assert init() == init(scan=True) == init(remat="block")


@pytest.mark.parametrize("scan", [False, True])
def test_attention_maps_and_hidden_states_on_request(scan):
    model = gpt.GPT(**SMALL, scan=scan)
    params = made(model)
    logits, kept = run(model, params, TOKENS, mutable=["intermediates"])
    kept = kept["intermediates"]
    for i in range(2):
        (maps,) = kept[f"block_{i}"]["attention"]["attention"]
        assert maps.shape == (3, 4, 12, 12)
        np.testing.assert_allclose(maps.sum(axis=-1), 1, rtol=1e-5)
        assert not np.triu(maps, 1).any()
        assert kept[f"hidden_{i}"][0].shape == (3, 12, 32)
    np.testing.assert_allclose(run(model, params, TOKENS), logits, atol=1e-4)
    last = lambda m, x: m.output.logits(m.final_norm(x))
    final = run(gpt.GPT(**SMALL), params, kept["hidden_1"][0], method=last)
    np.testing.assert_allclose(final, logits, atol=1e-4)


def test_dropout_is_of_training_and_takes_a_traced_rate():
    one = SMALL | {"layers": 1}
    model = lambda rate: bert.Bert(**one, dropout=rate, attention_dropout=rate)
    params = made(model(0.1))

    @partial(jax.jit, static_argnums=2)
    def apply(rate, key, train):
        rngs = {"dropout": jax.random.key(key)}
        return model(rate).apply({"params": params}, TOKENS, train=train, rngs=rngs)

    fixed = jax.jit(lambda: model(0.3).apply(
        {"params": params}, TOKENS, train=True, rngs={"dropout": jax.random.key(1)}
    ))()  # fmt: skip
    np.testing.assert_allclose(apply(0.3, 1, True), fixed, atol=1e-4)
    assert np.abs(apply(0.3, 1, True) - apply(0.3, 2, True)).max() > 0.1
    np.testing.assert_allclose(apply(0.0, 1, True), apply(0.3, 1, False), atol=1e-4)


@pytest.mark.slow
def test_fewer_key_heads_are_repeated_ones():
    fields = SMALL | gpt.LLAMA
    params = made(gpt.GPT(**fields, kv_heads=2))

    def repeated(path, p):
        if "/key/" in path or "/value/" in path:
            return p.reshape(32, 2, 1, 8).repeat(2, axis=2).reshape(32, 32)
        return p

    full = tree.map_paths(repeated, params)
    np.testing.assert_allclose(
        run(gpt.GPT(**fields, kv_heads=2), params, TOKENS),
        run(gpt.GPT(**fields), full, TOKENS),
        atol=1e-4,
    )


def test_places_restart_in_every_segment():
    segments = jnp.array([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 3, 3]])
    assert attention.places(segments).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3]]


def test_the_vocabulary_is_padded_and_padding_is_never_seen():
    model = gpt.GPT(**SMALL | {"layers": 1})
    params = made(model)
    assert params["token"]["embedding"].shape == (padded(200), 32) == (256, 32)
    loss = lambda p: (model.apply({"params": p}, TOKENS) ** 2).sum()
    gradient = jax.jit(jax.grad(loss))(params)["token"]["embedding"]
    assert not gradient[200:].any()
    assert gradient[:200].any(axis=1).all()


@pytest.mark.parametrize("name", MODELS)
def test_the_partition_table_covers_every_matrix_and_no_row_is_idle(name):
    cls, fields = MODELS[name]
    model = cls(**fields)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    mesh.shardings(mesh.make_layout(), model.PARTITION, shapes)


def test_bfloat16_is_near_and_logits_stay_float32():
    model = gpt.GPT(**SMALL | gpt.LLAMA)
    params = made(model, 0.02)
    exact = run(model, params, TOKENS)
    near = run(gpt.GPT(**SMALL | gpt.LLAMA, dtype="bfloat16"), params, TOKENS)
    assert near.dtype == jnp.float32
    assert np.abs(near - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "heads: 5 does not divide the width 32"),
        ({"kv_heads": 3}, "kv_heads: 3 does not divide the 4 heads"),
        ({"window": 0}, "window: 0 is not positive"),
        ({"kv_heads": 0}, "kv_heads: 0 is not positive"),
        ({"heads": 0}, "heads: 0 is not positive"),
        ({"heads": 32, "positions": "rotary"}, "pairs columns"),
        ({"max_length": 8}, "max_length: 8 positions, and the rows have 12"),
        ({"head_width": 0}, "head_width: 0 is not positive"),
        ({"head_width": 7, "positions": "rotary"}, "pairs columns"),
        ({"bias": "kqv"}, "bias: 'kqv' is not True, False, 'qkv', 'attention' or 'mlp'"),
        ({"rope_scaling": ("linear", 2.0)}, "rope_scaling: .* config.model.positions is 'learned'"),
        (
            {"rope_scaling": ("dynamic", 2.0, 8), "positions": "rotary", "head_width": 2},
            "rope_scaling: 'dynamic' needs more than 2",
        ),
    ],
)
def test_a_shape_that_cannot_be_is_said(change, message):
    with pytest.raises(BadInput, match=message):
        jax.eval_shape(gpt.GPT(**SMALL | change).init, jax.random.key(0), TOKENS)


def test_dense_is_linens_dense():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    params = Dense(6).init(jax.random.key(1), x)
    assert tree.hexdigest(params) == tree.hexdigest(nn.Dense(6).init(jax.random.key(1), x))
    np.testing.assert_allclose(Dense(6).apply(params, x), nn.Dense(6).apply(params, x), rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "qwen", "bert", "electra", "nsp", "classifier"])
def test_layers_gather_their_kernels_by_the_rows_of_the_partition_table(name):
    models = {
        "nsp": bert.Bert(**SMALL, next_sentence=True),
        "classifier": bert.Classifier(**SMALL, num_classes=3),
    }
    model = models.get(name) or MODELS[name][0](**MODELS[name][1])
    seen = {}

    def spy(next_function, args, kwargs, context):
        if isinstance(context.module, Dense) and context.method_name == "__call__":
            seen["/".join((*context.module.path, "kernel"))] = context.module.names
        return next_function(*args, **kwargs)

    with nn.intercept_methods(spy):
        shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    kernels = [path for path in tree.flatten(shapes) if path.endswith("kernel")]
    assert seen == {path: tree.lookup(model.PARTITION, path) for path in kernels}


@pytest.mark.slow
def test_divided_over_devices_it_is_the_same_model(compiled_in_haste):
    cls, fields = bert.Bert, GPTS["qwen"] | {"embedding_width": 20, "bias": True}
    tokens = jnp.concatenate([TOKENS, TOKENS[:1, ::-1]])
    params = made(cls(**fields))
    layout = mesh.make_layout(data=2, fsdp=2, tensor=2)
    places = mesh.shardings(layout, cls(**fields).PARTITION, params)

    def gradients(params, **way):
        loss = lambda p: jnp.square(cls(**fields, **way).apply({"params": p}, tokens)).mean()
        return jax.jit(jax.value_and_grad(loss))(params)

    value, expected = gradients(params)
    with jax.set_mesh(layout.mesh):
        divided = jax.device_put(params, places)
        other, found = gradients(divided, constrain=mesh.constrainer(layout))
    assert float(other) == pytest.approx(float(value), rel=1e-5)
    found = tree.flatten(jax.device_get(found))
    for path, leaf in tree.flatten(jax.device_get(expected)).items():
        assert np.linalg.norm(found[path] - leaf) < 1e-4 * np.linalg.norm(leaf) + 1e-6, path


def test_under_fsdp_parameters_are_gathered_and_activations_stay():
    from common.planning import hlo

    layout = mesh.make_layout(data=1, fsdp=8)
    model = gpt.GPT(**SMALL | {"width": 64, "layers": 1}, constrain=mesh.constrainer(layout))
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    places = mesh.shardings(layout, model.PARTITION, shapes)
    given = jax.tree.map(
        lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, places
    )
    tokens = jax.ShapeDtypeStruct((16, 12), jnp.int32, sharding=mesh.batch_sharding(layout))

    def loss(params, tokens):
        return jnp.square(model.apply({"params": params}, tokens)).mean()

    with jax.set_mesh(layout.mesh):
        step = jax.jit(jax.grad(loss), out_shardings=places).lower(given, tokens).compile()
    found = hlo.collectives(hlo.parse(step.as_text()))
    assert {one.kind for one in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
    widest = max(one.bytes for one in found if one.kind == "all-gather")
    assert widest == padded(200) * 64 * 4  # the embeddings; no activation is as small or as large
