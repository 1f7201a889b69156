"""The code of a run: a digest per source file, so that two runs, two starts of one run, or two
processes can be compared file by file.

    code.digests(["my_task"])  # {"common/cli.py": "0a1b2c3d4e5f", …, "my_task.py": "…"}
"""

import ast
import functools
import hashlib
import importlib.util
import pathlib
import sys
from collections.abc import Iterable, Iterator

PACKAGES = ("common", "lm", "vision")


def digests(modules: Iterable[str] = ()) -> dict[str, str]:
    """{relative path: start of its sha256} of the source files that decide what a run computes.

    Read once per process: what was imported stays in use even if its file is edited later.

    Args:
      modules: import paths of the user's own modules ("my_package.task", "my_model:Net"). Of a
        package every file counts; of a module outside packages, the file and what it imports from
        the same folder. Modules of `PACKAGES` always count, and modules without a file never do.
    """
    tops = {name.partition(":")[0] for name in modules} - {""}
    return dict(_digests(tuple(sorted(tops))))


def named(flat: dict) -> list[str]:
    """The import paths that a flat config names: its task, its model and its kinds of
    evaluators."""
    kinds = [key for key in flat if key.startswith("evals.") and key.endswith(".kind")]
    values = [flat.get(key) for key in ("task", "model.module", *kinds)]
    return [value for value in values if isinstance(value, str)]


def own(flat: dict) -> list[str]:
    """Those of `named` that are the user's."""
    return [name for name in named(flat) if name.partition(".")[0] not in PACKAGES]


@functools.cache
def _digests(modules: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    files: dict[str, pathlib.Path] = {}
    for package in PACKAGES:
        files |= _package_files(package)
    for module in modules:
        top = module.partition(".")[0]
        if top not in PACKAGES:
            files |= _package_files(top) or {path.name: path for path in _single_files(module)}
    return tuple((name, _digest(files[name])) for name in sorted(files))


def _digest(path: pathlib.Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError:
        return "unreadable"


def _spec(module: str):
    """Where a module comes from; None if there is none. Nothing is imported."""
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None


def _package_files(package: str) -> dict[str, pathlib.Path]:
    """{path relative to where the package lies: file} of a package; {} if it is none."""
    spec = _spec(package)
    folders = [pathlib.Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    return {
        path.relative_to(folder.parent).as_posix(): path
        for folder in folders
        for path in sorted(folder.rglob("*.py"))
        if path.is_file()  # editors leave dangling links there
    }


def _single_files(module: str) -> Iterator[pathlib.Path]:
    """The file of a module outside packages, and those that it imports from its folder."""
    spec = _spec(module)
    origin = pathlib.Path((spec and spec.origin) or "")
    waiting, seen = [origin] if origin.suffix == ".py" else [], set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        yield path
        try:
            nodes = list(ast.walk(ast.parse(path.read_bytes())))
        except (OSError, SyntaxError, ValueError):
            continue
        names = [
            alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
        ]
        names += [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module]
        outside = (
            {name.partition(".")[0] for name in names} - set(PACKAGES) - sys.stdlib_module_names
        )
        waiting += [path.with_name(f"{name}.py") for name in sorted(outside)]
