"""BERT, GPT-2 and Llama against `transformers`: outputs, gradients, and training side by side.

The weights are random and cross over through `lm.weights`, and our gradients go back through it, so
a wrong name, a missing transpose or a wrong formula all show. In float64 attention is computed
plainly (asking for intermediates does it: `jax.nn.dot_product_attention` has its softmax in
float32); float32 is for the usual path.
"""

import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.training import duration, optim
from common.weights import tensors
from lm import bert, gpt, weights

LENGTHS = np.array([12, 7, 9])  # of three rows; padding behind
B, L, V = 3, 12, 150  # V is no multiple of 128
TOLERANCE = {"float64": 1e-7, "float32": 1e-4}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": V}


@pytest.fixture(scope="module")
def transformers():
    os.environ["HF_HUB_OFFLINE"] = "1"
    pytest.importorskip("torch").set_num_threads(1)
    return pytest.importorskip("transformers")


@pytest.fixture
def wide_llama(transformers, monkeypatch):
    """Their Llama computes norms, softmax and rotary angles in float32 whatever it is given; here
    it finds float64 under that name."""
    import torch
    from transformers.models.llama import modeling_llama

    names = vars(torch) | {"float32": torch.float64, "float": torch.float64}
    return lambda: monkeypatch.setattr(modeling_llama, "torch", types.SimpleNamespace(**names))


def made(transformers, name: str, seed: int = 0, **settings):
    """A small model of theirs, every parameter random."""
    import torch

    settings = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None} | settings
    torch.manual_seed(seed)
    kind = getattr(transformers, name)
    reference = kind._from_config(kind.config_class(**settings), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return reference


def bert_pair(transformers):
    settings = SHAPE | {
        "intermediate_size": 48,
        "max_position_embeddings": 20,
        "layer_norm_eps": 0.01,
    }
    reference = made(transformers, "BertForPreTraining", **settings)
    return reference, lambda sizes: bert.Bert(**sizes, next_sentence=True)


def gpt2_pair(transformers):
    settings = {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_inner": 48,
        "vocab_size": V,
        "n_positions": 20,
        "layer_norm_epsilon": 0.01,
    }
    return made(transformers, "GPT2LMHeadModel", **settings), lambda sizes: gpt.GPT(**sizes)


def llama_pair(transformers, tied: bool):
    settings = SHAPE | {
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 20,
        "rope_theta": 500.0,
        "rms_norm_eps": 0.01,
        "tie_word_embeddings": tied,
        "attention_bias": tied,
        "mlp_bias": tied,
        "hidden_act": "relu" if tied else "silu",
    }
    return made(transformers, "LlamaForCausalLM", **settings), lambda sizes: gpt.GPT(**sizes)


PAIRS = {
    "bert": bert_pair,
    "gpt2": gpt2_pair,
    "llama": lambda t: llama_pair(t, False),
    "llama, tied": lambda t: llama_pair(t, True),  # and with biases and relu
}


def example(seed: int = 0) -> dict[str, np.ndarray]:
    """Tokens, token types, what is no padding, and what to weigh the two outputs with."""
    rng = np.random.default_rng(seed)
    there = np.arange(L) < LENGTHS[:, None]
    return {
        "tokens": rng.integers(1, V, (B, L)) * there,
        "types": (np.arange(L) > 4) * there,
        "there": there.astype(np.int32),
        "logits": rng.normal(size=(B, L, V)) * there[:, :, None],
        "next": rng.normal(size=(B, 2)),
    }


def theirs(reference, data, precision: str):
    """(outputs, gradients by name) of a weighted sum of the outputs."""
    import torch

    reference = reference.to(getattr(torch, precision))
    tensor = {k: torch.tensor(v) for k, v in data.items()}
    arguments = {"input_ids": tensor["tokens"], "attention_mask": tensor["there"]}
    if reference.config.model_type == "bert":
        outputs = reference(**arguments, token_type_ids=tensor["types"].int())
        outputs = [outputs.prediction_logits, outputs.seq_relationship_logits]
    else:
        outputs = [reference(**arguments, use_cache=False).logits]
    pairs = zip(outputs, (tensor["logits"], tensor["next"]), strict=False)
    sum((x * w.to(x.dtype)).sum() for x, w in pairs).backward()
    gradients = {name: p.grad.numpy() for name, p in reference.named_parameters()}
    return [x.detach().numpy() for x in outputs], gradients


def ours(model, params, data, precision: str):
    """The same, the gradients by path."""
    types = {"types": data["types"]} if isinstance(model, bert.Bert) else {}
    mutable = ["intermediates"] if precision == "float64" else []

    def objective(params):
        call = model.apply(
            {"params": params}, data["tokens"], data["there"], **types, mutable=mutable
        )
        outputs = jax.tree.leaves(call[0])
        weights = (data["logits"], data["next"])
        return sum(jnp.sum(x * w) for x, w in zip(outputs, weights, strict=False)), outputs

    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        params = jax.tree.map(lambda x: jnp.asarray(x, precision), params)
        gradients, outputs = jax.jit(jax.grad(objective, has_aux=True))(params)
        return [np.asarray(x) for x in outputs], jax.tree.map(np.asarray, gradients)


def distance(a, b, floor: float = 0.0) -> float:
    """The norm of a - b relative to that of b, or to `floor` if that is larger."""
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), floor, 1e-30)


@pytest.mark.parametrize("precision", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", PAIRS)
def test_outputs_and_gradients(name, precision, transformers, wide_llama, tmp_path):
    if precision == "float64":
        wide_llama()
    reference, make = PAIRS[name](transformers)
    reference.save_pretrained(tmp_path / "theirs")
    model = make(weights.sizes(tmp_path / "theirs"))
    empty = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    params, report = weights.load_weights(tmp_path / "theirs", empty)
    assert report == weights.LoadReport((), (), ())
    data = example()
    expected, gradients = theirs(reference, data, precision)
    outputs, found = ours(model, params, data, precision)
    there = data["there"][:, :, None]
    errors = [distance(outputs[0] * there, expected[0] * there)]
    errors += [distance(a, b) for a, b in zip(outputs[1:], expected[1:], strict=True)]
    assert max(errors) < TOLERANCE[precision], errors
    weights.save(tmp_path / "gradients", model, found)
    found = tensors.read(tmp_path / "gradients")
    assert found.keys() == gradients.keys()
    # Some are zero but for rounding: a key's bias moves all logits of a softmax alike.
    floor = 1e-6 * np.sqrt(sum(np.sum(np.square(g)) for g in gradients.values()))
    if precision == "float32":
        floor *= 1e3
    errors = {k: distance(found[k], gradients[k], floor) for k in gradients}
    assert max(errors.values()) < TOLERANCE[precision], errors


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_saved_is_what_they_load(name, transformers, tmp_path):
    reference, make = PAIRS[name](transformers)
    reference.save_pretrained(tmp_path / "theirs")
    model = make(weights.sizes(tmp_path / "theirs"))
    weights.save(tmp_path / "ours", model, weights.pretrained(tmp_path / "theirs"))
    kind = type(reference)
    loaded, report = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    mine, their = loaded.state_dict(), reference.state_dict()
    assert mine.keys() == their.keys()
    assert all(np.array_equal(mine[k].numpy(), their[k].numpy()) for k in their)
    old, new = reference.config.to_dict(), loaded.config.to_dict()
    # What the models here do not have: dropout, how to begin, special tokens, and so on.
    for key in [*weights.layouts.LAYOUTS[old["model_type"]].fields.values(), ("architectures", 0)]:
        assert old.get(key[0]) == new.get(key[0]) or old[key[0]] is None, key


def test_a_classifier_goes_there(transformers, tmp_path):
    model = bert.Classifier(
        num_classes=3, vocab_size=V, width=32, layers=1, heads=4, hidden=48, init_std=0.3
    )
    data = example()
    arguments = data["tokens"], data["there"], data["types"]
    params = jax.jit(model.init)(jax.random.key(0), *arguments)["params"]
    weights.save(tmp_path, model, params)
    import torch

    loaded = transformers.BertForSequenceClassification.from_pretrained(tmp_path).eval()
    names = "input_ids", "attention_mask", "token_type_ids"
    inputs = {n: torch.tensor(x).int() for n, x in zip(names, arguments, strict=True)}
    logits = loaded(**inputs).logits.detach().numpy()
    assert logits.shape == (B, 3)
    found = jax.jit(model.apply)({"params": params}, *arguments)
    np.testing.assert_allclose(found, logits, atol=1e-5)


# ------------------------------------------------------------------------------------ side by side

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
def test_side_by_side(transformers, tmp_path):
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
