"""Tables of names: how another library stores a model's tensors, read in both directions.

A row pairs a module of ours with one there, `("block_{i}/mlp/up", "h.{i}.mlp.c_fc", "conv1d")`, and
names the kind of module, which says which tensors it has and how they are stored. `{i}`, `{j}` and
`{k}` are numbers; `{i+1}` is one that the other library counts from one. "Here" is our side,
"there" theirs.
"""

import functools
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from common.errors import require
from common.nn.layers import padded

same = lambda x: x
first = lambda x: x[0]
transposed = lambda x: x.T


class Leaf(NamedTuple):
    """A tensor of a module there, and its parameters here.

    Attributes:
      there: the end of its name; "" if the row names the tensor itself.
      here: the end of the parameter's path; several if the tensor is their concatenation.
      dims: its number of dimensions there.
      ours: tensor there -> ours, the concatenation of `here` along the last axis.
      theirs: (ours, the model) -> tensor there.
    """

    there: str
    here: tuple[str, ...]
    dims: int
    ours: Callable = same
    theirs: Callable = lambda x, model: x


def _patches(x):
    """A convolution over patches, OIHW, as a matrix with rows ordered by (row, column, channel)."""
    return x.transpose(2, 3, 1, 0).reshape(-1, len(x))


def _unpatched(x, model):
    side = model.patch_size
    return x.reshape(side, side, -1, x.shape[-1]).transpose(3, 2, 0, 1)


def _rows_padded(x):
    return np.pad(x, ((0, padded(len(x)) - len(x)), (0, 0)))


def _parts(leaf: Leaf, *parts: str) -> Leaf:
    """A leaf that holds those of several modules side by side."""
    return leaf._replace(here=tuple(f"{part}/{end}" for part in parts for end in leaf.here))


_back = lambda x, model: x.T
_BIAS = Leaf("bias", ("bias",), 1)
_DENSE = Leaf("weight", ("kernel",), 2, transposed, _back)
_CONV1D = Leaf("weight", ("kernel",), 2)
_NORM = Leaf("weight", ("scale",), 1), _BIAS
_TABLE = Leaf("weight", ("embedding",), 2)
_QKV = "query", "key", "value"

KINDS: dict[str, tuple[Leaf, ...]] = {
    "dense": (_DENSE, _BIAS),
    "conv1d": (_CONV1D, _BIAS),  # of GPT-2: a dense layer that is not transposed
    "qkv_conv1d": (_parts(_CONV1D, *_QKV), _parts(_BIAS, *_QKV)),
    "gate_up": (_parts(_DENSE, "gate", "up"), _parts(_BIAS, "gate", "up")),
    "conv": (
        Leaf(
            "weight",
            ("kernel",),
            4,
            lambda x: x.transpose(2, 3, 1, 0),
            lambda x, model: x.transpose(3, 2, 0, 1),
        ),
        _BIAS,
    ),
    "patch": (Leaf("weight", ("kernel",), 4, _patches, _unpatched), _BIAS),
    "norm": _NORM,
    "batch_norm": (
        *_NORM,
        Leaf("running_mean", ("mean",), 1),
        Leaf("running_var", ("var",), 1),
    ),
    "table": (_TABLE,),
    "vocabulary": (  # ours has extra rows after the last token
        _TABLE._replace(ours=_rows_padded, theirs=lambda x, model: x[: model.vocab_size]),
    ),
    "offset_table": (  # RoBERTa's positions begin at 2, after one for padding
        _TABLE._replace(ours=lambda x: x[2:], theirs=lambda x, model: np.pad(x, ((2, 0), (0, 0)))),
    ),
    "vector": (Leaf("", ("",), 1),),
    "matrix": (Leaf("", ("",), 2, transposed, _back),),  # of torch, which multiplies from the left
    "scalar": (Leaf("", ("",), 0, np.atleast_1d, lambda x, model: x[0]),),  # one number, f32[1]
    "token": (Leaf("", ("",), 1, lambda x: x[None], lambda x, model: x[0]),),  # of one token
    # Of torch's MultiheadAttention, whose tensors are no modules.
    "in_proj_weight": (_parts(_DENSE, *_QKV)._replace(there=""),),
    "in_proj_bias": (_parts(_BIAS, *_QKV)._replace(there=""),),
    "first": (Leaf("", ("",), 3, first, lambda x, model: x[None]),),  # with a batch dimension
    "row": (  # a vector as a matrix of one
        Leaf("", ("",), 2, lambda x: x.reshape(-1), lambda x, model: x[None]),
    ),
}


class Row(NamedTuple):
    """A module here, the same one there, and its kind; paths and names are patterns."""

    here: str
    there: str
    kind: str


class Names(NamedTuple):
    """How a library names the tensors of a family of models.

    Attributes:
      rows: tuples (here, there, kind), see `Row`.
      prefix: of every name but those of heads; a file of the model without heads may omit it.
      heads: beginnings of the names of heads.
      copies: pairs (name there, without prefix, of a tensor that only repeats another, that
        other's name).
      buffers: regex of names, without prefix, of tensors that are no weights.
      refused: pairs (regex of names, without prefix, why no model here computes what a file with
        such a tensor does).
      architecture: the end of the names of the classes there that alone have this layout, by
        config.json's `architectures`, such as "ForTokenClassification"; "" is any other class.
      unused: model -> {name there, without prefix: tensor} that a file there has as well, though
        nothing that is computed here depends on it; None is none.
    """

    rows: tuple[tuple[str, str, str], ...]
    prefix: str = ""
    heads: tuple[str, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    buffers: str = r"(?!)"
    refused: tuple[tuple[str, str], ...] = ()
    unused: Callable | None = None
    architecture: str = ""


class _Tensor(NamedTuple):
    """A leaf of a row, with whole patterns: one name there, and one or more paths here."""

    there: str
    here: tuple[str, ...]
    leaf: Leaf


@functools.lru_cache(maxsize=64)
def _tensors(names: Names) -> tuple[_Tensor, ...]:
    found = []
    for row in map(Row._make, names.rows):
        for leaf in KINDS[row.kind]:
            here = tuple("/".join(filter(None, (row.here, end))) for end in leaf.here)
            found.append(_Tensor(".".join(filter(None, (row.there, leaf.there))), here, leaf))
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def _regex(pattern: str) -> re.Pattern:
    number = lambda match: f"(?P<{match[1]}{'_' if match[2] else ''}>0|[1-9][0-9]{{0,5}})"
    return re.compile(re.sub(r"\\\{([ijk])((?:\\\+1)?)\\\}", number, re.escape(pattern)))


def _numbers(pattern: str, text: str) -> dict[str, int] | None:
    """The numbers in a text that a pattern matches, counted from zero; None if it does not."""
    match = _regex(pattern).fullmatch(text)
    if match is None:
        return None
    # A group "i_" is of "{i+1}".
    return {name[0]: int(value) - len(name[1:]) for name, value in match.groupdict().items()}


def _filled(pattern: str, numbers: dict[str, int]) -> str:
    for name, value in numbers.items():
        pattern = pattern.replace(f"{{{name}}}", str(value))
        pattern = pattern.replace(f"{{{name}+1}}", str(value + 1))
    return pattern


@functools.lru_cache(maxsize=65536)
def _by_name(names: Names, name: str) -> tuple[_Tensor, tuple[tuple[str, int], ...]] | None:
    for tensor in _tensors(names):
        numbers = _numbers(tensor.there, name)
        if numbers is not None and all(value >= 0 for value in numbers.values()):
            return tensor, tuple(numbers.items())
    return None


@functools.lru_cache(maxsize=65536)
def _by_path(names: Names, path: str) -> tuple[_Tensor, tuple[tuple[str, int], ...]] | None:
    for tensor in _tensors(names):
        for here in tensor.here:
            numbers = _numbers(here, path)
            if numbers is not None:
                return tensor, tuple(numbers.items())
    return None


# ---------------------------------------------------------------------------------------- reading


def recognised(names: Names, tensors: dict) -> tuple[dict, tuple[str, ...]]:
    """({name there, without prefix: tensor}, names in the file that the table lacks).

    Old spellings (`gamma`, `beta`) are updated, and buffers left out. Raises `BadInput` if a tensor
    occurs under two names.
    """
    known, unknown = {}, []
    copies = dict(names.copies)
    for name, x in tensors.items():
        plain = name.removeprefix(names.prefix)
        plain = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", plain))
        if plain in copies or _by_name(names, plain) is not None:
            require(plain not in known, f"{name} occurs under two names")
            known[plain] = x
        elif not re.fullmatch(names.buffers, plain):
            unknown.append(name)
    return known, tuple(unknown)


def require_ours(names: Names, tensors: Iterable[str]) -> None:
    """Raises `BadInput` if a file with these tensors is of a model that `names.refused` names."""
    for name in tensors:
        for regex, reason in names.refused:
            refused = re.fullmatch(regex, name.removeprefix(names.prefix))
            require(not refused, f"holds {name}: {reason}")


def without_copies(names: Names, known: dict, tied: bool | None) -> dict:
    """`known` without the tensors that only repeat another.

    Args:
      names: the table.
      known: from `recognised`.
      tied: whether a copy that is a parameter of its own in other models is one here; None decides
        by whether it differs.

    Raises:
      BadInput: if a copy differs from what it repeats.
    """
    known = dict(known)
    for copy, original in names.copies:
        own = _by_name(names, copy) is not None  # a parameter, where it is not tied
        if copy not in known or (tied is False and own):
            continue
        x = known[copy]
        equal = np.array_equal(x, known.setdefault(original, x), equal_nan=True)
        if equal or not own or tied:
            require(equal, f"{copy} is not {original}, but in this model they are tied")
            del known[copy]
    return known


def parameters(names: Names, known: dict) -> dict[str, np.ndarray]:
    """{path here: f32} of tensors under the names there.

    Raises:
      BadInput: if a tensor has another number of dimensions than its kind, is empty, or does not
        hold floating-point numbers.
    """
    flat = {}
    for name, x in known.items():
        tensor, numbers = _by_name(names, name)
        leaf = tensor.leaf
        floats = np.issubdtype(x.dtype, np.floating) or x.dtype.name == "bfloat16"
        require(floats, f"{name} is {x.dtype}; quantised weights are not supported")
        shape = list(x.shape)
        dims = f"{leaf.dims} dimension{'s' if leaf.dims > 1 else ''}"
        require(x.ndim == leaf.dims, f"{name} is {shape}, and should have {dims}")
        require(x.size > 0, f"{name} is {shape}, which is empty")
        x = leaf.ours(x.astype(np.float32))
        parts = len(tensor.here)
        require(
            x.size > 0 and x.shape[-1] % parts == 0,
            f"{name} is {shape}, which is no concatenation of {parts} equal parts",
        )
        for path, part in zip(tensor.here, np.split(x, parts, axis=-1), strict=True):
            flat[_filled(path, dict(numbers))] = np.ascontiguousarray(part)
    return flat


def has(names: Names, path: str) -> bool:
    """Whether the parameter at `path` has a name there."""
    return _by_path(names, path) is not None


def name_of(names: Names, path: str) -> str:
    """The name there, with prefix, of the tensor that holds the parameter at `path`. Raises
    `BadInput` if there is none."""
    found = _by_path(names, path)
    require(found is not None, f"{path}: this layout has no such parameter")
    name = _filled(found[0].there, dict(found[1]))
    return name if name.startswith(names.heads) else names.prefix + name


# ---------------------------------------------------------------------------------------- writing


def tensors(names: Names, model: nn.Module, flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{name there: tensor}, contiguous, of {path here: array}, in the arrays' own dtypes.

    Raises:
      BadInput: if the table has no name for a parameter, or lacks some of those that are stored in
        one tensor.
    """
    written = {}
    for path in flat:
        name = name_of(names, path)
        if name in written:
            continue
        tensor, numbers = _by_path(names, path)
        parts = [_filled(part, dict(numbers)) for part in tensor.here]
        missing = [part for part in parts if part not in flat]
        require(not missing, f"{path}: written together with {missing}, which are missing")
        x = np.concatenate([np.asarray(flat[part]) for part in parts], axis=-1)
        written[name] = np.asarray(tensor.leaf.theirs(x, model), order="C")  # keeps a scalar one
    return written
