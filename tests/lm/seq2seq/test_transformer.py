"""Encoder-decoders: what sees what, caches, packed pairs, sizes, and ways of computing the same."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest

from common import tree
from common.devices import mesh
from common.errors import BadInput
from common.nn import relative
from common.nn.layers import Dense
from lm.decoding import checks
from lm.seq2seq import transformer
from lm.seq2seq.transformer import EncoderDecoder

SMALL = {"vocab_size": 60, "width": 16, "layers": 1, "heads": 2, "hidden": 24}
FIELDS = {
    "base": {},
    "t5": transformer.T5 | {"head_width": 6, "buckets": 8, "furthest": 6},
    "marian": transformer.MARIAN | {"decoder_layers": 2},
    "bart": transformer.BART | {"max_length": 16},
    "rotary": {"positions": "rotary", "kv_heads": 1, "source_vocab_size": 40, "norm": "rms"},
}
RNG = np.random.default_rng(7)
SOURCE, TARGET = (RNG.integers(1, 40, (2, n)).astype(np.int32) for n in (9, 7))
SOURCE_SEGMENTS = np.array([[1] * 9, [1] * 6 + [0] * 3], np.int32)


def some(quick: str = "", slow: str = "") -> list:
    """Those that stand for the others; these are a measure."""
    marks = {quick: (), slow: pytest.mark.slow}
    others = pytest.mark.measure("models"), pytest.mark.slow
    return [pytest.param(name, marks=marks.get(name, others)) for name in FIELDS]


def made(name: str, **more):
    """(model, its variables), all numbers random."""
    model = EncoderDecoder(**SMALL | FIELDS[name] | more)
    return model, models.variables(model, (SOURCE, SOURCE_SEGMENTS, TARGET, None))


@pytest.mark.parametrize("name", some("t5"))
def test_cached_decoding_is_the_full_forward(name, compiled_in_haste):
    """A prefix of another length in each row, then a token at a time, without the memory."""
    model, variables = made(name)
    lengths = jnp.array([3, 2])

    @jax.jit
    def both(variables):
        full = model.apply(variables, SOURCE, SOURCE_SEGMENTS, TARGET, None)
        memory = model.apply(variables, SOURCE, SOURCE_SEGMENTS, method="encode")
        decode = lambda *inputs, **rest: model.apply(variables, *inputs, **rest, method="decode")
        prefix = jnp.where(jnp.arange(3) < lengths[:, None], TARGET[:, :3], 0)
        cache = model.empty_cache(2, 8)
        logits, cache = decode(prefix, None, memory, SOURCE_SEGMENTS, cache=cache, at=lengths - 1)
        cache, found = cache._replace(length=lengths), [logits]
        for step in range(2):
            token = jnp.take_along_axis(TARGET, lengths[:, None] + step, axis=1)
            logits, cache = decode(token, cache=cache)
            found.append(logits)
        places = lengths[:, None] - 1 + jnp.arange(3)
        return jnp.stack(found, axis=1), jnp.take_along_axis(full, places[..., None], axis=1)

    found, expected = both(variables)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", some(slow="t5"))
def test_packed_pairs_are_separate_and_padding_changes_nothing(name, compiled_in_haste):
    """Two pairs in a row, each as it is alone in a row of its own size, and a third in another;
    what stands in the padding of either side does not matter."""
    model, variables = made(name)
    sizes = (4, 3), (3, 2), (5, 4)  # of source and target
    pairs = [(SOURCE[i % 2, :s], TARGET[i % 2, i : i + t]) for i, (s, t) in enumerate(sizes)]

    def row(*which, fill):
        rows = []
        for side, length in ((0, 9), (1, 7)):
            tokens = np.concatenate([pairs[i][side] for i in which])
            segments = np.repeat(1 + np.arange(len(which)), [len(pairs[i][side]) for i in which])
            rest = 0, length - len(tokens)
            rows += [np.pad(tokens, rest, constant_values=fill), np.pad(segments, rest)]
        return rows

    @jax.jit
    def logits(variables):
        rows = [row(*which, fill=fill) for fill in (0, 9) for which in ((0, 1), (2,))]
        packed = model.apply(variables, *map(np.stack, zip(*rows, strict=True)))
        alone = [model.apply(variables, s[None], None, t[None], None)[0] for s, t in pairs[:2]]
        return packed, alone

    packed, (first, second) = logits(variables)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    close(packed[0, :3], first)
    close(packed[0, 3:5], second)
    close(packed[0, :5], packed[2, :5])
    close(packed[1, :4], packed[3, :4])


@pytest.mark.slow
def test_a_target_sees_its_past_and_all_of_its_source(compiled_in_haste):
    model, variables = made("t5")

    def logits(added, side):
        embedded = lambda table, tokens: jnp.asarray(variables["params"][table]["embedding"])[
            tokens
        ]
        x, y = embedded("token", SOURCE[:1]), embedded("token", TARGET[:1])
        x, y = (x + added, y) if side == "source" else (x, y + added)
        at = lambda tokens: jnp.arange(tokens.shape[1])[None]

        def run(model):
            memory = model.encoder(x, at(SOURCE), None)
            return model.decoder(y, at(TARGET), None, memory=transformer.Memory(memory))

        return model.apply(variables, method=run)[0].sum(axis=-1)

    def influence(side, length):
        jacobian = jax.jacrev(lambda added: logits(added, side))
        return np.abs(jax.jit(jacobian)(jnp.zeros((1, length, 16)))[:, 0]).sum(axis=-1) > 0

    assert influence("source", 9).all()
    assert np.array_equal(influence("target", 7), np.tri(7) > 0)


def test_relative_positions_are_the_same_by_diagonals_and_one_by_one():
    # 8 buckets for one distance each, then ranges that widen up to 128, as in T5's encoder.
    found = relative.buckets(16, 128)
    assert found[:9].tolist() == list(range(9))
    assert [int(np.argmax(found == i)) for i in range(9, 16)] == [12, 16, 23, 32, 46, 64, 91]
    for causal in (False, True):
        module = relative.RelativePositions(heads=2, count=8, furthest=6, causal=causal)
        params = {"params": {"embedding": RNG.normal(size=(8, 2)).astype(np.float32)}}
        places = jnp.arange(11)[None]
        one = module.apply(params, places, 11, method="at")
        assert np.array_equal(module.apply(params, 11), one)
        assert len(np.unique(one[0, 0])) == 7  # of the 8, one is not of any distance


@pytest.mark.parametrize("name", FIELDS)
def test_the_partition_table_covers_every_matrix_and_layers_gather_by_it(name):
    model, seen = EncoderDecoder(**SMALL | FIELDS[name]), {}

    def spy(next_function, args, kwargs, context):
        if isinstance(context.module, Dense) and context.method_name == "__call__":
            seen["/".join((*context.module.path, "kernel"))] = context.module.names
        return next_function(*args, **kwargs)

    with transformer.nn.intercept_methods(spy):
        shapes = jax.eval_shape(model.init, jax.random.key(0), SOURCE, None, TARGET)["params"]
    mesh.shardings(mesh.make_layout(), model.PARTITION, shapes)
    kernels = [path for path in tree.flatten(shapes) if path.endswith("kernel")]
    assert seen == {path: tree.lookup(model.PARTITION, path) for path in kernels}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # As there, but biases of logits count, and two rows before each table of positions do not.
        ("t5_small", 76_961_152),
        pytest.param("bart_base", 139_420_416 + 50_265 - 2 * 2 * 768, marks=pytest.mark.slow),
        pytest.param("base", 63_082_496, marks=pytest.mark.slow),
    ],
)
def test_a_named_size_has_the_parameters_of_its_paper_or_checkpoint(name, parameters):
    model = EncoderDecoder(**transformer.SIZES[name])
    shapes = jax.eval_shape(model.init, jax.random.key(0), SOURCE, None, TARGET)["params"]
    assert sum(x.size for x in jax.tree.leaves(shapes)) - model.padding() == parameters


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": "relative", "buckets": 6}, "buckets: 6 is not a positive multiple of 4"),
        ({"positions": "relative", "furthest": 16}, "furthest: 16 leaves no distances to the 16"),
        ({"positions": "relative", "implementation": "splash"}, "splash has no bias"),
        ({"positions": "learned", "max_length": 8}, "max_length: 8 positions, and the rows have 9"),
        ({"decoder_layers": 0}, "layers: 0 is not positive"),
    ],
)
def test_a_shape_that_cannot_be_is_said(change, message):
    model = EncoderDecoder(**SMALL | change)
    with pytest.raises(BadInput, match=message):
        jax.eval_shape(model.init, jax.random.key(0), SOURCE, None, TARGET)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", pytest.param("bart", marks=pytest.mark.measure("models"))])
def test_divided_over_devices_or_in_a_loop_it_is_the_same_model(name, compiled_in_haste):
    inputs = [np.concatenate([x, x]) for x in (SOURCE, SOURCE_SEGMENTS, TARGET, TARGET * 0 + 1)]
    model, variables = made(name, layers=1, decoder_layers=2)
    layout = mesh.make_layout(data=2, fsdp=2, tensor=2)
    places = mesh.shardings(layout, model.PARTITION, variables["params"])

    def gradients(params, **way):
        logits = lambda params: model.clone(**way).apply({"params": params}, *inputs)
        return jax.jit(jax.value_and_grad(lambda p: jnp.square(logits(p)).mean()))(params)

    value, expected = gradients(variables["params"])
    with jax.set_mesh(layout.mesh):
        divided = jax.device_put(variables["params"], places)
        others = [gradients(divided, constrain=mesh.constrainer(layout))]
    others.append(gradients(variables["params"], scan=True, remat="block"))
    for other, found in others:
        assert float(other) == pytest.approx(float(value), rel=1e-5)
        found = tree.flatten(jax.device_get(found))
        for path, leaf in tree.flatten(jax.device_get(expected)).items():
            assert np.linalg.norm(found[path] - leaf) < 1e-4 * np.linalg.norm(leaf) + 1e-6, path


def test_there_is_room_for_as_many_tokens_as_there_are_learned_positions():
    assert checks.room(EncoderDecoder(**SMALL | FIELDS["bart"]), 4) == 12
    assert checks.room(EncoderDecoder(**SMALL), 4) is None
