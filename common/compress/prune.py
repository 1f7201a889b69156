"""Pruning: parameters that become exactly zero while a run trains, by the section `compress.prune`.

    rule = prune.pruning(to_steps, kind="magnitude", sparsity=0.8)
    optimizer = prune.pruned(optimizer, rule)      # any `common.training.optim.Optimizer`

Masks are part of the optimizer's state, under the paths of their parameters, so they are saved,
sharded and resumed like moments. What is pruned once stays zero: its update cancels the parameter,
its gradient never reaches the optimizer, and averages are masked, too. Weights are ranked by their
size (Han et al. 2015) or by their movement away from zero (Sanh et al. 2020), and the share of
zeros follows the cubic schedule of Zhu & Gupta 2017. To cut what is zero out of a model:
`common.compress.shrink`.

Letters: U units (heads, or hidden units) of a module.
"""

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from common import tree
from common.errors import brief, require

WHERE = "config.compress.prune"
UNITS = "heads", "rows"

# Of a module with units: {parameter: dimension that the units divide}.
ATTENTION = {
    "query/kernel": 1,
    "key/kernel": 1,
    "value/kernel": 1,
    "out/kernel": 0,
    "query/bias": 0,
    "key/bias": 0,
    "value/bias": 0,
}
MLP = {"up/kernel": 1, "gate/kernel": 1, "down/kernel": 0, "up/bias": 0, "gate/bias": 0}


class Pruning(NamedTuple):
    """The section `compress.prune`, checked, with durations in steps; see `pruning`.

    Attributes:
      kept, of: n and m of the structure n:m; 0 of others.
      begin, end, frequency: completed updates at the first and last pruning, and between two.
    """

    kind: str
    sparsity: float
    structure: str
    scope: str
    begin: int
    end: int
    frequency: int
    paths: str
    kept: int = 0
    of: int = 0


def pruning(
    to_steps: Callable[..., int],
    *,
    kind: Literal["", "magnitude", "movement"] = "",
    sparsity: float = 0.0,
    structure: str = "unstructured",
    scope: Literal["layer", "global"] = "layer",
    begin: str = "0%",
    end: str = "50%",
    frequency: str = "1%",
    paths: str = r"(.*/)?kernel",
) -> Pruning:
    """The section `compress.prune`: which parameters become zero, and when.

    Args:
      to_steps: (duration, key for messages, least) -> steps.
      kind: how weights are ranked: "magnitude", by their size; "movement", by the sum over steps of
        -gradient times weight, which is large where training moves a weight away from zero (Sanh et
        al. 2020), for fine-tuning; "" prunes nothing.
      sparsity: share of zeros at the end, among the parameters that are pruned; of n:m it follows.
      structure: "unstructured": single weights; "n:m", such as "2:4": n of each m successive
        weights along a kernel's input dimension stay; "heads": whole attention heads (with grouped
        keys, a key head and its queries); "rows": whole hidden units of the MLPs of transformers.
        scripts/shrink.py cuts zero heads and hidden units out.
      scope: each kernel, or module, loses the same share ("layer"), or all are ranked together
        ("global").
      begin: when pruning begins: the share of zeros is s (1 - (1 - (t - begin) / (end - begin))^3)
        after t updates (Zhu & Gupta 2017).
      end: when the share of zeros is reached; "0%" is after the first update, in one go.
      frequency: duration between two prunings.
      paths: a regex that matches the whole path of each kernel to prune; of heads and rows, every
        kernel of a module has to match. What `optim.freeze` freezes is left alone.

    Raises:
      BadInput: for a value out of range, or keys that do not fit together.
    """
    n, m = _n_of_m(structure)
    if not kind:
        return Pruning("", 0.0, structure, scope, 0, 0, 1, paths, n, m)
    tree.check_patterns(f"{WHERE}.paths", [paths])
    if m:
        require(scope == "layer", f"{WHERE}.scope: {structure} is a rule for every kernel: 'layer'")
        follows = sparsity in (0.0, 1 - n / m)
        require(follows, f"{WHERE}.sparsity: {structure} makes it {1 - n / m:g}; leave it out")
        sparsity = 1 - n / m
    require(0 < sparsity < 1, f"{WHERE}.sparsity: {sparsity} is not between 0 and 1")
    first = to_steps(begin, f"{WHERE}.begin")
    last = max(1, to_steps(end, f"{WHERE}.end"))
    every = to_steps(frequency, f"{WHERE}.frequency", 1)
    require(first <= last, f"{WHERE}.end: {end!r} is before the beginning, {begin!r}")
    return Pruning(kind, sparsity, structure, scope, first, last, every, paths, n, m)


def _n_of_m(structure: str) -> tuple[int, int]:
    """(n, m) of "n:m"; (0, 0) of the other structures. Raises `BadInput` for any other text."""
    if structure == "unstructured" or structure in UNITS:
        return 0, 0
    matched = re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", structure)
    n, m = map(int, matched.groups()) if matched else (0, 0)
    require(
        0 < n < m,
        f"{WHERE}.structure: {brief(structure)} is not 'unstructured', 'heads', 'rows' or n:m, "
        "such as '2:4'",
    )
    return n, m


# ----------------------------------------------------------------------------------------- schedule


def sparsity_at(rule: Pruning, done) -> jax.Array:
    """f32[]: the share of zeros after `done` updates."""
    left = (rule.end - jnp.asarray(done, jnp.float32)) / max(rule.end - rule.begin, 1)
    share = jnp.float32(rule.sparsity)
    cubic = share * (1 - jnp.clip(left, 0.0, 1.0) ** 3)
    return jnp.where(done >= rule.end, share, cubic)


def is_due(rule: Pruning, done) -> jax.Array:
    """bool[]: whether weights are pruned after `done` updates."""
    within = (done >= rule.begin) & (done <= rule.end)
    return within & (((done - rule.begin) % rule.frequency == 0) | (done == rule.end))


# ----------------------------------------------------------------------------------- what is pruned


class Part(NamedTuple):
    """A parameter of a module with units: its path, and the dimension that they divide."""

    path: str
    axis: int


class Module(NamedTuple):
    """What loses whole units: its path, U, and the parameters that hold them."""

    path: str
    units: int
    parts: tuple[Part, ...]


def kernels(rule: Pruning, params, frozen: tuple[str, ...] = ()) -> list[str]:
    """The paths of the kernels that the rule names, without those that are frozen."""
    return [
        path
        for path, x in tree.flatten(params).items()
        if x.ndim >= 2 and re.fullmatch(rule.paths, path) and not _is_frozen(path, frozen)
    ]


def _is_frozen(path: str, frozen: tuple[str, ...]) -> bool:
    return tree.lookup(tuple((regex, True) for regex in frozen), path, False)


def modules(structure: str, params, model: dict) -> list[Module]:
    """The modules of a model that have heads, or hidden units.

    Args:
      structure: "heads" or "rows".
      params: nested dicts of arrays or shapes.
      model: the section `model`, which says the number of heads.
    """
    flat, found = tree.flatten(params), []
    name, table, first = (
        ("attention", ATTENTION, "query/kernel")
        if structure == "heads"
        else ("mlp", MLP, "up/kernel")
    )
    for path in flat:
        module = path.removesuffix(f"/{first}")
        if module == path or module.split("/")[-1] != name:
            continue
        units = flat[path].shape[1]
        if structure == "heads":
            units = model.get("kv_heads") or model["heads"]
        parts = (Part(f"{module}/{p}", axis) for p, axis in table.items())
        found.append(Module(module, units, tuple(part for part in parts if part.path in flat)))
    return found


def chosen(rule: Pruning, params, model: dict, frozen: tuple[str, ...]) -> list[Module]:
    """`modules` all of whose kernels the rule names, without biases that are frozen."""
    named = set(kernels(rule, params, frozen))
    whole = lambda m: all(p.path in named for p in m.parts if p.path.endswith("kernel"))
    trained = lambda m: tuple(part for part in m.parts if not _is_frozen(part.path, frozen))
    found = filter(whole, modules(rule.structure, params, model))
    return [module._replace(parts=trained(module)) for module in found]


def _check(rule: Pruning, params, paths, found: list[Module]) -> None:
    if rule.structure in UNITS:
        of = {"heads": "attention", "rows": "mlp"}[rule.structure]
        require(
            bool(found),
            f"{WHERE}.structure: no module {of!r} of this model has {rule.structure} whose kernels "
            f"are all named by {WHERE}.paths",
        )
        return
    require(bool(paths), f"{WHERE}.paths: {rule.paths!r} matches no kernel that is trained")
    flat = tree.flatten(params)
    for path in paths if rule.of else ():
        inputs = flat[path].shape[-2]
        require(
            inputs % rule.of == 0,
            f"{WHERE}.structure: {rule.structure} does not divide the {inputs} inputs of {path}; "
            f"leave it out of {WHERE}.paths",
        )


# -------------------------------------------------------------------------------------------- masks


def _highest(scores: jax.Array, dropped) -> jax.Array:
    """bool, like `scores`: all but the lowest `dropped` along the last dimension; of equal ones
    the first are dropped."""
    ranks = jnp.argsort(jnp.argsort(scores, axis=-1, stable=True), axis=-1)
    return ranks >= dropped


def _rounded(share, count: int) -> jax.Array:
    return jnp.floor(share * count + 0.5).astype(jnp.int32)


def _together(scores: list[jax.Array], dropped: Callable, scope: str) -> list[jax.Array]:
    """Masks of arrays of scores, of which `dropped(size)` are dropped of each, or of all."""
    if scope == "layer":
        return [_highest(s.reshape(-1), dropped(s.size)).reshape(s.shape) for s in scores]
    flat = jnp.concatenate([s.reshape(-1) for s in scores])
    kept, masks, at = _highest(flat, dropped(flat.size)), [], 0
    for s in scores:
        masks.append(kept[at : at + s.size].reshape(s.shape))
        at += s.size
    return masks


def masks_of(
    rule: Pruning, scores: dict[str, jax.Array], found: list[Module], share
) -> dict[str, jax.Array]:
    """{path: bool mask}, False where a weight is dropped.

    Args:
      rule: the section.
      scores: {path: f32, of the parameter's shape}; what is pruned already has -inf.
      found: of heads and rows, the modules.
      share: f32[], of what is dropped.
    """
    if rule.structure in UNITS:
        sums = [sum(_by_unit(scores[p.path], p.axis, m.units) for p in m.parts) for m in found]
        # A layer keeps a unit, so that what is left is a model.
        least = 1 if rule.scope == "layer" else 0
        dropped = lambda size: jnp.minimum(_rounded(share, size), size - least)
        kept = _together(sums, dropped, rule.scope)
        return {
            p.path: _of_units(mask, scores[p.path].shape, p.axis)
            for module, mask in zip(found, kept, strict=True)
            for p in module.parts
        }
    if rule.of:
        masks = {}
        for path, s in scores.items():
            groups = jnp.swapaxes(s, -1, -2)
            shape = groups.shape
            groups = groups.reshape(*shape[:-1], shape[-1] // rule.of, rule.of)
            dropped = jnp.minimum(_rounded(share, rule.of), rule.of - rule.kept)
            masks[path] = jnp.swapaxes(_highest(groups, dropped).reshape(shape), -1, -2)
        return masks
    kept = _together(list(scores.values()), lambda size: _rounded(share, size), rule.scope)
    return dict(zip(scores, kept, strict=True))


def _by_unit(scores: jax.Array, axis: int, units: int) -> jax.Array:
    """f32[U]: the sum of a parameter's scores over each unit."""
    rows = jnp.moveaxis(scores, axis, 0)
    return rows.reshape(units, -1).sum(axis=1)


def _of_units(mask: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """A mask bool[U] of units as one of a parameter of this shape."""
    each = jnp.repeat(mask, shape[axis] // mask.size)
    along = [-1 if i == axis else 1 for i in range(len(shape))]
    return jnp.broadcast_to(each.reshape(along), shape)


def zeroed(masks, params):
    """Parameters with exact zeros where `masks`, nested dicts of some of their paths, are False."""
    flat = tree.flatten(masks)
    zero = lambda path, x: jnp.where(flat[path], x, jnp.zeros((), x.dtype)) if path in flat else x
    return tree.map_paths(zero, params)


def reached(masks) -> jax.Array:
    """f32[]: the share of zeros among all parameters that have masks."""
    leaves = jax.tree.leaves(masks)
    zeros = sum(jnp.sum(~mask, dtype=jnp.int32).astype(jnp.float32) for mask in leaves)
    return zeros / sum(mask.size for mask in leaves)


# ---------------------------------------------------------------------------------------- optimizer


def pruned(optimizer: Any, rule: Pruning, model: dict | None = None, frozen=()) -> Any:
    """An optimizer (`common.training.optim.Optimizer`) that prunes as well. Its state is {"inner",
    "masks", "scores"}, the last two nested dicts of the pruned paths; of magnitude, scores are {}.

    Args:
      optimizer: the optimizer.
      rule: the section; of kind "", the optimizer is returned as it is.
      model: the section `model`, for heads.
      frozen: regexes of parameters that are never pruned.
    """
    if not rule.kind:
        return optimizer

    def found(params) -> list[Module]:
        return chosen(rule, params, model or {}, frozen) if rule.structure in UNITS else []

    def init(params):
        flat, units = tree.flatten(params), found(params)
        paths = [p.path for m in units for p in m.parts]
        paths = paths if rule.structure in UNITS else kernels(rule, params, frozen)
        _check(rule, params, paths, units)
        masks = {path: jnp.ones(flat[path].shape, bool) for path in paths}
        scores = {}
        if rule.kind == "movement":
            scores = {path: jnp.zeros(flat[path].shape, jnp.float32) for path in paths}
        inner = optimizer.init(params)
        return {"inner": inner, "masks": tree.unflatten(masks), "scores": tree.unflatten(scores)}

    def update(grads, state, params, step):
        masks, scores = tree.flatten(state["masks"]), tree.flatten(state["scores"])
        grads = zeroed(state["masks"], grads)
        flat, slopes = tree.flatten(params), tree.flatten(grads)
        scores = {p: s - (slopes[p] * flat[p]).astype(jnp.float32) for p, s in scores.items()}
        updates, inner = optimizer.update(grads, state["inner"], params, step)
        done = step + 1

        def prune():
            # As they were before this update, which would hide the zeros that a run began with.
            sizes = scores or {p: jnp.square(flat[p].astype(jnp.float32)) for p in masks}
            ranked = {p: jnp.where(masks[p], sizes[p], -jnp.inf) for p in masks}
            return masks_of(rule, ranked, found(params), sparsity_at(rule, done))

        new = jax.lax.cond(is_due(rule, done), prune, lambda: masks)
        masks = {p: masks[p] & new[p] for p in masks}

        def cancelled(path, update, param):
            """The update, or what makes the parameter exactly zero."""
            return jnp.where(masks[path], update, -param) if path in masks else update

        updates = tree.map_paths(cancelled, updates, params)
        state = {"inner": inner, "masks": masks, "scores": scores}
        return updates, {k: v if k == "inner" else tree.unflatten(v) for k, v in state.items()}

    def eval_params(state, params):
        return zeroed(state["masks"], optimizer.eval_params(state["inner"], params))

    return optimizer._replace(
        init=init,
        update=update,
        eval_params=eval_params,
        zeroed=lambda state, params: zeroed(state["masks"], params),
        sparsity=lambda state: reached(state["masks"]),
    )
