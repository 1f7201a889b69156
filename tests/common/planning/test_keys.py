"""Every key of every config has a meaning, and a dry run works where the data is not."""

import textwrap

import pytest
from helpers import DIGITS, ROOT, exit_code, load

from common.errors import NotPrepared
from common.planning import keys
from common.sections import Selected, parameters
from common.training import directions, program

CONFIGS = (
    "vision/digits.py:mlp", "vision/fashion_mnist.py:large", "vision/cifar10.py:airbench",
    "vision/imagenet_resnet50.py", "vision/imagenet_vit.py", "lm/bert_sotu.py", "lm/gpt_sotu.py",
    "lm/finetune_reviews.py",
)  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS)
def test_every_key_is_listed_with_its_meaning(path):
    config = load(f"{ROOT}/configs/{path}")
    text = keys.listing(config, program.sections(config), width=100)
    assert max(len(line) for line in text.splitlines() if line.startswith("      ")) <= 100
    for where, section in program.sections(config).items():
        for key in parameters(section):
            at = text.index(f"\n{where}.{key} = ")
            meaning = text[at + 1 :].split("\n")[1]
            assert meaning.startswith("      "), f"{where}.{key}"
            assert len(meaning.split()) > 0, f"{where}.{key}"


@pytest.mark.parametrize("name", directions.DIRECTIONS)
def test_every_optimizers_own_keys_have_one(name):
    function = directions.direction(name)
    assert parameters(function).keys() <= keys.meanings(function).keys()


def test_docstrings_are_read_as_they_are_written():
    def function(*, a: int = 1, b: int = 2, c: str = ""):
        """Does.

        Args:
          a, b: two numbers
            on two lines.
          c: see `d`: not an entry.

        Returns:
          d: nothing.
        """

    assert keys.meanings(function) == {
        "a": "two numbers on two lines.",
        "b": "two numbers on two lines.",
        "c": "see `d`: not an entry.",
    }


def test_a_value_that_is_not_the_default_shows_both():
    config = load(DIGITS, **{"optim.lr": 0.5})
    text = keys.listing(config, program.sections(config))
    assert "optim.lr = 0.5  (float; default 0.001)" in text
    assert isinstance(program.sections(config)["evals.test"], Selected)


def test_help_lists_the_keys_of_a_config_as_it_is_overridden(capsys):
    words = ("--config", DIGITS, "--help-config", "--config.optim.name=lion")
    assert exit_code("train", *words) == 0
    text = capsys.readouterr().out
    assert "optim.direction.b2 = 0.99  (float)" in text
    assert exit_code("sweep", *words) == 0  # needs no --workdir either
    assert "--config.KEY" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train", "sweep", "compile"])
def test_help_is_short_and_has_an_example(name, capsys):
    assert exit_code(name, "--help") == 0
    text = capsys.readouterr().out
    assert f"python scripts/{name}.py --config configs/" in text
    assert "--help-config" in text
    assert len(text.splitlines()) <= 66


@pytest.mark.parametrize(
    ("config", "shows"),
    [
        ("vision/fashion_mnist.py:cnn", "60,000 examples"),
        pytest.param("lm/finetune_reviews.py", "7,252 examples", marks=pytest.mark.slow),
    ],
)
def test_a_dry_run_works_where_nothing_is_prepared(config, shows, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("TOUCHSTONE_DATA", str(tmp_path / "data"))
    small = ["--config.model.widths=(4, 8)"]
    if "finetune" in config:
        small = ["--config.model.layers=1", "--config.model.width=96"]
    words = ("--config", f"{ROOT}/configs/{config}", "--dry-run", *small)
    assert exit_code("train", *words) == 0
    text = capsys.readouterr().out
    assert text.startswith("not prepared: config.data.")
    assert "scripts/prepare.py" in text or "tfds build" in text
    assert "those of an outline" in text
    assert shows in text
    with pytest.raises(NotPrepared):
        program.prepare(load(f"{ROOT}/configs/{config}"))


def test_what_is_wrong_is_still_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    fashion = f"{ROOT}/configs/vision/fashion_mnist.py"
    words = ("--config", fashion, "--dry-run", "--config.data.train=trian")
    assert exit_code("train", *words) == 2
    assert textwrap.shorten(capsys.readouterr().err, 80).startswith("error: config.data.train")
