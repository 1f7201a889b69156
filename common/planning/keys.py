"""Lists every key of a config with its value, type and meaning, read from docstrings.

    print(keys.listing(config, program.sections(config)))

Each section is the keyword arguments of one function, or the fields of one linen module; their
meaning is documented in its docstring, under `Args:` or `Attributes:`, and nowhere else.
"""

import inspect
import re
import shutil
import textwrap
from collections.abc import Callable

from common.config import flatten
from common.sections import Selected, parameters, spelled

HEADINGS = r"(Args|Attributes|Returns|Raises|Yields):"


def meanings(function: Callable) -> dict[str, str]:
    """{name: description} from a Google-style docstring; for a class, its bases' as well."""
    if inspect.isclass(function):
        described: dict[str, str] = {}
        for cls in reversed(function.__mro__):
            described |= _entries(vars(cls).get("__doc__") or "")
        return described
    return _entries(inspect.getdoc(function) or "")


def _entries(doc: str) -> dict[str, str]:
    doc = inspect.cleandoc(doc)
    block = re.search(rf"^(Args|Attributes):\n(.*?)(?=^{HEADINGS}|\Z)", doc, re.M | re.S)
    entries: dict[str, str] = {}
    if block is None:
        return entries
    names: list[str] = []
    for line in textwrap.dedent(block[2]).splitlines():
        entry = re.match(r"([\w, ]+): (.*)", line)
        if entry and not line.startswith(" "):
            names = [name.strip() for name in entry[1].split(",")]
            entries |= dict.fromkeys(names, entry[2])
        elif line.strip():
            entries |= {name: f"{entries[name]} {line.strip()}" for name in names}
    return entries


def listing(config, sections: dict[str, Callable | Selected], width: int | None = None) -> str:
    """Every key of a completed config: `section.key = value  (type)` and, below it, its meaning.

    Args:
      config: a completed `ConfigDict`, or nested dicts.
      sections: from `common.training.program.sections`.
      width: columns of the text; None is the terminal's width, at most 100.
    """
    width = width or min(shutil.get_terminal_size((100, 24)).columns, 100)
    flat = flatten(config)
    wrap = lambda text: textwrap.fill(
        text, width, initial_indent=" " * 6, subsequent_indent=" " * 6
    )
    lines = [f"seed = {flat['seed']!r}  (int)", wrap("seed of everything random in the run"), ""]
    lines += [f"task = {flat['task']!r}  (str)", wrap("import path of the task's module"), ""]
    for where, section in sections.items():
        function = section.function if isinstance(section, Selected) else section
        described = meanings(function)
        if isinstance(section, Selected):
            described.setdefault(section.selector, _SELECTORS.get(section.selector, ""))
        title = (inspect.getdoc(function) or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"--- {where}: {title}" if title else f"--- {where}")
        for key, parameter in parameters(section).items():
            value = flat.get(f"{where}.{key}")
            default = "" if value == parameter.default else f"; default {parameter.default!r}"
            lines.append(f"{where}.{key} = {value!r}  ({spelled(parameter.annotation)}{default})")
            if described.get(key):
                lines.append(wrap(described[key]))
        lines.append("")
    return "\n".join(lines)


_SELECTORS = {
    "module": "import path of the model, 'package.module:Class'; its fields are the other keys",
    "kind": "import path of the evaluator's module; '' is the task's default one",
}
