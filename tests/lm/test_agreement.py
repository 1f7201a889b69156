"""BERT beside that of `transformers` in training: the same losses, step by step.

Outputs and gradients of every family are compared in tests/common/weights/test_parity.py.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.training import duration, optim
from lm import bert, weights

V = 150  # no multiple of 128
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": V}
STEPS, ROWS, LENGTH, MASK = 50, 16, 32, 3


def batches(seed: int = 0):
    """Text of a Markov chain over few tokens with its masks: the same arrays for both."""
    rng = np.random.default_rng(seed)
    following = rng.integers(4, 24, (V, 3))  # 0 to 3 are no text
    for _ in range(STEPS):
        tokens = np.empty((ROWS, LENGTH), np.int64)
        tokens[:, 0] = rng.integers(4, V, ROWS)
        for i in range(1, LENGTH):
            tokens[:, i] = following[tokens[:, i - 1], rng.integers(0, 3, ROWS)]
        there = np.arange(LENGTH) < rng.integers(LENGTH // 2, LENGTH + 1, ROWS)[:, None]
        chosen = there & (rng.random(tokens.shape) < 0.15)
        chosen[:, 0] = True
        inputs = np.where(there, np.where(chosen, MASK, tokens), 0)
        yield inputs, there.astype(np.int32), np.where(chosen, tokens, -100)


def their_losses(reference, lr: float, weight_decay: float) -> list[float]:
    import torch

    reference.train()
    decayed = [p for p in reference.parameters() if p.ndim > 1]
    other = [p for p in reference.parameters() if p.ndim == 1]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": other, "weight_decay": 0.0},
    ]
    optimizer, losses = torch.optim.AdamW(groups, lr=lr), []
    for inputs, there, labels in batches():
        inputs, there, labels = map(torch.tensor, (inputs, there, labels))
        loss = reference(input_ids=inputs, attention_mask=there, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def our_losses(model, params, lr: float, weight_decay: float) -> list[float]:
    to_steps = lambda text, key: duration.steps(
        text, where=key, batch_size=ROWS, size=1, total=STEPS
    )
    optimizer = optim.make_optimizer(
        STEPS, to_steps, {}, name="adamw", lr=lr, schedule="constant", weight_decay=weight_decay
    )

    def loss(params, inputs, there, labels):
        logits = jax.nn.log_softmax(model.apply({"params": params}, inputs, there))
        chosen = labels >= 0
        picked = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, :, None], axis=-1)[:, :, 0]
        return -jnp.sum(picked * chosen) / jnp.sum(chosen)

    @jax.jit
    def step(params, state, number, batch):
        value, gradients = jax.value_and_grad(loss)(params, *batch)
        updates, state = optimizer.update(gradients, state, params, number)
        return jax.tree.map(jnp.add, params, updates), state, value

    params = jax.tree.map(jnp.asarray, params)
    state, losses = optimizer.init(params), []
    for number, batch in enumerate(batches()):
        params, state, value = step(params, state, number, batch)
        losses.append(float(value))
    return losses


@pytest.mark.slow
def test_side_by_side(tmp_path):
    os.environ["HF_HUB_OFFLINE"] = "1"
    pytest.importorskip("torch").set_num_threads(1)
    transformers = pytest.importorskip("transformers")
    settings = SHAPE | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "max_position_embeddings": LENGTH,
        "pad_token_id": 0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    kind = transformers.BertForMaskedLM
    reference = kind._from_config(kind.config_class(**settings), attn_implementation="eager")
    reference.save_pretrained(tmp_path)
    params = weights.pretrained(tmp_path)
    model = bert.Bert(**weights.sizes(tmp_path))
    arguments = {"lr": 3e-3, "weight_decay": 0.1}
    expected = np.array(their_losses(reference, **arguments))
    found = np.array(our_losses(model, params, **arguments))
    assert expected[-5:].mean() < expected[0] - 1.0  # it learns
    assert np.abs(found - expected).max() < 1e-3, np.abs(found - expected)
