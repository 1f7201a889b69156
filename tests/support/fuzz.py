"""A fuzzer of the command lines: a run's config and the files of its workdir are changed at random,
and whatever is made of that must be a run, or a refusal, that keeps the laws.

    python tests/support/fuzz.py --tries 2000 --seed 0

A try is a pure function of its number. `MUTATORS` holds what may happen to a workdir, by name; more
may be added.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

from faults import CODES, MOST_LINES, contents
from helpers import DIGITS, exit_code, load, result

from common.config import flatten

RUN = {
    "train.duration": "6 steps", "train.log_every": "1 steps", "checkpoint.every": "2 steps",
    "evals.test.every": "3 steps", "checkpoint.keep_latest": 3, "train.batch_size": 16,
    "optim.warmup": "1 steps",
}  # fmt: skip
MOST_SECONDS = 60.0
REPLICA = "-again"  # what reproduce.py appends to a folder
VALUES = (
    "", " ", "None", "-1", "0", "1", "3", "7", "0.5", "-0.0", "1e-400", "1e400", "nan", "inf",
    "1e39", "99999999999999999999", "4294967296", "-9223372036854775809", "0x10", "١", "true",
    "yes", "'a'", "()", "(0,)", "(-1,)", "(2,3)", "(1e400,)", "[1]", "{}", "5 steps", "-3 epochs",
    "1e400 steps", "0%", "50%", "101%", "1 epoch", "steps", "../x", "/dev/null", "/dev/zero",
    "a\nb", "\u2028", "💥", "a" * 5000, "$x_", "max eval/test/accuracy", "max eval/test",
    "min train/loss", "train[:1%]", "train+test", "all", "test[5:2]", "vision.cnn:CNN",
    "vision.cnn", ".", "..", "os:path", "sgd", "lion", "linear", "constant", "gelu", "%s", "\\",
    "relu", "1:3", "none",
)  # fmt: skip


class Try(NamedTuple):
    """One try.

    Attributes:
      number: it decides everything.
      script: the script that is run.
      overrides: {key: value} on its command line.
      mutations: what happens to the workdir first, in words.
    """

    number: int
    script: str
    overrides: dict[str, str]
    mutations: list[str]


class Change(NamedTuple):
    """One change of data of one's own: what, in words; what a refusal may name, besides the file;
    and whether what then stands there must be read (True), refused (False), or either (None)."""

    what: str
    words: tuple[str, ...] = ()
    readable: bool | None = None


class Outcome(NamedTuple):
    """What a try came to; `wrong` is "" if it kept the laws."""

    tried: Try
    code: int
    said: str
    wrong: str


# ------------------------------------------------------------------------------------- mutations


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of a workdir. Those that TensorStore names at random are in the order of their
    sizes, so that a try is the same in every run."""
    named = lambda path: re.sub("[0-9a-f]{32}$", "", str(path))
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(files, key=lambda path: (named(path), path.stat().st_size))


def _flip(rng, path) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _cut(rng, path) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size + 1))


def _delete(rng, path) -> None:
    path.unlink()


def _junk(rng, path) -> None:
    path.write_bytes(
        rng.choice([b"", b"null", b"[]", b"{}", b"\0" * 50, b"\xff\xfe{", b"[" * 5000])
    )


def _append(rng, path) -> None:
    with path.open("ab") as file:
        file.write(
            rng.choice([b"\0", b"\n", b"\n\n", b"{", b"null\n", b'{"step": 99}\n', b"\xe2\x80\xa8"])
        )


def _bom(rng, path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def _lines(rng, path) -> None:
    lines = path.read_bytes().split(b"\n")
    at = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[rng.randrange(len(lines))])
        case 2:
            rng.shuffle(lines)
        case 3:
            lines = [line + b"\r" for line in lines]
    path.write_bytes(b"\n".join(lines))


def _kind(rng, path) -> None:
    path.unlink()
    match rng.randrange(4):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to("nowhere")
        case 3:
            path.symlink_to(path.name)


def place(rng, values) -> tuple | None:
    """(container, key) of a value somewhere in JSON values, mostly a leaf; None if they are
    empty."""
    inner = values
    while isinstance(inner, dict | list) and inner:
        key = rng.choice(sorted(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
        leaf = not isinstance(inner[key], dict | list) or not inner[key]
        if leaf or rng.random() < 0.2:
            return inner, key
        inner = inner[key]
    return None


def _value(rng, path) -> None:
    """Another value in a JSON file, or another type."""
    with contextlib.suppress(ValueError):
        values = json.loads(path.read_bytes())
        if at := place(rng, values):
            at[0][at[1]] = rng.choice([None, -1, 1e308, "", [], {}, "x", True, 7])
        path.write_text(json.dumps(values))


MUTATORS: dict[str, Callable] = {
    "flip a bit of": _flip, "cut": _cut, "delete": _delete, "put junk into": _junk,
    "append to": _append, "put a BOM before": _bom, "disturb the lines of": _lines,
    "make another kind of": _kind, "change a value in": _value,
}  # fmt: skip


def mutate(rng: random.Random, folder: pathlib.Path) -> str:
    """Changes something in a workdir; says what."""
    at_top = [path for path in _files(folder) if path.parent == folder and path.name != ".lock"]
    steps = sorted((folder / "checkpoints").glob("[0-9]*"))
    if rng.random() < 0.15 and steps:
        step = rng.choice(steps)
        match rng.randrange(3):
            case 0:
                shutil.rmtree(step)
                return f"delete {step.name}/"
            case 1:
                to = step.with_name(str(rng.choice([0, 1, 5, 7, 999])))
                if not to.exists():
                    step.rename(to)
                return f"rename {step.name} to {to.name}"
            case 2:
                other = rng.choice(steps)
                if other != step:
                    shutil.rmtree(step)
                    with contextlib.suppress(shutil.Error):  # of what an earlier mutation left
                        shutil.copytree(other, step)
                return f"copy {other.name} over {step.name}"
    path = rng.choice(at_top if rng.random() < 0.7 and at_top else _files(folder))
    name = rng.choice(sorted(MUTATORS))
    MUTATORS[name](rng, path)
    return f"{name} {path.relative_to(folder)}"


def override(rng: random.Random, keys: list[str]) -> tuple[str, str]:
    """A key and a value for the command line: mostly a real key with some value."""
    key = rng.choice(keys)
    if rng.random() < 0.1:
        at = rng.randrange(len(key))
        key = key[:at] + rng.choice(["", ".", "x", "-"]) + key[at + 1 :]
    value = rng.choice([v for v in VALUES if isinstance(v, str)])
    return key, value


# ------------------------------------------------------------------------------------------ tries


class Grounds(NamedTuple):
    """What tries begin with: a finished run, one that was stopped at step 4, and the keys."""

    finished: pathlib.Path
    stopped: pathlib.Path
    keys: list[str]


def words_of(overrides: dict[str, str]) -> list[str]:
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def prepare(folder: pathlib.Path) -> Grounds:
    """Trains what tries begin with."""
    finished, stopped = folder / "finished", folder / "stopped"
    base = words_of({k: str(v) for k, v in RUN.items()})
    code, said = _run("train", "--config", f"{DIGITS}:mlp", "--workdir", str(finished), *base)
    assert code == 0, said
    shutil.copytree(finished, stopped)
    (stopped / "result.json").unlink()
    shutil.rmtree(stopped / "checkpoints/6")
    return Grounds(finished, stopped, sorted(flatten(load(f"{DIGITS}:mlp"))))


def _run(script: str, *words: str) -> tuple[int, str]:
    """(exit code, standard error) of a script in this process."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = exit_code(script, *words)
    return code, err.getvalue() + "\0" + out.getvalue()


def attempt(number: int, grounds: Grounds, scratch: pathlib.Path) -> Outcome:
    """One try, in an empty folder `scratch`."""
    rng = random.Random(number)
    run = scratch / "run"
    base = rng.choice([None, grounds.finished, grounds.stopped, grounds.stopped])
    script = (
        "train"
        if base is None or rng.random() < 0.75
        else rng.choice(["evaluate", "reproduce", "report", "diff_runs"])
    )
    mutations, overrides = [], {}
    if base is not None:
        shutil.copytree(base, run)
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            mutations.append(mutate(rng, run))
    if script == "train" and (base is None or rng.random() < 0.3):
        overrides = dict(override(rng, grounds.keys) for _ in range(rng.choice([1, 1, 2])))
    tried = Try(number, script, overrides, mutations)
    words = {
        "train": ["--config", f"{DIGITS}:mlp", "--workdir", str(run),
                  *words_of({k: str(v) for k, v in RUN.items()} | overrides)],
        "evaluate": ["--workdir", str(run)],
        "reproduce": [str(run)],
        "report": [str(run)],
        "diff_runs": [str(run), str(grounds.finished)],
    }[script]  # fmt: skip
    before, begun = contents(grounds.finished.parent), time.monotonic()
    try:
        code, both = _run(script, *words)
    except BaseException as error:
        return Outcome(tried, -1, repr(error), f"{type(error).__name__} came out: {error}")
    said, _, printed = both.partition("\0")
    wrong = _wrong(tried, grounds, scratch, code, said, printed)
    if contents(grounds.finished.parent) != before:
        wrong = wrong or "something was written outside of the workdir"
    if time.monotonic() - begun > MOST_SECONDS:
        wrong = wrong or f"it took {time.monotonic() - begun:.0f} s"
    return Outcome(tried, code, said, wrong)


def _wrong(tried, grounds, scratch, code, said, printed) -> str:
    """What is wrong about how a try ended; "" if nothing is."""
    lines = [line for line in said.splitlines() if line.strip()]
    told = [line for line in lines if not re.match(r"WARNING|step |vision.classify: ", line)]
    if code not in CODES:
        return f"exit code {code}"
    if "Traceback" in said or "report a fault of this program" in said:
        return "a fault of the program"
    different = code == 1 and tried.script in ("diff_runs", "reproduce") and not told
    if (
        code
        and not different
        and (len(told) > MOST_LINES or not any(x.startswith("error: ") for x in lines))
    ):
        return "not one line"
    strangers = {p.name for p in scratch.iterdir()} - {"run", f"run{REPLICA}"}
    if strangers:
        return f"{strangers} were written beside the workdir"
    if code == 2 and tried.script == "train" and not tried.mutations and tried.overrides:
        fresh = not (scratch / "run/config.json").exists()
        if fresh and (scratch / "run").exists():
            return "a refusal left something behind"
    if code == 0 and tried.script == "train" and not tried.overrides:
        ours, theirs = result(scratch / "run"), result(grounds.finished)
        keys = "steps", "digest", "eval", "parameters"
        if any(ours[key] != theirs[key] for key in keys):
            return "it ended in other bits"
    if "bit-identical" in printed:
        other = scratch / f"run{REPLICA}" if tried.script == "reproduce" else grounds.finished
        if result(scratch / "run")["digest"] != result(other)["digest"]:
            return "bit-identical, and it is not"
    return ""


def fuzz(numbers, grounds: Grounds, scratch: pathlib.Path, say=None) -> list[Outcome]:
    """Tries every number; returns the outcomes."""
    outcomes = []
    for number in numbers:
        folder = scratch / str(number)
        folder.mkdir(parents=True)
        outcomes.append(attempt(number, grounds, folder))
        shutil.rmtree(folder, ignore_errors=True)
        if say is not None and (outcomes[-1].wrong or len(outcomes) % 100 == 0):
            say(tell(outcomes[-1]) if outcomes[-1].wrong else f"{len(outcomes)} tries")
    return outcomes


def tell(outcome: Outcome) -> str:
    """An outcome in a few lines."""
    how = outcome.wrong or "as it should be"
    return f"{how}: {outcome.tried}\n  {outcome.code}: {outcome.said[-1500:]}"


def summary(outcomes: list[Outcome]) -> str:
    """How tries ended, in a line."""
    codes = collections.Counter(outcome.code for outcome in outcomes)
    ends = ", ".join(f"{n} with {code}" for code, n in sorted(codes.items()))
    mutated = sum(bool(outcome.tried.mutations) for outcome in outcomes)
    return (
        f"{len(outcomes)} tries, {mutated} with a workdir that was touched, ended: {ends}; "
        f"{sum(bool(outcome.wrong) for outcome in outcomes)} wrong"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="number of the first try")
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as made:
        scratch = pathlib.Path(made)
        (scratch / "grounds").mkdir()
        found = fuzz(
            range(args.seed, args.seed + args.tries),
            prepare(scratch / "grounds"),
            scratch / "tries",
            lambda text: print(text, flush=True),
        )
    print(f"{summary(found)}; {time.monotonic() - started:.0f} s")
    raise SystemExit(any(outcome.wrong for outcome in found))
