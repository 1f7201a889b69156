"""Deliberate mistakes in a task of one's own: each is one line at start that names the task, what
is wrong and the rule, before anything is compiled or written."""

import itertools
import pathlib
import re

import jax
import numpy as np
import pytest
from helpers import ROOT

from common.errors import BadInput
from common.laws import report
from common.training import contract
from common.training.program import prepare

TEXT = pathlib.Path(ROOT, "tests/support/toy_prices.py").read_text()
NUMBER = itertools.count()

INIT = 'return model.init(key, jnp.zeros((1, 3)))["params"], {}'
PREPARE = "prepare=lambda key, batch, train: batch"
TERM = '(jnp.sum(batch["valid"] * error**2), batch["valid"].sum())'
RETURN = f'return {{"squared": {TERM}}}, extra'
SECTIONS = '{"model": Net, "data": load, "evals.test": evaluator}'
SOURCES = 'return call(load, config["data"])'
MAKE = "    model = Net("
EVALUATORS = '{"test": call(evaluator, config["evals"]["test"], sources["test"], test)}'
PARTITION = '((r"in/kernel", ("embed", "mlp")), (r"out/kernel", ("mlp", None)))'
TRAIN = 'call(load, config["data"])["train"]'
SET = f'return call(load, config["data"]) | {{"train": {TRAIN}._replace('
MEANS = r"; see common/README\.md, The contract, 4: means are exact$"
PLAIN = r"; see common/README\.md, The contract, 6: plain parameters$"
TASK = r"; see `Task` in common/task\.py$"
SOURCE = r"; see `Source` in common/task\.py$"

VALID_SUM = '(jnp.sum(batch["valid"] * error**2), '
L2 = '(jnp.sum(params["in"]["kernel"] ** 2), jnp.float32(1))'
SIGN = '(batch["y"] > 0).astype(int)'
METRIC = 'return {{"squared": {}, "m": {}}}, extra'
ROWS = f"{TRAIN}.resident.items()"
REPEAT = "{n: jnp.repeat(x, 2, 0) for n, x in batch.items()}"
ON_LR = f'    if config["optim"]["lr"] > 0:\n        pass\n{MAKE}'

# name: (what is replaced, by what, what the line says)
MISTAKES = {
    "no_pair": (
        TERM, "jnp.sum(error**2)", rf"'squared' is an array float32\[\], not a pair.*{MEANS}"),
    "not_reduced": (
        TERM, '(batch["valid"] * error**2, batch["valid"].sum())',
        rf"'squared' is minimised, and its sum is float32\[32\], not one number.*{MEANS}"),
    "metric_not_reduced": (
        RETURN, METRIC.format(TERM, '(batch["valid"] * error, batch["valid"].sum())'),
        rf"the term 'm': its sum is float32\[32\], a number per row.*{MEANS}"),
    "weight_of_rows": (
        TERM, f'{VALID_SUM}batch["valid"])',
        rf"'squared': its weight is float32\[32\], not one number.*{MEANS}"),
    "mean": (
        TERM, "(jnp.mean(error**2), jnp.float32(1))",
        rf"'squared': its sum does not read batch\['valid'\].*{MEANS}"),
    "mean_of_valid": (
        TERM, f"{VALID_SUM}jnp.float32(1))",
        rf"'squared': its weight does not read batch\['valid'\]: a term is no mean.*{MEANS}"),
    "python_weight": (
        TERM, f"{VALID_SUM}32.0)",
        rf"'squared': its weight is 32\.0 \(float\), not an array f32\[\].*{MEANS}"),
    "none": (TERM, "(None, None)", rf"'squared': its sum is None, not an array.*{MEANS}"),
    "bfloat16": (
        TERM, '(jnp.sum(batch["valid"] * error).astype(jnp.bfloat16), batch["valid"].sum())',
        rf"'squared': its sum is bfloat16\[\], no float32{MEANS}"),
    "weight_of_parameters": (
        TERM, f'{VALID_SUM}jnp.sum(batch["valid"] / jnp.abs(error)))',
        rf"'squared': its weight depends on the parameters, which it never may{MEANS}"),
    "a_metric_of_parameters_is_none": (RETURN, METRIC.format(TERM, L2), None),
    "regulariser": (
        TERM, L2, rf"'squared' does not depend on the rows, so each of the 4 parts.*{MEANS}"),
    "a_regulariser_of_an_undivided_batch_is_none": (TERM, L2, None),
    "weight_of_parameters_scattered": (
        TERM, f'{VALID_SUM}jnp.zeros(4).at[{SIGN}].add(batch["valid"] * error).sum())',
        rf"'squared': its weight depends on the parameters, which it never may{MEANS}"),
    "objective_unknown": (
        'objective={"squared": 1.0}', 'objective={"cubed": 1.0}',
        rf"the objective names \['cubed'\], not among its terms squared{TASK}"),
    "objective_empty": ('{"squared": 1.0}', "{}", rf"objective is a dict of nothing, .*{TASK}"),
    "objective_none": ('{"squared": 1.0}', '{"squared": None}', "coefficient of 'squared' is None"),
    "extra_forgotten": (
        RETURN, RETURN.removesuffix(", extra"),
        rf"loss returns a dict of squared, not \(Terms, extra\){TASK}"),
    "extra_changes": (
        RETURN, RETURN.replace(", extra", ', {"count": jnp.float32(1)}'),
        rf"extra unlike that of init: count was not there and is float32\[\]{TASK}"),
    "prepare_drops_valid": (
        PREPARE, 'prepare=lambda key, batch, train: {"x": batch["x"], "y": batch["y"]}',
        rf"prepare drops 'index': return batch \|.*{TASK}"),
    "prepare_changes_rows": (
        PREPARE, f"prepare=lambda key, batch, train: {REPEAT}",
        rf"prepare makes 'index' of 32 rows \[64\]; the number of rows stays{TASK}"),
    "prepare_adds_a_text": (
        PREPARE, 'prepare=lambda key, batch, train: batch | {"n": "a"}',
        rf"prepare makes 'n' 'a' \(str\), not an array{TASK}"),
    "prepare_drops_valid_for_none": (
        PREPARE, 'prepare=lambda key, batch, train: batch | {"valid": None}',
        rf"prepare makes 'valid' None, not an array{TASK}"),
    "nested_batches_are_none": (
        PREPARE, 'prepare=lambda key, batch, train: batch | {"a": None, "b": (batch["x"],) * 2}',
        None),
    "params_alone": (
        INIT, INIT.removesuffix(", {}"),
        rf"init returns a dict of in, out, not \(params, extra\), where.*{TASK}"),
    "params_of_integers": (
        INIT, INIT.replace(", {}", ' | {"n": jnp.arange(3)}, {}'),
        rf"init: the parameter n is int32, which has no gradient.*{PLAIN}"),
    "params_not_nested": (
        INIT, "return (jnp.ones(3),), {}", rf"init: params is tuple, not a nested.*{PLAIN}"),
    "no_partition": (
        f"partition={PARTITION}", "partition=Net.PARTITION",
        rf"make: .*line \d+: AttributeError: .*PARTITION.*{TASK}"),
    "partition_rank": (
        PARTITION, PARTITION.replace('("embed", "mlp")', '("embed",)'),
        r"partition: in/kernel has shape \(3, 16\), its row names"),
    "partition_idle": (
        PARTITION, PARTITION.replace("in/", "inn/"), r"'inn/kernel' matches no parameter"),
    "partition_words": (
        PARTITION, '{"in": ("embed",)}', rf"Task\.partition is a dict of in, not rows.*{PLAIN}"),
    "rows_independent": (
        "        rows_independent=True,\n", "", rf"line \d+: TypeError: .*independent.*{TASK}"),
    "no_section": (
        MAKE, f'    config["augment"]\n{MAKE}',
        r"KeyError: 'augment'; there are the sections .*data.*and the sets train, test"),
    "section_of_no_function": (
        SECTIONS, SECTIONS.replace("Net", "None"), r"sections: 'model' is None, not a function"),
    "sections_of_nothing": (f"return {SECTIONS}", "pass", r"sections returns None, no dict"),
    "no_evaluator": (EVALUATORS, '{"test": test}', r"evaluators: 'test' is .*, not an Evaluator"),
    "no_task": ("return Task(", "Task(", r"make returns None, no Task"),
    "branches_on_a_number": (MAKE, ON_LR, r"line \d+: TracerBool.*ask `is None`"),
    "mistyped_row": (
        'batch["y"]', 'batch["z"]',
        rf"loss: .*line \d+: KeyError: 'z'; there are index, valid, x, y in the batch{TASK}"),
    "raises_in_loss": ('batch["x"])', 'batch["x"], 3)', rf"loss: .*line \d+: TypeError: .*{TASK}"),
    "no_train": (
        SOURCES, 'return {"test": call(load, config["data"])["test"]}',
        r"sources has test and no 'train'"),
    "no_source": (SOURCES, 'return {"train": 3}', rf"'train' is 3 \(int\), no Source{SOURCE}"),
    "raises_in_sources": (
        SOURCES, "return open('/nowhere')", r"sources: .*line \d+: FileNotFoundError"),
    "short_read": (
        SOURCES, f"{SET}read=lambda rows: {{n: a[:1] for n, a in {ROWS}}})}}",
        rf"read gives 'x' as float32\[1, 3\] for 2 rows, and its spec says .*\[2, 3\]{SOURCE}"),
    "objects_read": (
        SOURCES, f"{SET}read=lambda rows: {{n: a[rows].astype(object) for n, a in {ROWS}}})}}",
        rf"'train': read gives 'x' as object\[2, 3\].*{SOURCE}"),
    "other_names": (
        SOURCES, f'{SET}read=lambda rows: {{"x": rows}})}}',
        rf"read gives x, and the spec says x, y{SOURCE}"),
    "too_large": (SOURCES, f"{SET}size=1000, resident=None)}}", rf"read: .*IndexError.*{SOURCE}"),
    "no_fingerprint": (
        SOURCES, f'{SET}fingerprint="")}}', rf"fingerprint is '' \(str\), not a text.*{SOURCE}"),
}  # fmt: skip


HEAD = """import jax
from jax.experimental.pallas import run_state
from jax.sharding import PartitionSpec as P
"""


def written(folder, monkeypatch, old: str, new: str, words=(), head: str = ""):
    """A config of the task with a part of it replaced."""
    assert TEXT.count(old) == 1
    path = folder / f"prices_contract_{next(NUMBER)}.py"
    path.write_text(head + TEXT.replace(old, new))
    monkeypatch.syspath_prepend(folder)
    return report.bare(path.stem, list(words))


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_that_names_it(name, tmp_path, monkeypatch):
    old, new, says = MISTAKES[name]
    words = ["--config.train.accumulate=4"] if name == "regulariser" else []
    start = lambda: prepare(written(tmp_path, monkeypatch, old, new, words), jax.devices()[:1])
    if says is None:
        start()
        return
    with pytest.raises(BadInput) as raised:
        start()
    said = str(raised.value)
    assert said.startswith("config.task: prices_contract_")
    assert re.search(says, said), said


def test_labels_that_are_no_whole_numbers_are_named(tmp_path, monkeypatch):
    logits = "jnp.stack([error, error], 1)"
    term = f'losses.softmax_cross_entropy({logits}, batch["y"], batch["valid"])'
    config = written(tmp_path, monkeypatch, TERM, f"__import__('common.losses').{term}")
    with pytest.raises(
        BadInput, match=r"loss: .*line \d+: TypeError: labels are float32\[32\], not"
    ):
        prepare(config, jax.devices()[:1])


# Each makes `pair`, the sum and weight of a term, from `error` and `v`, in a way that the check
# cannot follow element by element.
UNUSUAL = {
    "stack": "b = jnp.stack([v * error**2, v]).sum(1); pair = b[0], b[1]",
    "matmul": "b = v @ jnp.stack([error**2, jnp.ones(32)], 1); pair = b[0], b[1]",
    "ravel": "b = jnp.concatenate([v * error**2, v]); pair = b[:32].sum(), b[32:].sum()",
    "set": "b = jnp.zeros(2).at[0].set(jnp.sum(v * error**2)).at[1].set(v.sum()); pair = tuple(b)",
    "barrier": "pair = jax.lax.optimization_barrier((jnp.sum(v * error**2), v.sum()))",
    "hardest": "i = jax.lax.top_k(v * error**2, 8)[1]; pair = (v * error**2)[i].sum(), v[i].sum()",
    "sort": "k, w = jax.lax.sort((error**2, v), num_keys=1); pair = (w * k).sum(), w.sum()",
    "scan": "pair, _ = jax.lax.scan(lambda c, x: ((c[0] + x[1] * x[0]**2, c[1] + x[1]), None), "
            "(jnp.float32(0), jnp.float32(0)), (error, v))",
    "reference": "r = jax.new_ref(jnp.zeros(2)); r[0] += jnp.sum(v * error**2); r[1] += v.sum(); "
                 "pair = r[0], r[1]",
    "state": "pair = tuple(run_state(lambda r: r.__setitem__(..., r[...] + jnp.stack("
             "[jnp.sum(v * error**2), v.sum()])))(jnp.zeros(2)))",
    "shard_map": 'pair = jax.shard_map(lambda e, v: jax.lax.psum((jnp.sum(v * e**2), v.sum()), '
                 '("data", "fsdp")), in_specs=P(("data", "fsdp")), out_specs=P(), '
                 'check_vma=False)(error, v)',
    "constants_of_the_batchs_size": "pair = jnp.sum(v * error**2), v.sum(); "
                 'metric["pairs"] = jnp.stack([v @ jnp.arange(32.), v.sum()]), v.sum()',
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_tasks_are_not_accused(name, tmp_path, monkeypatch):
    lines = f'v, metric = batch["valid"], {{}}\n        {UNUSUAL[name]}\n        '
    new = lines + RETURN.replace(TERM, "pair, **metric")
    config = written(tmp_path, monkeypatch, RETURN, new, head=HEAD)
    prepare(config, jax.devices()[:1])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (None, r"config\.evals\.test: the evaluator returns None, not \{metric: value\}"),
        ({"loss": jax.numpy.ones(3)}, r"returns 'loss' as an array float32\[3\], not as a float"),
        ({"loss": [1]}, r"returns 'loss' as \[1\] \(list\), not as a float"),
        (ZeroDivisionError, r"evals\.test: .*test_contract\.py, line \d+: ZeroDivisionError"),
    ],
)  # fmt: skip
def test_what_an_evaluator_returns_is_checked_as_it_runs(values, says):
    def run(context):
        return 1 / 0 if values is ZeroDivisionError else values

    with pytest.raises(BadInput, match=says):
        contract._checked_run("test", run)(None)
    good = {"loss": 0.5, "text": "a", "table": np.ones(3), "n": np.float64(1)}
    assert contract._checked_run("test", lambda _: good)(None) == good
