"""Weights mean what they say: a run that begins with some is of their model, or is refused."""

import json
import logging
import shlex

import jax
import jax.numpy as jnp
import language_config
import numpy as np
import pytest
import safetensors.numpy
from helpers import exit_code, load

from common import tree
from common.errors import BadInput
from common.training import program
from common.weights import family, tensors
from lm import bert, gpt, weights
from lm.data import tokenizer

CONFIG = language_config.__file__
BERT = {"width": 32, "layers": 2, "heads": 4, "hidden": 64, "max_length": 16}
BERT |= {"activation": "relu", "norm_eps": 1e-3}
LLAMA = gpt.LLAMA | BERT | {"activation": "silu", "theta": 5e5, "kv_heads": 2, "tied": False}


def drawn(model, seed: int = 0) -> dict:
    """Parameters of a model, drawn by numpy, which compiles nothing."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    rng = np.random.default_rng(seed)
    draw = lambda x: (rng.normal(size=x.shape) * 0.5).astype(x.dtype)
    return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A BERT and a Llama with their tokenizers, and overrides that name a corpus."""
    root = tmp_path_factory.mktemp("weights")
    words = [" ".join(language_config.NUMBERS * 20)]
    for name, kind, size in (("bert", "wordpiece", 80), ("llama", "bpe", 290)):
        made = tokenizer.train(kind, size, words)
        count = made.get_vocab_size()
        cls, fields = (bert.Bert, BERT) if name == "bert" else (gpt.GPT, LLAMA)
        model = cls(vocab_size=count, init_std=0.5, **fields)
        weights.save(root / name, model, drawn(model))
        made.save(str(root / name / "tokenizer.json"))
    corpus = language_config.write(root / "texts", documents=40)
    return root, {"data.name": corpus, "data.folder": str(root / "data")}


def config(kept, name: str, **overrides) -> dict:
    root, data = kept
    arg = "mlm" if name == "bert" else "clm"
    base = {"data.tokenizer": str(root / name), "init.path": str(root / name)}
    small = {"train.duration": "2 steps", "train.batch_size": 8}
    return load(f"{CONFIG}:{arg}", **(data | base | small | overrides))


def state(config: dict):
    made = program.prepare(config, jax.devices()[:1])
    with jax.set_mesh(made.layout.mesh):
        return made, program.initial_state(made)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_weights_of_another_model_are_refused_or_taken_over(name, kept, caplog):
    root, _ = kept
    with pytest.raises(BadInput) as error:
        state(config(kept, name))
    message, fields = str(error.value), weights.sizes(root / name)
    assert "heads = 4 there and 2 here" in message
    assert "--config.model.heads=4" in message
    assert f"norm_eps = {fields['norm_eps']} there" in message
    assert ("theta = 500000.0 there" in message) == (name == "llama")
    assert "\n" not in message
    with caplog.at_level(logging.WARNING):
        made, begun = state(config(kept, name, **{"init.adopt": True}))
    assert "heads=4" in caplog.text
    assert made.config["model"]["heads"] == 4
    assert made.config["init"]["adopt"] is False  # and the config says all by itself
    wanted = tree.flatten(weights.pretrained(root / name))
    found = tree.flatten(jax.device_get(begun.params))
    assert all(np.array_equal(found[path], wanted[path]) for path in wanted)


def test_every_field_that_differs_is_named_with_what_mends_it(kept):
    folder = str(kept[0] / "llama")
    facts = tokenizer.facts(tokenizer.load(folder))
    right = gpt.GPT(**weights.sizes(folder))

    def read(model, *allow):
        init = {"allow": allow, "skip": (), "rename": ()}
        return weights.reader(facts, {"data": {"folder": ""}, "init": init}, model)(folder)

    read(right)
    for field, value in (
        *(("heads", 8), ("kv_heads", 4), ("activation", "relu"), ("norm_eps", 1e-5)),
        *(("theta", 1e4), ("window", 7), ("qk_norm", True), ("bias", "qkv")),
        *(("rope_scaling", ("linear", 2.0)), ("head_width", 16), ("tied", True)),
    ):
        with pytest.raises(BadInput, match=rf"{field} = .* there and .* here") as error:
            read(right.clone(**{field: value}))
        assert f"--config.model.{field}=" in str(error.value)
    # What the line says to set can be pasted into a shell.
    scaled = {"rope_scaling": ("linear", 2.0)}
    with pytest.raises(BadInput) as error:
        family.require_same("w", scaled, {"rope_scaling": ()})
    assert "--config.model.rope_scaling=('linear', 2.0)," in shlex.split(str(error.value))
    # What a user means to change can be; and what changes nothing.
    read(right.clone(theta=1e4), "theta")
    read(right.clone(dropout=0.1, max_length=64, head_width=8, init_std=1.0, remat="dots"))
    with pytest.raises(BadInput, match=r"config.init.allow: \['thta'\]: no field of this model"):
        read(right, "thta")


def test_rows_that_no_token_has_are_left_out(kept, tmp_path):
    """The table is often rounded up; more rows are of another tokenizer."""
    root, _ = kept
    (tmp_path / "padded").mkdir()
    for file in (root / "llama").iterdir():
        (tmp_path / "padded" / file.name).write_bytes(file.read_bytes())
    fields = weights.sizes(root / "llama")
    rows = fields["vocab_size"]
    model = gpt.GPT(**fields | {"vocab_size": rows + 30})
    params = weights.pretrained(root / "llama")
    more = drawn(model, 1)
    for table in ("token", "output"):
        more[table]["embedding"][:rows] = params[table]["embedding"][:rows]
    weights.save(tmp_path / "padded", model, params | {k: more[k] for k in ("token", "output")})
    given = {"init.path": str(tmp_path / "padded"), "init.adopt": True}
    _, begun = state(config(kept, "llama", **given))
    wanted, found = tree.flatten(params), tree.flatten(jax.device_get(begun.params))
    for path in wanted:
        x = wanted[path]
        x = np.concatenate([x[:rows], np.zeros_like(x[rows:])]) if path in weights.TABLES else x
        assert np.array_equal(found[path], x), path
    other = tokenizer.facts(tokenizer.train("bpe", 270, ["one two three " * 20]))
    run = {"data": {"folder": ""}}
    with pytest.raises(BadInput, match=r"of a tokenizer with other tokens \(\d+ differ"):
        weights.reader(other, run, gpt.GPT(**fields))(str(tmp_path / "padded"))


def test_what_no_model_here_has_is_not_left_out(kept, tmp_path):
    root, _ = kept
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "config.json").write_bytes((root / "llama/config.json").read_bytes())
    values = tensors.read(root / "llama")
    for name, message in (
        ("model.layers.0.self_attn.q_norm.weight", "holds tensors that no llama has: model.layers"),
        ("model.layers.0.self_attn.q_proj.bias", "has parameters that this model lacks: block_0/"),
    ):
        more = values | {name: np.ones(32, np.float32)}
        (folder / "model.safetensors").write_bytes(safetensors.numpy.save(more))
        with pytest.raises(BadInput, match=message):
            state(config(kept, "llama", **{"init.path": str(folder), "init.adopt": True}))


@pytest.mark.parametrize(
    ("labels", "refused"),
    [
        (["one", "two"], None),
        (["two", "one"], "class 0 is 'two' there and 'one' here"),
        (["one", "three"], "class 1 is 'three' there and 'two' here"),
        (["one"], "class 1 is absent there and 'two' here"),
        (["A", "B"], None),
        (None, None),
    ],
)
def test_classes_are_in_the_order_of_the_file(labels, refused, kept, tmp_path, caplog):
    root, _ = kept
    fields = weights.sizes(root / "bert")
    model = bert.Classifier(num_classes=2, **fields)
    weights.save(tmp_path / "w", model, drawn(model), classes=tuple(labels or ()))
    (tmp_path / "w/tokenizer.json").write_bytes((root / "bert/tokenizer.json").read_bytes())
    facts = tokenizer.facts(tokenizer.load(tmp_path / "w"))._replace(classes=("one", "two"))
    run = {"data": {"folder": ""}, "init": {"allow": (), "skip": (), "rename": ()}}
    read = weights.reader(facts, run, model)
    if refused is not None:
        with pytest.raises(BadInput, match=refused):
            read(str(tmp_path / "w"))
        run["init"]["skip"] = ("classifier/.*",)
        read(str(tmp_path / "w"))
        return
    with caplog.at_level(logging.WARNING):
        read(str(tmp_path / "w"))
    assert ("other names" in caplog.text) == (labels == ["A", "B"])


def test_a_family_that_is_not_there_is_said_to_be_none(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "big_bird"}))
    with pytest.raises(BadInput) as error:
        weights.sizes(tmp_path)
    families = ", ".join(family.name for family in weights.FAMILIES)
    assert f"'big_bird' is not a family that is read here; those are: {families}" in str(
        error.value
    )


def test_a_file_alone_says_nothing_of_heads_and_is_not_adopted(kept, tmp_path, caplog):
    folder = kept[0] / "llama"
    facts = tokenizer.facts(tokenizer.load(folder))
    model = gpt.GPT(**weights.sizes(folder)).clone(heads=8)
    read = weights.reader(facts, {"data": {"folder": ""}}, model)
    with pytest.raises(BadInput, match="heads = 4 there and 8 here"):
        read(str(folder / "model.safetensors"))  # its config.json lies beside it
    alone = tmp_path / "model.safetensors"
    alone.write_bytes((folder / "model.safetensors").read_bytes())
    with caplog.at_level(logging.WARNING):
        read(str(alone))
    assert "no config.json: its heads, epsilon and activation are taken" in caplog.text
    adopt = {"path": str(alone), "adopt": True, "skip": ()}
    with pytest.raises(BadInput, match="there is no config.json to adopt"):
        weights.settings({"init": adopt, "data": {"folder": ""}})


def test_a_folder_of_weights_is_no_run(kept, capsys):
    words = ["--workdir", str(kept[0] / "llama")]
    for script in (["evaluate"], ["predict", "a [MASK]"], ["explain"]):
        assert exit_code(script[0], *words, *script[1:]) == 2
        assert "published weights are named with --weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("llama", ("--tokens", "3", "--greedy", "one two three"), "one two three"),
        ("bert", ("--top", "2", "one [MASK] three"), "one"),
        ("bert", ("--tokens", "3", "one"), "unrecognized arguments: --tokens"),
    ],
)
def test_predict_takes_a_folder_of_weights(name, words, says, kept, capsys):
    code = exit_code("predict", "--weights", str(kept[0] / name), *words)
    out, err = capsys.readouterr()
    assert says in (err if code else out)
    assert code == (2 if "unrecognized" in says else 0)
