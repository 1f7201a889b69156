"""The contract between a task and the training program: what a run has to know, and nothing else.

Letters: B global batch, N examples in a set. Reserved keys of a batch: `index u32[B]` (the
position in the stream when training, the row of the set when evaluating) and `valid f32[B]` (0 on
padding rows).

A task is a module; a config names it by its import path (`config.task = "vision.classify"`). It has

    sections(config) -> {section name: the function whose keyword-only arguments the section is}
    sources(config) -> {"train": Source, an evaluation set's name: Source}         reads data
    make(config, sources, constrain) -> Task                                       cheap, traceable
    outline(config) -> what `sources` would give, from the config alone; shapes and facts with
                       nothing in them. Optional: for scripts/compile.py where the data is not

A section `evals.NAME` may have a `batch_size`, which must divide over the devices, and a `split`,
which scripts/evaluate.py can replace; a section `data` may have `workers`, the processes that read
ahead.

`make` is called again inside the compiled step with traced numbers in place of the floats of
`common.config.TRACED` sections, so it must not branch on their values (ask `is None`). `constrain`
is what a model's activations pass at block boundaries (`common.devices.mesh.constrainer`).
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from common.errors import require

Terms = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum f32[...], weight f32[])
Table = tuple[tuple[str, tuple[str | None, ...]], ...]  # path regex -> one logical name a dimension


class Source(NamedTuple):
    """A finite random-access set.

    Attributes:
      size: N.
      read: rows u32[b] -> {name: np[b, ...]}; pure, on the host, safe to call from threads.
      resident: {name: np[N, ...]} for small sets that live on the device during training, else
        None.
      spec: {name: jax.ShapeDtypeStruct} of one example.
      fingerprint: a string that changes when the data does.
      facts: what its task knows of the set: a NamedTuple of the domain, such as
        `vision.data.datasets.ImageFacts`.
    """

    size: int
    read: Callable
    resident: dict | None
    spec: dict
    fingerprint: str
    facts: Any = None


class EvalContext(NamedTuple):
    """What an evaluator is given.

    Attributes:
      params, extra: what is evaluated: the average if the run keeps one.
      step: completed updates.
      key: the run's evaluation key; fold in a row's `index`, so that results know no batch size.
      batches: (source, batch_size) -> iterator of global batches, each row once, padding `valid` =
        0.
      workdir: an epath, or None when there is none.
    """

    params: Any
    extra: Any
    step: int
    key: jax.Array
    batches: Callable
    workdir: Any


class Evaluator(NamedTuple):
    """When to evaluate, and how.

    Attributes:
      every: a duration; the last step is always evaluated.
      run: EvalContext -> {name: float | str | ndarray}; every process calls it.
    """

    every: str
    run: Callable


class Task(NamedTuple):
    """Pure functions: all a training run needs to know.

    Attributes:
      init: key -> (params, extra): nested dicts of plain arrays.
      prepare: (key, batch, train) -> batch: augmentation, masking; on the whole batch, on the
        device.
      loss: (params, extra, batch, key) -> (Terms, extra). A weight never depends on the parameters.
      objective: {term: coefficient}; training minimises sum_i c_i S_i / W_i, other terms are
        metrics.
      sources: "train" and the evaluation sets.
      evaluators: name -> Evaluator.
      partition: where parameters live: path regex -> logical names.
      rows_independent: False when the loss mixes rows (batch norm): accumulation is then refused.
      gradients: None, or (loss, params, extra, batch, key) -> (gradients, Terms, extra) in place of
        differentiating the objective (per-example clipping, say).
      pretrained: None, or path -> nested dicts of host arrays in this model's names: what a file or
        folder that another library wrote holds (`config.init.path`), parameters and statistics
        (`extra`) together, without the names of collections.
      files: None, or {name: contents} of small files that a run's workdir keeps: a tokenizer, say.
      flops: model FLOPs to train on one example, `training_flops`; None where it is not known.
      tokens: positions of an example that the model reads, padding included; None if not of text.
    """

    init: Callable
    prepare: Callable
    loss: Callable
    objective: dict[str, float]
    sources: dict[str, Source]
    evaluators: dict[str, Evaluator]
    partition: Table
    rows_independent: bool
    gradients: Callable | None = None
    pretrained: Callable | None = None
    files: dict[str, str] | None = None
    flops: float | None = None
    tokens: int | None = None


def training_flops(model: Any, *sizes) -> float | None:
    """Model FLOPs to train on one example: three forward passes, as the gradients of a product are
    two products of its size. What is computed again (remat), the optimizer, and what frozen
    parameters save do not count.

    Args:
      model: a linen module. Its `flops`, if it has such a method, counts one example's forward
        pass; None is returned if not.
      sizes: of the example, for `flops`.
    """
    count = getattr(model, "flops", None)
    return 3.0 * count(*sizes) if callable(count) else None


def splits(config: dict) -> dict[str, str]:
    """{"train": `config.data.train`, an evaluator's name: the split that it evaluates}.

    Raises:
      BadInput: if an evaluator is called "train".
    """
    evals = config.get("evals", {})
    require("train" not in evals, "config.evals.train: the name is the training set's")
    return {"train": config["data"]["train"]} | {name: e["split"] for name, e in evals.items()}


def split_key(name: str) -> str:
    """Where the split of the Source `name` is set, for messages: a config key, or `--set`."""
    if name.startswith("split "):
        return "--set"
    return "config.data.train" if name == "train" else f"config.evals.{name}.split"


def purpose_key(seed, purpose: str, step=0) -> jax.Array:
    """The random key of (seed, purpose, step): the only way that keys are made, so order cannot
    matter."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
    return jax.random.fold_in(key, step)


def row_keys(key: jax.Array, batch: dict) -> jax.Array:
    """One key a row from its `index`: what randomness in evaluation uses."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
