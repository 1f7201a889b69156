"""The contract between a task and the training program: all that a run needs from its task.

Letters: B global batch, N examples in a set. Reserved batch keys: `index u32[B]` (position in the
stream of training examples, or row of the set in evaluation) and `valid f32[B]` (0 on padding
rows).

A task is a module, named in the config by its import path (`config.task = "vision.classify"`). It
defines

    sections(config) -> {section name: function whose keyword-only arguments are the section's keys}
    sources(config) -> {"train": Source, name of an evaluation set: Source}        reads data
    make(config, sources, constrain) -> Task                                       cheap, traceable
    outline(config) -> sources with the right shapes and facts but no contents, from the config
                       alone. Optional: lets scripts/compile.py run where the data is absent
    unprepared(config) -> what `sources` would prepare first, perhaps for long, or None. Optional:
                       with it, --dry-run takes the outline instead
    weights_settings(config) -> {section: {key: value}}: what the weights at `config.init.path` say
                       of their model, and of the data for it. Optional: for `config.init.adopt`
    kept(config, folder) -> sources as of `outline`, {"train": Source}, from the config and what the
                       run keeps in its workdir (`Task.files`, `Task.facts`), without the data; None
                       if an older version kept less, and the data have to be read. Needed by
    predictor(config, sources, constrain) -> Predictor: how raw inputs become predictions. Optional:
                       for scripts/predict.py and whatever else serves a model
    embedder(config, sources, constrain) -> Predictor of {"vector": [...]}, for --embed. Optional
    elsewhere(config, own, folder, sources) -> {name of an evaluation set: Source}: the sets that
                       `config` names, to evaluate a run on others than its own: `own` is its
                       config, `folder` its workdir, `sources` of `kept`. Labels are numbered as the
                       run's. Optional: for scripts/evaluate.py --config.data.name

A section `evals.NAME` may have a `batch_size`, which the devices that split a batch must divide,
and a `split`, which scripts/evaluate.py can override; the section `data` may have `workers`, the
number of processes that prefetch batches.

While the step is traced, `make` is called again with tracers in place of the floats in
`common.config.TRACED` sections, so it must not branch on their values (test `is None` instead).
`constrain` pins the sharding of activations at block boundaries
(`common.devices.mesh.constrainer`).
"""

import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from common.errors import require

Terms = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum f32[...], weight f32[])
Table = tuple[tuple[str, tuple[str | None, ...]], ...]  # path regex -> a logical name per dimension

# The longest run, and the longest interval: a step is u32, and meets Python's numbers as i32.
MOST_STEPS = 2**31 - 1


class Source(NamedTuple):
    """A finite data set with random access.

    Attributes:
      size: N.
      read: rows u32[b] -> {name: np[b, ...]}; pure, on the host, safe to call from threads.
      resident: {name: np[N, ...]} for a small set, kept on the device during training; else None.
      spec: {name: jax.ShapeDtypeStruct} of one example.
      fingerprint: a string that changes when the data does.
      facts: what its task knows about the set: a NamedTuple of the domain, such as
        `vision.data.sets.ImageFacts`.
      labels: () -> the label of every row, i32[N], or u8[N, K] of 0 and 1 if examples have several
        labels, without reading what else rows hold; None if they have none, or it cannot. For
        class weights and balanced sampling.
      by_class: `common.data.order.ByClass` if training samples classes equally often; set by the
        program.
    """

    size: int
    read: Callable
    resident: dict | None
    spec: dict
    fingerprint: str
    facts: Any = None
    labels: Callable | None = None
    by_class: Any = None

    @property
    def order(self) -> Any:
        """What decides the order of rows, for `common.data.order.rows`."""
        return self.size if self.by_class is None else self.by_class


class Shown(NamedTuple):
    """Something for people, which trackers get (TensorBoard, W&B) and the log does not.

    Attributes:
      draw: () -> a picture u8[H, W, 3], or a text; called in one process, on the host. Functions
        of `common.pictures` draw.
    """

    draw: Callable


class EvalContext(NamedTuple):
    """Inputs of an evaluator.

    Attributes:
      params, extra: the state to evaluate: the averaged one if the run keeps an average.
      step: completed updates.
      key: the run's evaluation key; fold in each row's `index` (`row_keys`), so that results do not
        depend on the batch size.
      batches: (source, batch_size) -> iterator of global batches that yields each row once;
        padding rows have `valid` = 0.
      workdir: an epath, or None if the run has no workdir.
      show: whether the run has trackers: values may then be `Shown`, too.
    """

    params: Any
    extra: Any
    step: int
    key: jax.Array
    batches: Callable
    workdir: Any
    show: bool = False


class Evaluator(NamedTuple):
    """When to evaluate, and how.

    Attributes:
      every: a duration; the last step is always evaluated.
      run: EvalContext -> {name: float | str | ndarray | Shown}; called by every process.
    """

    every: str
    run: Callable


class Frozen(NamedTuple):
    """Arrays that a loss reads and training does not change, such as the parameters of a teacher:
    nested dicts, an argument of the compiled step, and in no checkpoint.

    Attributes:
      name: what they are, for messages and for environment.json, which records their digest: a run
        resumes with the same ones alone.
      place: layout (`common.devices.mesh`) -> ShapeDtypeStructs with shardings.
      read: layout -> the arrays, placed so. Raises `BadInput` if they cannot be read.
    """

    name: str
    place: Callable
    read: Callable


class Task(NamedTuple):
    """The pure functions, and a few facts, that define a training run.

    Attributes:
      init: key -> (params, extra): nested dicts of plain arrays.
      prepare: (key, batch, train) -> batch: augmentation and masking of the whole batch, on the
        device.
      loss: (params, extra, batch, key) -> (Terms, extra). Weights never depend on the parameters.
      objective: {term: coefficient c}; training minimises sum_i c_i S_i / W_i, for term i of sum
        S_i and weight W_i. Terms not listed are metrics.
      sources: "train" and the evaluation sets.
      evaluators: name -> Evaluator.
      partition: how parameters are sharded: path regex -> logical names.
      rows_independent: False if the loss mixes rows (batch norm); gradient accumulation is then
        refused.
      gradients: None, or (loss, params, extra, batch, key) -> (gradients, Terms, extra), which
        replaces differentiation of the objective (for per-example clipping, say).
      pretrained: None, or path -> nested dicts of host arrays under this model's names: reads the
        weights at `config.init.path`, a file or folder that another library wrote. Parameters and
        statistics (`extra`) share one tree, without collection names.
      files: None, or {name: contents} of small files to keep in the workdir: a tokenizer, say. Runs
        that begin with the parameters of this one need the same.
      facts: None, or {name: JSON value} of the data, kept in the workdir for `kept`: names of
        classes, say (`common.runs.facts`).
      flops: model FLOPs to train on one example (`training_flops`); None if unknown.
      tokens: positions per example that the model reads, padding included; None if not text.
      padding: parameters in rows that only pad a table; counts of parameters leave them out.
      shown: None, or rows -> {name: Shown}: the first rows of the first training batch, as
        `prepare` returns them, on the host.
      frozen: None, or the arrays that `loss` takes as a fifth argument.
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
    facts: dict[str, Any] | None = None
    flops: float | None = None
    tokens: int | None = None
    padding: int = 0
    shown: Callable | None = None
    frozen: Frozen | None = None


class Function(NamedTuple):
    """A function of a predictor's model that an exported model has, see `Predictor.exports`.

    Attributes:
      apply: as `Predictor.apply`.
      inputs: (params, extra, rows) -> {name: np[B, ...]}: examples of its `batch`, by which the
        export is verified. `rows` {name: np[B, ...]} are those of an evaluation set, as its
        `Source.read` returns them, or the arrays of `Predictor.read`, padded.
      lengths: {name: letter} of the inputs whose dimension after the batch may have any size; the
        same letter is the same size.
    """

    apply: Callable
    inputs: Callable
    lengths: Mapping[str, str] = MappingProxyType({})


class Predictor(NamedTuple):
    """How raw inputs become predictions: pure functions, which `common.predict` batches, compiles
    and spreads over the devices.

    A raw input is what a user has: a text, two texts, the path of a picture. It becomes one row, or
    several where a model sees a long input in parts. Rows whose arrays have the same shapes, after
    padding, are batched together.

    Attributes:
      read: (input, options) -> [{name: np.ndarray}], the rows of an input. On the host, safe to
        call from threads. Raises `BadInput` for an input that has no prediction.
      apply: (params, extra, batch, options) -> {name: [B, ...]}, traced. `batch` holds the rows'
        arrays, and `index u32[B]`, the number of the input: fold it into random keys, so that a
        prediction does not depend on those beside it. Padding rows repeat another row. An input
        with an output that is not finite has no prediction.
      result: (input, rows, outputs, options) -> a dict that JSON can write. `rows` is what `read`
        returned, `outputs` [{name: np.ndarray}], what `apply` returned for each of them.
      line: result -> what people read, of one line or more.
      options: its keyword-only arguments, with defaults and an `Args:` section, are the options of
        a prediction, and flags of scripts/predict.py. It checks them and returns {name: value} for
        the functions above. Floats and arrays are traced, and a new value compiles nothing; all
        others are static, and must be hashable.
      pads: {name: value}: arrays of a row whose first dimension varies, and what they are padded
        with, to one of a few lengths (`common.predict.bucket`).
      longest: the most that they are padded to; None is no limit.
      columns: of a table of inputs, that hold an input: the value of the only one, or, of several,
        {column: value}, without those of `optional`, if they are not there.
      optional: columns that a table may lack.
      suffixes: of the files that are inputs, such as ".png"; none if inputs are texts.
      texts: whether inputs may be texts beside such files.
      derived: (params, extra, static options) -> {name: jax.Array}, further options for `apply`
        that take the parameters to compute, once and not for each batch: the vectors of what is
        searched. May raise `BadInput`. Such predictions cannot be exported.
      model: the model, for those who want more of it; called with {"params": params, **extra}.
      described: entries of the config.json of `transformers` that are no fields of the model, such
        as how it was trained.
      exports: {name: Function} of an exported model (scripts/export.py). It has `predict`, which is
        `apply`, in any case; an entry of that name makes its inputs of rows of an evaluation set,
        without which an export is verified on inputs that the user names.
      facts: what its task knows of its inputs (`Source.facts`); None if nothing.
      drafted: the Predictor of a smaller model -> one that predicts the same, with tokens that the
        smaller one drafts; its params are {"model": …, "draft": …}. Raises `BadInput` if they do
        not fit. None if there is no such way.
    """

    read: Callable
    apply: Callable
    result: Callable
    line: Callable
    options: Callable
    pads: Mapping[str, Any] = MappingProxyType({})
    longest: int | None = None
    columns: tuple[str, ...] = ("text",)
    optional: tuple[str, ...] = ()
    suffixes: frozenset[str] = frozenset()
    texts: bool = False
    derived: Callable | None = None
    model: Any = None
    described: Mapping[str, Any] = MappingProxyType({})
    exports: Mapping[str, Function] = MappingProxyType({})
    facts: Any = None
    drafted: Callable | None = None


def training_flops(model: Any, *sizes) -> float | None:
    """Model FLOPs to train on one example: three forward passes, since the backward pass of a
    matrix product is two products of the same size. Recomputation (remat), the optimizer, and
    savings from frozen parameters are not counted.

    Args:
      model: a linen module, whose method `flops` counts the forward pass of one example. Without
        that method the result is None.
      sizes: arguments of `flops`: the sizes of an example.
    """
    count = getattr(model, "flops", None)
    return 3.0 * count(*sizes) if callable(count) else None


def padding(model: Any) -> int:
    """The number of a model's parameters that only pad a table, as its method `padding` says; 0
    without that method."""
    count = getattr(model, "padding", None)
    return count() if callable(count) else 0


def splits(config: dict) -> dict[str, str]:
    """{"train": `config.data.train`, evaluator name: the split that it evaluates}.

    Raises:
      BadInput: if an evaluator is named "train".
    """
    evals = config.get("evals", {})
    require("train" not in evals, "config.evals.train: this name is reserved for the training set")
    return {"train": config["data"]["train"]} | {name: e["split"] for name, e in evals.items()}


def held_out(config: dict) -> dict[str, str]:
    """`splits` without "train"."""
    return {name: split for name, split in splits(config).items() if name != "train"}


def split_key(name: str) -> str:
    """Where the split of the Source `name` is set, for messages: a config key, or `--set`."""
    if name.startswith("split "):
        return "--set"
    return "config.data.train" if name == "train" else f"config.evals.{name}.split"


def purpose_key(seed, purpose: str, step=0) -> jax.Array:
    """The random key of (seed, purpose, step). All keys are made this way, so the order in which
    they are drawn cannot matter."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
    return jax.random.fold_in(key, step)


def row_keys(key: jax.Array, batch: dict) -> jax.Array:
    """One key per row, from its `index`: the source of randomness in evaluation."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
