"""Weights in and out: files, names, shapes and settings, and two real models."""

import json
import logging
import re
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from common import tree
from common.data import fetch
from common.errors import BadInput
from common.weights import engine, family, tensors
from lm import bert, gpt, weights
from lm.data import tokenizer
from lm.pretrained import WEIGHTS

TINY = {"vocab_size": 150, "width": 16, "layers": 2, "heads": 2, "hidden": 24, "max_length": 12}
MODELS = {
    "bert": bert.Bert(**TINY, next_sentence=True),
    "gpt2": gpt.GPT(**TINY),
    "llama": gpt.GPT(**TINY | gpt.LLAMA, kv_heads=1, tied=False),
}


def random(model, seed: int = 0) -> dict:
    """Parameters of a model, every number random, zero behind the vocabulary."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    for name in {"token", "output"} & params.keys():
        params[name]["embedding"][model.vocab_size :] = 0
    return params


def same(a, b) -> bool:
    """Whether two trees have the same paths, dtypes and bits."""
    a, b = tree.flatten(a), tree.flatten(b)
    bits = lambda x: (str(x.dtype), x.shape, x.tobytes())
    return a.keys() == b.keys() and all(bits(a[k]) == bits(b[k]) for k in a)


@pytest.fixture
def folder(tmp_path):
    """A BERT, saved; and its parameters."""
    params = random(MODELS["bert"])
    weights.save(tmp_path / "bert", MODELS["bert"], params)
    return tmp_path / "bert", params


def rewrite(folder, change):
    """Replaces the tensors of a folder by change(tensors)."""
    file = folder / "model.safetensors"
    file.write_bytes(safetensors.numpy.save(change(tensors.read(folder))))


def settle(folder, **settings):
    """Changes settings in a folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


# ------------------------------------------------------------------------------------- there, back


@pytest.mark.parametrize("name", MODELS)
def test_saved_is_loaded(name, tmp_path, caplog):
    model, params = MODELS[name], random(MODELS[name])
    weights.save(tmp_path, model, params)
    assert same(weights.pretrained(tmp_path), params)
    assert same(weights.pretrained(tmp_path / "model.safetensors"), params)
    taken, report = weights.load_weights(tmp_path, jax.tree.map(np.zeros_like, params))
    assert same(taken, params)
    assert report == weights.LoadReport((), (), ())
    assert not caplog.records
    sizes = weights.sizes(tmp_path)
    assert sizes["vocab_size"] == 150
    own = {"next_sentence": True} if name == "bert" else {}
    assert type(model)(**sizes, **own) == model.clone(kv_heads=sizes.get("kv_heads"))
    assert tensors.read(tmp_path)[
        {"bert": "bert.embeddings.word_embeddings", "gpt2": "transformer.wte"}.get(
            name, "model.embed_tokens"
        )
        + ".weight"
    ].shape == (150, 16)


def test_bfloat16(folder):
    path, params = folder
    narrow = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), params)
    weights.save(path, MODELS["bert"], narrow)
    assert {str(x.dtype) for x in tensors.read(path).values()} == {"bfloat16"}
    wide = jax.tree.map(lambda x: x.astype(np.float32), narrow)
    assert same(weights.pretrained(path), wide)


def test_parts_with_an_index(folder):
    path, params = folder
    found = tensors.read(path)
    names = sorted(found)
    places = {n: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, n in enumerate(names)}
    for part in set(places.values()):
        some = {n: found[n] for n in names if places[n] == part}
        safetensors.numpy.save_file(some, path / part)
    (path / "model.safetensors").unlink()
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert same(weights.pretrained(path), params)
    index.write_text(json.dumps({"weight_map": places | {"more": part}}))
    with pytest.raises(BadInput, match=r"1 tensors .* are missing: \['more'\]"):
        tensors.read(path)
    index.write_text(json.dumps({"weight_map": places | {"more": f"../bert/{part}"}}))
    with pytest.raises(BadInput, match=r"\.\./bert/model-\d+-of-00002.safetensors is missing"):
        tensors.read(path)
    (path / part).unlink()
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(BadInput, match=f"{part} is missing"):
        tensors.read(path)


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_spellings_copies_and_buffers(prefix, folder, caplog):
    path, params = folder

    def old(tensors):
        table = tensors["bert.embeddings.word_embeddings.weight"]
        found = {
            re.sub(r"LayerNorm\.weight", "LayerNorm.gamma", k)
            .replace("LayerNorm.bias", "LayerNorm.beta")
            .replace("bert.", prefix): v
            for k, v in tensors.items()
        }
        return found | {
            "cls.predictions.decoder.weight": table,
            "cls.predictions.decoder.bias": found["cls.predictions.bias"],
            f"{prefix}embeddings.position_ids": np.arange(12)[None],
        }

    rewrite(path, old)
    assert same(weights.pretrained(path), params)
    assert not caplog.records
    rewrite(path, lambda t: t | {"cls.predictions.decoder.weight": 2 * np.ones((150, 16))})
    with pytest.raises(BadInput, match=r"decoder\.weight is not embeddings\.word_embeddings"):
        weights.pretrained(path)


def test_tied_or_not_is_what_the_settings_say(tmp_path):
    model, params = MODELS["llama"], random(MODELS["llama"])
    params["output"]["embedding"] = params["token"]["embedding"]  # equal, and yet two
    weights.save(tmp_path, model, params)
    assert same(weights.pretrained(tmp_path), params)
    settle(tmp_path, tie_word_embeddings=True)
    one = {k: v for k, v in params.items() if k != "output"}
    assert same(weights.pretrained(tmp_path), one)
    assert same(weights.pretrained(tmp_path / "model.safetensors"), one)
    rewrite(tmp_path, lambda t: t | {"lm_head.weight": t["lm_head.weight"] + 1})
    with pytest.raises(BadInput, match=r"lm_head\.weight is not embed_tokens\.weight"):
        weights.pretrained(tmp_path)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((tmp_path / "model.safetensors").read_bytes())
    assert "output" in weights.pretrained(alone)


def test_what_does_not_meet_is_said(folder, caplog):
    path, params = folder
    rewrite(path, lambda t: t | {"crf.transitions": np.zeros((2, 16), np.float32)})
    with caplog.at_level(logging.WARNING):
        assert same(weights.pretrained(path), params)
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: left out, no parameter here: crf.transitions"
    ]
    wanted = params | {"new": np.ones(3, np.float32)}
    del wanted["pooler"]
    taken, report = weights.load_weights(path, wanted)
    assert report == weights.LoadReport(
        ("new",), ("pooler/bias", "pooler/kernel"), ("crf.transitions",)
    )
    assert same(taken, wanted)
    wanted["next"] = {"kernel": np.zeros((16, 3)), "bias": np.zeros(3)}
    with pytest.raises(BadInput, match=r"next/bias is \[2\] there and \[3\] here; next/kernel is"):
        weights.load_weights(path, wanted)


def test_no_weights(tmp_path, folder):
    with pytest.raises(BadInput, match="no such file or folder"):
        tensors.read(tmp_path / "absent")
    with pytest.raises(BadInput, match=r"no weights: there should be model\.safetensors or"):
        tensors.read(tmp_path)
    with pytest.raises(BadInput, match=r"config\.json: not there"):
        weights.sizes(tmp_path)
    path, _ = folder
    rewrite(path, lambda t: {"conv1.weight": np.zeros(3)})
    with pytest.raises(BadInput, match="of its 1 tensors none is one of bert"):
        weights.pretrained(path)
    rewrite(path, lambda t: {"bert.pooler.dense.bias": np.zeros(3, np.int8)})
    with pytest.raises(BadInput, match=r"pooler\.dense\.bias is int8; quantised"):
        weights.pretrained(path)
    (path / "model.safetensors").write_bytes(b"\xff" * 50)
    with pytest.raises(BadInput, match="damaged, or not a safetensors file"):
        tensors.read(path)


# ---------------------------------------------------------------------------------------- settings


def test_settings_that_are_not_here_are_refused(tmp_path):
    for name, model in MODELS.items():
        weights.save(tmp_path / name, model, random(model))
    for name, settings, message in (
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type = 'relativ"),
        ("bert", {"is_decoder": True}, "is_decoder = True is not supported"),
        ("bert", {"hidden_act": "gelu_nww"}, "did you mean 'gelu_new'"),
        ("bert", {"model_type": "big_bird"}, "model_type 'big_bird' is not a family that is read"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("llama", {"rope_scaling": {"type": "lienar", "factor": 2}}, "did you mean 'linear'"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_scaling: factor is missing"),
        ("llama", {"rope_scaling": {"type": "linear", "factr": 2}}, "['factr'] is not understood"),
    ):
        path = shutil.copytree(tmp_path / name, tmp_path / "changed", dirs_exist_ok=True)
        settle(path, **settings)
        for function in weights.sizes, weights.pretrained:
            with pytest.raises(BadInput, match=re.escape(message)):
                function(path)
    path = shutil.copytree(tmp_path / "llama", tmp_path / "changed", dirs_exist_ok=True)
    settle(path, num_hidden_layers=1)
    with pytest.raises(BadInput, match="says 1 layers, and its tensors are of 2"):
        weights.pretrained(path)
    settle(path, mlp_bias=False, rope_parameters={"rope_type": "default", "rope_theta": 7e4})
    assert weights.sizes(path)["theta"] == 7e4


def test_old_settings_do_not_say_what_they_are_of(tmp_path):
    for name, model in MODELS.items():
        layout = engine.family_for(model, weights.FAMILIES)
        settings = family.config_of(layout, model)
        assert settings.pop("model_type") == name
        if layout.model is gpt.GPT and name != "gpt2":  # several have the same keys and tensors
            with pytest.raises(BadInput, match="no model_type, which is llama or mistral or qwen2"):
                family.family_of(settings, weights.FAMILIES, "there")
            continue
        assert family.family_of(settings, weights.FAMILIES, "there").name == name


def test_models_that_they_do_not_have_are_refused(tmp_path):
    for model, message in (
        (bert.Bert(**TINY, pre_norm=True), "bert of transformers has no pre_norm = True"),
        (bert.Bert(**TINY, head=False), "has no head = False"),
        (bert.Classifier(**TINY, num_classes=2, pooler_activation="relu"), "has no pooler_activ"),
        (gpt.GPT(**TINY, kv_heads=1), "gpt2 of transformers has no kv_heads = 1"),
        (gpt.GPT(**TINY | gpt.LLAMA | {"bias": "qkv"}, qk_norm=True), "has no qk_norm = True"),
    ):
        with pytest.raises(BadInput, match=message):
            weights.save(tmp_path, model, {})
    params = random(MODELS["gpt2"])
    with pytest.raises(BadInput, match="extra: this layout has no such parameter"):
        weights.save(tmp_path, MODELS["gpt2"], params | {"extra": np.zeros(3)})
    del params["block_1"]["attention"]["key"]
    with pytest.raises(BadInput, match=r"written together with \['block_1/attention/key/bias'\]"):
        weights.save(tmp_path, MODELS["gpt2"], params)


@pytest.mark.slow
def test_a_classifier_on_the_mean_is_laid_out_as_for_sentence_transformers(tmp_path):
    model = bert.Classifier(**TINY, num_classes=3, pooling="mean")
    params = random(model)
    weights.save(tmp_path, model, params, classes=("a", "b", "c"))
    tokenizer.train("wordpiece", 150, ["one two three " * 30]).save(
        str(tmp_path / "tokenizer.json")
    )
    loaded = weights.load(str(tmp_path))
    assert loaded.model == model.clone(kv_heads=None)
    assert loaded.classes == ("a", "b", "c")
    assert same(loaded.params, params)
    transformers = pytest.importorskip("transformers")
    import torch

    tokens, there = np.arange(14).reshape(2, 7) % 12, np.array([[1] * 7, [1] * 4 + [0] * 3])
    encoder = transformers.AutoModel.from_pretrained(tmp_path).eval()
    hidden = encoder(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(there))[0]
    mean = (hidden.detach().numpy() * there[:, :, None]).sum(1) / there.sum(1, keepdims=True)
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert [m["path"] for m in modules] == ["", "1_Pooling", "2_Dense"]
    dense = tensors.read(tmp_path / "2_Dense")
    expected = mean @ dense["linear.weight"].T + dense["linear.bias"]
    found = jax.jit(model.apply)({"params": params}, tokens, there)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


# ------------------------------------------------------------------------------------- real models


def fetched(name: str) -> str:
    try:
        return fetch.weights(name, WEIGHTS)
    except BadInput as error:
        pytest.skip(f"{name} cannot be had: {error}")


@pytest.fixture(scope="session")
def minilm():
    return fetched("minilm")


@pytest.fixture(scope="session")
def rxnfp():
    return fetched("rxnfp")


def bits(tensors: dict) -> dict:
    return {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in tensors.items()}


def test_minilm_there_and_back(minilm, tmp_path):
    model = bert.Encoder(**weights.sizes(minilm))
    weights.save(tmp_path, model, weights.pretrained(minilm))
    old, new = bits(tensors.read(minilm)), bits(tensors.read(tmp_path))
    del old["embeddings.position_ids"]  # a buffer: 0 to 511
    assert old == new


def test_rxnfp_there_and_back(rxnfp, tmp_path):
    model = bert.Bert(**weights.sizes(rxnfp), next_sentence=True)
    weights.save(tmp_path, model, weights.pretrained(rxnfp))
    old, new = bits(tensors.read(rxnfp)), bits(tensors.read(tmp_path))
    copy = old.pop("cls.predictions.decoder.weight")
    assert copy == old["bert.embeddings.word_embeddings.weight"]
    assert old == new


def test_minilm_knows_what_is_near(minilm):
    """The three cosines of the model's card."""
    made = tokenizers.Tokenizer.from_file(f"{minilm}/tokenizer.json")
    made.enable_padding()
    texts = ["That is a happy person", "That is a happy dog", "That is a very happy person"]
    found = made.encode_batch([*texts, "Today is a sunny day"])
    tokens = np.array([x.ids for x in found])
    there = np.array([x.attention_mask for x in found])
    model = bert.Encoder(**weights.sizes(minilm))
    hidden = jax.jit(model.apply)({"params": weights.pretrained(minilm)}, tokens, there)
    vectors = bert.mean_pool(hidden, there)
    vectors /= jnp.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors[1:] @ vectors[0], [0.6946, 0.9429, 0.2569], atol=1e-3)


# The tokens of a reaction, as its authors split them: an atom, a bond, a ring, a bracket, an arrow.
TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|>>|%\d\d|.")
REACTIONS = (
    # The example of the package's own page, and two of every textbook: Suzuki's, and an amide.
    "Nc1cccc2cnccc12.O=C(O)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1"
    ">>O=C(Nc1cccc2cnccc12)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1",
    "Brc1ccccc1.OB(O)c1ccccc1>>c1ccc(-c2ccccc2)cc1",
    "CC(=O)Cl.Nc1ccccc1>>CC(=O)Nc1ccccc1",
)


@pytest.mark.slow
def test_rxnfp_knows_its_chemistry(rxnfp):
    """Each token of three reactions masked in turn: 171 of 179 are the model's first guess."""
    with open(f"{rxnfp}/vocab.txt") as file:
        number = {word: i for i, word in enumerate(file.read().split("\n"))}
    model, params = bert.Bert(**weights.sizes(rxnfp)), weights.pretrained(rxnfp)
    guess = jax.jit(lambda *batch: model.apply({"params": params}, *batch).argmax(-1)[:, 0])
    right = total = 0
    for reaction in REACTIONS:
        tokens = [number[word] for word in ("[CLS]", *TOKEN.findall(reaction), "[SEP]")]
        places = np.arange(1, len(tokens) - 1)
        batch = np.tile(tokens, (len(places), 1))
        batch[places - 1, places] = number["[MASK]"]
        found = guess(batch, None, None, places[:, None])
        right += int((np.asarray(found) == np.array(tokens)[places]).sum())
        total += len(places)
    assert (right, total) == (171, 179)
