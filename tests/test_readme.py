"""The README's Python runs as it stands, and its files exist."""

import re

import pytest
from helpers import ROOT

TEXT = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_runs(number, tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[number], f"README snippet {number}", "exec"), {})
    assert capsys.readouterr().out


def test_there_are_three_uses_and_every_link_leads_somewhere():
    for heading in ("## Train", "## Sweep", "## Import"):
        assert heading in TEXT
    assert len(SNIPPETS) == 3
    for target in re.findall(r"\]\((?!http)([^)]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_ci_runs_the_readmes_test_command():
    command = next(line for line in TEXT.splitlines() if "pytest -m" in line and "venv" in line)
    assert command in (ROOT / ".ci/run").read_text()
