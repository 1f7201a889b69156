"""Recurrent networks: what torch computes on the same weights, and sequences that know nothing of
padding, of their neighbours in a row, or of what lies beyond a truncation."""

import corpus
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, load

from common import tree
from common.errors import BadInput
from common.laws import checks as laws
from common.laws import measure, rows
from common.nn import flops
from common.weights import engine
from common.weights import names as naming
from lm import generate, rnn, weights, window
from lm.weights.rnn import FAMILY

V, L, LENGTHS = 13, 6, (6, 1, 4)
TOKENS = np.random.default_rng(0).integers(1, V, (len(LENGTHS), L)).astype(np.int32)
REAL = np.arange(L) < np.array(LENGTHS)[:, None]
SMALL = {"vocab_size": V, "width": 5, "layers": 2, "embedding_width": 3}
SLOWLY = lambda *names: [pytest.param(name, marks=pytest.mark.slow) for name in names]
CASES = {
    "lstm": {"cell": "lstm", "bidirectional": True},
    "gru": {"cell": "gru", "bidirectional": True},
    "rnn": {"cell": "rnn", "activation": "relu"},
    "projection": {"cell": "lstm", "bidirectional": True, "projection_width": 2},
}


def drawn(model, scale: float = 0.6) -> dict:
    """Parameters drawn by numpy, which compiles nothing."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    rng = np.random.default_rng(0)
    draw = lambda x: (rng.normal(size=x.shape) * scale).astype(np.float32)
    return jax.tree.map(draw, shapes)


def torch_model(fields: dict):
    """The same network in torch, in float32."""
    import torch

    cls = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[fields["cell"]]
    own = {"proj_size": fields["projection_width"]} if "projection_width" in fields else {}
    own |= {"nonlinearity": fields["activation"]} if "activation" in fields else {}
    made = torch.nn.Module()
    made.encoder = torch.nn.Embedding(V, 3)
    both = fields.get("bidirectional", False)
    made.rnn = cls(3, 5, 2, batch_first=True, bidirectional=both, **own)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_layers_are_torchs(name, tmp_path, compiled_in_haste):
    """Two layers, in both directions, packed by length: outputs and every gradient."""
    import torch
    from torch.nn.utils import rnn as packing

    torch.manual_seed(0)
    fields = CASES[name]
    theirs, ours = torch_model(fields), rnn.Encoder(**SMALL, **fields)
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    theirs = theirs.double()
    embedded = theirs.encoder(torch.tensor(TOKENS))
    packed = packing.pack_padded_sequence(embedded, LENGTHS, True, enforce_sorted=False)
    expected, _ = packing.pad_packed_sequence(theirs.rnn(packed)[0], True)
    torch.sin(3 * expected).sum().backward()

    def objective(params):
        hidden = ours.apply({"params": params}, TOKENS, REAL.astype(np.int32))
        hidden = jnp.where(REAL[:, :, None], hidden, 0)
        return jnp.sin(3 * hidden).sum(), hidden

    params = weights.pretrained(tmp_path / "model.pt")
    assert set(tree.flatten(params)) == set(tree.flatten(drawn(ours)))
    with jax.enable_x64():
        grad = jax.jit(jax.grad(objective, has_aux=True))
        gradients, hidden = jax.device_get(grad(jax.tree.map(np.float64, params)))
    assert_near(hidden, expected.detach().numpy())
    found = engine.exported(FAMILY.names[0], ours, tree.flatten(gradients))
    assert len(found) == len(list(theirs.parameters()))
    for key, parameter in theirs.named_parameters():
        assert_near(found[key], parameter.grad.numpy())


def assert_near(one, other, share: float = 1e-12):
    assert np.linalg.norm(one - other) <= share * np.linalg.norm(other)


def test_gradients_stop_where_a_row_is_truncated_and_the_state_goes_on():
    """As torch's users do it: a chunk at a time, with the state detached."""
    import torch

    torch.manual_seed(0)
    theirs = torch_model(CASES["lstm"] | {"bidirectional": False})
    ours = rnn.RNN(**SMALL, tied=False, truncation=2)
    arrays = {k: v.numpy() for k, v in theirs.state_dict().items()}
    known, _ = naming.recognised(FAMILY.names[0], arrays)
    params = drawn(ours) | tree.unflatten(naming.parameters(FAMILY.names[0], known))
    theirs, state, outputs = theirs.double(), None, []
    embedded = theirs.encoder(torch.tensor(TOKENS))
    for start in range(0, L, 2):
        output, state = theirs.rnn(embedded[:, start : start + 2], state)
        state = tuple(x.detach() for x in state)
        outputs.append(output)
    expected = torch.cat(outputs, 1)
    torch.sin(3 * expected).sum().backward()

    def objective(params):
        hidden = ours.apply({"params": params}, TOKENS, method="encode")
        return jnp.sin(3 * hidden).sum(), hidden

    with jax.enable_x64():
        grad = jax.jit(jax.grad(objective, has_aux=True))
        gradients, hidden = jax.device_get(grad(jax.tree.map(np.float64, params)))
    assert_near(hidden, expected.detach().numpy())
    gradients.pop("output")
    found = engine.exported(FAMILY.names[0], ours, tree.flatten(gradients))
    for key, parameter in theirs.named_parameters():
        assert_near(found[key], parameter.grad.numpy())


@pytest.mark.parametrize("cell", ["lstm", *SLOWLY("gru")])
def test_a_sequence_in_a_packed_row_is_as_alone(cell):
    """Behind another one and before padding; the encoder in both directions."""
    model = rnn.Encoder(vocab_size=V, width=4, layers=2, cell=cell, bidirectional=True)
    params = drawn(model)
    segments = np.array([[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 0, 0], [1, 2, 2, 3, 3, 3]], np.int32)
    apply = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs))
    hidden = apply(TOKENS, segments)
    alone, ones = np.full_like(TOKENS, 7), np.zeros_like(segments)
    for row, tokens in enumerate((TOKENS[0, 2:5], TOKENS[1, :4], TOKENS[2, 1:3])):
        alone[row, : len(tokens)], ones[row, : len(tokens)] = tokens, 1
    expected = apply(alone, ones)
    for row, (start, size) in enumerate(((2, 3), (0, 4), (1, 2))):
        np.testing.assert_allclose(
            hidden[row, start : start + size], expected[row, :size], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("cell", ["lstm", *SLOWLY("gru", "window")])
def test_generation_goes_on_from_each_rows_own_end(cell):
    """The cell, or the three-layer network, which has a window in place of a state."""
    model = window.Window(vocab_size=V, window=3, embedding_width=4, width=8)
    if cell != "window":
        model = rnn.RNN(vocab_size=V, width=8, layers=2, cell=cell, truncation=2)
    params, steps, rows = drawn(model, 2.0), 3, np.arange(len(LENGTHS))
    written = generate.generate(
        model, params, TOKENS, np.array(LENGTHS), jax.random.key(0), steps=steps
    )
    forward = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    text = np.pad(np.where(REAL, TOKENS, 0), ((0, 0), (0, steps)))
    for step in range(steps):
        logits = np.asarray(forward(text))[rows, np.array(LENGTHS) + step - 1]
        text[rows, np.array(LENGTHS) + step] = logits.argmax(-1)
    expected = text[rows[:, None], np.array(LENGTHS)[:, None] + np.arange(steps)]
    assert np.array_equal(written.tokens, expected)
    assert len(np.unique(expected)) > 1


def test_fields_that_make_no_model_are_refused():
    for model, message in (
        (rnn.RNN(vocab_size=V, bidirectional=True), "config.model.bidirectional: a language model"),
        (rnn.RNN(vocab_size=V, embedding_width=3), "config.model.embedding_width: 3, and hidden"),
        (rnn.RNN(vocab_size=V, cell="gru", projection_width=3), "projection_width: only LSTMs pro"),
        (rnn.RNN(vocab_size=V, truncation=0), "config.model.truncation: 0 is not positive"),
        (rnn.RNN(vocab_size=V, cell="lstmm"), "config.model.cell: 'lstmm' is not one of lstm, gru"),
    ):
        with pytest.raises(BadInput, match=message):
            jax.eval_shape(model.init, jax.random.key(0), TOKENS)


def test_flops_are_those_of_the_traced_products():
    for model, heads in (
        (rnn.RNN(vocab_size=V, width=6, layers=2, projection_width=4), V),
        (rnn.Classifier(vocab_size=V, num_classes=3, width=6, cell="gru"), 3),
        (window.Window(vocab_size=V, embedding_width=3, width=4), V),
    ):
        shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
        row = jax.ShapeDtypeStruct((1, L), jnp.int32)
        traced = flops.traced(jax.make_jaxpr(model.apply)(shapes, row).jaxpr)
        # The table of embeddings is padded.
        more = 2 * L * 4 * (128 - V) if heads == V else 0
        assert model.flops(L) + more == traced


@pytest.mark.slow
def test_a_recurrent_language_model_obeys(tmp_path, compiled_in_haste):
    """The laws, with a row cut in three."""
    small = {"model.width": 32, "model.projection_width": 16, "model.truncation": 8}
    small |= {"data.vocab_size": 300, "data.length": 24, "train.batch_size": 16}
    small |= {"data.name": corpus.write(tmp_path / "texts"), "data.folder": str(tmp_path / "data")}
    task = load(f"{ROOT}/configs/lm/rnn_sotu.py", **small)
    laws.position_is_step(task)
    laws.resume_is_exact(task, devices=jax.devices()[:1])
    laws.mesh_changes_nothing(task, [(2, 2, 2)])
    laws.accumulation_changes_nothing(task)
    laws.means_are_exact(task)
    laws.no_dead_knob(task)
    laws.parameters_are_plain(task)
    rows.rows_are_independent(task)


@pytest.mark.slow
def test_a_recurrent_classifier_is_a_model_of_lm_classify(tmp_path, compiled_in_haste):
    """By its import path alone; padding and the other rows change nothing."""
    small = {"model.module": "lm.rnn:Classifier", "model.width": 16, "data.length": 24}
    small |= {"data.name": corpus.labelled(tmp_path, 3), "train.batch_size": 16}
    small |= {"data.tokenizer": corpus.tokenizer(tmp_path, "wordpiece", 300)}
    small |= {"init.path": "", "init.skip": "()", "evals.test.split": "test"}
    task = load(f"{ROOT}/configs/lm/finetune_topics.py", **small)
    losses, _ = measure.train_losses(measure.on_mesh(task, (2, 2, 2)), 2)
    assert all(np.isfinite(losses))
    laws.means_are_exact(task)
    rows.rows_are_independent(task)
