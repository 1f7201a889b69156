"""Shared by the command lines: parsing of configs and overrides, and one-line errors."""

import argparse
import contextlib
import logging
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable
from importlib import metadata

import absl.logging
import jax

from common import config
from common.devices import agreement, ending, processes, runtime, terminal
from common.errors import BadInput, CannotWrite, NotFinite, Preempted, require
from common.planning import keys
from common.runs import place
from common.training import program

PLACE = {
    "--coordinator": "JAX_COORDINATOR_ADDRESS",
    "--processes": "JAX_NUM_PROCESSES",
    "--process": "JAX_PROCESS_ID",
}
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # as XLA says it
LATE_SECONDS = 60  # in which a process that failed at once tries to tell the others


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args=None, namespace=None):
        known, rest = super().parse_known_args(args, namespace)
        if getattr(known, "help_config", False):
            own = getattr(known, "workdir", None)
            require(
                known.config is not None,
                "--help-config: --config FILE.py is needed"
                + (f"; the keys of that run are in {own}/config.json" if own else ""),
            )
            completed = config.load(known.config, rest, program.sections)
            print(keys.listing(completed, program.sections(completed)))
            sys.exit(0)
        return known, rest

    def error(self, message):
        raise BadInput(message)


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as help and raises `BadInput`."""
    made = _Parser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument(
        "--traceback", action="store_true", help="show the traceback of an error on the screen"
    )
    return made


class _HelpConfig(argparse.Action):
    """Requests the list of keys, for which no argument but --config is required."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.help_config = True
        for required in (*parser._actions, *parser._mutually_exclusive_groups):
            required.required = False


def add_model(to: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Adds --workdir RUN with --step, and --weights in its place; one of the group, which is
    returned, is required."""
    model = to.add_mutually_exclusive_group(required=True)
    model.add_argument("--workdir", type=place.workdir, help="workdir of the run")
    model.add_argument(
        "--weights",
        help="a folder of weights in the Hugging Face layout, a file of them, or a name that "
        "scripts/prepare.py fetches",
    )
    to.add_argument(
        "--step", default="latest", help="checkpoint step: latest (default), best or a number"
    )
    return model


def add_config(to: argparse.ArgumentParser, required: bool = True) -> None:
    """Adds --config FILE.py[:ARG], whose keys are overridden as --config.KEY=VALUE, and
    --help-config, which lists them."""
    to.add_argument(
        "--config",
        required=required,
        metavar="FILE.py[:ARG]",
        help="config file and optional variant",
    )
    to.add_argument(
        "--config.KEY",
        dest="_override",
        metavar="VALUE",
        default=argparse.SUPPRESS,
        help="override a config key: --config.optim.lr=1e-3",
    )
    to.add_argument(
        "--help-config",
        action=_HelpConfig,
        nargs=0,
        help="list every config key with its value, type, default and meaning, and exit",
    )


def add_place(to: argparse.ArgumentParser) -> None:
    """Adds flags that place this process among others, where they cannot find each other
    (`processes.join`)."""
    several = to.add_argument_group(
        "several processes", "found on TPUs and by SLURM, Open MPI and Kubernetes; needed elsewhere"
    )
    texts = "HOST:PORT where process 0 listens", "number of processes", "index of this one, from 0"
    for flag, text in zip(PLACE, texts, strict=True):
        several.add_argument(flag, help=text)


def parse(by: argparse.ArgumentParser, argv=None):
    """(arguments, completed config): arguments unknown to `by` must be config overrides."""
    args, overrides = by.parse_known_args(argv)
    for flag, variable in PLACE.items():
        value = getattr(args, flag[2:], None)
        if value is not None:
            os.environ[variable] = value
    return args, config.load(args.config, overrides, program.sections)


def parse_model(by: argparse.ArgumentParser, argv=None):
    """(arguments, config) of a parser with `add_model` and `add_config`: nested dicts with
    --weights, which need one, and None with --workdir, which has its own."""
    args, overrides = by.parse_known_args(argv)
    if args.weights is None:
        own = args.config is None and not overrides
        require(own, f"{' '.join(overrides) or '--config'}: a run has its own config")
        return args, None
    require(args.config is not None, "--weights: --config FILE.py is needed, for the data")
    return args, config.plain(config.load(args.config, overrides, program.sections))


def exit(main: Callable[[], int], several: bool = False) -> None:
    """Runs `main` and exits with its code; expected errors print one line. Any other is a fault of
    the program: one line as well, and the traceback in a file (with --traceback on the screen).

    Args:
      main: the program.
      several: whether it may be one of several processes of a run. If one of them fails, neither it
        nor the others wait (`processes`), not even if it fails before it has joined them.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as scripts/_checkout.py set it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with terminal.steady(), ending.guarded():
        _warn_in_a_line()
        # Silence remarks of libraries, and errors that they also raise; ours go through `logging`.
        absl.logging.set_verbosity("fatal")
        logging.getLogger("asyncio").setLevel("CRITICAL")
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        sys.unraisablehook = _unraisable
        try:
            code, message = main(), None
            if sys.stdout is not None:
                sys.stdout.flush()
        except BaseException as error:
            kept = error  # noqa: F841 until the end: what it refers to may still be computed with
            code, message = _outcome(error)
            if "--traceback" in sys.argv:
                traceback.print_exception(error)
        if message is not None:
            terminal.say(message if code == ending.PREEMPTED else f"error: {message}")
        if code not in (0, ending.PREEMPTED) or isinstance(message, _AtOnce):
            _leave(code, str(message), several)
    if not terminal.flushed(sys.stdout):
        terminal.discard_output()
    if isinstance(message, _AtOnce):
        os._exit(code)
    sys.exit(code)


def _warn_in_a_line() -> None:
    """Shows warnings in a line each, in place of the handlers that libraries add on import."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    handler.setLevel(logging.WARNING)
    root.addHandler(handler)


class _AtOnce(str):
    """The message of a process that ends without an ordinary exit, which would wait for what XLA
    still compiles or computes, and for workers that are gone. The others do not know yet."""


def _outcome(error: BaseException) -> tuple[int, str | None]:
    """(exit code, message) of an error that ends the program."""
    match error:
        case SystemExit():  # --help
            return error.code or 0, None
        case BadInput():
            return 2, str(error)
        case NotFinite() | CannotWrite():
            return 1, str(error)
        case Preempted():
            return ending.PREEMPTED, f"{error}; run the same command again to resume"
        case processes.Lost():
            return processes.LOST, _AtOnce(f"{error}; start all processes again")
        case ending.Ended():
            code, text = ending.outcome(error.args[0])
            return code, _AtOnce(text)
        case KeyboardInterrupt():
            return 128 + signal.SIGINT, "interrupted; the newest checkpoint is kept"
        case OSError() if error.filename == terminal.OUTPUT:
            terminal.discard_output()
            if isinstance(error, BrokenPipeError):  # `| head` has seen enough
                return 0, None
            return 1, f"standard output cannot be written: {error.strerror}"
    if jax.distributed.is_initialized() and processes.is_lost(error):
        processes.give_up(error)
    return 1, _crashed(error)


def _crashed(error: BaseException) -> str:
    """Writes the traceback of a fault of the program to a file; returns the message."""
    lines = traceback.format_exception(error)
    at = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({os.path.basename(at[0].filename)}:{at[0].lineno})" if at else ""
    first = str(error).strip().split("\n")[0][:300]
    what = f"{type(error).__name__}: {first}{where}"
    versions = {name: metadata.version(name) for name in runtime.PACKAGES}
    text = f"{shlex.join(sys.argv)}\nPython {sys.version}\n{versions}\n\n{''.join(lines)}"
    number, _ = agreement.place()
    name = f"crash_{number}.txt" if number else "crash.txt"
    folder = getattr(error, "workdir", None)
    path = None
    with contextlib.suppress(OSError):
        if folder is not None:
            path = folder / name
            path.write_text(text)
    if path is None:
        with contextlib.suppress(OSError):
            handle, path = tempfile.mkstemp(prefix="touchstone-crash-", suffix=".txt")
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
    hint = f"{what}; the traceback is in {path}: report a fault of this program with that file"
    if OUT_OF_MEMORY in str(error):
        hint = (
            f"out of memory: {first}; lower config.train.batch_size, split it "
            f"(config.train.accumulate), or use more devices (config.mesh.fsdp); see {path}"
        )
    return hint


def _leave(code: int, message: str, several: bool) -> None:
    """Tells the run's other processes, if there are any, why this one ends, and ends it."""
    timer = threading.Timer(LATE_SECONDS, os._exit, (code,))
    timer.daemon = True
    if several and not jax.distributed.is_initialized():
        with contextlib.suppress(BadInput):
            if processes.places(os.environ) is None:
                return
            timer.start()
            with contextlib.suppress(processes.Lost):
                processes.join()
    if jax.distributed.is_initialized():
        processes.leave(code, message)
    timer.cancel()


def _unraisable(event) -> None:
    """Hides the leftovers of reads and writes that Orbax abandons after one fails, and of workers
    of grain's that were killed."""
    code = getattr(event.object, "cr_code", None) or getattr(event.object, "__code__", None)
    given_up = code is not None and re.search("orbax|grain", code.co_filename)
    if not given_up and str(event.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(event)
