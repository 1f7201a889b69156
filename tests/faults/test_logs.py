"""Logs that were touched: nothing that they held is thrown away without a word."""

import json

import finished
import pytest
from etils import epath
from faults import contents, refused

from common.errors import BadInput
from common.runs import mending

WHOLE = [json.dumps(line) for line in finished.lines(*range(1, 9))]  # lines 5 and 10 evaluate
TEXT = "".join(line + "\n" for line in WHOLE)


def without(*numbers: int) -> str:
    """The log without these lines, from 1."""
    return "".join(line + "\n" for number, line in enumerate(WHOLE, 1) if number not in numbers)


def moved(number: int, to: int) -> str:
    """The log with a line elsewhere."""
    lines = list(WHOLE)
    lines.insert(to - 1, lines.pop(number - 1))
    return "".join(line + "\n" for line in lines)


@pytest.fixture
def run(tmp_path):
    return finished.write(tmp_path / "run")


REFUSED = [
    (TEXT.encode("utf-16"), r"line 1: .*UTF-16; save it as UTF-8"),
    (TEXT.encode("utf-16-be"), r"line 1: .*NUL bytes|line 1: .*not a JSON object"),
    (TEXT.encode("utf-32"), r"line 1: "),
    (TEXT.replace("\n", "\r").encode(), r"line 1: .*not a JSON object"),
    (json.dumps([*map(json.loads, WHOLE)], indent=1).encode(), r"line 1: .*not a JSON object"),
    (b"\x1f\x8b\x08\x00" + TEXT.encode(), r"line 1: .*not text in UTF-8"),
    (TEXT.replace(WHOLE[2], "\0" * 40).encode(), r"line 3: .*NUL bytes"),
    (TEXT.replace(WHOLE[2], WHOLE[2][:20]).encode(), r"line 3: .*not a JSON object"),
    (TEXT.replace(WHOLE[2], WHOLE[2] + WHOLE[2]).encode(), r"line 3: .*not a JSON object"),
    (TEXT.replace(WHOLE[2], "null").encode(), r"line 3: .*not a JSON object"),
    (TEXT.replace(WHOLE[2], "[1, 2]").encode(), r"line 3: .*not a JSON object"),
    (TEXT.replace(WHOLE[2], "[" * 100_000).encode(), r"line 3: .*not a JSON object"),
    (TEXT.replace('"step": 3', '"step": "3"').encode(), r"line 3: .*no step"),
    (TEXT.replace('"step": 3', '"step": true').encode(), r"line 3: .*no step"),
    (TEXT.replace('"step": 3', '"step": -3').encode(), r"line 3: .*no step"),
    (TEXT.replace('"step": 3', '"step": 3.0').encode(), r"line 3: .*no step"),
    (TEXT.replace('"step": 3', '"stop": 3').encode(), r"line 3: .*no step"),
    (TEXT.replace('"time/seconds": 0.', '"time/seconds": "0.').replace(
        ', "time/ex', '", "time/ex').encode(), r"line 1: .*(time|not a JSON)"),
    (TEXT.replace(WHOLE[2], WHOLE[2] + "\n" + WHOLE[2]).encode(), r"line 4: .*repeats line 3"),
    ((TEXT + TEXT).encode(), r"line 11: .*step 1 comes after step 8"),
    ((TEXT + WHOLE[-1] + "\n").encode(), r"line 11: .*repeats line 10, step 8"),
    (moved(2, 6).encode(), r"line 6: .*step 2 comes after step 5"),
    (TEXT.replace(WHOLE[2], WHOLE[2].encode().decode() + "\udcff").encode(errors="surrogateescape"),
     r"line 3: .*not text in UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize("raw", [raw for raw, _ in REFUSED], ids=range(len(REFUSED)))
def test_damage_is_named_and_left_as_it_is(run, raw, capsys):
    says = dict(REFUSED)[raw]
    (run / "metrics.jsonl").write_bytes(raw)
    before = contents(run)
    refused(capsys, "diff_runs", str(run), str(run), says=says)
    with pytest.raises(BadInput, match=r"metrics.jsonl is damaged at line \d+: it is whole up to"):
        mending.mend_log(epath.Path(run), 8, 1, write=True)
    assert contents(run) == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (without(1), "line 1: .* up to step 0, then training of step 1 is missing"),
        (without(3), "line 3: .* up to step 2, then training of step 3 is missing"),
        (without(2, 3, 4), "line 2: .* up to step 1, then training of step 2"),
        (without(5), "line 5: .* up to step 4, then evaluation test of step 4"),
        (without(4), "line 5: .*training of step 4 is missing"),
        (without(9, 10), "line 9: .*training of step 8 is missing"),
        (moved(10, 1), "line 1: .*training of step 1 is missing"),
        ("", "line 1: .* up to step 0, then training of step 1"),
    ],
)
def test_lines_that_are_missing_are_asked_for(run, text, says):
    (run / "metrics.jsonl").write_text(text)
    with pytest.raises(BadInput, match=f"metrics.jsonl is damaged at {says}"):
        mending.mend_log(epath.Path(run), 8, 1, write=True)
    assert (run / "metrics.jsonl").read_text() == text
    assert not list(run.glob("*before-mending*"))


def test_the_evaluation_of_the_checkpoints_own_step_is_yet_to_come(run):
    (run / "metrics.jsonl").write_text(without(10))
    mending.mend_log(epath.Path(run), 8, 1, write=True)
    assert (run / "metrics.jsonl").read_text() == without(10)


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (b"\xef\xbb\xbf" + TEXT.encode(), 10),
        (TEXT.replace("\n", "\r\n").encode(), 10),
        (b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n\r\n").encode(), 10),
        (("\n\n" + TEXT.replace(WHOLE[3], "  \n\t\n" + WHOLE[3]) + "\n\n").encode(), 10),
        ((TEXT + WHOLE[-1][:30]).encode(), 10),
        (TEXT.encode() + b"\0" * 4096, 10),
        (TEXT.encode() + b"\xff\xfe\n", 10),
    ],
)
def test_what_is_no_line_is_removed_and_a_copy_is_kept(run, raw, kept, caplog):
    (run / "metrics.jsonl").write_bytes(raw)
    mending.mend_log(epath.Path(run), 8, 1, write=False)
    assert (run / "metrics.jsonl").read_bytes() == raw
    mending.mend_log(epath.Path(run), 8, 1, write=True)
    assert (run / "metrics.jsonl").read_text().splitlines() == WHOLE[:kept]
    assert (run / "metrics.jsonl.before-mending").read_bytes() == raw
    assert [r.message for r in caplog.records if "before-mending" in r.message]


def test_parts_are_put_to_the_same_test(run):
    (run / "metrics.jsonl").unlink()
    (run / "metrics").mkdir()
    parts = [run / f"metrics/part_0000{k}.jsonl" for k in range(3)]
    for part, text in zip(parts, (WHOLE[:3], WHOLE[3:6], WHOLE[6:]), strict=True):
        part.write_text("".join(line + "\n" for line in text))
    mending.mend_log(epath.Path(run), 8, 1, write=True)
    middle = parts[1].read_text()
    parts[1].write_text("\ufeff" + middle)
    mending.mend_log(epath.Path(run), 8, 1, write=True)
    assert parts[1].read_text() == middle
    assert len(list((run / "metrics").iterdir())) == 4
    parts[1].write_text(middle.replace("{", "?", 1))
    with pytest.raises(BadInput, match="part_00001.jsonl is damaged at line 1: "):
        mending.mend_log(epath.Path(run), 8, 1, write=True)
    parts[1].unlink()
    with pytest.raises(BadInput, match="part_00002.jsonl is damaged at line 1: .* step 4 is miss"):
        mending.mend_log(epath.Path(run), 8, 1, write=True)


def test_lines_that_a_shorter_run_never_computes_again_are_kept(run):
    starts = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps([*starts, starts[0] | {"steps": 6}]))
    mending.mend_log(epath.Path(run), 4, 1, write=True)
    assert (run / "metrics.jsonl.before-mending").read_text() == TEXT


@pytest.mark.parametrize(
    ("every", "steps", "kept", "missing"),
    [
        ("1 epoch", [10, 20, 30, 40, 47], [10, 20, 30, 40, 47], None),
        ("1 epoch", [10, 20, 30, 40, 47], [10, 30, 40, 47], 20),
        ("25%", [10, 20, 30, 40, 47], [10, 30, 40, 47], 20),
        ("1 epoch", [10, 20, 30, 33], [10, 20, 30, 33], None),  # early stopping
        ("1 epoch", [10, 20, 27, 30, 40, 47], [10, 20, 27, 30, 40, 47], None),  # stopped before
        ("10 steps", [10, 20, 30, 40, 47], [10, 20, 30, 47], 40),
        ("1 epoch", [], [], None),
    ],
)
def test_only_what_is_certainly_missing_is_asked_for(run, every, steps, kept, missing):
    start = json.loads((run / "environment.json").read_text())[0] | {"steps": 47}
    start["config"]["evals.test.every"] = every
    (run / "environment.json").write_text(json.dumps([start]))
    logged = [{"step": s, "train/loss": 1} for s in range(1, 48)]
    logged += [{"step": s, "eval/test/loss": 1} for s in kept]
    (run / "metrics.jsonl").write_text(finished.text(*sorted(logged, key=lambda x: x["step"])))
    end = max(steps, default=47)
    if missing is None:
        mending.mend_log(epath.Path(run), end, 1, write=True)
        return
    with pytest.raises(BadInput, match=f"evaluation test of step {missing} is missing"):
        mending.mend_log(epath.Path(run), end, 1, write=True)


@pytest.mark.parametrize(("totals", "missing"), [((60, 60), 30), ((60, 80), None)])
def test_a_percentage_of_two_durations_asks_for_nothing(run, totals, missing):
    start = json.loads((run / "environment.json").read_text())[0]
    start["config"]["evals.test.every"] = "10%"
    starts = [start | {"steps": total} for total in totals]
    (run / "environment.json").write_text(json.dumps(starts))
    logged = [{"step": s, "train/loss": 1} for s in range(1, 51)]
    logged += [{"step": s, "eval/test/loss": 1} for s in (10, 20, 40, 50)]
    (run / "metrics.jsonl").write_text(finished.text(*sorted(logged, key=lambda x: x["step"])))
    if missing is None:
        mending.mend_log(epath.Path(run), 50, 1, write=True)
        return
    with pytest.raises(BadInput, match=f"evaluation test of step {missing} is missing"):
        mending.mend_log(epath.Path(run), 50, 1, write=True)
