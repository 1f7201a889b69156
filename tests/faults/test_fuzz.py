"""Whatever is changed in a config, a workdir, a folder of weights or data of one's own, at random,
comes to what it should or to a refusal; `python -m tests.measure fuzz`, `mutations` and `own_data`
try more."""

import functools

import foreign_folders
import fuzz
import mutations
import own_data
import pytest

from lm import weights

TRIES = 150
MUTATIONS = 120
CHANGES = 100


@pytest.fixture(scope="module")
def grounds(tmp_path_factory, same_programs):
    return fuzz.prepare(tmp_path_factory.mktemp("grounds"))


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, TRIES])
def test_nothing_that_is_tried_breaks_a_law(tmp_path, grounds, first, capsys):
    outcomes = fuzz.fuzz(range(first, first + TRIES), grounds, tmp_path)
    with capsys.disabled():
        print(f"\n{fuzz.summary(outcomes)}")
    wrong = [fuzz.tell(outcome) for outcome in outcomes if outcome.wrong]
    assert not wrong, "\n\n".join(wrong)


def test_weights_are_what_their_files_say_or_refused(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    # Most tries are of the same few models, whose tracing is most of the time.
    monkeypatch.setattr(weights, "_shapes", functools.cache(weights._shapes))
    known = foreign_folders.grounds(tmp_path / "grounds")
    names = sorted(known)
    outcomes = [
        mutations.attempt(i, names[i % len(names)], known[names[i % len(names)]], tmp_path / str(i))
        for i in range(MUTATIONS)
    ]
    wrong = [mutations.tell(outcome) for outcome in outcomes if outcome.wrong]
    assert not wrong, "\n\n".join(wrong)
    loaded = sum(outcome.ends["adopt"] == "loaded" for outcome in outcomes)
    assert MUTATIONS / 8 < loaded < MUTATIONS / 2  # or they change too little, or too much


@pytest.mark.slow
def test_data_of_ones_own_are_what_stands_there_or_refused(tmp_path):
    own_data.prepare(tmp_path / "made")
    outcomes = [own_data.attempt(i, tmp_path / "made", tmp_path / str(i)) for i in range(CHANGES)]
    wrong = [own_data.tell(outcome) for outcome in outcomes if outcome.wrong]
    assert not wrong, "\n".join(wrong)
    read = {outcome.ground for outcome in outcomes if outcome.end == "read"}
    refused = {outcome.ground for outcome in outcomes if outcome.end == "refused"}
    assert read == refused == own_data.GROUNDS.keys()
