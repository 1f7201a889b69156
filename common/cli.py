"""What the command lines share: parsing with configs and overrides, and errors as one line."""

import argparse
import logging
import sys
from collections.abc import Callable

import absl.logging

from common import config, program, runtime, train


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise config.BadInput(message)


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring and raises `BadInput`."""
    return _Parser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def add_config(to: argparse.ArgumentParser) -> None:
    """Adds --config FILE.py[:ARG]; keys are overridden as --config.KEY=VALUE."""
    to.add_argument(
        "--config", required=True, help="FILE.py or FILE.py:ARG; keys as --config.KEY=VALUE"
    )


def parse(by: argparse.ArgumentParser, argv=None):
    """(arguments, completed config): what `by` does not know must be overrides of the config."""
    args, rest = by.parse_known_args(argv)
    return args, config.load(args.config, rest, program.sections)


def exit(main: Callable[[], int]) -> None:
    """Runs `main` and ends the process with its exit code; what is not a bug is one line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    absl.logging.set_verbosity("error")  # libraries' remarks; ours go through `logging`
    try:
        code = main()
    except config.BadInput as error:
        code = _say(2, error)
    except train.NotFinite as error:
        code = _say(1, error)
    except train.Preempted as error:
        code = _say(runtime.PREEMPTED, f"{error}; run the same command again to go on")
    except KeyboardInterrupt:
        code = _say(130, "interrupted; the newest checkpoint is kept")
    sys.exit(code)


def _say(code: int, error) -> int:
    print(f"error: {error}" if code != runtime.PREEMPTED else str(error), file=sys.stderr)
    return code
