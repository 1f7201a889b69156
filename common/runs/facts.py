"""facts.json: what a run keeps of its data for predictions, such as the names of its classes.

facts.write(folder, task)                           # as training and `common.predict` do
names = facts.read(folder, ImageFacts)              # None if an older version kept none
"""

import json
from typing import Any, get_type_hints

from common import inputs
from common.config import from_json
from common.errors import BadInput, brief, require
from common.runs import files
from common.sections import fits, spelled
from common.task import Task

FILE = "facts.json"


def contents(task: Task) -> dict[str, str]:
    """{name: text} of the small files that a task keeps in its workdir."""
    kept = dict(task.files or {})
    if task.facts is not None:
        written = lambda value: json.dumps(value, ensure_ascii=False)
        lines = (f" {written(k)}: {written(v)}" for k, v in sorted(task.facts.items()))
        kept[FILE] = "{\n" + ",\n".join(lines) + "\n}\n"
    return kept


def write(folder, task: Task) -> None:
    """Keeps what `contents` says in the workdir `folder`. Raises `OSError` if it cannot."""
    for name, text in contents(task).items():
        files.replace_text(files.absolute(folder) / name, text)


def read(folder, kind: type) -> Any:
    """The facts that a run keeps, as a NamedTuple of the class `kind`; None if it keeps none.

    Raises:
      BadInput: if the file is damaged, or a field is missing or of another type.
    """
    path = files.absolute(folder) / FILE
    if not inputs.present(path):
        return None
    advice = (
        f"remove it, and it is made again from the data, or copy that of {folder} from a backup"
    )
    try:
        values = from_json(json.dumps(inputs.json_object("", path)))
    except BadInput as error:
        raise BadInput(f"{error}; {advice}") from error
    hints, defaults = get_type_hints(kind), kind._field_defaults
    for name in kind._fields:
        there = name in values or name in defaults
        require(there, f"{path}: it has no {name!r}, as the facts of this task have; {advice}")
        value = values.get(name, defaults.get(name))
        valid = fits(value, hints[name])
        require(valid, f"{path}: {name} is {brief(value)}, not {spelled(hints[name])}; {advice}")
    unknown = sorted(values.keys() - set(kind._fields))
    require(
        not unknown,
        f"{path}: {brief(unknown)[1:-1]}: facts of another task, or of a newer version; {advice}",
    )
    return kind(**values)
