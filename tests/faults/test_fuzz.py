"""Whatever is changed in a config or a workdir, at random, comes to a run or a refusal that keeps
the laws; `python -m tests.measure fuzz` tries more."""

import fuzz
import pytest

pytestmark = pytest.mark.slow
TRIES = 150


@pytest.fixture(scope="module")
def grounds(tmp_path_factory):
    return fuzz.prepare(tmp_path_factory.mktemp("grounds"))


@pytest.mark.parametrize("first", [0, TRIES])
def test_nothing_that_is_tried_breaks_a_law(tmp_path, grounds, first, capsys):
    outcomes = fuzz.fuzz(range(first, first + TRIES), grounds, tmp_path)
    with capsys.disabled():
        print(f"\n{fuzz.summary(outcomes)}")
    wrong = [fuzz.tell(outcome) for outcome in outcomes if outcome.wrong]
    assert not wrong, "\n\n".join(wrong)
