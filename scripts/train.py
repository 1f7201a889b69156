"""Train a config: python scripts/train.py --config configs/vision/digits.py --workdir runs/digits

Override any key as --config.optim.lr=1e-3. The same command resumes a killed run. Exit codes: 0
done; 1 failed (a NaN, a full disk, a fault of the program); 2 bad input. After these, start all
processes again: 6 another process of the run was lost; 75 told to end, and saved; 143 or 130 told
to end by SIGTERM or Ctrl-C, with nothing to save yet.
"""

import json

import _checkout  # noqa: F401
from common import cli
from common.devices import runtime, terminal
from common.errors import require
from common.planning import describe
from common.runs import place
from common.training import train


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    cli.add_config(parser)
    cli.add_place(parser)
    parser.add_argument(
        "--workdir", type=place.workdir, help="folder of the run; required unless --dry-run"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show parameters, memory, schedule and first rows, without training",
    )
    args, config = cli.parse(parser, argv)
    if args.dry_run:
        print(describe.dry_run(config))
        return 0
    require(args.workdir is not None, "--workdir: required, e.g. --workdir runs/first")
    result = train.run(config, args.workdir)
    if runtime.is_main():
        terminal.offer(json.dumps(result))  # which is in result.json as well
    return 0


if __name__ == "__main__":
    cli.exit(main, several=True)
