"""Files of weights: which one of a folder is read, numbered parts, and what is no such file."""

import json

import numpy as np
import pytest
import safetensors.numpy

from common.errors import BadInput
from common.weights import tensors

VALUES = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(3, np.int64)}


def save(path, values=VALUES):
    path.write_bytes(safetensors.numpy.save(values))
    return path


def same(found, expected) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[k], x) and found[k].dtype == x.dtype for k, x in expected.items()
    )


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "x.gguf", "x.ckpt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "git lfs pull"),
        (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "an HTML page"),
    ],
)
def test_what_stands_in_a_file_s_place_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path / name, *([] if name == "x.ckpt" else [tmp_path])):
        with pytest.raises(BadInput, match=f"{name}: .*{message}") as error:
            tensors.read(path)
        assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_bytes(content or b"[]")
    with pytest.raises(BadInput, match=f"config.json: .*({message}|a list, not a JSON object)"):
        tensors.settings(tmp_path)


def test_a_truncated_file_says_so(tmp_path):
    whole = save(tmp_path / "model.safetensors").read_bytes()
    short = tmp_path / "short.safetensors"
    for size in range(9, len(whole)):
        short.write_bytes(whole[:size])
        with pytest.raises(BadInput, match=f"truncated: it holds {size} of at least"):
            tensors.read(short)
    for other in (b"\0", b"garbage" * 9, whole[:8] + b"[" + whole[9:], whole + b"\0"):
        short.write_bytes(other)
        with pytest.raises(BadInput, match="damaged, or not a safetensors file"):
            tensors.read(short)


def test_the_file_of_a_folder(tmp_path):
    """safetensors, else torch, else the one GGUF; a file by its ending."""
    with pytest.raises(BadInput, match=r"no weights: there should be .* or a \.gguf file"):
        tensors.read(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(BadInput, match=r"holds 2 GGUF files: name one, such as a\.gguf"):
        tensors.read(tmp_path)
    (tmp_path / "b.gguf").unlink()
    with pytest.raises(BadInput, match=r"a\.gguf: truncated"):
        tensors.read(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"garbage")
    with pytest.raises(BadInput, match=r"pytorch_model\.bin: damaged"):
        tensors.read(tmp_path)
    save(tmp_path / "model.safetensors")
    assert same(tensors.read(tmp_path), VALUES)
    save(tmp_path / "model.h5")
    with pytest.raises(BadInput, match=r"model\.h5: weights are told by their ending"):
        tensors.read(tmp_path / "model.h5")
    wrapped = {f"module._orig_mod.{k}": x for k, x in VALUES.items()}
    assert same(tensors.read(save(tmp_path / "x.safetensors", wrapped)), VALUES)
    some = {"module.a": VALUES["a"], "b": VALUES["b"]}
    assert same(tensors.read(save(tmp_path / "x.safetensors", some)), some)


def test_parts_are_files_of_their_folder(tmp_path):
    folder, blobs = tmp_path / "model", tmp_path / "blobs"
    (folder / "sub").mkdir(parents=True)
    blobs.mkdir()
    index = folder / "model.safetensors.index.json"

    def read(*parts):
        index.write_text(json.dumps({"weight_map": dict(zip("ab", parts, strict=True))}))
        return tensors.read(folder)

    for name in "ab":  # as in Hugging Face's cache
        save(blobs / f"{name}.safetensors", {name: VALUES[name]})
        (folder / f"{name}.safetensors").symlink_to(f"../blobs/{name}.safetensors")
    assert same(read("a.safetensors", "b.safetensors"), VALUES)
    save(folder / "sub/b.safetensors", {"b": VALUES["b"]})
    for outside in (
        "../blobs/b.safetensors",
        "sub/../../blobs/b.safetensors",
        "sub/b.safetensors",
        "./b.safetensors",
        str(folder / "b.safetensors"),
        str(blobs / "b.safetensors"),
        "",
        "..",
    ):
        with pytest.raises(BadInput, match="is missing: the parts that .* must be in this folder"):
            read("a.safetensors", outside)
    save(blobs / "b.safetensors")
    with pytest.raises(BadInput, match=r"\['a'\] is in two parts, a\.safetensors and b\.safe"):
        read("a.safetensors", "b.safetensors")
    for described, message in (
        ({"weight_map": ["a"]}, "weight_map is .*, not an object"),
        ({"weight_map": {"a": 3}}, "weight_map: a is 3, not a string"),
        ([], "a list, not a JSON object"),
    ):
        index.write_text(json.dumps(described))
        with pytest.raises(BadInput, match=message):
            tensors.read(folder)
