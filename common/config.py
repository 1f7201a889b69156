"""Loads a config file, completes, checks and overrides it, and writes it as JSON.

Each section of a config is the keyword-only arguments of exactly one function (or the fields of one
linen module). Only that function defines a key, its type and its default: `load` adds what the file
leaves out, so every knob can be overridden and is on record, and an unknown key is an error that
names the nearest one. Errors that a user can fix raise `BadInput`: one line, exit code 2, before
anything is compiled or written.
"""

import copy
import difflib
import functools
import importlib.util
import inspect
import json
import logging
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from common import imports, inputs
from common.errors import BadInput, brief, nearest, require
from common.sections import complete, fits, has_words, parameters
from common.values import adopted, check_evaluator, check_lazy

# Keys that choose a section's function. Overriding one resets the section it governs to the new
# function's defaults: the old one's arguments would not fit.
SELECTORS = {"model.module": "model", "optim.name": "optim.direction"}
# Keys that every kind of evaluator has, kept when an override changes its `kind`.
EVALUATOR_KEYS = ("split", "every", "batch_size")

# Sections whose floats become traced numbers, so that a new value recompiles nothing.
TRACED = ("model", "augment", "loss", "optim")


# ----------------------------------------------------------------------------------------- loading


def experiment(path: str) -> tuple[types.ModuleType, str | None]:
    """`FILE.py:ARG` as (the file's module, the argument of its `get_config`; None without a colon).

    The module's `get_config` takes that argument and returns a `ConfigDict` of plain values
    (`adopted`). For None the file's own is called without an argument, so that its default counts,
    or with "" if it requires one.

    Raises:
      BadInput: if there is no such config file, or it raises, with its line and error.

    From then on, modules of the file's folder and of the current one can be imported.
    """
    file, colon, arg = path.partition(":")
    require(bool(file), "--config: it is empty; name a config file: FILE.py or FILE.py:VARIANT")
    inputs.file("--config", file)
    require(file.endswith(".py"), f"--config: {inputs.shown(file)} is not a Python file")
    spec = importlib.util.spec_from_file_location("experiment_config", file)
    module = importlib.util.module_from_spec(spec)
    imports.search(os.path.dirname(os.path.abspath(file)), *imports.here())
    with imports.explained("--config", file):
        spec.loader.exec_module(module)
    require(
        callable(getattr(module, "get_config", None)),
        f"--config: {file} defines no function get_config",
    )
    module.get_config = functools.partial(_get_config, module.get_config, file)
    return module, arg if colon else None


def _get_config(function: Callable, file: str, arg: str | None = None) -> ml_collections.ConfigDict:
    """The config that a file's `get_config` returns for the argument of `experiment`."""
    try:
        takes = inspect.signature(function)
    except (TypeError, ValueError) as error:  # of a type that is not written in Python
        text = f"--config: {file}: get_config is {brief(function)}; write a function"
        raise BadInput(text) from error
    calls = ((), ("",)) if arg is None else ((arg,), ())
    arguments = next((call for call in calls if _binds(takes, *call)), None)
    require(
        arguments is not None,
        f"--config: {file}: get_config{takes} must be callable with one argument, or without any",
    )
    require(
        bool(arguments) or not arg,
        f"--config: {file}: get_config{takes} takes no argument, so there is no variant {arg!r}; "
        f"leave out ':{arg}'",
    )
    with imports.explained("--config", file):
        config = function(*arguments)
    kinds = ml_collections.ConfigDict | Mapping
    require(
        isinstance(config, kinds),
        f"--config: {file}: get_config returned {_typed(config)}, not an ml_collections.ConfigDict",
    )
    return adopted(config)


def _binds(signature: inspect.Signature, *arguments) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def _typed(value: Any) -> str:
    """A value and its type, for messages."""
    return "None" if value is None else f"{brief(value)} ({type(value).__name__})"


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
      BadInput: for a missing file or one that raises, an unknown key or a wrong type.
    """
    module, arg = experiment(path)
    return overridden(module.get_config(arg), overrides, sections)


def overridden(
    config: ml_collections.ConfigDict,
    overrides: Sequence[str],
    sections: Callable[[ml_collections.ConfigDict], dict],
) -> ml_collections.ConfigDict:
    """Completes and checks `config`, applies the overrides, and locks it; see `load`."""
    pairs = _split(overrides)
    for key, section in config.items():
        kinds = ml_collections.ConfigDict | None
        if key not in ("seed", "task") and not isinstance(section, kinds):
            raise BadInput(f"config.{key}: expected a section of keys, got {_typed(section)}")
    pairs = _choose_evaluators(config, pairs)
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
    require(fits(config.seed, int), f"config.seed: {_typed(config.seed)} is not int")
    complete(config, sections(config), coming=pairs)
    config.lock()
    _override(config, pairs, sections(config))
    complete(config, sections(config))
    return config


def in_full(config, sections: Callable[[ml_collections.ConfigDict], dict]) -> dict:
    """A config made in Python, a `ConfigDict` or nested dicts, completed and checked as `load` does
    it: nested dicts with every key. The argument is unchanged."""
    require(
        isinstance(config, ml_collections.ConfigDict | Mapping),
        f"config: {_typed(config)} is neither a ConfigDict nor a dict",
    )
    return plain(overridden(adopted(config), (), sections))


def _split(overrides: Sequence[str]) -> dict[str, str]:
    """['--config.a.b=1', '--config.c', '2'] -> {'a.b': '1', 'c': '2'}, in order; the last word on a
    key counts."""
    pairs, words = {}, list(overrides)
    while words:
        word = words.pop(0)
        matched = re.fullmatch(r"--config\.([^=]+)(?:=(.*))?", word, re.DOTALL)
        require(
            matched is not None, f"unknown argument {word!r}; overrides look like --config.seed=1"
        )
        key, value = matched.groups()
        if value is None:
            require(bool(words), f"--config.{key}: no value given")
            value = words.pop(0)
        pairs.pop(key, None)
        pairs[key] = value
    return pairs


def _choose_evaluators(config: ml_collections.ConfigDict, pairs: dict[str, str]) -> dict[str, str]:
    """Drops the evaluators of `--config.evals.NAME=None` with what was said of them before, adds
    those with keys and no section yet, and resets those whose kind changes, in place; returns the
    other overrides."""
    if config.get("evals") is None:
        config.evals = ml_collections.ConfigDict()
    known, kept = list(config.evals), {}
    for key, value in pairs.items():
        kept[key] = value
        top, _, rest = key.partition(".")
        name, _, last = rest.partition(".")
        if top != "evals" or "." in last:
            continue
        if value == "None" and not last:
            said = any(other.startswith(f"{key}.") for other in pairs)
            require(
                not name or name in known or said,
                f"--config.{key}: no such evaluator; {nearest(name, known)}",
            )
            kept = {k: v for k, v in kept.items() if k != key and not k.startswith(f"{key}.")}
            for other in list(config.evals):
                if other == name or not name:
                    del config.evals[other]
        else:
            require(
                bool(last),
                f"--config.{key}: {value!r} does not fit: only None does, which drops it; keys are "
                f"set one by one, --config.{key if name else 'evals.NAME'}.split=test, and names "
                "of evaluators hold no '='",
            )
            _add_evaluator(config, name, known)
            if last == "kind" and _get(config, key) != value:
                own = {k: v for k, v in config.evals[name].items() if k in EVALUATOR_KEYS}
                config.evals[name] = ml_collections.ConfigDict(own | {"kind": value})
    return kept


def _add_evaluator(config: ml_collections.ConfigDict, name: str, known: Sequence[str]) -> None:
    """Adds an empty section of an evaluator, unless there is one."""
    if name in config.evals:
        return
    check_evaluator("--config.evals", name)
    config.evals[name] = ml_collections.ConfigDict()
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    if close and close[0] != name:
        logging.warning("--config.evals.%s: a new evaluator, beside %r", name, close[0])


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


def _meant(key: str, known: Iterable[str]) -> str:
    """A hint at what an unknown key means: the nearest of its section, or all of them."""
    where, _, last = key.rpartition(".")
    beside = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == where}
    if not where or not beside:
        return nearest(key, known)
    close = difflib.get_close_matches(last, beside, n=1, cutoff=0.5)
    return f"did you mean {beside[close[0]]!r}?" if close else f"{where} has {', '.join(beside)}"


def _override(config: ml_collections.ConfigDict, pairs: dict[str, str], sections: dict) -> None:
    known = flatten(config)
    for key in pairs:
        if key not in known:
            raise BadInput(f"--config.{key}: unknown key; {_meant(key, known)}")
    rest = {}
    for key, text in pairs.items():
        where, _, last = key.rpartition(".")
        parameter = parameters(sections[where]).get(last) if where in sections else None
        if text == "None":
            optional = parameter is not None and fits(None, parameter.annotation)
            require(optional, f"--config.{key}: cannot be None")
            value = None
        elif parameter is not None and has_words(parameter.annotation):
            value = _bool_or_word(text)
        else:
            rest[key] = text
            continue
        with config.ignore_type():  # ml_collections keeps to the type of the value that is there
            _get(config, where)[last] = value
    for key, text in rest.items():
        where, _, last = key.rpartition(".")
        # Under a name of our own, as theirs may hold what is no name of a flag.
        section = _get(config, where) if where else config
        holder = ml_collections.ConfigDict({"value": section.get_ref(last)})
        argv = ["config", f"--config.value={text}"]
        values = flags.FlagValues()
        config_flags.DEFINE_config_dict("config", holder, flag_values=values, sys_argv=argv)
        try:
            values(argv)
        except (flags.Error, TypeError, ValueError, AttributeError, KeyError, SyntaxError) as error:
            kind = "" if known[key] is None else f" ({type(known[key]).__name__})"
            raise BadInput(
                f"--config.{key}: {text!r} does not fit: the value there is {known[key]!r}{kind}"
            ) from error
    check_lazy(config, "config")


def _bool_or_word(text: str) -> bool | str:
    try:
        return flags.BooleanParser().parse(text)
    except ValueError:
        return text


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
