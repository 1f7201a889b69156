"""Predictions in general: batches change nothing, several rows make one result, and what is bad
among good inputs is told in its place."""

import itertools
import json

import numpy as np
import pytest
from helpers import TOY, load

from common import classes, predict
from common.data import loading
from common.devices import mesh
from common.errors import BadInput
from common.runs import facts, workdir
from common.task import Predictor
from common.training.saved import evaluate_run
from vision.data.sets import ImageFacts

TRACED: list = []  # one entry a program


def options(*, times: float = 1.0, power: int = 1, start: str | None = None):
    return {"times": times, "power": power}


def read(numbers, options):
    """A row for each run of at most three numbers."""
    if not numbers:
        raise BadInput("no numbers")
    return [{"x": np.float32(numbers[i : i + 3])} for i in range(0, len(numbers), 3)]


def apply(params, extra, batch, options):
    TRACED.append(batch["x"].shape)
    total = (batch["x"] ** options["power"]).sum(axis=1) * params["scale"] * options["times"]
    return {"total": total, "index": batch["index"]}


def result(numbers, rows, outputs, options):
    assert [len(row["x"]) for row in rows] == [
        min(3, len(numbers) - i) for i in range(0, len(numbers), 3)
    ]
    return {
        "total": float(sum(each["total"] for each in outputs)),
        "index": {int(each["index"]) for each in outputs},
    }


@pytest.fixture(scope="module")
def loaded():
    made = Predictor(read, apply, result, str, options, pads={"x": 0.0}, longest=None)
    layout = mesh.make_layout()
    params = mesh.put_replicated(layout, {"scale": np.float32(2)})
    return predict.loaded(made, layout, params, {})


def test_results_are_in_order_and_each_is_of_its_own_rows(loaded):
    inputs = [list(range(1, 1 + n % 7 + 1)) for n in range(predict.WINDOW * predict.BATCH * 8 + 9)]
    results = loaded.predict(inputs, times=0.5)
    assert [each["total"] for each in results] == [sum(numbers) for numbers in inputs]
    assert [each["index"] for each in results] == [{i} for i in range(len(inputs))]


def test_a_new_number_compiles_nothing_and_few_sizes_are_compiled(loaded):
    TRACED.clear()
    for count, times in itertools.product((70, 71, 75), (2.0, 3.0)):
        assert loaded.predict([[1, 2]] * count, times=times)[-1]["total"] == 2 * times * 3
    before = len(TRACED)
    assert before <= 1  # of this size; others were perhaps compiled by another test
    assert loaded.predict([[3]], power=2)[0]["total"] == 18
    assert len(TRACED) == before + 1


def test_bad_inputs_are_told_in_their_place(loaded):
    told = list(loaded.each(iter([[1], [], BadInput("torn"), [2]])))
    assert [item for item, _ in told][:2] == [[1], []]
    good = [each if isinstance(each, dict) else str(each) for _, each in told]
    assert good[1:3] == ["no numbers", "torn"]
    assert [good[0]["total"], good[3]["total"]] == [2, 4]
    assert good[3]["index"] == {3}
    with pytest.raises(BadInput, match=r"\[\]: no numbers"):
        loaded.predict([[1], []])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"time": 1.0}, "time: unknown option; did you mean 'times'"),
        ({"power": "2"}, "power: '2' is not int$"),
        ({"start": 1}, "start: 1 is not str$"),
    ],
)
def test_options_are_checked(loaded, values, message):
    with pytest.raises(BadInput, match=message):
        loaded.predict([[1]], **values)


def test_one_input_is_no_list_of_inputs(loaded):
    with pytest.raises(BadInput, match="is one input: give a list"):
        loaded.predict("a text")


def test_lengths_are_few_and_none_exceeds_the_longest():
    sizes = {n: predict.bucket(n, 20) for n in range(1, 21)}
    assert set(sizes.values()) == {8, 16, 20}
    assert all(size >= n for n, size in sizes.items())


def test_what_is_not_finite_is_no_prediction(loaded):
    (_, bad), (_, good) = loaded.each([[1e38, 1e38, 1e38], [1.0]], {"times": 3.0})
    assert "not finite" in str(bad)
    assert good["total"] == 6


def test_a_run_is_no_published_weights(tmp_path):
    workdir.claim(tmp_path / "run", load(TOY), {}, write=True)
    with pytest.raises(BadInput, match="run is the workdir of a run: --workdir"):
        predict.of_weights(tmp_path / "run")
    with pytest.raises(BadInput, match="is not a local file"):
        predict.load("https://a.b/c")


def test_a_task_that_predicts_nothing_says_so(tmp_path):
    workdir.claim(tmp_path / "run", load(TOY), {}, write=True)
    with pytest.raises(BadInput, match="toy has no predictions: its module has no predictor"):
        predict.load(tmp_path / "run")
    with pytest.raises(BadInput, match="toy: its runs are evaluated on their own data alone"):
        evaluate_run(tmp_path / "run", data={"size": 99})


# ------------------------------------------------------------------------------------------ classes


def test_probabilities_are_a_softmax_or_of_each_class():
    logits, names = np.float32([0, 2, -1]), ("a", "b", "c")
    told = classes.result(logits, names, top=2)
    shares = np.exp(logits) / np.exp(logits).sum()
    assert (told["class"], list(told["probabilities"])) == ("b", ["b", "a"])
    assert told["probability"] == pytest.approx(shares[1])
    several = classes.result(logits + 0.5, names, top=3, multi_label=True)
    assert several["classes"] == ["b", "a"]
    assert several["probabilities"]["c"] == pytest.approx(1 / (1 + np.exp(0.5)))


def labelled(label, names, several=False):
    """{"test": a set with these labels and names of classes}."""
    own = ImageFacts(names, (0.5,), (1.0,), several)
    return {"test": loading.from_arrays({"label": label}, facts=own)}


def test_labels_of_another_set_are_numbered_by_the_names_of_their_classes():
    run = ImageFacts(("a", "b", "c"), (0.1,), (0.2,))
    rows = np.arange(3, dtype=np.uint32)
    one = classes.renumbered(labelled(np.int32([0, 1, 1]), ("c", "a")), run)["test"]
    assert one.read(rows)["label"].tolist() == [2, 0, 0]
    assert (one.facts, one.resident) == (run, None)
    hot = np.uint8([[1, 0], [0, 1], [1, 1]])
    several = run._replace(multi_label=True)
    many = classes.renumbered(labelled(hot, ("c", "a"), True), several)["test"]
    assert many.read(rows)["label"].tolist() == [[0, 0, 1], [1, 0, 0], [1, 0, 1]]
    assert many.spec["label"].shape == (3,)
    stars = labelled(np.int32([1, 0, 1]), ("1", "4.5"))
    numbers = classes.renumbered(stars, run._replace(classes=()))["test"]
    assert numbers.read(rows)["label"].tolist() == [4.5, 1, 4.5]
    assert numbers.spec["label"].dtype == np.float32
    for theirs, message in (
        (labelled(np.int32([0, 1]), ("a", "d")), "'d'; the run has 'b', 'c', which the set lacks"),
        (labelled(np.float32([0, 1]), ()), "labels are numbers, and those of the run classes"),
        (labelled(hot, ("c", "a"), True), "several labels each, and those of the run have one"),
    ):
        with pytest.raises(BadInput, match=message):
            classes.renumbered(theirs, run)


def test_facts_are_read_as_they_were_kept_or_refused(tmp_path):
    own = ImageFacts(("ä", "b"), (0.5,), (1.0,))
    assert facts.read(tmp_path, ImageFacts) is None
    task = type("Task", (), {"files": None, "facts": own._asdict()})
    facts.write(tmp_path, task)
    assert facts.read(tmp_path, ImageFacts) == own
    kept = (tmp_path / facts.FILE).read_text()
    for old, new, message in (
        ('"mean"', '"men"', "has no 'mean'"),
        ("[0.5]", '"0.5"', "mean is '0.5', not a tuple"),
        ("{", "{\n", None),
        ("}", "", "not JSON"),
        ("{", '{"more": 1, ', "'more': facts of another task"),
    ):
        (tmp_path / facts.FILE).write_text(kept.replace(old, new, 1))
        if message is None:
            assert facts.read(tmp_path, ImageFacts) == own
            continue
        with pytest.raises(BadInput, match=message):
            facts.read(tmp_path, ImageFacts)


def test_facts_of_another_run_are_refused(tmp_path):
    """Even where their shapes fit; what a newer version keeps beside them is no difference."""
    own = ImageFacts(("a", "b"), (0.5,), (1.0,))
    task = lambda values: type("Task", (), {"files": {"t.json": "x"}, "facts": values})
    start = {"data": {}, "kept": facts.digests(task(own._asdict()))}
    (tmp_path / "environment.json").write_text(json.dumps([start]))
    facts.write(tmp_path, task(own._asdict()))
    assert facts.read(tmp_path, ImageFacts) == own
    start["kept"].pop("mean")
    (tmp_path / "environment.json").write_text(json.dumps([start]))
    facts.write(tmp_path, task(own._asdict() | {"mean": (0.6,)}))
    assert facts.read(tmp_path, ImageFacts).mean == (0.6,)
    facts.write(tmp_path, task(own._asdict() | {"classes": ("b", "a")}))
    with pytest.raises(BadInput, match=r"facts\.json: not what this run kept: 'classes': the file"):
        facts.read(tmp_path, ImageFacts)
    with pytest.raises(BadInput, match=r"t\.json: not what this run kept: the file is of another"):
        facts.check(tmp_path, tmp_path / "t.json", {"t.json": "y"})
