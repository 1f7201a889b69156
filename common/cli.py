"""Shared by the command lines: parsing of configs and overrides, and one-line errors."""

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable

import absl.logging
import jax

from common import config
from common.devices import processes, runtime
from common.errors import BadInput, CannotWrite, NotFinite, Preempted
from common.planning import keys
from common.training import program

PLACE = {
    "--coordinator": "JAX_COORDINATOR_ADDRESS",
    "--processes": "JAX_NUM_PROCESSES",
    "--process": "JAX_PROCESS_ID",
}


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args=None, namespace=None):
        known, rest = super().parse_known_args(args, namespace)
        if getattr(known, "help_config", False):
            completed = config.load(known.config, rest, program.sections)
            print(keys.listing(completed, program.sections(completed)))
            sys.exit(0)
        return known, rest

    def error(self, message):
        raise BadInput(message)


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as help and raises `BadInput`."""
    return _Parser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


class _HelpConfig(argparse.Action):
    """Requests the list of keys, and makes --config the only required argument."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.help_config = True
        for action in parser._actions:
            action.required = action.dest == "config"


def add_config(to: argparse.ArgumentParser) -> None:
    """Adds --config FILE.py[:ARG], whose keys are overridden as --config.KEY=VALUE, and
    --help-config, which lists them."""
    to.add_argument(
        "--config", required=True, metavar="FILE.py[:ARG]", help="config file and optional variant"
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


def exit(main: Callable[[], int]) -> None:
    """Runs `main` and exits with its code; expected errors print one line.

    If one of several processes fails, neither it nor the others wait: see `processes`.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # Silence remarks of libraries, and errors that they also raise; ours go through `logging`.
    absl.logging.set_verbosity("fatal")
    logging.getLogger("asyncio").setLevel("CRITICAL")
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _unraisable
    message = None
    try:
        code = main()
    except BadInput as error:
        code, message = 2, error
    except (NotFinite, CannotWrite) as error:
        code, message = 1, error
    except Preempted as error:
        code, message = runtime.PREEMPTED, f"{error}; run the same command again to resume"
    except processes.Lost as error:
        code, message = processes.LOST, f"{error}; start all processes again"
    except KeyboardInterrupt:
        code, message = 130, "interrupted; the newest checkpoint is kept"
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        if processes.is_lost(error):
            processes.give_up(error)
        traceback.print_exc()
        code, message = 1, f"{type(error).__name__}: {error}"
    if message is not None:
        print(message if code == runtime.PREEMPTED else f"error: {message}", file=sys.stderr)
    if jax.distributed.is_initialized() and code not in (0, runtime.PREEMPTED):
        processes.leave(code, str(message))
    sys.exit(code)


def _unraisable(event) -> None:
    """Hides the leftovers of reads and writes that Orbax abandons after one fails."""
    code = getattr(event.object, "cr_code", None)
    given_up = code is not None and "orbax" in code.co_filename
    if not given_up and str(event.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(event)
