"""Loads a config file, completes, checks and overrides it, and writes it as JSON.

Each section of a config is the keyword-only arguments of exactly one function (or the fields of one
linen module). Only that function defines a key, its type and its default: `load` adds what the file
leaves out, so every knob can be overridden and is on record, and an unknown key is an error that
names the nearest one. Errors that a user can fix raise `BadInput`: one line, exit code 2, before
anything is compiled or written.
"""

import copy
import importlib.util
import json
import pathlib
import re
import types
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from common.errors import BadInput, nearest, require
from common.sections import complete, fits, parameters

# Keys that choose a section's function. Overriding one resets the section it governs to the new
# function's defaults: the old one's arguments would not fit.
SELECTORS = {"model.module": "model", "optim.name": "optim.direction"}
# Keys that every kind of evaluator has, kept when an override changes its `kind`.
EVALUATOR_KEYS = ("split", "every", "batch_size")

# Sections whose floats become traced numbers, so that a new value recompiles nothing.
TRACED = ("model", "augment", "loss", "optim")


# ----------------------------------------------------------------------------------------- loading


def experiment(path: str) -> tuple[types.ModuleType, str]:
    """`FILE.py:ARG` as (the file's module, the argument of its `get_config`).

    Raises:
      BadInput: if there is no such config file. Errors raised by the file itself, which is code,
        pass through.
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
      path: a config file, optionally with a colon and the argument of its `get_config`.
      overrides: as on a command line: `--config.optim.lr=1e-3`, `--config.train.batch_size 64`.
      sections: config -> {section: the function it feeds}.

    Returns:
      The locked config, with every key of every section.

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
    pairs, words = {}, list(overrides)
    while words:
        word = words.pop(0)
        matched = re.fullmatch(r"--config\.([\w.]+)(?:=(.*))?", word, re.DOTALL)
        require(
            matched is not None, f"unknown argument {word!r}; overrides look like --config.seed=1"
        )
        key, value = matched.groups()
        if value is None:
            require(bool(words), f"--config.{key}: no value given")
            value = words.pop(0)
        pairs[key] = value
    return pairs


def _get(config, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, ml_collections.ConfigDict) else None
    return config


def flatten(config) -> dict[str, Any]:
    """Flattens a config or nested dict to {'optim.lr': 0.1, …}; a tuple is one value."""
    flat = {}
    for key, value in dict(config).items():
        if isinstance(value, dict | ml_collections.ConfigDict):
            flat |= {f"{key}.{k}": v for k, v in flatten(value).items()}
        else:
            flat[key] = value
    return flat


def differing(a, b) -> dict[str, tuple[str, str]]:
    """{key: (repr in a, repr in b)} of the keys in which two configs or nested dicts differ; a
    missing one is "not there"."""
    a, b = flatten(a), flatten(b)
    spelled = lambda values, key: repr(values[key]) if key in values else "not there"
    return {
        key: (spelled(a, key), spelled(b, key))
        for key in sorted(a.keys() | b.keys())
        if key not in a or key not in b or a[key] != b[key]
    }


def _override(config: ml_collections.ConfigDict, pairs: dict[str, str], sections: dict) -> None:
    known = flatten(config)
    for key in pairs:
        require(key in known, f"--config.{key}: unknown key; {nearest(key, known)}")
    for key in [key for key, text in pairs.items() if text == "None"]:
        where, _, last = key.rpartition(".")
        optional = where in sections and fits(None, parameters(sections[where])[last].annotation)
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
    """A config saved by an older version: keys added since get backward-compatible defaults. One
    that cannot be completed is returned unchanged.

    Args:
      config: nested dicts.
      sections: as in `load`.
    """
    updated = ml_collections.ConfigDict(config)
    try:
        complete(updated, sections(updated))
    except Exception:  # whatever its task's module raises
        return config
    return plain(updated)


def changed(config, **overrides) -> dict:
    """A copy of a config as nested dicts, with keys replaced:
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
    """The numbers that enter the step as traced values: `seed` and the floats in `TRACED`
    sections."""
    flat = {k: v for k, v in flatten(config).items() if k.split(".")[0] in TRACED}
    return {"seed": config["seed"]} | {k: v for k, v in flat.items() if isinstance(v, float)}


def substitute(config: dict, values: dict[str, Any]) -> dict:
    """A copy of the nested dict `config` with `values` ({'optim.lr': …}) substituted."""

    def walk(section, prefix):
        return {
            key: walk(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else values.get(f"{prefix}{key}", value)
            for key, value in section.items()
        }

    return walk(config, "")


def untraced(config: dict) -> dict[str, Any]:
    """Compilation key: the flat config with traced numbers replaced by their names. Runs with the
    same key share compiled programs."""
    flat = flatten(config)
    return flat | {key: f"the number {key}" for key in traced(config)}
