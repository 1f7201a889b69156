"""Load a config file, complete it, check it, override it, and write it as JSON.

A config has sections, and each section is the keyword-only arguments of exactly one function (or
the fields of one linen module). That function is the only place where a key, its type and its
default are written: `load` adds what the file leaves out, so every knob can be overridden and is
on record, and a key that the function does not have is an error that names the nearest one.
Whatever a user can mend is raised as `BadInput`: one line, exit code 2, before anything is
compiled or written.
"""

import copy
import dataclasses
import importlib.util
import inspect
import json
import numbers
import pathlib
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import ml_collections
from absl import flags
from ml_collections import config_flags
from ml_collections.config_dict import placeholder

from common.errors import BadInput, choice, nearest, require

# Keys that choose the function of a section. Overriding one resets the section that it governs to
# the defaults of the newly chosen function: the old one's arguments would not fit.
SELECTORS = {"model.module": "model", "optim.name": "optim.direction"}
# What an evaluator of another `kind` keeps: every kind has these keys.
EVALUATOR_KEYS = ("split", "every", "batch_size")

# Sections whose floats become traced numbers, so that a change of value compiles nothing anew.
TRACED = ("model", "augment", "loss", "optim")


# ---------------------------------------------------------------------------------------- sections


class Parameter(NamedTuple):
    """A key of a section: its annotation and its default (`inspect.Parameter.empty` if
    required)."""

    annotation: Any
    default: Any


class Selected(NamedTuple):
    """A section one of whose keys names the function that the other keys feed.

    Attributes:
      selector: that key, a string.
      default: its value where the config sets none.
      function: the function named; its keywords, or fields, are the other keys.
      fixed: of these, the ones that the caller provides, which are no keys.
    """

    selector: str
    default: str
    function: Callable
    fixed: tuple[str, ...] = ()


def parameters(function: Callable | Selected) -> dict[str, Parameter]:
    """The keys of the section that feeds `function`.

    For a function these are its keyword-only arguments. For a linen module class they are its
    fields that have a default and are not callables: the others are known only at run time.
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


def _fits(value: Any, annotation: Any) -> bool:
    """Whether `value` may stand where `annotation` is written."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(v, args[0]) for v in value)
        return len(value) == len(args) and all(map(_fits, value, args))
    if annotation is None or annotation is type(None):
        return value is None
    if origin is not None and inspect.isclass(origin):  # Sequence[int] and the like
        return isinstance(value, origin)
    if not inspect.isclass(annotation):
        return True
    if annotation in (float, int) and isinstance(value, bool):
        return False
    if annotation is float:
        return isinstance(value, numbers.Real)
    return isinstance(value, annotation)


def spelled(annotation: Any) -> str:
    """`annotation` as a user would say it: 'float or None', "one of 'sgd', 'adamw'"."""
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
    if _fits(value, annotation):
        return
    if typing.get_origin(annotation) is typing.Literal and isinstance(value, str):
        choice(where, value, typing.get_args(annotation))
    raise BadInput(f"{where}: {value!r} is not {spelled(annotation)}")


def complete(config: ml_collections.ConfigDict, sections: dict[str, Callable]) -> None:
    """Adds to `config` what it leaves out and checks what it has, against the function a section.

    Raises:
      BadInput: for an unknown section or key, a missing required key, or a value of a wrong type.
    """
    parents = {name.rsplit(".", 1)[0] for name in sections if "." in name} | {"evals"}
    top = {name.split(".")[0] for name in sections} | {"evals"}
    if config.get("evals") is None:
        config.evals = ml_collections.ConfigDict()
    for key in config:
        require(
            key in top | {"seed", "task"}, f"config.{key}: unknown section; {nearest(key, top)}"
        )
    for where, function in sections.items():
        section = config
        for part in where.split("."):
            if part not in section or section[part] is None:
                section[part] = ml_collections.ConfigDict()
            section = section[part]
            require(
                isinstance(section, ml_collections.ConfigDict),
                f"config.{where}: expected a section of keys, got {section!r}",
            )
        known = parameters(function)
        inner = {name.rsplit(".", 1)[1] for name in sections if name.startswith(f"{where}.")}
        for key in section:
            valid = set(known) | inner
            require(key in valid, f"config.{where}.{key}: unknown key; {nearest(key, valid)}")
        for key, parameter in known.items():
            if key not in section:
                empty = parameter.default is inspect.Parameter.empty
                require(not empty, f"config.{where}.{key}: required, and not set")
                section[key] = _default(parameter)
                continue
            value = section[key]
            _check_value(f"config.{where}.{key}", value, parameter)
            kinds = typing.get_args(parameter.annotation) or (parameter.annotation,)
            if type(value) is int and float in kinds and int not in kinds:
                del section[key]
                section[key] = float(value)
    for parent in parents - set(sections):
        inner = {n[len(parent) + 1 :] for n in sections if n.startswith(f"{parent}.")}
        for key in config.get(parent) or {}:
            require(key in inner, f"config.{parent}.{key}: unknown; {nearest(key, inner)}")


def _default(parameter: Parameter) -> Any:
    if parameter.default is not None:
        return parameter.default
    kinds = [a for a in typing.get_args(parameter.annotation) if a is not type(None)]
    kind = typing.get_origin(kinds[0]) or kinds[0] if kinds else object
    return placeholder(kind if kind in (int, float, str, bool, tuple) else object)


def call(function: Callable, section: dict, *runtime) -> Any:
    """`function(*runtime, **section)`, leaving out the section's nested sections."""
    known = parameters(function)
    return function(*runtime, **{k: v for k, v in section.items() if k in known})


# ----------------------------------------------------------------------------------------- loading


def experiment(path: str) -> tuple[types.ModuleType, str]:
    """`FILE.py:ARG` as (the file's module, the argument of its `get_config`).

    Raises:
      BadInput: if there is no such config file. What the file itself raises is left as it is: it is
        code.
    """
    file, _, arg = path.partition(":")
    require(pathlib.Path(file).is_file(), f"--config: no such file: {file}")
    spec = importlib.util.spec_from_file_location("experiment_config", file)
    require(spec is not None, f"--config: {file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    require(hasattr(module, "get_config"), f"--config: {file} defines no get_config")
    return module, arg


def load(
    path: str, overrides: Sequence[str], sections: Callable[[ml_collections.ConfigDict], dict]
) -> ml_collections.ConfigDict:
    """Loads `FILE.py` or `FILE.py:ARG`, completes and checks it, and applies the overrides.

    Args:
      path: a config file, with the argument of its `get_config` behind a colon.
      overrides: as on a command line: `--config.optim.lr=1e-3`, `--config.train.batch_size 64`.
      sections: config -> {section: the function that it feeds}.

    Returns:
      The locked config, with every key of every section in it.

    Raises:
      BadInput: for a missing file, an unknown key or a wrong type.
    """
    module, arg = experiment(path)
    return overridden(ml_collections.ConfigDict(module.get_config(arg)), overrides, sections)


def overridden(
    config: ml_collections.ConfigDict,
    overrides: Sequence[str],
    sections: Callable[[ml_collections.ConfigDict], dict],
) -> ml_collections.ConfigDict:
    """Completes and checks `config`, applies the overrides, and locks it; see `load`."""
    pairs = _split(overrides)
    for name in config.get("evals") or {}:
        key = f"evals.{name}.kind"
        if key in pairs and _get(config, key) != pairs[key]:
            section = config.evals[name]
            kept = {k: v for k, v in section.items() if k in EVALUATOR_KEYS}
            config.evals[name] = ml_collections.ConfigDict(kept | {"kind": pairs[key]})
    for key, governed in SELECTORS.items():
        if key not in pairs or _get(config, key) == pairs[key]:
            continue
        parent, _, last = key.rpartition(".")
        named = _get(config, key) is not None
        if config.get(parent) is None or (named and governed == parent):
            config[parent] = ml_collections.ConfigDict()
        elif named:
            config[parent][governed.rpartition(".")[2]] = ml_collections.ConfigDict()
        config[parent][last] = pairs[key]
    if "task" in pairs:
        config.task = pairs["task"]
    if "seed" not in config:
        config.seed = 0
    require(isinstance(config.seed, int), f"config.seed: {config.seed!r} is not int")
    complete(config, sections(config))
    config.lock()
    _override(config, pairs, sections(config))
    complete(config, sections(config))
    return config


def _split(overrides: Sequence[str]) -> dict[str, str]:
    """['--config.a.b=1', '--config.c', '2'] -> {'a.b': '1', 'c': '2'}."""
    pairs, rest = {}, list(overrides)
    while rest:
        word = rest.pop(0)
        matched = re.fullmatch(r"--config\.([\w.]+)(?:=(.*))?", word, re.DOTALL)
        require(
            matched is not None, f"unknown argument {word!r}; overrides look like --config.seed=1"
        )
        key, value = matched.groups()
        if value is None:
            require(bool(rest), f"--config.{key}: no value given")
            value = rest.pop(0)
        pairs[key] = value
    return pairs


def _get(config, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, ml_collections.ConfigDict) else None
    return config


def flatten(config) -> dict[str, Any]:
    """A config or nested dict as {'optim.lr': 0.1, …}; a tuple is one value."""
    flat = {}
    for key, value in dict(config).items():
        if isinstance(value, dict | ml_collections.ConfigDict):
            flat |= {f"{key}.{k}": v for k, v in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def differing(a, b) -> dict[str, tuple[str, str]]:
    """{key: (its value in a, in b)} of what differs between two configs or nested dicts, spelled;
    a key that one of them lacks is "not there"."""
    a, b = flatten(a), flatten(b)
    said = lambda values, key: repr(values[key]) if key in values else "not there"
    return {
        key: (said(a, key), said(b, key))
        for key in sorted(a.keys() | b.keys())
        if key not in a or key not in b or a[key] != b[key]
    }


def _override(config: ml_collections.ConfigDict, pairs: dict[str, str], sections: dict) -> None:
    known = flatten(config)
    for key in pairs:
        require(key in known, f"--config.{key}: unknown key; {nearest(key, known)}")
    for key in [key for key, text in pairs.items() if text == "None"]:
        where, _, last = key.rpartition(".")
        optional = where in sections and _fits(None, parameters(sections[where])[last].annotation)
        require(optional, f"--config.{key}: cannot be None")
        with config.ignore_type():
            _get(config, where)[last] = None
    pairs = {key: text for key, text in pairs.items() if text != "None"}
    argv = ["config", *(f"--config.{key}={value}" for key, value in pairs.items())]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, TypeError, ValueError, AttributeError, KeyError, SyntaxError) as error:
        bad = [k for k in pairs if f"config.{k}" in str(error)] or list(pairs)
        kind = type(known[bad[0]]).__name__
        raise BadInput(
            f"--config.{bad[0]}: {pairs[bad[0]]!r} does not fit: the value there is "
            f"{known[bad[0]]!r}" + ("" if known[bad[0]] is None else f" ({kind})")
        ) from error


# ------------------------------------------------------------------------------------------- JSON


def plain(config: ml_collections.ConfigDict) -> dict:
    """The config as nested dicts of plain values; unset placeholders are None."""
    return config.to_dict(preserve_field_references=False)


def completed(config: dict, sections: Callable) -> dict:
    """The config of an earlier run with the defaults of keys that there were not when it began,
    which mean what was without them. One that cannot be completed is left as it is.

    Args:
      config: nested dicts.
      sections: as in `load`.
    """
    whole = ml_collections.ConfigDict(config)
    try:
        complete(whole, sections(whole))
    except Exception:  # whatever the module of its task raises
        return config
    return plain(whole)


def changed(config, **overrides) -> dict:
    """A copy of a config as nested dicts with keys replaced:
    changed(c, **{"train.batch_size": 8})."""
    config = copy.deepcopy(config if isinstance(config, dict) else plain(config))
    for key, value in overrides.items():
        *parents, last = key.split(".")
        section = config
        for part in parents:
            section = section[part]
        section[last] = value
    return config


def to_json(config: dict) -> str:
    """Nested dicts as sorted, indented JSON. Tuples become lists; `from_json` turns them back."""
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> dict:
    """The inverse of `to_json` for configs, which hold tuples and never lists."""

    def tuples(value):
        if isinstance(value, list):
            return tuple(map(tuples, value))
        return {k: tuples(v) for k, v in value.items()} if isinstance(value, dict) else value

    return tuples(json.loads(text))


# ---------------------------------------------------------------------------------- traced numbers


def traced(config: dict) -> dict[str, float]:
    """The numbers that enter the step as traced values: `seed` and the floats of `TRACED`
    sections."""
    flat = {k: v for k, v in flatten(config).items() if k.split(".")[0] in TRACED}
    return {"seed": config["seed"]} | {k: v for k, v in flat.items() if isinstance(v, float)}


def substitute(config: dict, values: dict[str, Any]) -> dict:
    """A copy of the nested dict `config` with `values` ({'optim.lr': …}) put in."""

    def walk(section, prefix):
        return {
            key: walk(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else values.get(f"{prefix}{key}", value)
            for key, value in section.items()
        }

    return walk(config, "")


def untraced(config: dict) -> dict[str, Any]:
    """What is compiled: a config, flat, with the names of its traced numbers in their places. Runs
    that share it share their programs."""
    flat = flatten(config)
    return flat | {key: f"the number {key}" for key in traced(config)}
