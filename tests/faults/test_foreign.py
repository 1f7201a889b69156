"""Tokenizers, weights and prepared sets of others, damaged or of the wrong types: one line that
names the file, and the key where it has one."""

import json
import math
import os
import pathlib
import shutil
import time

import corpus
import fabricated
import foreign_folders
import jax
import numpy as np
import pytest
import safetensors.numpy
from faults import refused
from helpers import DIGITS, ROOT

from common.errors import BadInput
from lm import bert, gpt
from lm import weights as text_weights
from lm.data import corpora, text
from lm.data import tokenizer as tokenizers
from vision import resnet, vit
from vision import weights as image_weights


def written(folder: pathlib.Path, files: dict) -> str:
    for name, value in files.items():
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        (folder / name).write_bytes(raw)
    return str(folder)


# ------------------------------------------------------------------------------------ tokenizers


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict:
    """A tokenizer.json of 150 tokens."""
    folder = tmp_path_factory.mktemp("saved")
    return json.loads(
        tokenizers.load(corpus.tokenizer(folder, "wordpiece", 150)).to_str(),
    )


# (id of one token, what the line says)
IDS = [
    (4_000_000_000, r"the token 'zz' has the id 4,000,000,000, with 151 tokens in all"),
    (2**32 - 1, r"the token 'zz' has the id 4,294,967,295"),
    (2**32, r"cannot be read: .*expected u32"),
    (100_000_000, r"the token 'zz' has the id 100,000,000"),
    (600_000, r"ids must be below 524,288"),
    (-1, r"cannot be read: .*`-1`, expected u32"),
    (1.5, r"cannot be read: .*expected u32"),
    (None, r"cannot be read: .*null, expected u32"),
    ("3", r"cannot be read: .*expected u32"),
]


@pytest.mark.parametrize(("number", "says"), IDS)
def test_ids_that_would_make_arrays_of_gigabytes_are_refused_at_once(
    number, says, saved, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("TOUCHSTONE_DATA", str(tmp_path / "data"))
    saved["model"]["vocab"]["zz"] = number
    path = written(tmp_path, {"tokenizer.json": saved})
    del saved["model"]["vocab"]["zz"]
    begin = time.monotonic()
    words = "--config.data.name=sotu", f"--config.data.tokenizer={path}"
    config = f"{ROOT}/tests/support/language_config.py:clm"
    refused(capsys, "train", "--config", config, "--dry-run", *words, says=says)
    assert time.monotonic() - begin < 5


# (file of a tokenizer's folder: contents, what the line says)
VOCAB = "\n".join([*tokenizers.SPECIAL, *"abcdefgh", *(f"##{c}" for c in "abcdefgh")])
BYTES = {token: i for i, token in enumerate([tokenizers.END, *"abcdefgh", "ab"])}
TOKENIZERS = [
    ({"tokenizer.json": b""}, r"cannot be read"),
    ({"tokenizer.json": b"null"}, r"cannot be read: .*null"),
    ({"tokenizer.json": b"[" * 100_000}, r"cannot be read"),
    ({"tokenizer.json": b"\xff"}, r"tokenizer\.json cannot be read: line 1 is not UTF-8"),
    ({"tokenizer.json": {"model": None}}, r"cannot be read"),
    ({"tokenizer.json": {"model": {"type": "WordPiece"}}}, r"cannot be read"),
    ({"vocab.txt": b""}, r"vocab\.txt has no \[UNK\]"),
    ({"vocab.txt": VOCAB.replace("[SEP]", "[").encode()}, r"vocab\.txt has no \[SEP\]"),
    ({"vocab.txt": VOCAB.encode() + b"\n\xff"}, r"vocab\.txt cannot be read: line 22 is not UTF-8"),
    ({"vocab.txt": VOCAB.encode(), "tokenizer_config.json": None}, r"null, not a JSON object"),
    ({"vocab.txt": VOCAB.encode(), "tokenizer_config.json": []}, r"a list, not a JSON object"),
    (
        {"vocab.txt": VOCAB.encode(), "tokenizer_config.json": {"do_lower_case": None}},
        r"tokenizer_config\.json: do_lower_case is null, not true or false",
    ),
    ({"vocab.json": [], "merges.txt": b""}, r"vocab\.json: a list, not a JSON object"),
    ({"vocab.json": BYTES | {"z": "1"}, "merges.txt": b""}, r"'z' has the id '1'"),
    ({"vocab.json": BYTES | {"z": -1}, "merges.txt": b""}, r"'z' has the id -1"),
    ({"vocab.json": BYTES | {"z": 4 * 10**9}, "merges.txt": b""}, r"'z' has the id 4000000000"),
    ({"vocab.json": BYTES, "merges.txt": b"a\n"}, r"merges\.txt, line 1: 'a' is not two pieces"),
    ({"vocab.json": BYTES, "merges.txt": b"a b\na z\n"}, r"line 2: 'z' is not in vocab\.json"),
    ({"vocab.json": BYTES, "merges.txt": b"\xff\n"}, r"merges\.txt cannot be read: line 1 is not"),
    ({"config.json": []}, r"config\.json: a list, not a JSON object"),
    ({"config.json": {"data": None}}, r"has no tokenizer, and is not a run that has one"),
    ({"config.json": {"data": {"tokenizer": None}}}, r"data: tokenizer is null, not a string"),
    ({"config.json": {"data": {"tokenizer": "bpe"}}}, r"data: name is missing"),
]


@pytest.mark.parametrize(("files", "says"), TOKENIZERS)
def test_a_damaged_tokenizer_is_one_line(files, says, tmp_path):
    with pytest.raises(BadInput, match=rf"^config\.data\.tokenizer: .*{says}"):
        text.find_tokenizer(written(tmp_path, files))


def test_a_template_of_other_tokens_than_the_settings_name_is_refused(tmp_path):
    folder = tmp_path / "roberta"
    foreign_folders.write_tokenizer(folder, "roberta")
    tokenizers.load(folder)
    written(folder, {"special_tokens_map.json": {"cls_token": "</s>"}})
    says = r"cls_token is '</s>', and the template in tokenizer\.json has \['<s>'\]"
    with pytest.raises(BadInput, match=says):
        tokenizers.load(folder)


def test_a_vocabulary_with_a_byte_order_mark_and_windows_lines_is_the_same(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "odd").mkdir()
    odd = ("\ufeff" + VOCAB).replace("\n", "\r\n").encode()
    loaded = [
        tokenizers.load(written(tmp_path / name, {"vocab.txt": raw})).get_vocab()
        for name, raw in {"plain": VOCAB.encode(), "odd": odd}.items()
    ]
    assert loaded[0] == loaded[1]


# --------------------------------------------------------------------------------------- weights


def zeros(model, *inputs):
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)


SMALL = {"width": 16, "layers": 1, "heads": 2, "hidden": 32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, pathlib.Path]:
    """Weights of a BERT, a Llama and a ViT in the Hugging Face layout."""
    root = tmp_path_factory.mktemp("weights")
    tokens = np.zeros((1, 8), np.int32)
    for name, model in {
        "bert": bert.Encoder(vocab_size=30, max_length=8, **SMALL),
        "llama": gpt.GPT(vocab_size=30, max_length=8, tied=False, **gpt.LLAMA, **SMALL),
        "gpt2": gpt.GPT(vocab_size=30, max_length=8, **SMALL),
    }.items():
        text_weights.save(root / name, model, zeros(model, tokens)["params"])
    for name, model in {
        "vit": vit.ViT(num_classes=3, image_size=8, patch_size=4, **SMALL),
        "resnet": resnet.ResNet(
            stages=(1,), widths=(8,), block="basic", stem_width=8, num_classes=3
        ),
    }.items():
        variables = zeros(model, np.zeros((1, 8, 8, 3), np.float32))
        image_weights.save(root / name, model, variables)
    return {path.name: path for path in root.iterdir()}


def loader(model: str):
    return image_weights.pretrained if model in ("vit", "resnet") else text_weights.pretrained


# (model, key of config.json, value, what the line says)
KEYS = [
    ("bert", "hidden_act", None, r"hidden_act is null, not a string"),
    ("bert", "hidden_act", 3, r"hidden_act is 3, not a string"),
    ("bert", "hidden_act", "tanh", r"hidden_act: 'tanh' is not an activation here"),
    ("bert", "hidden_size", "16", r'hidden_size is "16", not a whole number'),
    ("bert", "hidden_size", None, r"hidden_size is null, not a whole number"),
    ("bert", "hidden_size", 16.0, r"hidden_size is 16\.0, not a whole number"),
    ("bert", "hidden_size", True, r"hidden_size is true, not a whole number"),
    ("bert", "hidden_size", 0, r"hidden_size = 0 is not a positive size"),
    ("bert", "hidden_size", -1, r"hidden_size = -1 is not a positive size"),
    ("bert", "hidden_size", 10**30, r"hidden_size = 1000.* is not a positive size"),
    ("bert", "vocab_size", [30], r"vocab_size is \[30\], not a whole number"),
    ("bert", "layer_norm_eps", "x", r'layer_norm_eps is "x", not a number'),
    ("bert", "layer_norm_eps", math.nan, r"layer_norm_eps = NaN is not a number of at least 0"),
    ("bert", "model_type", None, r"model_type None is not a family that is read here"),
    ("bert", "model_type", ["bert"], r"model_type \['bert'\] is not a family that is read here"),
    ("gpt2", "activation_function", None, r"activation_function is null, not a string"),
    ("llama", "hidden_act", None, r"hidden_act is null, not a string"),
    ("gpt2", "n_inner", "x", r'n_inner is "x", not a whole number'),
    ("gpt2", "tie_word_embeddings", None, r"tie_word_embeddings is null, not true or false"),
    ("llama", "rope_parameters", [], r"rope_parameters is \[\], not an object"),
    ("llama", "rope_parameters", {"rope_theta": None}, r"rope_theta is null, not a number"),
    ("llama", "head_dim", "8", r'head_dim is "8", not a whole number'),
    ("llama", "num_key_value_heads", {}, r"num_key_value_heads is \{\}, not a whole number"),
    ("vit", "image_size", [35, 34], r"image_size = \[35, 34\]: only squares are supported"),
    ("vit", "image_size", 10**9, r"image_size = 1000000000 is too large for patches of 4"),
    ("vit", "num_hidden_layers", 10**9, r"says 1000000000 layers, and its tensors are"),
    ("vit", "id2label", [], r"id2label is \[\], not an object"),
    ("vit", "id2label", None, r"is \[16, 3\] there and \[16, 2\] here"),
    ("resnet", "layer_type", "gelu", r"layer_type: unknown 'gelu'; valid: basic, bottleneck"),
    ("resnet", "depths", ["1"], r'depths\[0\] is "1", not a whole number'),
    ("vit", "hidden_act", None, r"hidden_act is null, not a string"),
    ("vit", "patch_size", None, r"patch_size is null, not a whole number"),
]


@pytest.mark.parametrize(("model", "key", "value", "says"), KEYS)
def test_a_key_of_the_wrong_type_is_named(model, key, value, says, folders, tmp_path):
    folder = shutil.copytree(folders[model], tmp_path / "own")
    settings = json.loads((folder / "config.json").read_text()) | {key: value}
    written(folder, {"config.json": settings})
    with pytest.raises(BadInput, match=says):
        loader(model)(folder)


@pytest.mark.parametrize("model", ["bert", "vit"])
@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "not JSON"),
        (b"null", "null, not a JSON object"),
        (b"[]", "a list, not a JSON object"),
        (b"\xff", "line 1 is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":', "not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "a git-lfs pointer"),
    ],
)
def test_a_config_json_that_is_none_is_one_line(raw, says, model, folders, tmp_path):
    folder = shutil.copytree(folders[model], tmp_path / "own")
    written(folder, {"config.json": raw})
    with pytest.raises(BadInput, match=rf"config\.json.*{says}"):
        loader(model)(folder)


# (contents of an index, what the line says)
INDICES = [
    (None, r"index\.json: null, not a JSON object"),
    ([], r"index\.json: a list, not a JSON object"),
    ({"weight_map": None}, r"weight_map is null, not an object"),
    ({"weight_map": []}, r"weight_map is \[\], not an object"),
    ({"weight_map": {"x": None}}, r"weight_map: x is null, not a string"),
    ({"weight_map": {"x": 3}}, r"weight_map: x is 3, not a string"),
    ({"weight_map": {"x": ".."}}, r"own: \.\. is missing: the parts .* must be in this folder"),
    ({"weight_map": {"x": "../a"}}, r"own: \.\./a is missing"),
    ({"weight_map": {"x": "a\0"}}, r"cannot be read: embedded null byte"),
    ({"weight_map": {"x": "a" * 5000}}, r"cannot be read: file name too long"),
    ({}, r"index\.json: weight_map is missing"),
    ({"weight_map": {}}, r"index\.json: weight_map names no tensor"),
]


@pytest.mark.parametrize(("index", "says"), INDICES)
def test_an_index_of_the_wrong_types_is_one_line(index, says, folders, tmp_path):
    folder = shutil.copytree(folders["bert"], tmp_path / "own")
    (folder / "model.safetensors").unlink()
    written(folder, {"model.safetensors.index.json": index})
    with pytest.raises(BadInput, match=says):
        text_weights.pretrained(folder)


# (model, tensor, its shape, what the line says)
QUERY = "encoder.layer.0.attention.self.query.weight"
SHAPES = [
    ("bert", "embeddings.word_embeddings.weight", (), r"is \[\], and should have 2 dimensions"),
    ("bert", "embeddings.word_embeddings.weight", (3,), r"is \[3\], and should have 2 dimensions"),
    ("bert", "embeddings.LayerNorm.weight", (), r"is \[\], and should have 1 dimension$"),
    ("bert", "embeddings.LayerNorm.bias", (0,), r"is \[0\], which is empty"),
    ("bert", QUERY, (2, 2, 2), r"is \[2, 2, 2\], and should have 2 dimensions"),
    ("bert", QUERY, (0, 3), r"is \[0, 3\], which is empty"),
    ("gpt2", "transformer.h.0.attn.c_attn.bias", (), r"is \[\], and should have 1 dimension$"),
    ("gpt2", "transformer.h.0.attn.c_attn.bias", (47,), r"no concatenation of 3 equal parts"),
    ("vit", "vit.embeddings.cls_token", (), r"is \[\], and should have 3 dimensions"),
    ("vit", "classifier.bias", (), r"is \[\], and should have 1 dimension$"),
]


@pytest.mark.parametrize(("model", "name", "shape", "says"), SHAPES)
def test_a_tensor_of_another_shape_is_named(model, name, shape, says, folders, tmp_path):
    folder = shutil.copytree(folders[model], tmp_path / "own")
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    assert name in tensors
    tensors[name] = np.zeros(shape, np.float32)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BadInput, match=rf"own: .*{name.rpartition('.')[2]}.* {says}"):
        loader(model)(folder)


def test_a_tensor_in_two_parts_is_named_with_both(folders, tmp_path):
    folder = shutil.copytree(folders["bert"], tmp_path / "own")
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    parts = {name: f"{i % 2}.safetensors" for i, name in enumerate(safetensors.numpy.load(raw))}
    written(folder, {"model.safetensors.index.json": {"weight_map": parts}})
    written(folder, {"0.safetensors": raw, "1.safetensors": raw})
    with pytest.raises(BadInput, match=r"is in two parts, 0\.safetensors and 1\.safetensors"):
        text_weights.pretrained(folder)


# --------------------------------------------------------------------------------- prepared sets


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> pathlib.Path:
    """TFDS's folder with the sets `pictures` and `texts`."""
    root = tmp_path_factory.mktemp("prepared")
    fabricated.prepare(root, "pictures", (8, 8, 1), {"train": 60, "test": 20})
    rows = [{"text": f"the union {i}", "label": i % 3} for i in range(60)]
    corpus.prepare(root, "texts", {"text": "text", "label": "label"}, {"train": rows})
    return root


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def end(path):
    path.write_bytes(path.read_bytes()[:-10])


def junk(path):
    path.write_bytes(b"\xff" * path.stat().st_size)


def empty(path):
    path.write_bytes(b"")


def replaced(make):
    def harm(path):
        path.unlink()
        make(path)

    return harm


def contents(raw: bytes):
    return lambda path: path.write_bytes(raw)


def shards(lengths):
    """Changes the numbers of examples in dataset_info.json."""

    def harm(path):
        described = json.loads(path.read_text())
        for split in described["splits"]:
            split["shardLengths"] = lengths
        path.write_text(json.dumps(described))

    return harm


RECORDS, INFO, FEATURES = "*train*array_record*", "dataset_info.json", "features.json"
# (file, what is done to it, what the line says)
DAMAGE = [
    (RECORDS, half, r"is damaged|has \d+ examples|has 0 examples"),
    (RECORDS, end, r"is damaged \(RuntimeError"),
    (RECORDS, junk, r"is damaged \(RuntimeError"),
    (RECORDS, empty, r"is damaged \(RuntimeError"),
    (RECORDS, replaced(lambda path: None), r"no such file: .*; remove .* and prepare the set ag"),
    (RECORDS, replaced(os.mkfifo), r"is a FIFO"),
    (RECORDS, replaced(lambda path: path.mkdir()), r"is a folder, not a file"),
    (RECORDS, replaced(lambda path: path.symlink_to("nowhere")), r"is a link to nowhere"),
    (INFO, contents(b""), r"dataset_info\.json: not JSON"),
    (INFO, contents(b"null"), r"dataset_info\.json: null, not a JSON object"),
    (INFO, contents(b"{}"), r"is damaged"),
    (INFO, contents(b"\xff"), r"dataset_info\.json cannot be read: line 1 is not UTF-8"),
    (INFO, replaced(os.mkfifo), r"dataset_info\.json is a FIFO"),
    (INFO, shards(["61"]), r"has \d+ examples, and its metadata says 61; remove"),
    (INFO, shards(["1000000000000"]), r"its metadata says 1000000000000"),
    (INFO, shards(["-1"]), r"is damaged"),
    (INFO, shards([None]), r"is damaged"),
    (INFO, shards(["30", "30"]), r"no such file: .*00000-of-00002"),
    (FEATURES, contents(b"[]"), r"features\.json: a list, not a JSON object"),
    (FEATURES, contents(b"{}"), r"is damaged"),
    (FEATURES, replaced(os.mkfifo), r"features\.json is a FIFO"),
    (FEATURES, replaced(lambda path: path.symlink_to("nowhere")), r"is a link to nowhere"),
]


@pytest.mark.parametrize(("pattern", "harm", "says"), DAMAGE)
def test_a_damaged_prepared_set_is_one_line(pattern, harm, says, prepared, tmp_path, capsys):
    root = shutil.copytree(prepared, tmp_path / "own")
    for name in "pictures", "texts":
        for path in (root / name / "1.0.0").glob(pattern):
            harm(path)
    words = "--config.data.name=tfds:pictures", f"--config.data.folder={root}"
    for resident in "True", "False":
        further = (*words, f"--config.data.resident={resident}", "--dry-run")
        refused(capsys, "train", "--config", f"{DIGITS}:mlp", *further, says=says)
    with pytest.raises(BadInput, match=says):
        list(corpora.documents("tfds:texts", str(root)))
