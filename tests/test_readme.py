"""The READMEs: their Python runs as it stands, their links lead somewhere, and what they list is
what there is."""

import ast
import logging
import re
import signal
import sys

import jax
import pytest
from helpers import ROOT

from common.errors import BadInput

READMES = {
    name: (ROOT / name).read_text()
    for name in (
        "README.md",
        "common/README.md",
        "configs/README.md",
        "scripts/README.md",
        "scripts/pods/README.md",
    )
}
MAIN, COMMON, CONFIGS, SCRIPTS, _ = READMES.values()
LANGUAGE = r"```{}\n(.*?)```"
SNIPPETS = [
    # The first of scripts/README.md trains a sweep.
    pytest.param(
        text,
        id=f"{name}-{number}",
        marks=pytest.mark.slow if "population.run" in text else (),
    )
    for name, readme in READMES.items()
    for number, text in enumerate(re.findall(LANGUAGE.format("python"), readme, re.DOTALL))
    if "train.run" not in text  # the notebook's runs below
]
ROOMS = sorted(path.parent.name for path in (ROOT / "common").glob("*/__init__.py"))


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one."""
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def anchors(text: str) -> set[str]:
    """The fragments by which headings are linked to, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("text", SNIPPETS)
def test_a_snippet_runs(text, tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "README snippet", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_notebook_runs_again_and_with_another_config(tmp_path, monkeypatch, capsys, caplog):
    """As cells of one kernel: signals, logging and the mesh stay the kernel's."""
    state = lambda: (
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        (logging.root.level, *logging.root.handlers),
        (sys.stderr, jax.sharding.get_abstract_mesh()),
    )
    (cell,) = re.findall(LANGUAGE.format("python"), section(MAIN, "In a notebook"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    before, kernel = state(), {}
    exec(cell, kernel)
    first = kernel["result"]
    exec(cell, kernel)
    assert kernel["result"] == first
    assert f"{first['steps']} {first['eval']['test']['accuracy']}" in capsys.readouterr().out
    exec(cell.replace("2 epochs", "40 steps").replace("runs/notebook", "runs/other"), kernel)
    assert kernel["result"]["steps"] == 40
    with pytest.raises(BadInput, match=r"config\.optim\.lr"):
        exec(cell.replace("result =", "config.optim.lr = 0.5\nresult ="), kernel)
    assert state() == before
    assert "\r" not in capsys.readouterr().err
    assert caplog.messages == []


def test_there_are_snippets():
    assert len(SNIPPETS) == 5


@pytest.mark.parametrize("name", READMES)
def test_every_link_leads_somewhere(name):
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", READMES[name])
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


@pytest.mark.parametrize("name", READMES)
def test_every_command_is_of_a_file(name):
    """`python scripts/train.py --config configs/lm/bert_sotu.py`, in blocks and in lines."""
    files = re.findall(r"\b(?:scripts|configs)/[\w/]+\.(?:py|sh|yaml)\b", READMES[name])
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_the_readme_is_short_and_shows_the_five_uses_and_five_files():
    assert len(MAIN.splitlines()) <= 205
    for use in ("Train", "Ship", "Sweep", "Import", "Scale"):
        assert "```" in section(MAIN, use)
    tour = section(MAIN, "Read these in this order")
    files = re.findall(r"^\d\. \[([^]]+)\]", tour, re.MULTILINE)
    assert len(files) == 5
    for file in files:
        assert (ROOT / file).is_file(), file


def test_the_main_rows_are_rows_of_the_whole_tables():
    rows = [line for line in section(MAIN, "Results").splitlines() if line.startswith("| `")]
    assert len(rows) >= 5
    for row in rows:
        assert row in CONFIGS.splitlines(), row


def test_every_script_is_listed():
    scripts = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
    assert [name for name in scripts if f"]({name})" not in SCRIPTS] == []


def test_every_config_is_listed():
    configs = sorted((ROOT / "configs").glob("*/[!_]*.py"))
    names = [f"{path.parent.name}/{path.name}" for path in configs]
    assert [name for name in names if f"]({name})" not in CONFIGS] == []


def test_every_room_is_listed():
    assert [room for room in ROOMS if f"\n| [{room}]({room}) |" not in COMMON] == []
    inside = section(MAIN, "Folders").split("\ncommon/")[1].split("\ntests/")[0]
    listed = inside.split(":")[1].split("(")[0]
    assert sorted(re.findall(r"\w+", listed)) == ROOMS


def test_the_order_of_imports_is_that_of_the_code():
    """Each line of the order imports from those above it alone."""
    block = re.search(r"The order of imports.*?```\n(.*?)```", COMMON, re.DOTALL)[1]
    rank = {name: k for k, line in enumerate(block.splitlines()) for name in line.split(", ")}
    files = {path.stem for path in (ROOT / "common").glob("[!_]*.py")}
    assert rank.keys() == files | set(ROOMS)
    for path in (ROOT / "common").rglob("*.py"):
        own = path.relative_to(ROOT / "common").with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("common"):
                continue
            names = [f"{node.module}.{alias.name}".split(".")[1] for alias in node.names]
            for name in names:
                assert name == own or rank[name] < rank[own], f"{path}: imports {name}"


def test_ci_runs_the_readmes_test_command():
    command = next(line for line in MAIN.splitlines() if "pytest -m" in line and "venv" in line)
    assert command in (ROOT / ".ci/run").read_text()
