"""Low-rank updates (LoRA; Hu et al. 2022): the section `compress.lora`, over any linen module.

A dense layer y = x W + b, of this code's `Dense` or linen's, becomes

    y = x W + b + (alpha / rank) (x A) B        A f32[inputs, rank], B f32[rank, outputs]

with A random and B zero, so that the model begins as it was. Its parameters lie beside the kernel,
as `lora_a/kernel` and `lora_b/kernel`. Only they, and what else the section names, are trained.
Where the others come from `config.init.path`, they are read from there whenever the run starts,
and no checkpoint holds them.

The layers are found by flax's interception of methods: a model's file knows nothing of it.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from common import tree
from common.errors import require
from common.task import Table

WHERE = "config.compress.lora"
A, B = "lora_a", "lora_b"
FACTOR = re.compile(rf"(.*/)?({A}|{B})/kernel")
OFF = 0  # a rank


class Scheme(NamedTuple):
    """The section `compress.lora`; see `scheme`."""

    rank: int
    alpha: float
    paths: str
    train: tuple[str, ...]


def scheme(
    *,
    rank: int = OFF,
    alpha: float = 16.0,
    paths: str = r"(.*/)?kernel",
    train: tuple[str, ...] = (),
) -> Scheme:
    """The section `compress.lora`: low-rank updates (Hu et al. 2022) of a frozen model.

    Args:
      rank: columns of A and rows of B, which are trained in place of each kernel; 0 is no LoRA.
      alpha: the update of a kernel is A B, times alpha / rank.
      paths: a regex that matches the whole paths of the kernels to update, each of a
        common.nn.layers.Dense or nn.Dense; the default is all of them that are not trained.
      train: regexes of further parameters to train, such as biases or norms. Those that
        `config.init.skip` begins afresh, such as a new head, always are.

    Raises:
      BadInput: for a number out of range, or what is no regex.
    """
    require(0 <= rank < 1 << 31, f"{WHERE}.rank: {rank} is not 0 or a size")
    require(alpha > 0 and alpha < float("inf"), f"{WHERE}.alpha: {alpha} is not positive")
    require(bool(rank) or not train, f"{WHERE}.train: set {WHERE}.rank as well")
    tree.check_patterns(f"{WHERE}.paths", [paths])
    tree.check_patterns(f"{WHERE}.train", train)
    return Scheme(rank, alpha, paths, train)


def of(config: dict) -> Scheme:
    """The scheme of a config, which may lack the section."""
    return scheme(**config.get("compress", {}).get("lora", {}))


def without(config: dict) -> dict:
    """The config of the model that `merged` parameters are of."""
    compress = {k: v for k, v in config.get("compress", {}).items() if k != "lora"}
    return config | {"compress": compress}


def is_factor(path: str) -> bool:
    """Whether a parameter is an A or a B."""
    return FACTOR.fullmatch(path) is not None


def trained(config: dict) -> Callable[[str], bool] | None:
    """path -> whether a run trains that parameter; None if it trains all of them."""
    chosen, init = of(config), config.get("init", {})
    if not chosen.rank:
        return None
    rows = tuple((regex, True) for regex in (*chosen.train, *init.get("skip", ())))
    return lambda path: is_factor(path) or tree.lookup(rows, path, False)


def left_out(config: dict) -> bool:
    """Whether checkpoints leave out the parameters that are not trained, as they can be read from
    `config.init.path` again."""
    return trained(config) is not None and bool(config.get("init", {}).get("path"))


def check(config: dict, params) -> None:
    """Raises `BadInput` if the model was made without `applied`, or a row of `train` matches no
    parameter."""
    chosen, paths = of(config), tree.flatten(params)
    require(
        not chosen.rank or any(map(is_factor, paths)),
        f"{WHERE}.rank: {config['task']} does not build its model by common.nn.model.build, which "
        "sees to it",
    )
    tree.check_table(f"{WHERE}.train", tuple((regex, True) for regex in chosen.train), paths)


# ------------------------------------------------------------------------------------------- models


def applied(model: nn.Module, config: dict) -> nn.Module:
    """`model` with the updates that the section `compress.lora` of a config names: of a class of
    the same name below the model's own, whose `init` and `apply` see to it.

    `init` raises `BadInput` if `paths` matches no kernel of a dense layer, or, of a model with
    `scan`, kernels of some blocks alone.
    """
    chosen, itself = of(config), trained(config)
    if not chosen.rank:
        return model
    wanted = lambda path: re.fullmatch(chosen.paths, path) is not None and not itself(path)
    own = type(model)

    def init(self, *args, **kwargs):
        with nn.intercept_methods(_updating(chosen, wanted)):
            variables = super(updated, self).init(*args, **kwargs)
        _check_matched(chosen, variables["params"], getattr(self, "scan", False))
        return variables

    def apply(self, *args, **kwargs):
        with nn.intercept_methods(_updating(chosen, wanted)):
            return super(updated, self).apply(*args, **kwargs)

    fields = {"init": nn.nowrap(init), "apply": nn.nowrap(apply)}
    names = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
    updated = type(own.__name__, (own,), fields | names)
    model.__class__ = updated
    return model


def _updating(chosen: Scheme, wanted: Callable[[str], bool]) -> Callable:
    """What flax calls around every method of every module; see `nn.intercept_methods`."""

    def around(method, args, kwargs, context):
        y, layer = method(*args, **kwargs), context.module
        ours = hasattr(layer, "gather")  # a `common.nn.layers.Dense`
        if context.method_name != "__call__" or not (ours or isinstance(layer, nn.Dense)):
            return y
        if layer.is_initializing():
            updates = wanted("/".join((*layer.path, "kernel")))
        else:  # within a loop over blocks, no layer knows its path
            updates = layer.has_variable("params", A)
        return y + _update(chosen, layer, args[0]).astype(y.dtype) if updates else y

    return around


def _update(chosen: Scheme, layer: nn.Module, x):
    """(alpha / rank) (x A) B of a bound dense layer: [..., inputs] -> [..., features]."""
    rows, columns = getattr(layer, "names", (None, None))
    gather = getattr(layer, "gather", lambda x, names: x)

    def factor(name, initializer, *shape):
        make = lambda key: {"kernel": initializer(key, shape, jnp.float32)}
        return layer.param(name, make)["kernel"]

    # U(-1, 1) / sqrt(inputs), as elsewhere, so that learning rates carry over.
    random = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    a = factor(A, random, x.shape[-1], chosen.rank)
    b = factor(B, nn.initializers.zeros, chosen.rank, layer.features)
    shape = (*x.shape[:-1], layer.features)
    x, a, b = nn.dtypes.promote_dtype(x, a, b, dtype=layer.dtype)
    a, b = gather(a, (rows, None)), gather(b, (None, columns))
    y = x.reshape(-1, x.shape[-1]) @ a @ b
    return (chosen.alpha / chosen.rank * y).reshape(shape)


def _check_matched(chosen: Scheme, params: dict, scan: bool) -> None:
    paths = tree.flatten(params)
    hint = next((f"; one of this model is {path}" for path in paths if path.endswith("kernel")), "")
    require(
        any(map(is_factor, paths)),
        f"{WHERE}.paths: {chosen.paths!r} matches no kernel of a dense layer (common.nn.layers."
        f"Dense or nn.Dense) that is not trained itself{hint}",
    )
    blocks = {frozenset(tree.flatten(v)) for k, v in params.items() if re.match(r"block_\d", k)}
    require(
        not scan or len(blocks) <= 1,
        f"{WHERE}.paths: {chosen.paths!r} matches kernels of some blocks alone, and "
        "config.model.scan runs one block for all; set that to False",
    )


def partition(table: Table, params) -> Table:
    """A model's `PARTITION` with rows for the factors in its parameters: A is divided as the rows
    of its kernel are, B as the columns."""
    rows: dict[tuple, list[str]] = {}
    for path in filter(is_factor, tree.flatten(params) if table else ()):
        layer, name, _ = path.rsplit("/", 2)
        names = tree.lookup(table, f"{layer}/kernel")
        if names is not None:
            own = (names[0], None) if name == A else (None, names[1])
            rows.setdefault(own, []).append(re.escape(path))
    return (*(("|".join(paths), names) for names, paths in rows.items()), *table)


# ------------------------------------------------------------------------------------------- merged


def merged(params: dict, config: dict) -> dict:
    """Parameters of the model as its file has it: of every updated kernel W + (alpha / rank) A B,
    without A and B.

    Args:
      params: nested dicts of arrays, of a run with `compress.lora`.
      config: of that run.
    """
    chosen, flat = of(config), tree.flatten(params)

    def kernel(path, x):
        layer = path.rpartition("/")[0]
        a, b = (flat.get(f"{layer}/{name}/kernel") for name in (A, B))
        if a is None or not path.endswith("/kernel"):
            return x
        update = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        return x + (chosen.alpha / chosen.rank * update).astype(x.dtype)

    return tree.unflatten({p: kernel(p, x) for p, x in flat.items() if not is_factor(p)})
