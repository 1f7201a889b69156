"""Weights and activations of few bits: the section `compress.quantize`, over any linen module.

A named kernel W is seen by its model as q * s, with integers q of 8 or 4 bits and a scale s for
each output channel: s = max |W| / (2^(bits-1) - 1), a thousandth more in fact (`rounding.ROOM`),
and q = round(W / s). In training W itself stays float, the rounding is part of the model, and its
gradient is that of the identity (straight-through; Jacob et al. 2018). After training, q and s take
W's place in the parameters, as

    {"kernel": {"int8": i8[..., K], "scale": f32[K]}}

or "int4": u8, two numbers a byte along the first dimension ("int4_odd" if that is odd). Activations
get a scale for each row that is multiplied, found as they come. Rounding, and the products of
integers, are those of qwix (an extra).

qwix's own providers are not used: they take for a kernel whatever has its shape, once gradients
are traced; they find scales in the dtype of the computation, with which the largest weight lies
half-way between two integers, so that its last bit decides; and gradients with respect to the
inputs pass the kernel as if it had not been rounded.

Letters: K output channels.
"""

import logging
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from common import tree
from common.compress.rounding import (
    COLLECTION,
    WHERE,
    Activations,
    Scheme,
    Weights,
    channels_of,
    integers,
    named,
    rounded,
)
from common.errors import BadInput, require

STORED = "int8", "int4", "int4_odd"  # a key of a kernel that is stored as integers


def scheme(
    *,
    weights: Weights = "",
    activations: Activations = "",
    paths: str = r"(.*/)?kernel",
    how: Literal["training", "after"] = "training",
) -> Scheme:
    """The section `compress.quantize`. Needs the extra `quantize`.

    Args:
      weights: the integers that the kernels are rounded to, with a scale for each output channel;
        "" quantizes nothing.
      activations: the integers that the other factor of their products is rounded to, with a scale
        for each row; "" leaves it as it is.
      paths: a regex that matches the whole path of each parameter to quantize; every one must be
        multiplied by a dense layer or a convolution. The default is all kernels. Of embeddings,
        only those whose rows are also multiplied, as of tied logits, can be named.
      how: "training" rounds in training too, and checkpoints hold the kernels as they are; "after"
        is what scripts/quantize.py makes of a trained run, whose checkpoint holds the integers.

    Raises:
      BadInput: if activations are to be quantized without weights, or `paths` is no regex.
    """
    require(bool(weights) or not activations, f"{WHERE}.activations: set {WHERE}.weights as well")
    tree.check_patterns(f"{WHERE}.paths", [paths])
    return Scheme(weights, activations, paths, how)


def of(config: dict) -> Scheme:
    """The scheme of a config, which may lack the section."""
    return scheme(**config.get("compress", {}).get("quantize", {}))


# ------------------------------------------------------------------------------------------ storage


def stored(chosen: Scheme, params: dict) -> dict:
    """Parameters with the named kernels as integers and scales."""

    def store(path, x):
        if not named(chosen, path):
            return x
        q = integers(x, chosen.weights, channels_of(path, x.ndim))
        scale = q.scale.reshape(-1)
        if chosen.weights == "int8":
            return {"int8": q.qvalue, "scale": scale}
        key = "int4_odd" if len(x) % 2 else "int4"
        return {key: _packed(q.qvalue.astype(jnp.int8)), "scale": scale}

    return tree.map_paths(store, params)


def _is_stored(node: Any) -> bool:
    return hasattr(node, "keys") and "scale" in node and any(key in node for key in STORED)


def _integers(node: dict, path: str) -> dict[str, jax.Array]:
    """{"value": i8[...], "scale": f32, of as many dimensions} of a stored kernel."""
    key = next(key for key in STORED if key in node)
    value = node[key] if key == "int8" else _unpacked(node[key], odd=key == "int4_odd")
    at = channels_of(path, value.ndim)
    shape = [value.shape[at] if axis == at else 1 for axis in range(value.ndim)]
    return {"value": value, "scale": node["scale"].reshape(shape)}


def _opened(node: Any, path: str = "") -> tuple[Any, dict]:
    """(stored parameters as the model sees them, {…: integers} of the stored ones alone)."""
    if _is_stored(node):
        q = _integers(node, path)
        return q["value"].astype(jnp.float32) * q["scale"], q
    if not hasattr(node, "items"):
        return node, {}
    pairs = {key: _opened(value, f"{path}/{key}" if path else key) for key, value in node.items()}
    inner = {key: q for key, (_, q) in pairs.items() if q}
    return {key: value for key, (value, _) in pairs.items()}, inner


def _packed(x):
    """i8[n, ...] of 4 bits each -> u8[ceil(n / 2), ...]."""
    x = jnp.pad(x, [(0, len(x) % 2), *[(0, 0)] * (x.ndim - 1)]).view(jnp.uint8) & 15
    return x[::2] | (x[1::2] << 4)


def _unpacked(x, odd: bool):
    """The inverse of `_packed`."""
    pairs = jnp.stack([x & 15, x >> 4], axis=1).reshape(-1, *x.shape[1:])
    return ((pairs[:-1] if odd else pairs) ^ 8).astype(jnp.int8) - jnp.int8(8)


def _partition(table) -> tuple:
    """A model's `PARTITION` that also matches kernels stored as integers; scales are replicated."""
    return tuple((rf"(?:{regex})(?:/(?:{'|'.join(STORED)}))?", names) for regex, names in table)


# ------------------------------------------------------------------------------------------- models


def applied(model: nn.Module, config: dict) -> nn.Module:
    """`model`, quantized as the section `compress.quantize` of a config says: of a class of the
    same name below the model's own, whose `init` and `apply` see to it.

    `init` checks that the scheme's paths are those of kernels: that every one of them is multiplied
    where it can be seen, and with a scale for each of its outputs.

    Raises:
      BadInput: if qwix is missing, or this backend has no such integers.
    """
    chosen = of(config)
    if not chosen.weights:
        return model
    try:
        import qwix

        from common.compress import products
    except ImportError as error:
        text = f"{WHERE}: {error.name} is missing: pip install -e '.[quantize]'"
        raise BadInput(text) from error
    require(not getattr(model, "scan", False), f"{WHERE}: it cannot look into config.model.scan")
    products.check_backend(chosen.weights, chosen.activations)
    seen = products.Products(chosen)
    own = type(model)
    model = qwix.quantize_model(model, seen, methods=_methods(own))
    base = type(model)

    def init(self, *args, **kwargs):
        seen.multiplied.clear()
        variables = super(quantized, self).init(*args, **kwargs)
        _check_multiplied(chosen, variables["params"], seen.multiplied)
        if not chosen.after:
            return variables
        return {**variables, "params": stored(chosen, variables["params"])}

    def apply(self, variables, *args, **kwargs):
        params = variables["params"]
        if chosen.after:
            params, kept = _opened(params)
            variables = {**variables, COLLECTION: kept}
        else:
            round_one = lambda path, x: (
                rounded(x, chosen.weights, channels_of(path, x.ndim)) if named(chosen, path) else x
            )
            params = tree.map_paths(round_one, params)
        return super(quantized, self).apply({**variables, "params": params}, *args, **kwargs)

    fields = {"init": nn.nowrap(init), "apply": nn.nowrap(apply)}
    if chosen.after:
        fields["PARTITION"] = property(lambda self: _partition(super(quantized, self).PARTITION))
        if hasattr(own, "fitted"):  # initial parameters, which these are not
            fields["fitted"] = nn.nowrap(lambda self, params, images: params)
    names = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
    quantized = type(own.__name__, (base,), fields | names)
    model.__class__ = quantized
    return model


def _methods(cls: type[nn.Module]) -> list[str]:
    """The methods of a module that run within `apply`."""
    of_model = (name for name in dir(cls) if not hasattr(nn.Module, name) or name == "__call__")
    wrapped = lambda name: hasattr(getattr(cls, name), "method_handler_wrapped")
    return [name for name in of_model if wrapped(name)]


def _check_multiplied(chosen: Scheme, params: dict, multiplied: set[str]) -> None:
    """Raises `BadInput` unless paths name parameters, all of which were multiplied."""
    paths = [path for path in tree.flatten(params) if named(chosen, path)]
    hint = next((path for path in tree.flatten(params) if path.endswith("kernel")), "")
    require(
        bool(paths),
        f"{WHERE}.paths: {chosen.paths!r} matches no parameter"
        + (f"; one of them is {hint}" if hint else ""),
    )
    floats = [path for path in paths if path not in multiplied]
    more = f" and {len(floats) - 1} more" if len(floats) > 1 else ""
    require(
        not floats,
        f"{WHERE}.paths: {''.join(floats[:1])}{more} would stay float, {len(floats)} of "
        f"{len(paths)}: nothing multiplies by it that can be seen, such as "
        "common.nn.layers.Dense, nn.Dense or nn.Conv; leave it out of the regex",
    )


def say_differing(trained: Scheme, after: Scheme) -> None:
    """Warns if a run was trained with another scheme than it is quantized with."""
    if trained.weights and trained._replace(how=after.how) != after:
        keys = {k: x for k, x in trained._asdict().items() if x and k != "how"}
        logging.warning(
            "the run was trained with the rounding of %s: with another its outputs are not those "
            "that training has seen",
            " ".join(f"--{key} {value!r}" for key, value in keys.items()),
        )


def no_training() -> str:
    """Why a run whose parameters are integers is not trained, for messages."""
    return (
        f"{WHERE}.how: 'after' is what scripts/quantize.py makes of a trained run, which trains no "
        "further; train with 'training'"
    )
