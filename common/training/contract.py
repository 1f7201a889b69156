"""A task against the contract of `common.task`, checked when a run starts, before anything is
compiled or written: every mistake is one line that names the task, what is wrong, and the rule.

Here are its functions, sets and fields; `common.training.terms` has what its loss returns. What
only numbers tell, such as a mean in place of a sum, is for `python -m common.laws`.
"""

import contextlib
import numbers
from collections.abc import Callable, Iterator

import flax.errors
import jax
import numpy as np

from common import imports
from common.devices import processes
from common.errors import BadInput, CannotWrite, NotFinite, Preempted, brief, require
from common.nn import model as models
from common.sections import Selected
from common.task import Evaluator, Shown, Source, Task

READ_MODULE = "see the head of common/task.py"
READ_SOURCE = "see `Source` in common/task.py"
READ_EVALUATOR = "see `Evaluator` in common/task.py"
READ_TASK = "see `Task` in common/task.py"
READ_MEANS = "see common/README.md, The contract, 4: means are exact"
READ_PARAMETERS = "see common/README.md, The contract, 6: plain parameters"

RESERVED = ("index", "valid")  # that the program adds to every batch

# What a mistake in an evaluator raises; a full disk, or memory, is none.
MISTAKES = (
    TypeError, AttributeError, LookupError, NameError, ValueError, AssertionError, ArithmeticError,
    NotImplementedError, flax.errors.FlaxError,
)  # fmt: skip


def kind_of(value) -> str:
    """A value and its type for messages; of an array, which may be traced, dtype and shape."""
    if value is None:
        return "None"
    if isinstance(value, jax.Array | np.ndarray):
        return f"an array {value.dtype}{list(value.shape)}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, value)) or 'nothing'}"
    return f"{brief(value)} ({type(value).__name__})"


@contextlib.contextmanager
def explained(
    where: str,
    read: str,
    name: str = "",
    model: dict | None = None,
    known: str = "",
    kinds: tuple = (Exception,),
) -> Iterator[None]:
    """Turns an error raised in a user's code into `BadInput` with its file, line and message.

    Args:
      where: what runs, for the message.
      read: where the rule stands.
      name: the import path of the task; errors in tasks of the project are faults, and pass.
      model: the section `model`, if the model is one by import path: its errors name its fields.
      known: what a mistyped key could have named.
      kinds: the errors that are mistakes there.
    """
    model = model or {}
    same_file = str(model.get("module", "")).partition(":")[0] == name
    try:
        with models.explained({} if same_file else model):
            yield
    except (BadInput, CannotWrite, NotFinite, Preempted, processes.Lost):
        raise
    except kinds as error:
        file = imports.own_file(error, name)
        if not file and not imports.is_own(name):
            raise
        hint = f"; there are {known}" if isinstance(error, KeyError) and known else ""
        if isinstance(error, jax.errors.ConcretizationTypeError):
            hint = "; numbers are unknown while traced: ask `is None`, never branch on a value"
        line = imports.described(error, file)
        raise BadInput(f"{where}: {line}{hint}; {read}") from error


def explained_in(config: dict, doing: str, known: str = ""):
    """`explained` for a function of the task of a completed config."""
    name = config["task"]
    where, model = f"config.task: {name}: {doing}", config.get("model")
    return explained(where, READ_TASK, name, model, known)


# ----------------------------------------------------------------------------- sections and sources


def check_sections(name: str, sections) -> None:
    """Raises `BadInput` unless `sections` is {section: a function, a linen class or `Selected`}."""
    where = f"config.task: {name}: sections"
    require(
        isinstance(sections, dict), f"{where} returns {kind_of(sections)}, no dict; {READ_MODULE}"
    )
    for section, function in sections.items():
        require(
            isinstance(section, str) and (isinstance(function, Selected) or callable(function)),
            f"{where}: {section!r} is {kind_of(function)}, not a function whose keyword-only "
            f"arguments are the keys of the section; {READ_MODULE}",
        )


def check_sources(name: str, sources) -> None:
    """Raises `BadInput` unless `sources` is {"train": Source, …} of sets that describe themselves
    rightly. Reads nothing."""
    where = f"config.task: {name}: sources"
    require(
        isinstance(sources, dict), f"{where} returns {kind_of(sources)}, no dict; {READ_MODULE}"
    )
    require("train" in sources, f"{where} has {', '.join(sources) or 'nothing'} and no 'train'; "
            f"{READ_MODULE}")  # fmt: skip
    for key, source in sources.items():
        at = f"{where}: {key!r}"
        require(isinstance(source, Source), f"{at} is {kind_of(source)}, no Source; {READ_SOURCE}")
        size, spec, mark = source.size, source.spec, source.fingerprint
        require(
            isinstance(size, numbers.Integral) and size > 0,
            f"{at}: its size is {kind_of(size)}, not a number of examples; {READ_SOURCE}",
        )
        described = isinstance(spec, dict) and all(
            hasattr(s, "shape") and hasattr(s, "dtype") for s in spec.values()
        )
        require(
            described and bool(spec),
            f"{at}: its spec is {kind_of(spec)}, not {{name: ShapeDtypeStruct}} of one example; "
            f"{READ_SOURCE}",
        )
        taken = [n for n in RESERVED if n in spec]
        require(not taken, f"{at}: the name {taken} is the program's own; {READ_MODULE}")
        require(
            isinstance(mark, str) and bool(mark),
            f"{at}: its fingerprint is {kind_of(mark)}, not a text that changes with the data; "
            f"{READ_SOURCE}",
        )
        if source.resident is not None:
            _check_rows(f"{at}: resident", source.resident, size, spec)


def check_reads(name: str, sources: dict[str, Source]) -> None:
    """Raises `BadInput` unless each set's `read` gives what its `spec` says, for its first row and
    its last."""
    for key, source in sources.items():
        rows = np.array([source.size - 1, 0], np.uint32)
        with explained(f"config.task: {name}: sources: {key!r}: read", READ_SOURCE, name):
            batch = source.read(rows)
        _check_rows(f"config.task: {name}: sources: {key!r}: read", batch, len(rows), source.spec)


def _check_rows(at: str, arrays, rows: int, spec: dict) -> None:
    """Raises `BadInput` unless `arrays` is {name: np[rows, ...]} as in `spec`."""
    require(isinstance(arrays, dict), f"{at} gives {kind_of(arrays)}, no dict; {READ_SOURCE}")
    require(
        arrays.keys() == spec.keys(),
        f"{at} gives {', '.join(map(str, arrays))}, and the spec says {', '.join(spec)}; "
        f"{READ_SOURCE}",
    )
    for key, array in arrays.items():
        is_array = hasattr(array, "shape") and hasattr(array, "dtype")
        require(is_array, f"{at} gives {key!r} as {kind_of(array)}, no array; {READ_SOURCE}")
        wanted, actual = (rows, *spec[key].shape), tuple(array.shape)
        same = actual == wanted and np.dtype(array.dtype) == np.dtype(spec[key].dtype)
        require(
            same,
            f"{at} gives {key!r} as {array.dtype}{list(actual)} for {rows:,} rows, and its spec "
            f"says {np.dtype(spec[key].dtype)}{list(wanted)}; {READ_SOURCE}",
        )


# ------------------------------------------------------------------------------------------- a task


def checked(name: str, task) -> Task:
    """The task that `make` returned, with evaluators whose results are checked, and errors
    explained, as they run. Raises `BadInput` unless its fields have their types.
    """
    where = f"config.task: {name}"
    require(isinstance(task, Task), f"{where}: make returns {kind_of(task)}, no Task; {READ_TASK}")
    optional = {"gradients", "pretrained"}
    for field in ("init", "prepare", "loss", *optional):
        value = getattr(task, field)
        fits = callable(value) or (field in optional and value is None)
        require(fits, f"{where}: Task.{field} is {kind_of(value)}, no function; {READ_TASK}")
    objective = task.objective
    require(
        isinstance(objective, dict) and bool(objective),
        f"{where}: Task.objective is {kind_of(objective)}, not {{term: coefficient}}: there is "
        f"nothing to minimise; {READ_TASK}",
    )
    for term, c in objective.items():
        number = isinstance(c, numbers.Real | np.number) or (
            isinstance(c, jax.Array) and c.shape == ()
        )
        require(
            number,
            f"{where}: Task.objective: the coefficient of {term!r} is {kind_of(c)}, not a number; "
            f"{READ_TASK}",
        )
    require(
        isinstance(task.sources, dict) and "train" in task.sources,
        f"{where}: Task.sources must be those that make was given; {READ_TASK}",
    )
    evaluators = task.evaluators
    require(
        isinstance(evaluators, dict),
        f"{where}: Task.evaluators is {kind_of(evaluators)}, not {{name: Evaluator}}; {READ_TASK}",
    )
    for key, evaluator in evaluators.items():
        fits = isinstance(evaluator, Evaluator) and callable(evaluator.run)
        require(
            fits and isinstance(evaluator.every, str),
            f"{where}: Task.evaluators: {key!r} is {kind_of(evaluator)}, not an Evaluator of a "
            "duration and a function; see `Evaluator` in common/task.py",
        )
    rows = task.partition
    fits = isinstance(rows, tuple | list) and all(
        isinstance(row, tuple | list) and len(row) == 2 and isinstance(row[0], str)
        and isinstance(row[1], tuple | list) for row in rows
    )  # fmt: skip
    require(
        fits,
        f"{where}: Task.partition is {kind_of(rows)}, not rows (path regex, a logical name per "
        f"dimension); {READ_PARAMETERS}",
    )
    require(
        isinstance(task.rows_independent, bool),
        f"{where}: Task.rows_independent is {kind_of(task.rows_independent)}, not True or False; "
        f"{READ_TASK}",
    )
    files = task.files or {}
    texts = isinstance(files, dict) and all(isinstance(text, str) for text in files.values())
    require(texts, f"{where}: Task.files is {kind_of(files)}, not {{name: text}}; {READ_TASK}")
    return task._replace(
        evaluators={key: e._replace(run=_checked_run(key, e.run)) for key, e in evaluators.items()}
    )


def _checked_run(key: str, run: Callable) -> Callable:
    at = f"config.evals.{key}"

    def checked_run(context) -> dict:
        with explained(at, READ_EVALUATOR, kinds=MISTAKES):
            values = run(context)
        require(
            isinstance(values, dict),
            f"{at}: the evaluator returns {kind_of(values)}, not {{metric: value}}; "
            f"{READ_EVALUATOR}",
        )
        for metric, value in values.items():
            require(
                isinstance(value, numbers.Real | str | np.ndarray | np.generic | Shown),
                f"{at}: the evaluator returns {metric!r} as {kind_of(value)}, not as a float, text "
                f"or an array of numpy: float(x) or jax.device_get(x); {READ_EVALUATOR}",
            )
        return values

    return checked_run
