"""What the command lines share: parsing with configs and overrides, and errors as one line."""

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
    """A parser that shows a script's docstring and raises `BadInput`."""
    return _Parser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


class _HelpConfig(argparse.Action):
    """Marks that the keys are to be listed, and asks for nothing else that is required."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.help_config = True
        for action in parser._actions:
            action.required = action.dest == "config"


def add_config(to: argparse.ArgumentParser) -> None:
    """Adds --config FILE.py[:ARG], whose keys are overridden as --config.KEY=VALUE, and
    --help-config, which lists them."""
    to.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="the config, a file")
    to.add_argument(
        "--config.KEY",
        dest="_override",
        metavar="VALUE",
        default=argparse.SUPPRESS,
        help="override a key of it: --config.optim.lr=1e-3",
    )
    to.add_argument(
        "--help-config",
        action=_HelpConfig,
        nargs=0,
        help="list every key with value, type, default and meaning, and exit",
    )


def add_place(to: argparse.ArgumentParser) -> None:
    """Adds where this process stands among others, for where they do not find each other
    (`processes.join`)."""
    several = to.add_argument_group(
        "several processes", "found on TPUs, by SLURM, Open MPI, Kubernetes; to be said elsewhere"
    )
    texts = "HOST:PORT where process 0 is to listen", "how many", "which one this is, from 0"
    for flag, text in zip(PLACE, texts, strict=True):
        several.add_argument(flag, help=text)


def parse(by: argparse.ArgumentParser, argv=None):
    """(arguments, completed config): what `by` does not know must be overrides of the config."""
    args, rest = by.parse_known_args(argv)
    for flag, variable in PLACE.items():
        value = getattr(args, flag[2:], None)
        if value is not None:
            os.environ[variable] = value
    return args, config.load(args.config, rest, program.sections)


def exit(main: Callable[[], int]) -> None:
    """Runs `main` and ends the process with its exit code; what is not a bug is one line.

    One process of several that fails does not wait for the others, nor they for it: `processes`.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # Libraries' remarks, and errors that they raise as well; ours go through `logging`.
    absl.logging.set_verbosity("fatal")
    logging.getLogger("asyncio").setLevel("CRITICAL")
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = _unraisable
    said = None
    try:
        code = main()
    except BadInput as error:
        code, said = 2, error
    except (NotFinite, CannotWrite) as error:
        code, said = 1, error
    except Preempted as error:
        code, said = runtime.PREEMPTED, f"{error}; run the same command again to go on"
    except processes.Lost as error:
        code, said = processes.LOST, f"{error}; start all processes again"
    except KeyboardInterrupt:
        code, said = 130, "interrupted; the newest checkpoint is kept"
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        if processes.is_lost(error):
            processes.give_up(error)
        traceback.print_exc()
        code, said = 1, f"{type(error).__name__}: {error}"
    if said is not None:
        print(said if code == runtime.PREEMPTED else f"error: {said}", file=sys.stderr)
    if jax.distributed.is_initialized() and code not in (0, runtime.PREEMPTED):
        processes.leave(code, str(said))
    sys.exit(code)


def _unraisable(found) -> None:
    """Leaves out the remains of reads and writes that Orbax gives up when one of them fails."""
    code = getattr(found.object, "cr_code", None)
    given_up = code is not None and "orbax" in code.co_filename
    if not given_up and str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)
