"""Models by their import path: `config.model.module = "vision.cnn:CNN"`, the other keys its fields.

Any importable linen module will do, if it meets its task's requirements and has a `PARTITION`: a
table, or a property that builds one from the fields.
"""

import dataclasses
import importlib
from collections.abc import Callable

import flax.linen as nn

from common.errors import BadInput, require
from common.sections import Selected


def model_class(name: str) -> type[nn.Module]:
    """Imports a linen module class, 'package.module:Class'. Raises `BadInput` if it cannot."""
    path, _, cls = name.partition(":")
    try:
        model = getattr(importlib.import_module(path), cls)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"config.model.module: {name!r}: {error}; write 'vision.cnn:CNN'") from error
    require(hasattr(model, "PARTITION"), f"config.model.module: {name!r} has no PARTITION table")
    return model


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


def build(values: dict, constrain: Callable, **given) -> nn.Module:
    """Builds the model of a section `model`.

    Args:
      values: the section; its floats may be traced.
      constrain: pins activations to a mesh, for modules with a field `constrain`.
      given: fields that the task sets.

    Raises:
      BadInput: for a module whose required fields are not those the task sets, or a dropout rate
        outside [0, 1).
    """
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
        if name.endswith("dropout") and isinstance(value, float):
            require(0 <= value < 1, f"config.model.{name}: {value} is not in [0, 1)")
    return cls(**fields)
