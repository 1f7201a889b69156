"""Config sections: each is the keyword-only arguments of one function, or a linen module's fields.

Only that function defines a key, its type and its default: `complete` adds what a config leaves
out, so every knob can be overridden and is on record, and an unknown key is an error that names the
nearest one.
"""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Container
from typing import Any, NamedTuple

import flax.linen as nn
import ml_collections
from ml_collections.config_dict import placeholder

from common.errors import BadInput, brief, choice, nearest, require


class Parameter(NamedTuple):
    """A key of a section: its annotation and its default (`inspect.Parameter.empty` if
    required)."""

    annotation: Any
    default: Any


class Selected(NamedTuple):
    """A section in which one key names the function that the other keys feed.

    Attributes:
      selector: that key, a string.
      default: its value if the config sets none.
      function: the named function; its keywords, or fields, are the other keys.
      fixed: those that the caller provides, which are not keys.
    """

    selector: str
    default: str
    function: Callable
    fixed: tuple[str, ...] = ()


def parameters(function: Callable | Selected) -> dict[str, Parameter]:
    """The keys of the section that feeds `function`.

    For a function these are its keyword-only arguments; for a linen module class, its fields that
    have a default that is not callable: the others are known only at run time.
    """
    if isinstance(function, Selected):
        keys = {k: v for k, v in parameters(function.function).items() if k not in function.fixed}
        return {function.selector: Parameter(str, function.default)} | keys
    hints = typing.get_type_hints(function)
    if inspect.isclass(function) and issubclass(function, nn.Module):
        return {
            field.name: Parameter(hints.get(field.name, Any), field.default)
            for field in dataclasses.fields(function)
            if field.name not in ("parent", "name")
            and field.default is not dataclasses.MISSING
            and not callable(field.default)
        }
    return {
        name: Parameter(hints.get(name, Any), p.default)
        for name, p in inspect.signature(function).parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }


def fits(value: Any, annotation: Any) -> bool:
    """Whether `annotation` allows `value`."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, a) for a in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(fits(v, args[0]) for v in value)
        return len(value) == len(args) and all(map(fits, value, args))
    if annotation is None or annotation is type(None):
        return value is None
    if origin is not None and inspect.isclass(origin):  # Sequence[int] and the like
        return isinstance(value, origin)
    if not inspect.isclass(annotation):
        return True
    if annotation in (float, int) and isinstance(value, bool):
        return False
    if annotation is float:
        return isinstance(value, int | float)
    return isinstance(value, annotation)


def has_words(annotation: Any) -> bool:
    """Whether `annotation` allows both a bool and strings: `bool | Literal["qkv"]`."""
    kinds = typing.get_args(annotation)
    return bool in kinds and any(typing.get_origin(kind) is typing.Literal for kind in kinds)


def spelled(annotation: Any) -> str:
    """`annotation` as a user would write it: 'float or None', "one of 'sgd', 'adamw'"."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(spelled, args))
    if origin is tuple:
        inner = ", ".join("…" if a is Ellipsis else spelled(a) for a in args)
        return f"a tuple ({inner})"
    return {type(None): "None"}.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _check_value(where: str, value: Any, parameter: Parameter) -> None:
    annotation = parameter.annotation
    if fits(value, annotation):
        _check_plain(where, value)
        return
    if typing.get_origin(annotation) is typing.Literal and isinstance(value, str):
        choice(where, value, typing.get_args(annotation))
    raise BadInput(f"{where}: {brief(value)} is not {spelled(annotation)}")


def _check_plain(where: str, value: Any) -> None:
    """Raises `BadInput` unless a value can be written as JSON and read back, and a number is finite
    and has at most 64 bits."""
    if type(value) is tuple:
        for item in value:
            _check_plain(where, item)
        return
    plain = value is None or type(value) in (bool, int, float, str)
    if not plain:
        raise BadInput(
            f"{where}: {brief(value)} is of type {type(value).__name__}; a config holds numbers, "
            "strings, True, False, None and tuples of these"
        )
    if type(value) is int:
        require(-(2**63) <= value < 2**63, f"{where}: {brief(value)} has more than 64 bits")
    if type(value) is float:
        require(math.isfinite(value), f"{where}: {value} is not a finite number")
    if type(value) is str:
        require(_encodes(value), f"{where}: {brief(value)} holds a character that no text has")


def _encodes(text: str) -> bool:
    """Whether a string is text: without NUL and halves of surrogate pairs."""
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def complete(
    config: ml_collections.ConfigDict, sections: dict[str, Callable], coming: Container[str] = ()
) -> None:
    """Adds missing keys to `config` and checks the others, against the function of each section.

    Keys that are `coming` may be required and still missing: they become placeholders. Messages are
    made only when they are needed: a sweep completes thousands of configs.

    Raises:
      BadInput: for an unknown section or key, a missing required key, or a value of the wrong type.
    """
    parents = {name.rsplit(".", 1)[0] for name in sections if "." in name} | {"evals"}
    top = {name.split(".")[0] for name in sections} | {"evals"}
    if config.get("evals") is None:
        config.evals = ml_collections.ConfigDict()
    for key in config:
        if key not in top | {"seed", "task"}:
            raise BadInput(f"config.{key}: unknown section; {nearest(key, top)}")
    missing = []
    for where, function in sections.items():
        section = config
        for part in where.split("."):
            if part not in section or section[part] is None:
                section[part] = ml_collections.ConfigDict()
            section = section[part]
            if not isinstance(section, ml_collections.ConfigDict):
                got = f"expected a section of keys, got {brief(section)}"
                raise BadInput(f"config.{where}: {got}")
        known = parameters(function)
        inner = {name.rsplit(".", 1)[1] for name in sections if name.startswith(f"{where}.")}
        valid = set(known) | inner
        for key in section:
            if key not in valid:
                raise BadInput(f"config.{where}.{key}: unknown key; {nearest(key, valid)}")
        for key, parameter in known.items():
            if key not in section:
                if parameter.default is inspect.Parameter.empty and f"{where}.{key}" not in coming:
                    missing.append(f"config.{where}.{key}")
                else:
                    section[key] = _default(parameter)
                continue
            value = section[key]
            _check_value(f"config.{where}.{key}", value, parameter)
            if dict(section.items(preserve_field_references=True))[key] is None:
                section[key] = _unset(parameter)  # overrides can set it
            kinds = typing.get_args(parameter.annotation) or (parameter.annotation,)
            if type(value) is int and float in kinds and int not in kinds:
                del section[key]
                section[key] = float(value)
    flags = " ".join(f"--{key}=…" for key in missing)
    require(not missing, f"{', '.join(missing)}: required, but not set: give {flags}")
    for parent in parents - set(sections):
        inner = {n[len(parent) + 1 :] for n in sections if n.startswith(f"{parent}.")}
        for key in config.get(parent) or {}:
            if key not in inner:
                raise BadInput(f"config.{parent}.{key}: unknown; {nearest(key, inner)}")


def _default(parameter: Parameter) -> Any:
    if parameter.default is None or parameter.default is inspect.Parameter.empty:
        return _unset(parameter)
    return parameter.default


def _unset(parameter: Parameter) -> Any:
    """None, of the type that the value would have."""
    annotation = parameter.annotation
    kinds = [a for a in typing.get_args(annotation) or (annotation,) if a is not type(None)]
    kind = typing.get_origin(kinds[0]) or kinds[0] if kinds else object
    return placeholder(kind if kind in (int, float, str, bool, tuple) else object)


def call(function: Callable, section: dict, *runtime) -> Any:
    """`function(*runtime, **section)`, leaving out the section's nested sections."""
    known = parameters(function)
    return function(*runtime, **{k: v for k, v in section.items() if k in known})
