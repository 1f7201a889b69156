"""Train a config: python scripts/train.py --config configs/vision/digits.py --workdir runs/digits

Override any key as --config.optim.lr=1e-3. The same command resumes a killed run. Exit codes: 0
done; 1 failed (a NaN, or a full disk); 2 bad input; 6 another process of the run was lost, and 75
preempted after saving: start all processes again.
"""

import json

from common import cli
from common.devices import runtime
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
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    cli.exit(main)
