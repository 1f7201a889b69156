"""Models that are no transformers decode by the same code: a recurrent one, whose cache is a state,
and one with a memory of a source."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm import generate
from lm.decoding import beam, causal

V, D, STEPS = 11, 6, 5
RNG = np.random.default_rng(0)
PARAMS = {
    "embedding": RNG.normal(0, 1, (V, D)).astype(np.float32),
    "kernel": RNG.normal(0, 1, (D, D)).astype(np.float32),
    "out": RNG.normal(0, 2, (D, V)).astype(np.float32),
}
PROMPTS, LENGTHS = RNG.integers(0, V, (3, 4)), np.array([4, 1, 2])


class Cell(nn.Module):
    """The plain recurrent cell; its cache is the state, f32[B, D]."""

    def setup(self):
        zeros = nn.initializers.zeros
        shapes = {"embedding": (V, D), "kernel": (D, D), "out": (D, V)}
        for name, shape in shapes.items():
            setattr(self, name, self.param(name, zeros, shape))

    def empty_cache(self, rows, length, dtype):
        return {"state": jnp.zeros((rows, D), dtype)}

    def decode(self, tokens, cache):
        state = jnp.tanh(self.embedding[tokens[:, 0]] + cache["state"] @ self.kernel)
        return state @ self.out, {"state": state}


def logits_after(text, bias=0.0) -> np.ndarray:
    """What the cell says after a text, plainly."""
    state = np.zeros(D)
    for token in text:
        state = np.tanh(PARAMS["embedding"][token] + state @ PARAMS["kernel"])
    return state @ PARAMS["out"] + bias


def test_a_recurrent_state_reads_each_prompt_to_its_end():
    out = generate.generate(Cell(), PARAMS, PROMPTS, LENGTHS, jax.random.key(0), steps=STEPS)
    for prompt, length, tokens in zip(PROMPTS, LENGTHS, np.asarray(out.tokens), strict=True):
        text = prompt[:length].tolist()
        for token in tokens.tolist():
            assert token == np.argmax(logits_after(text))
            text.append(token)


def test_beams_carry_their_states_and_share_a_memory():
    """Each hypothesis has the score of its text, by the bias that its row's memory holds."""
    step = causal.step_of(Cell())
    memory = np.array([[0.0] * V, [3.0] + [0.0] * (V - 1), [0.0] * (V - 1) + [3.0]])

    def biased(params, cache, tokens):
        logits, state = step(params, cache[0], tokens)
        assert cache[1].value.shape[0] == len(tokens)
        return logits + cache[1].value, (state, cache[1])

    @jax.jit
    def search(params, prompts, lengths, memory):
        state = causal.prefilled(Cell(), params, prompts, lengths, 9)
        cache = state, causal.Shared(memory)
        inputs = biased, params, cache, prompts, lengths
        return beam.search(*inputs, steps=STEPS, beams=4, best=3, length_penalty=0.0)

    best = search(PARAMS, PROMPTS, LENGTHS, memory)
    assert np.isfinite(best.scores).all()
    for row in range(3):
        for text, score in zip(best.tokens[row].tolist(), best.scores[row], strict=True):
            total, before = 0.0, PROMPTS[row, : LENGTHS[row]].tolist()
            for token in text:
                logits = logits_after(before, memory[row])
                total += logits[token] - np.log(np.exp(logits).sum())
                before.append(token)
            np.testing.assert_allclose(score, total, rtol=1e-4)
