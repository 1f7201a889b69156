"""Law 3 for the rows of a batch: its terms are the sum of its rows' terms, whatever the other rows;
and if not, why: rows mix, a mean stands in place of a sum, or random numbers depend on the rows."""

import jax
import numpy as np

from common.data import order
from common.laws.measure import DoesNotApply, hold, without_dropout
from common.task import purpose_key
from common.training.program import initial_state, prepare


def rows_are_independent(config, rows: int = 8, tolerance: float = 1e-5) -> str:
    """3: a batch's terms are the sum of its rows' terms, whatever the other rows, unless the task
    declares that its loss mixes rows.

    Random numbers may be drawn from `key` for the batch as a whole, as dropout does: a row then has
    the same ones as long as its place and the size of the batch are the same.
    """
    made = prepare(without_dropout(config), jax.devices()[:1])
    task, seed = made.task, made.config["seed"]
    if not task.rows_independent:
        raise DoesNotApply("the task declares that its loss mixes rows (rows_independent=False)")
    source = task.sources["train"]
    with jax.set_mesh(made.layout.mesh), jax.default_matmul_precision("highest"):
        state = initial_state(made)
        prepared = jax.jit(lambda key, batch: task.prepare(key, batch, True))
        batch, others = (
            jax.device_get(
                prepared(
                    purpose_key(seed, "prepare"),
                    source.read(order.rows(seed, step, rows, source.size))
                    | {"index": order.stream_index(step, rows), "valid": np.ones(rows, np.float32)},
                )
            )
            for step in (0, 1)
        )
        compiled = jax.jit(lambda batch, key: task.loss(state.params, state.extra, batch, key)[0])

        def terms(batch: dict, valid=None, purpose: str = "loss") -> dict:
            """{"the sum of NAME", "the weight of NAME": float64} of a batch."""
            batch = batch if valid is None else batch | {"valid": np.float32(valid)}
            numbers = {}
            for name, pair in jax.device_get(compiled(batch, purpose_key(seed, purpose))).items():
                numbers[f"the sum of {name!r}"] = np.asarray(pair[0], np.float64)
                numbers[f"the weight of {name!r}"] = np.asarray(pair[1], np.float64)
            return numbers

        at = np.arange(rows)
        masks = at < 1, (at >= 1) & (at < 3), at >= 3
        among = lambda mask, ours, theirs: {
            name: np.where(mask.reshape(-1, *[1] * (value.ndim - 1)), value, theirs[name])
            for name, value in ours.items()
        }
        whole = terms(batch)
        again = terms(batch, purpose="laws")
        random = any(np.any(again[name] != value) for name, value in whole.items())
        parts = [terms(batch, mask) for mask in masks]
        indices = [terms(among(m, batch, batch | {"index": others["index"]}), m) for m in masks]
        beside = [terms(among(mask, batch, others), mask) for mask in masks]
        short = {n: terms({name: value[:n] for name, value in batch.items()}) for n in (1, 3)}
        first = {n: terms(batch, at < n) for n in short}
    drawn = (
        "random numbers are drawn that change with the other rows: take them from `key` alone, or "
        "from row_keys(key, batch), a key per row"
    )
    together = {name: sum(part[name] for part in parts) for name in whole}
    sizes = f"1, 2 and {rows - 3}"
    comparisons = [(f"of {rows} rows, and of {sizes} of them in turn", whole, together, "")]
    for part, count, moved, filled in zip(parts, (1, 2, rows - 3), indices, beside, strict=True):
        of = f"of {count} of {rows} rows, by `valid`, if the `index` of the others changes"
        comparisons.append((of, part, moved, f"; {drawn}" if random else ""))
        of = f"of {count} of {rows} rows, by `valid`, if the others are replaced"
        also = "; rows mix, or random numbers depend on them" if random else "; rows mix"
        comparisons.append((of, part, filled, also))
    for n, part in short.items():
        mean = "; a mean in place of a sum?"
        comparisons.append((f"of {n} of {rows} rows, by `valid`, and alone", first[n], part, mean))
    worst, apart = 0.0, False
    for k, (setting, wanted, actual, cause) in enumerate(comparisons):
        for name, value in wanted.items():
            size = max(np.max(np.abs(whole[name])), np.max(np.abs(value)), 1e-6)
            difference = float(np.max(np.abs(value - actual[name])) / size)
            alone = k >= len(comparisons) - len(short)
            if difference > tolerance and random and alone and "sum" in name:
                n = list(short)[k - len(comparisons)]
                scaled = float(np.max(np.abs(value - actual[name] * n / rows)) / size)
                if scaled > tolerance:  # other random numbers
                    apart = True
                    continue
            values = f"{np.sum(value):.6g} and {np.sum(actual[name]):.6g}"
            hold(difference <= tolerance, f"{name} {setting}: {values}{cause}")
            worst = max(worst, difference)
    said = "; random numbers depend on the size of the batch, so sizes are not compared"
    return f"{sizes} rows of {rows}, and beside others: terms agree to {worst:.1e} relative" + (
        said if apart else ""
    )
