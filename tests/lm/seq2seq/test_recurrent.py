"""Recurrent encoder-decoders: the paper's equations by torch's cells, pairs in packed rows as
alone, and steps with a cache as the full forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import tree
from common.nn import flops
from lm.seq2seq import recurrent

V, S, L = 11, 5, 4
RNG = np.random.default_rng(0)
SOURCE, TARGET = (RNG.integers(1, V, (3, n)).astype(np.int32) for n in (S, L))
LENGTHS = np.array([5, 2, 3])
PADDED = (np.arange(S) < LENGTHS[:, None]).astype(np.int32)
KINDS = {
    "gru": {"embedding_width": 3},
    "lstm": {"cell": "lstm", "layers": 2, "source_vocab_size": 7, "tied": True},
    "plain": {"attention": False, "start": "same", "readout": "state", "bidirectional": False},
}
KINDS["lstm"] |= {"projection_width": 3, "logits_bias": True}
MOSTLY = [pytest.param(k, marks=() if k == "gru" else pytest.mark.slow) for k in KINDS]


def made(name: str):
    """(model, parameters drawn by numpy, which compiles nothing)."""
    model = recurrent.EncoderDecoder(vocab_size=V, width=4, **KINDS[name])
    inputs = SOURCE % 7, None, TARGET, None
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(1)
    draw = lambda x: (rng.normal(size=x.shape) * 0.5).astype(np.float32)
    return model, jax.tree.map(draw, shapes)


@pytest.mark.slow
def test_attention_is_the_papers(compiled_in_haste):
    """Outputs and every gradient, against the equations a step at a time."""
    import torch

    model, params = made("gru")
    flat = {
        k: torch.tensor(v, dtype=torch.float64, requires_grad=True)
        for k, v in tree.flatten(params).items()
    }
    kernel = lambda path: flat[f"{path}/kernel"]

    def dense(path, x):
        bias = flat.get(f"{path}/bias")
        return x @ kernel(path) + (0 if bias is None else bias)

    def gru(path, x, h, context=0):
        """Cho et al. 2014, with the reset gate after the product."""
        a, b = dense(f"{path}/input", x) + context, dense(f"{path}/recurrent", h)
        (ar, az, an), (br, bz, bn) = a.chunk(3, -1), b.chunk(3, -1)
        z = torch.sigmoid(az + bz)
        return (1 - z) * torch.tanh(an + torch.sigmoid(ar + br) * bn) + z * h

    total, rows = 0, []
    for source, length, target in zip(SOURCE, LENGTHS, TARGET, strict=True):
        x = flat["token/embedding"][torch.tensor(source[:length])]
        states = {}
        for way in ("forward", "backward"):
            h, outputs = torch.zeros(4, dtype=torch.float64), []
            for one in x if way == "forward" else x.flip(0):
                h = gru(f"encoder/block_0/{way}", one, h)
                outputs.append(h)
            states[way] = torch.stack(outputs if way == "forward" else outputs[::-1])
        annotations = torch.cat([states["forward"], states["backward"]], -1)
        s, path = torch.tanh(dense("start_0", states["backward"][0])), "block_0/forward"
        for token in target:
            y = flat["token/embedding"][token]
            features = torch.tanh(dense(f"{path}/query", s) + dense("key", annotations))
            shares = torch.softmax(features @ flat[f"{path}/score"], 0)
            context = shares @ annotations
            s = gru(path, y, s, dense(f"{path}/context", context))
            read = dense("readout_state", s) + dense("readout_last", y)
            read = (read + dense("readout_context", context)).reshape(-1, 2).max(-1).values
            rows.append((flat["output/embedding"] @ read)[:V])
            total = total + torch.sin(3 * rows[-1]).sum()
    total.backward()

    def objective(params):
        logits = model.apply({"params": params}, SOURCE, PADDED, TARGET)
        return jnp.sin(3 * logits).sum(), logits

    with jax.enable_x64():
        grad = jax.jit(jax.grad(objective, has_aux=True))
        gradients, logits = jax.device_get(grad(jax.tree.map(np.float64, params)))
    expected = torch.stack(rows).detach().numpy().reshape(logits.shape)
    np.testing.assert_allclose(logits, expected, rtol=1e-10)
    for path, found in tree.flatten(gradients).items():
        other = flat[path].grad.numpy()
        assert np.linalg.norm(found - other) <= 1e-10 * np.linalg.norm(other), path


@pytest.mark.parametrize("name", MOSTLY)
def test_a_pair_in_a_packed_row_is_as_alone(name):
    model, params = made(name)
    apply = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs))
    source_segments = np.array([[1, 1, 2, 2, 2], [1, 1, 1, 2, 0], [1, 1, 1, 1, 0]], np.int32)
    segments = np.array([[1, 1, 2, 2], [1, 2, 2, 2], [1, 1, 1, 0]], np.int32)
    packed = apply(SOURCE % 7, source_segments, TARGET, segments)
    places = ((0, slice(2, 5), slice(2, 4)), (1, slice(0, 3), slice(0, 1)))
    places += ((2, slice(0, 4), slice(0, 3)),)
    source, target = np.full_like(SOURCE, 5), np.full_like(TARGET, 5)
    own, ours = np.zeros_like(source), np.zeros_like(target)
    for row, s, t in places:
        for into, ones, x, at in ((source, own, SOURCE % 7, s), (target, ours, TARGET, t)):
            into[row, : at.stop - at.start], ones[row, : at.stop - at.start] = x[row, at], 1
    alone = apply(source, own, target, ours)
    for row, _, t in places:
        expected = alone[row, : t.stop - t.start]
        np.testing.assert_allclose(packed[row, t], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MOSTLY)
def test_steps_with_a_cache_are_the_full_pass(name):
    model, params = made(name)
    params = jax.tree.map(np.float32, params)
    expected = jax.jit(model.apply)({"params": params}, SOURCE % 7, PADDED, TARGET)

    @jax.jit
    def steps(params):
        apply = lambda *inputs, **rest: model.apply({"params": params}, *inputs, **rest)
        memory = apply(SOURCE % 7, PADDED, method="encode")
        decode = lambda tokens, cache: apply(
            *(tokens, None, memory, PADDED), cache=cache, method="decode"
        )
        _, cache = decode(TARGET[:, :2], model.empty_cache(3, L))
        cache = cache._replace(length=jnp.array([1, 1, 1]))  # as if rows ended there
        logits = []
        for i in range(1, L):
            now, cache = decode(TARGET[:, i : i + 1], cache)
            logits.append(now)
        return jnp.stack(logits, 1)

    np.testing.assert_allclose(steps(params), expected[:, 1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_flops_are_those_of_the_traced_products(name):
    model, params = made(name)
    row = lambda n: jax.ShapeDtypeStruct((1, n), jnp.int32)
    apply = lambda params, source, target: model.apply(params, source, None, target)
    traced = flops.traced(jax.make_jaxpr(apply)({"params": params}, row(S), row(L)).jaxpr)
    more = 2 * L * model.read_size * (128 - V)  # the table of embeddings is padded
    assert model.flops(S, L) + more == traced
