"""Models by their import path: `config.model.module = "vision.cnn:CNN"`, the other keys its fields.

Any importable linen module will do, if it meets its task's requirements and has a `PARTITION`: a
table, or a property that builds one from the fields.
"""

import contextlib
import dataclasses
import inspect
import traceback
from collections.abc import Callable, Iterator

import flax.linen as nn

from common import imports, tree
from common.compress import lora, quantize
from common.errors import BadInput, brief, nearest, require
from common.sections import Selected

EXAMPLE = "vision.cnn:CNN"


def model_class(name: str) -> type[nn.Module]:
    """Imports a linen module class, 'package.module:Class'. Raises `BadInput` if it cannot."""
    where = "config.model.module"
    path, _, cls = name.partition(":") if isinstance(name, str) else ("", "", "")
    valid = bool(path) and cls.isidentifier()
    require(valid, f"{where}: {brief(name)} is not 'package.module:Class'; write {EXAMPLE!r}")
    module = imports.module(where, path, EXAMPLE)
    model = getattr(module, cls, None)
    classes = [
        k for k, v in vars(module).items() if inspect.isclass(v) and issubclass(v, nn.Module)
    ]
    hint = f"{nearest(cls, classes)}{imports.hidden(path)}"
    require(model is not None, f"{where}: {name!r}: no such class; {hint}")
    linen = inspect.isclass(model) and issubclass(model, nn.Module)
    require(linen, f"{where}: {name!r} is not a linen module; {hint}")
    require(hasattr(model, "PARTITION"), f"{where}: {name!r} has no PARTITION table")
    imports.say_hidden(where, path)
    return model


@contextlib.contextmanager
def explained(values: dict) -> Iterator[None]:
    """Turns errors that a model raises while it is traced into `BadInput`: they come of fields that
    make no model, or of a mistake in it. The message names its fields and its line.

    Args:
      values: the section `model`; of one without `module` errors pass unchanged.
    """
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        if "module" not in values:  # a task that makes its model otherwise
            raise
        cls = model_class(values["module"])
        file = imports.file_of(cls)
        if not any(frame.filename == file for frame in traceback.extract_tb(error.__traceback__)):
            raise
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        own = {k: v for k, v in values.items() if k in defaults and v != defaults[k]}
        fields = ", ".join(f"{k}={brief(v)}" for k, v in own.items()) or "its defaults"
        raise BadInput(
            f"config.model: {values['module']} makes no model for this data with {fields}: "
            f"{imports.described(error, file)}"
        ) from error


def check_shapes(params) -> None:
    """Raises `BadInput` if a parameter is empty, or one of its dimensions is 2^31 or more: then a
    field of the model is no size."""
    for path, leaf in tree.flatten(params).items():
        require(
            all(0 < size < 1 << 31 for size in leaf.shape),
            f"config.model: the parameter {path} would be {list(leaf.shape)}: its fields are no "
            "sizes of a model",
        )


def fields_of(cls: type) -> set[str]:
    """The names of a linen module's fields."""
    return {field.name for field in dataclasses.fields(cls)}


def section(config, default: str, given: tuple[str, ...]) -> Selected:
    """The section `model`: `module` names a class, and the other keys are its fields.

    Args:
      config: the config, possibly incomplete.
      default: the module if the config names none.
      given: fields that the task sets, such as the number of classes.
    """
    cls = model_class((config.get("model") or {}).get("module", default))
    return Selected("module", default, cls, given)


def build(config: dict, constrain: Callable, **given) -> nn.Module:
    """Builds the model of a config: its section `model`, compressed as its section `compress` says.

    Args:
      config: nested dict; the floats of `model` may be traced.
      constrain: pins activations to a mesh, for modules with a field `constrain`.
      given: fields that the task sets.

    Raises:
      BadInput: for a module whose required fields are not those the task sets, a dropout rate
        outside [0, 1), or a size of 2^31 or more.
    """
    values = config["model"]
    cls = model_class(values["module"])
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    required -= {
        f.name for f in dataclasses.fields(cls) if f.default_factory is not dataclasses.MISSING
    }
    lacking, idle = sorted(required - set(given)), sorted(set(given) - fields_of(cls))
    require(
        not lacking and not idle,
        f"config.model.module: {values['module']!r} is not a model for this task: it "
        + (f"needs {', '.join(lacking)}" if lacking else f"has no field {', '.join(idle)}"),
    )
    fields = {k: v for k, v in values.items() if k != "module"} | given
    if "constrain" in fields_of(cls):
        fields["constrain"] = constrain
    for name, value in fields.items():
        numbers = value if isinstance(value, tuple) else (value,)
        for number in numbers:
            small = type(number) is not int or abs(number) < 1 << 31
            require(small, f"config.model.{name}: {brief(value)}: {number} is too large a size")
        if name.endswith("dropout") and isinstance(value, float):
            require(0 <= value < 1, f"config.model.{name}: {value} is not in [0, 1)")
    require(
        not (lora.of(config).rank and quantize.of(config).weights),
        "config.compress: lora or quantize, not both: begin another run by config.init.path, which "
        "merges the updates",
    )
    return quantize.applied(lora.applied(cls(**fields), config), config)
