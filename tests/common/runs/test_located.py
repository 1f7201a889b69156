"""Paths in a config: absolute where they are kept, and the same run wherever they were relative."""

import contextlib
import pathlib
import sys

import pytest
from helpers import DIGITS, ROOT, load

from common import imports
from common.config import flatten
from common.devices import code
from common.errors import BadInput
from common.runs import located, workdir
from common.training import saved
from lm.data import tokenizer


def config(**values) -> dict:
    data = {"name": "folder:texts", "folder": "", "tokenizer": "wordpiece", "train": "train"}
    data |= {key: value for key, value in values.items() if key != "path"}
    return {"task": "x", "data": data, "init": {"path": values.get("path", "")}}


def test_paths_are_kept_absolute_and_names_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("runs", "tok.json", "bpe", "a,b.tsv"):
        pathlib.Path(name).touch()
    here = str(tmp_path)
    for key, given, kept in (
        ("name", "folder:texts", f"folder:{here}/texts"),
        ("name", "file:a/b:c.jsonl", f"file:{here}/a/b:c.jsonl"),
        ("name", "images:a.csv", f"images:{here}/a.csv"),
        ("name", "pairs:a.tsv", f"pairs:{here}/a.tsv"),
        ("name", "pairs:a.en,b.de", f"pairs:{here}/a.en,{here}/b.de"),
        ("name", "pairs:a,b.tsv", f"pairs:{here}/a,b.tsv"),  # a file of that name
        ("name", "folder:~/texts", "folder:/home/me/texts"),
        ("name", "folder:gs://bucket/texts", "folder:gs://bucket/texts"),
        ("name", "folder:/a/texts", "folder:/a/texts"),
        ("name", "tfds:cifar10", "tfds:cifar10"),
        ("name", "folder:", "folder:"),
        ("name", "sotu", "sotu"),
        ("folder", "data", f"{here}/data"),
        ("folder", "", ""),
        ("tokenizer", "tok.json", f"{here}/tok.json"),
        ("tokenizer", "minilm", "minilm"),
        ("tokenizer", "bpe", "bpe"),
        ("target_tokenizer", "tok.json", f"{here}/tok.json"),
        ("target_tokenizer", "words", "words"),
        ("train", "train", "train"),
        ("path", "./runs", f"{here}/runs"),
        ("path", "minilm", "minilm"),
    ):
        made = located.settled(config(**{key: given}))
        assert (made["init"] if key == "path" else made["data"])[key] == kept
    sections = {"pets": {"data": "images:pets", "names": "tok.json"}, "own": {"names": "runs,x"}}
    kept = {"pets": {"data": f"images:{here}/pets", "names": f"{here}/tok.json"}}
    assert located.settled(config() | {"evals": sections})["evals"] == sections | kept
    assert set(located.WORDS) == {*tokenizer.KINDS, *tokenizer.SYMBOLS}


def test_the_same_relative_path_agrees_on_another_host_and_another_path_does_not():
    kept = config(name="folder:/a/project/data/texts", path="/a/project/runs/first")
    same = {"name": "folder:data/texts", "path": "runs/first"}
    for values, agrees in (
        (same, True),
        (same | {"name": "folder:./data/texts/"}, True),
        (same | {"name": "folder:../data/texts"}, True),
        (same | {"name": "folder:a/texts"}, False),
        (same | {"name": "folder:exts"}, False),
        (same | {"name": "images:data/texts"}, False),
        (same | {"name": "folder:/b/project/data/texts"}, False),
        (same | {"path": "runs/second"}, False),
        (same | {"path": ""}, False),
    ):
        for one, other in ((kept, config(**values)), (config(**values), kept)):
            assert (located.disagreeing(one, other) == {}) == agrees, values


def test_a_run_goes_on_from_another_folder_and_with_a_path_saved_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("elsewhere").mkdir()
    made = load(f"{DIGITS}:mlp", **{"data.folder": "sets"})
    claim = lambda config: workdir.claim(tmp_path / "run", config, {"train": "a"}, write=True)
    claim(made)
    kept = workdir.read_config(tmp_path / "run")
    assert kept["data"]["folder"] == f"{tmp_path}/sets"
    starts = workdir.read_starts(tmp_path / "run")
    assert starts[0]["config"]["data.folder"] == f"{tmp_path}/sets"
    with contextlib.chdir("elsewhere"):
        claim(kept)
        claim(made)  # the same word on another host, where it is another folder
        claim(load(f"{DIGITS}:mlp", **{"data.folder": "moved"}))
        says = r"the data set train has changed since the run began \(config\.data\.name was 'dig"
        with pytest.raises(BadInput, match=says):
            workdir.claim(tmp_path / "run", made, {"train": "b"}, write=True)
        claim(made)
    (tmp_path / "run/config.json").write_text(workdir.to_json(made))  # of an older version
    claim(made)
    assert workdir.read_config(tmp_path / "run") == kept


def test_a_checkpoint_is_of_the_same_run_wherever_its_data_are():
    own = workdir.identity(config(), {"train": "a"})
    assert own == workdir.identity(config(name="folder:/a/moved"), {"train": "a"})
    assert own != workdir.identity(config(name="folder:/a/moved"), {"train": "b"})
    assert own != workdir.identity(config(name="file:/a/moved"), {"train": "a"})
    assert own != workdir.identity(config(path="/a/other"), {"train": "a"})
    evaluated = lambda data: workdir.identity(config() | {"evals": {"x": {"data": data}}}, {})
    assert evaluated("images:a") == evaluated("images:/b/a") != evaluated("tfds:a")
    assert "config.data.name" not in own  # as older checkpoints hold it


def test_what_starts_from_a_workdir_finds_the_modules_of_its_owner(tmp_path, monkeypatch):
    own = tmp_path / "own"
    (own / "pack_q").mkdir(parents=True)
    net = (
        "import flax.linen as nn\n"
        "class Net(nn.Module):\n    num_classes: int\n    width: int = 4\n    PARTITION = ()\n"
    )
    (own / "net_q.py").write_text(net)
    (own / "pack_q/net.py").write_text(net)
    monkeypatch.setattr(sys, "path", sys.path[:])
    for place in ("net_q:Net", "pack_q.net:Net"):
        monkeypatch.setattr(imports, "_OWN", [])
        imports.search(own)
        made = load(f"{DIGITS}:mlp", **{"model.module": place})
        folders = imports.folders_of(code.own(flatten(made)))
        assert folders == [str(own)]
        folder = tmp_path / place.replace(":", "_")
        workdir.claim(folder, made, {}, write=True, facts={"folders": folders})
        # Another process, with a config of an older version.
        sys.path.remove(str(own))
        for name in ("net_q", "pack_q", "pack_q.net"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(imports, "_OWN", [])
        del made["model"]["width"]
        (folder / "config.json").write_text(workdir.to_json(made))
        assert saved.read_config(folder)["model"]["width"] == 4
        sys.path.remove(str(own))
    for text in ("[", "[3]", '[{"folders": 3}]', '[{"folders": [3]}]', "{}", "[]"):
        (folder / "environment.json").write_text(text)
        assert workdir.import_folders(folder) == []
    assert imports.folders_of(["vision.cnn:CNN", "numpy", "no_such"]) == [str(ROOT)]
