"""Evaluate a run: python scripts/evaluate.py --workdir runs/digits [--step best] [--set test ...]

`--step` is latest (default), best, or a number. `--set` names evaluators of the run's config, or
splits of its data set such as 'test[:1000]'. Prints one JSON object, with the same numbers that
training logs.
"""

import json

from common import cli
from common.runs import place
from common.runs.log import encode
from common.training.saved import evaluate_run


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", type=place.workdir, required=True, help="workdir of the run")
    parser.add_argument(
        "--step", default="latest", help="checkpoint step: latest (default), best or a number"
    )
    parser.add_argument(
        "--set", nargs="*", dest="sets", help="evaluators or splits (default: all evaluators)"
    )
    args = parser.parse_args(argv)
    print(json.dumps(encode(evaluate_run(args.workdir, args.step, args.sets))))
    return 0


if __name__ == "__main__":
    cli.exit(main)
