"""Models by their import path: `config.model.module = "vision.cnn:CNN"`, the other keys its fields.

Any linen module in any file that Python can import will do, if it has what its task asks for and a
`PARTITION`: a table, or a property that makes one from the fields.
"""

import dataclasses
import importlib
from collections.abc import Callable

import flax.linen as nn

from common.errors import BadInput, require
from common.sections import Selected


def model_class(name: str) -> type[nn.Module]:
    """The linen module class at 'package.module:Class'. Raises `BadInput` if there is none."""
    path, _, cls = name.partition(":")
    try:
        found = getattr(importlib.import_module(path), cls)
    except (ImportError, AttributeError, ValueError) as error:
        raise BadInput(f"config.model.module: {name!r}: {error}; write 'vision.cnn:CNN'") from error
    require(hasattr(found, "PARTITION"), f"config.model.module: {name!r} has no PARTITION table")
    return found


def fields_of(cls: type) -> set[str]:
    """The names of a linen module's fields."""
    return {field.name for field in dataclasses.fields(cls)}


def section(config, default: str, given: tuple[str, ...]) -> Selected:
    """What the section `model` feeds: `module` names a class, and the other keys are its fields.

    Args:
      config: the config, as far as it is there.
      default: the module where the config names none.
      given: fields that the task sets: the number of classes, say.
    """
    cls = model_class((config.get("model") or {}).get("module", default))
    return Selected("module", default, cls, given)


def build(values: dict, constrain: Callable, **given) -> nn.Module:
    """The model of a section `model`.

    Args:
      values: the section; its floats may be traced.
      constrain: what pins activations to a mesh, for modules that have such a field.
      given: fields that the task sets.

    Raises:
      BadInput: for a module that needs other fields than the task gives, or a dropout rate that is
        not in [0, 1).
    """
    cls = model_class(values["module"])
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    required -= {
        f.name for f in dataclasses.fields(cls) if f.default_factory is not dataclasses.MISSING
    }
    lacking, idle = sorted(required - set(given)), sorted(set(given) - fields_of(cls))
    require(
        not lacking and not idle,
        f"config.model.module: {values['module']!r} is no model for this task: it "
        + (f"needs {', '.join(lacking)}" if lacking else f"has no field {', '.join(idle)}"),
    )
    fields = {k: v for k, v in values.items() if k != "module"} | given
    if "constrain" in fields_of(cls):
        fields["constrain"] = constrain
    for name, value in fields.items():
        if name.endswith("dropout") and isinstance(value, float):
            require(0 <= value < 1, f"config.model.{name}: {value} is not in [0, 1)")
    return cls(**fields)
