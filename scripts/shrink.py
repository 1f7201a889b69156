"""Cut zeros out of a pruned run: python scripts/shrink.py --workdir runs/pruned --to runs/small

Attention heads and hidden units of MLPs that are zero in every block (after a run with
--config.compress.prune.structure=heads, or rows) are left out of the model. --to is then the
workdir of another run, at the same step, which evaluate.py, predict.py and config.init.path take
like any other, and whose outputs are the same. Prints one JSON object: what was cut of each block,
parameters and evaluations before and after.
"""

import json

import _checkout  # noqa: F401
from common import cli
from common.runs import place
from common.runs.log import encode
from common.training.derived import shrink_run


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", type=place.workdir, required=True, help="workdir of the run")
    parser.add_argument("--step", default="latest", help="latest (default), best or a number")
    parser.add_argument("--to", type=place.folder, required=True, help="workdir to make")
    args = parser.parse_args(argv)
    print(json.dumps(encode(shrink_run(args.workdir, args.to, args.step))))
    return 0


if __name__ == "__main__":
    cli.exit(main)
