"""facts.json: what a run keeps of its data for predictions, such as the names of its classes.

    facts.write(folder, task)                       # as training and `common.predict` do
    names = facts.read(folder, ImageFacts)          # None if an older version kept none

environment.json has the digests of what was kept (`digests`), so that files of another run that got
into a workdir are refused.
"""

import hashlib
import json
from typing import Any, get_type_hints

from common import inputs
from common.config import from_json
from common.errors import BadInput, brief, require
from common.runs import files, workdir
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


def digests(task: Task) -> dict[str, str]:
    """{name of a file or a fact: digest} of what a task keeps; for the `kept` of a start in
    environment.json. Facts have one each, so that a version that knows more of them can read them.
    """
    facts = {name: json.dumps(value) for name, value in (task.facts or {}).items()}
    return {name: _digest(text) for name, text in ({**(task.files or {})} | facts).items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check(folder, path, texts: dict[str, str]) -> None:
    """Raises `BadInput` if what a run keeps in the file `path` is not what its last start kept.

    Args:
      folder: the workdir.
      path: the file, for the message.
      texts: {name: text}, as of `digests`.
    """
    known = workdir.last_start(folder).get("kept")
    known = known if isinstance(known, dict) else {}
    others = [
        name for name, text in texts.items() if known.get(name, _digest(text)) != _digest(text)
    ]
    which = "" if others == [path.name] else f": {brief(others)[1:-1]}"
    require(
        not others,
        f"{path}: not what this run kept{which}: the file is of another run, or was edited; "
        f"{_advice(folder)}",
    )


def _advice(folder) -> str:
    return f"remove it, and it is made again from the data, or copy that of {folder} from a backup"


def read(folder, kind: type) -> Any:
    """The facts that a run keeps, as a NamedTuple of the class `kind`; None if it keeps none.

    Raises:
      BadInput: if the file is damaged or of another run, or a field is missing or of another type.
    """
    path, advice = files.absolute(folder) / FILE, _advice(folder)
    if not inputs.present(path):
        return None
    try:
        raw = inputs.json_object("", path)
        values = from_json(json.dumps(raw))
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
    check(folder, path, {name: json.dumps(value) for name, value in raw.items()})
    return kind(**values)
