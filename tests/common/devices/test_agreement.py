"""What processes say of what differs among them."""

import pytest

from common.devices import agreement
from common.errors import BadInput


def differ(monkeypatch, *everybody: dict) -> str:
    monkeypatch.setattr(agreement, "gather", lambda facts: list(everybody))
    with pytest.raises(BadInput) as raised:
        agreement.require_same(everybody[0], "start all alike")
    return str(raised.value)


def test_the_key_the_values_and_the_processes_are_named(monkeypatch):
    said = differ(monkeypatch, {"seed": "0"}, {"seed": "5"}, {"seed": "0"})
    assert said == (
        "the processes of this run differ: seed is 0 on processes 0, 2, 5 on process 1; "
        "start all alike"
    )


def test_a_key_that_one_lacks_differs(monkeypatch):
    assert "a is 1 on process 0, not there on process 1" in differ(monkeypatch, {"a": "1"}, {})


def test_a_key_comes_before_those_that_its_value_adds(monkeypatch):
    own = {f"optim.direction.{key}": "0" for key in ("b1", "b2", "eps", "mu", "nu")}
    said = differ(monkeypatch, {"optim.name": "adamw"} | own, {"optim.name": "sgd"})
    assert "differ: optim.name is adamw on process 0, sgd on process 1; optim.direction.b1" in said


def test_many_differences_are_counted(monkeypatch):
    keys = [f"key_{i}" for i in range(7)]
    said = differ(monkeypatch, dict.fromkeys(keys, "0"), dict.fromkeys(keys, "1"))
    assert "key_3" in said
    assert "key_4" not in said
    assert "and 3 more differ" in said


def test_long_values_are_cut(monkeypatch):
    assert len(differ(monkeypatch, {"a": "x" * 999}, {"a": "y" * 999})) < 300


def test_what_is_the_same_passes(monkeypatch):
    monkeypatch.setattr(agreement, "gather", lambda facts: [facts, facts])
    agreement.require_same({"a": "1"}, "start all alike")


def test_alone_everybody_agrees():
    agreement.require_same({"a": "1"}, "start all alike")
    assert agreement.gather([1]) == [[1]]
    assert agreement.place() == (0, 1)
