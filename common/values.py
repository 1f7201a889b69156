"""Values of a config as plain Python. Config files and sweeps compute theirs with numpy and jax:
scalars, and arrays without dimensions, become the numbers that they stand for.

A number of fewer than 64 bits becomes the shortest float that is that number: `np.float32(0.1)` is
0.1, not 0.10000000149011612. The program computes in 32 bits, so both are the same there; but 0.1
is what one types on a command line, and what folders of trials are named by.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from ml_collections.config_dict import FieldReference, RequiredValueError

from common.errors import BadInput, brief, require

LONGEST = 100  # characters of an evaluator's name


class _Step(NamedTuple):
    """The operation of a lazy value, as ml_collections calls it."""

    fn: Any
    args: tuple = ()


def adopted(config) -> ml_collections.ConfigDict:
    """A `ConfigDict`, not locked, of one that a user made, or of nested dicts, with plain values.
    The argument is unchanged.

    Values that follow others lazily (`get_ref`) still do.

    Raises:
      BadInput: if a key is not a name, a value is an array with dimensions, or one that follows
        others cannot be computed.
    """
    _check_keys(config, "config")
    config = ml_collections.ConfigDict(config, convert_dict=True)
    check_lazy(config, "config")
    config = _own(config)
    _to_python(config, "config")
    return config


def _own(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy with sections of its own, where `ConfigDict(config)` would share them."""
    own = ml_collections.ConfigDict()
    for key, value in _items(config):
        own[key] = _own(value) if isinstance(value, ml_collections.ConfigDict) else value
    return own


def python(where: str, value: Any) -> Any:
    """A value as plain Python, also within a tuple; what is neither a scalar nor an array is
    unchanged. Raises `BadInput` for an array with dimensions."""
    if type(value) is tuple:
        items = tuple(python(where, item) for item in value)
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    if not hasattr(value, "__array__") or not hasattr(value, "shape"):
        return value
    require(
        tuple(value.shape) == (),
        f"{where}: {brief(value)} is an array, of shape {tuple(value.shape)}; write a number, or "
        "a tuple: tuple(x.tolist())",
    )
    require(not np.ma.is_masked(value), f"{where}: a masked value is not a number")
    try:
        return _number(np.asarray(value)[()])
    except Exception as error:  # a tracer, a random key, bytes, a tensor elsewhere
        raise BadInput(f"{where}: {brief(value)} is not a number: {brief(error)}") from error


def _number(value: np.generic) -> Any:
    """A scalar of numpy as Python's."""
    if not np.issubdtype(value.dtype, np.floating) and value.dtype.kind != "V":
        return value.item()
    if value.dtype.names is not None or value.dtype.itemsize >= 8:
        return float(value) if value.dtype.kind == "f" else value.item()
    exact = float(value)  # `item` of bfloat16 and its kin, of kind "V", is a float as well
    digits = (float(f"{exact:.{count}g}") for count in range(1, 18))
    with np.errstate(over="ignore"):
        return next((short for short in digits if value.dtype.type(short) == value), exact)


# --------------------------------------------------------------------------------------------- keys


def _items(section) -> list[tuple[Any, Any]]:
    """The (key, value) pairs of a section, with lazy values as they are."""
    if isinstance(section, ml_collections.ConfigDict):
        return list(section.items(preserve_field_references=True))
    return list(section.items())


def check_evaluator(where: str, name: Any) -> None:
    """Raises `BadInput` unless `name` can be an evaluator's: it stands between dots in the keys of
    a config, and between slashes in those of the log."""
    valid = isinstance(name, str) and name.isprintable() and not set(name) & set("./=")
    require(
        valid and 0 < len(name) <= LONGEST and name == name.strip(),
        f"{where}: the key {brief(name)} is not a name of an evaluator: up to {LONGEST} "
        "characters, none of them '.', '/' or '=', and no space at its ends",
    )


def _check_keys(section, where: str, above: tuple = ()) -> None:
    require(id(section) not in above, f"{where}: a section that contains itself")
    try:
        items = _items(section)
    except TypeError as error:  # a ConfigDict sorts its keys
        raise BadInput(f"{where}: some keys are not strings ({error})") from error
    for key, value in items:
        if where == "config.evals":
            check_evaluator(where, key)
        else:
            valid = isinstance(key, str) and re.fullmatch(r"[\w-]+", key) and key.isascii()
            require(
                bool(valid),
                f"{where}: the key {brief(key)} is not a name: letters, digits, '_' and '-'",
            )
        if isinstance(value, ml_collections.ConfigDict | Mapping):
            _check_keys(value, f"{where}.{key}", (*above, id(section)))


def _to_python(section: ml_collections.ConfigDict, where: str) -> None:
    """Replaces scalars and arrays of a section by plain values and unlocks it, in place."""
    section.unlock()
    for key, value in _items(section):
        at, lazy = f"{where}.{key}", isinstance(value, FieldReference)
        if isinstance(value, ml_collections.ConfigDict):
            _to_python(value, at)
            continue
        current = value.get() if lazy else value
        plain = python(at, current)
        if plain is current:
            continue
        if lazy:
            follow = lambda _, value=value, at=at: python(at, value.get())
            plain = FieldReference(plain, field_type=type(plain), op=_Step(follow))
        with section.ignore_type():
            del section[key]
            section[key] = plain


def check_lazy(section: ml_collections.ConfigDict, where: str) -> None:
    """Raises `BadInput`, naming the key, if a value that follows others cannot be computed."""
    for key, value in _items(section):
        at = f"{where}.{key}"
        if isinstance(value, ml_collections.ConfigDict):
            check_lazy(value, at)
        if not isinstance(value, FieldReference):
            continue
        try:
            value.get()
        except RequiredValueError as error:
            raise BadInput(f"{at}: a required placeholder; give it a value in the file") from error
        except BadInput:
            raise
        except Exception as error:  # whatever computes it
            kind = type(error).__name__
            raise BadInput(
                f"{at}: cannot be computed from the values that it follows: {kind}: {error}"
            ) from error
