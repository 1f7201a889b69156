"""Processes of one run that were not started alike refuse together; `python -m tests.measure
processes` tries every key."""

import disagree
import numpy as np
import pytest
from helpers import ROOT, TOY

CASES = disagree.cases()
# A duration, what decides about checkpoints, devices, a workdir, a failure before joining, and one
# among four.
CHOSEN = "train.duration", "checkpoint.every", "runtime.cpu_devices"
OF_CI = [next(case for case in CASES if case.key == f"config.{key}") for key in CHOSEN]
OF_CI += [case for case in CASES if case.key == "--workdir"][:1] + CASES[-2:-1]
OF_CI += [next(case for case in CASES if case.processes == 4)]


def name(case: disagree.Case) -> str:
    late = "" if case.late is None else f", {case.late} late"
    return f"{case.key.removeprefix('config.')} on {case.odd} of {case.processes}{late}"


@pytest.mark.slow
@pytest.mark.parametrize("case", OF_CI, ids=name)
def test_what_differs_is_refused_by_all(tmp_path, case):
    disagree.refused(case, tmp_path)


@pytest.mark.slow
def test_other_data_under_the_same_name_is_refused(tmp_path):
    for place, number in ((tmp_path, 1.0), (tmp_path / "elsewhere", 2.0)):
        place.mkdir(exist_ok=True)
        np.save(place / "x.npy", np.full((203, 8), number, np.float32))
    common = "--config", TOY, "--config.data.file=x.npy", "--config.train.duration=2 steps"
    case = disagree.Case("the data set train", common=common, folder=str(tmp_path / "elsewhere"))
    disagree.refused(case, tmp_path)


@pytest.mark.slow
def test_other_code_is_refused(tmp_path):
    own = tmp_path / "code"
    own.mkdir()
    (own / "toy.py").write_text((ROOT / "tests/support/toy.py").read_text() + "# another line\n")
    path = ("PYTHONPATH", f"{ROOT}:{own}:{ROOT}/tests/support")
    disagree.refused(disagree.Case("code.toy.py", env=(path,), common=("--config", TOY)), tmp_path)


@pytest.mark.measure("processes")
def test_whatever_differs_is_refused_by_all(tmp_path, capsys):
    assert len(CASES) >= 60
    for number, case in enumerate(CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        line = disagree.refused(case, folder)
        with capsys.disabled():
            print(f"{number + 1}/{len(CASES)}  {name(case)}: {line[:110]}", flush=True)
