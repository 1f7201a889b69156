"""Predictions of runs, and of published weights, from raw inputs.

    loaded = predict.load("runs/digits")                  # or a folder of weights, or "minilm"
    loaded.predict(["three.png", "seven.png"], top=2)     # [{"class": "3", "probability": …}, …]
    loaded.model.apply(loaded.variables, images)          # the model itself

Needs neither training data nor corpus: what a task uses of them is kept in the run's workdir. What
raw inputs are, and what becomes of them, is the task's to say (`common.task.Predictor`). Rows are
padded to a few lengths and batched in a few sizes, so that few programs are compiled, and split
over all devices.

Letters: B batch.
"""

import concurrent.futures
import contextlib
import functools
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common import imports, inputs
from common.data import loading
from common.devices import mesh, runtime
from common.errors import BadInput, brief, nearest, require
from common.runs import workdir
from common.sections import call, fits, parameters, spelled
from common.task import Predictor
from common.training import saved
from common.training.program import task_module

# Modules with a function `published(name, embed) -> Published | None`: None if the weights are not
# of the module's domain.
READERS = ("vision.published", "lm.published")
SHORTEST = 8  # that rows are padded to
BATCH = 64  # the most rows of a batch, for each device
WINDOW = 4  # batches of inputs that are read before the first of them is predicted


NOT_FINITE = BadInput(
    "the model's output for it is not finite (NaN or infinity): its parameters, or what they "
    "compute at this dtype, are too large"
)


class Published(NamedTuple):
    """Published weights, ready to predict: a Predictor, and the parameters and statistics of its
    model, on the host."""

    predictor: Predictor
    params: dict
    extra: dict


class Loaded(NamedTuple):
    """A model that predicts.

    Attributes:
      predict: (inputs, **options) -> [dict], a result for each input. Raises `BadInput` at the
        first that cannot be predicted.
      each: (inputs, options, show) -> iterator of (input, dict or BadInput), in order; reads the
        inputs, of any number, as it goes. An input that is a `BadInput` is its own result. `show`
        tells a terminal how many are done.
      model, variables: the model, and what it is applied to, on the devices.
      predictor: of the task.
      step: of the checkpoint; None for published weights.
      outputs: (rows, index, size, options) -> {name: [size, ...]} on the devices, for callers who
        batch by themselves: rows are {name: array} of the same shapes (`padded`), `index` the
        numbers of their inputs, `size` a multiple of `ways`. A new size compiles a program.
      ways: devices among which a batch is divided.
      layout: the devices.
    """

    predict: Callable
    each: Callable
    model: Any
    variables: dict
    predictor: Predictor
    step: int | None
    outputs: Callable
    ways: int
    layout: mesh.Layout | None = None


def load(name, step: str = "latest", embed: bool = False) -> Loaded:
    """A run by its workdir, or published weights.

    Args:
      name: the workdir; or a folder of weights in the Hugging Face layout, a file of them, or a
        name that scripts/prepare.py fetches.
      step: of a run: "latest", "best" (by config.checkpoint.best), or a step's number.
      embed: predict vectors, in place of what the task predicts.

    Raises:
      BadInput: if there is neither, the task predicts nothing, or there is no such step.
    """
    if _is_run(name):
        return of_run(name, step, embed)
    require(step == "latest", f"{name}: published weights have no steps")
    return of_weights(name, embed)


def _is_run(name) -> bool:
    folder = inputs.path("", str(name))
    return workdir.begun(folder) and "task" in workdir.read_config(folder)


def of_run(folder, step: str = "latest", embed: bool = False) -> Loaded:
    """The model of a run, from its workdir; see `load`."""
    config = saved.read_config(folder)
    call(runtime.start, config["runtime"])
    module, what = task_module(config["task"]), "embedder" if embed else "predictor"
    has = hasattr(module, what) and hasattr(module, "kept")
    text = "vectors" if embed else "predictions"
    require(has, f"{folder}: {config['task']} has no {text}: its module has no {what} and kept")
    layout, section = _layout(config["mesh"])
    config |= {"mesh": section}
    sources = saved.kept_sources(module, config, folder)
    predictor = getattr(module, what)(config, sources, mesh.constrainer(layout))
    config |= {"evals": {}}
    params, extra, number = saved.evaluated(config, folder, step, sources, layout)
    return loaded(predictor, layout, params, extra, number)


def of_weights(name, embed: bool = False) -> Loaded:
    """The model of published weights; see `load`."""
    require(not _is_run(name), f"--weights: {name} is the workdir of a run: --workdir {name}")
    runtime.start()
    for reader in READERS:
        published = imports.module("weights", reader, READERS[0]).published(name, embed)
        if published is not None:
            layout = mesh.make_layout()
            state = mesh.put_replicated(layout, (published.params, published.extra))
            return loaded(published.predictor, layout, *state, None)
    raise BadInput(f"{name}: neither a run nor weights of a model that there is here")


def drafted(large: Loaded, small: Loaded) -> Loaded:
    """`large`, with tokens that `small` drafts: the same greedy texts, or others of the same
    distribution, in fewer passes.

    Raises:
      BadInput: if the two do not fit, or what it predicts cannot be drafted.
    """
    makes = large.predictor.drafted is not None
    require(makes, "draft: what this model predicts is no text that another could draft")
    predictor = large.predictor.drafted(small.predictor)
    own = jax.device_get(small.variables["params"])
    params = {"model": large.variables["params"], "draft": mesh.put_replicated(large.layout, own)}
    return loaded(predictor, large.layout, params, {}, large.step)


def _layout(section: dict) -> tuple[mesh.Layout, dict]:
    """The run's own mesh, if these devices make one, else all of them along the batch; and its
    section."""
    try:
        return call(mesh.make_layout, section), section
    except BadInput:
        section = section | {"data": -1, "fsdp": 1, "tensor": 1}
        return call(mesh.make_layout, section), section


# ---------------------------------------------------------------------------------------- options


def options_of(predictor: Predictor, values: dict) -> dict:
    """The options of a prediction, checked, as the predictor's functions take them.

    Raises:
      BadInput: for an unknown one, or a value of the wrong type or out of range.
    """
    known = parameters(predictor.options)
    for name, value in values.items():
        flag = name.replace("_", "-")
        require(name in known, f"{flag}: unknown option; {nearest(name, known)}")
        kind = known[name].annotation
        wanted = spelled(kind).removesuffix(" or None")  # which leaving it out is
        require(fits(value, kind), f"{flag}: {brief(value)} is not {wanted}")
    return predictor.options(**values)


def divided(options: dict) -> tuple[dict, tuple]:
    """(traced options, static ones), see `Predictor.options`."""
    is_traced = lambda value: isinstance(value, float | np.ndarray | jax.Array)
    traced = {
        k: np.float32(v) if isinstance(v, float) else v for k, v in options.items() if is_traced(v)
    }
    return traced, tuple((k, v) for k, v in options.items() if not is_traced(v))


# ------------------------------------------------------------------------------------- batches


def bucket(length: int, longest: int | None = None) -> int:
    """The length to which an array of this length is padded: a power of two, or `longest` if that
    is less."""
    size = max(SHORTEST, 1 << max(length - 1, 0).bit_length())
    return size if longest is None else max(length, min(size, longest))


def finite(outputs: list[dict]) -> bool:
    """Whether all numbers in the outputs {name: array} of an input's rows are finite."""
    arrays = (array for row in outputs for array in row.values())
    return all(
        not jnp.issubdtype(x.dtype, jnp.floating) or bool(np.isfinite(x).all()) for x in arrays
    )


class _Row(NamedTuple):
    """A row, padded; the place of its input among those of the window, and its own among those of
    the input."""

    arrays: dict
    place: int
    index: int


def lengthened(array: np.ndarray, length: int, value) -> np.ndarray:
    """An array whose first dimension is padded to this length."""
    widths = [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)]
    return np.pad(array, widths, constant_values=value)


def padded(predictor: Predictor, row: dict) -> dict:
    """A row's arrays with the first dimension of those that vary padded to a bucket."""
    arrays = {}
    for name, array in row.items():
        array = np.asarray(array)
        if name in predictor.pads:
            length = bucket(len(array), predictor.longest)
            array = lengthened(array, length, predictor.pads[name])
        arrays[name] = array
    return arrays


def _batches(rows: list[_Row], most: int, ways: int) -> Iterator[list[_Row]]:
    """Rows in batches of the same shapes, of at most `most`."""
    kind = lambda row: tuple(sorted((k, a.shape, a.dtype.str) for k, a in row.arrays.items()))
    groups: dict[tuple, list[_Row]] = {}
    for row in rows:
        groups.setdefault(kind(row), []).append(row)
    for group in groups.values():
        yield from (group[i : i + most * ways] for i in range(0, len(group), most * ways))


def _size(count: int, ways: int) -> int:
    """The rows of a batch of `count`, with padding: a power of eight, of each device."""
    size = 1
    while size * ways < count:
        size = min(8 * size, BATCH)
    return size * ways


def loaded(
    predictor: Predictor, layout: mesh.Layout, params, extra, step: int | None = None
) -> Loaded:
    """`Loaded` of a predictor, and parameters and statistics that are on the devices of a mesh."""
    require(jax.process_count() == 1, "predictions are of one process: start it alone")
    ways = mesh.ways(layout)

    def compute(params, extra, batch, traced, static):
        return predictor.apply(params, extra, batch, traced | dict(static))

    compiled = jax.jit(compute, static_argnums=4)

    @functools.lru_cache(maxsize=1)
    def derived(static: tuple) -> dict[str, jax.Array]:
        return predictor.derived(params, extra, dict(static)) if predictor.derived else {}

    def outputs(rows: list[dict], index: list[int], size: int, options) -> dict[str, jax.Array]:
        at = [*range(len(rows)), *[0] * (size - len(rows))]
        batch = {k: np.stack([rows[i][k] for i in at]) for k in rows[0]}
        batch["index"] = np.array([index[i] for i in at], np.uint32)
        traced, static = divided(options)
        with jax.set_mesh(layout.mesh):
            batch = mesh.to_global(layout, size, batch)
            return compiled(params, extra, batch, traced | derived(static), static)

    def started(rows: list[_Row], options) -> Iterator[tuple[list[_Row], dict]]:
        for batch in _batches(rows, BATCH, ways):
            arrays, index = [row.arrays for row in batch], [row.index for row in batch]
            yield batch, outputs(arrays, index, _size(len(batch), ways), options)

    def window(pool, first: int, items: list, options) -> Iterator[tuple[Any, dict | BadInput]]:
        def read(item):
            try:
                return item if isinstance(item, BadInput) else predictor.read(item, options)
            except BadInput as error:
                return error

        reads = list(pool.map(read, items)) if len(items) > 1 else [read(items[0])]
        rows = [
            _Row(padded(predictor, row), place, first + place)
            for place, own in enumerate(reads)
            for row in (own if not isinstance(own, BadInput) else ())
        ]
        values: dict[int, list] = {i: [] for i in range(len(items))}
        done: dict[int, dict] = {}
        for batch, arrays in loading.prefetch(started(rows, options)):
            arrays = jax.device_get(arrays)
            for i, row in enumerate(batch):
                done[id(row)] = {name: array[i] for name, array in arrays.items()}
        for row in rows:
            values[row.place].append(done[id(row)])
        for i, (item, own) in enumerate(zip(items, reads, strict=True)):
            if not isinstance(own, BadInput):
                fine = finite(values[i])
                own = predictor.result(item, own, values[i], options) if fine else NOT_FINITE
            yield item, own

    def each(inputs: Iterable, options: dict | None = None, show: bool = False) -> Iterator[tuple]:
        checked = options_of(predictor, options or {})
        most, first = WINDOW * BATCH * ways, 0
        total = len(inputs) if hasattr(inputs, "__len__") else None
        inputs = iter(inputs)
        with (
            concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
            _progress(total, show) as tell,
        ):
            while items := list(itertools.islice(inputs, most)):
                for pair in window(pool, first, items, checked):
                    yield pair
                    first += 1
                    tell(first)

    def predict(inputs: Iterable, **options) -> list[dict]:
        one = isinstance(inputs, str | bytes | os.PathLike)
        require(not one, f"predict: {brief(inputs)} is one input: give a list of them")
        results = []
        for item, result in each(inputs, options):
            if isinstance(result, BadInput):
                raise BadInput(f"{brief(item)}: {result}") from result
            results.append(result)
        return results

    variables = {"params": params, **extra}
    return Loaded(predict, each, predictor.model, variables, predictor, step, outputs, ways, layout)


@contextlib.contextmanager
def _progress(total: int | None, show: bool) -> Iterator[Callable]:
    """A function of the number of inputs that are done, which tells a terminal now and then."""
    started = shown = time.monotonic()

    def tell(done: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if not show or now - shown < 0.5 or not sys.stderr.isatty():
            return
        shown = now
        left = "" if total is None else f", {(now - started) * (total / done - 1):.0f} s left"
        of = "" if total is None else f" of {total:,}"
        sys.stderr.write(f"\rpredicted {done:,}{of}{left} ")

    try:
        yield tell
    finally:
        if shown > started:
            sys.stderr.write("\n")
