"""Law 3 for the rows of a batch: its terms are the sum of its rows' terms, whatever the other rows;
and if not, why: rows mix, a mean stands in place of a sum, or random numbers depend on the rows."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from common.data import order
from common.laws.measure import DoesNotApply, hold, without_dropout
from common.task import purpose_key
from common.training.program import Program, initial_state, prepare

SHORT = (1, 3)  # rows of a batch that is smaller


class Comparison(NamedTuple):
    """Terms of the same rows computed in two ways, {"the sum of NAME": float64}.

    Attributes:
      setting: the two ways, for the finding.
      wanted, actual: the terms.
      cause: why they differ, if they do.
      size: rows of the smaller batch, where two sizes are compared, else None.
    """

    setting: str
    wanted: dict
    actual: dict
    cause: str
    size: int | None = None


def rows_are_independent(config, rows: int = 8, tolerance: float = 1e-5) -> str:
    """3: a batch's terms are the sum of its rows' terms, whatever the other rows, unless the task
    declares that its loss mixes rows.

    Random numbers may be drawn from `key` for the batch as a whole, as dropout does: a row then has
    the same ones as long as its place and the size of the batch are the same.
    """
    made = prepare(without_dropout(config), jax.devices()[:1])
    if not made.task.rows_independent:
        raise DoesNotApply("the task declares that its loss mixes rows (rows_independent=False)")
    with jax.set_mesh(made.layout.mesh), jax.default_matmul_precision("highest"):
        batch, others = (_batch(made, step, rows) for step in (0, 1))
        terms = _terms_of(made)
        whole, again = terms(batch), terms(batch, purpose="laws")
        random = any(np.any(again[name] != value) for name, value in whole.items())
        comparisons = _comparisons(terms, batch, others, whole, random)
    worst, apart = 0.0, False
    for setting, wanted, actual, cause, n in comparisons:
        for name, value in wanted.items():
            size = max(np.max(np.abs(whole[name])), np.max(np.abs(value)), 1e-6)
            apart_by = lambda other, value=value, size=size: float(
                np.max(np.abs(value - other)) / size
            )
            difference = apart_by(actual[name])
            is_mean = n and apart_by(actual[name] * n / rows) <= tolerance
            if random and n and "sum" in name and difference > tolerance and not is_mean:
                apart = True  # other random numbers
                continue
            values = f"{np.sum(value):.6g} and {np.sum(actual[name]):.6g}"
            hold(difference <= tolerance, f"{name} {setting}: {values}; {cause}")
            worst = max(worst, difference)
    note = "; random numbers depend on the size of the batch, so sizes are not compared"
    return (
        f"{rows} rows in parts, beside others and in smaller batches: terms agree to {worst:.1e} "
        f"relative{note if apart else ''}"
    )


def _batch(made: Program, step: int, rows: int) -> dict:
    """The first `rows` rows of an epoch, prepared, or those after them."""
    task, seed = made.task, made.config["seed"]
    source = task.sources["train"]
    batch = source.read(order.rows(seed, step, rows, source.order))
    batch |= {"index": order.stream_index(step, rows), "valid": np.ones(rows, np.float32)}
    prepared = jax.jit(lambda key, batch: task.prepare(key, batch, True))
    return jax.device_get(prepared(purpose_key(seed, "prepare"), batch))


def _terms_of(made: Program) -> Callable:
    """(batch, valid, purpose of the key) -> {"the sum of NAME", "the weight of NAME": float64}."""
    state, loss, seed = initial_state(made), made.task.loss, made.config["seed"]
    compiled = jax.jit(lambda batch, key: loss(state.params, state.extra, batch, key)[0])

    def terms(batch: dict, valid=None, purpose: str = "loss") -> dict:
        batch = batch if valid is None else batch | {"valid": np.float32(valid)}
        numbers = {}
        for name, pair in jax.device_get(compiled(batch, purpose_key(seed, purpose))).items():
            numbers[f"the sum of {name!r}"] = np.asarray(pair[0], np.float64)
            numbers[f"the weight of {name!r}"] = np.asarray(pair[1], np.float64)
        return numbers

    return terms


def _comparisons(
    terms: Callable, batch: dict, others: dict, whole: dict, random: bool
) -> list[Comparison]:
    at = np.arange(len(batch["valid"]))

    def by_row(change: Callable, *batches: dict) -> dict:
        """Batches changed in the arrays that have a row for each of theirs."""
        rows = lambda x, *others: change(x, *others) if np.shape(x)[:1] == at.shape else x
        return jax.tree.map(rows, *batches)

    masks = at < 1, (at >= 1) & (at < 3), at >= 3
    parts = [terms(batch, mask) for mask in masks]
    sizes = f"1, 2 and {len(at) - 3}"
    together = {name: sum(part[name] for part in parts) for name in whole}
    # What does not depend on the rows is no sum of theirs: a constant, or a norm of parameters.
    constant = {n for n in whole if all(np.array_equal(p[n], whole[n]) for p in parts)}
    together |= {name: whole[name] for name in constant}
    setting = f"of {len(at)} rows, and of {sizes} of them in turn, by `valid`"
    found = [Comparison(setting, whole, together, "rows mix")]

    def beside(mask, names) -> dict:
        """Terms of the rows in a mask, where the other rows are replaced in these arrays."""
        mix = lambda x, other: np.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, other)
        own, replaced = ({name: rows[name] for name in names} for rows in (batch, others))
        return terms(batch | by_row(mix, own, replaced), mask)

    drawn = (
        "random numbers are drawn that change with the other rows: take them from `key` alone, or "
        "from row_keys(key, batch), a key per row"
    )
    mix = "rows mix, or random numbers depend on them" if random else "rows mix"
    for mask, part in zip(masks, parts, strict=True):
        of = f"of {mask.sum()} of {len(at)} rows, by `valid`, if"
        index = beside(mask, ["index"])
        cause = drawn if random else mix
        found.append(Comparison(f"{of} the `index` of the others changes", part, index, cause))
        found.append(Comparison(f"{of} the others are replaced", part, beside(mask, batch), mix))
    for n in SHORT:
        alone = terms(by_row(lambda x, n=n: x[:n], batch))
        setting = f"of {n} of {len(at)} rows, by `valid`, and alone"
        cause = "a mean in place of a sum?"
        found.append(Comparison(setting, terms(batch, at < n), alone, cause, n))
    return found
