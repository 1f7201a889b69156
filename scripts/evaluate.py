"""Evaluate a run: python scripts/evaluate.py --workdir runs/digits [--step best] [--set test ...]

`--step` is latest (default), best, or a number. `--set` names evaluators of the run's config, or
splits of its data set such as 'test[:1000]'. Prints one JSON object; the numbers are those that
training logged.
"""

import json

from common import cli
from common.runs.log import encode
from common.training.saved import evaluate_run


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", required=True, help="the run")
    parser.add_argument("--step", default="latest", help="latest, best or a number")
    parser.add_argument("--set", nargs="*", dest="sets", help="evaluators or splits; default: all")
    args = parser.parse_args(argv)
    print(json.dumps(encode(evaluate_run(args.workdir, args.step, args.sets))))
    return 0


if __name__ == "__main__":
    cli.exit(main)
