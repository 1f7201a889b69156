"""Quantize a trained run: python scripts/quantize.py --workdir runs/bert --to runs/bert_int8

The kernels of dense layers and convolutions become integers of 8 bits, or of 4 (--weights int4),
with a scale for each output channel. --to is then the workdir of another run, at the same step,
which evaluate.py, predict.py and report.py read like any other. Prints one JSON object: the bytes
of the parameters and the run's evaluations, before and after. Needs the extra `quantize`.

To train with the rounding instead: scripts/train.py --config.compress.quantize.weights=int8
"""

import json

import _checkout  # noqa: F401
from common import cli
from common.compress import quantize
from common.runs import place
from common.runs.log import encode
from common.sections import parameters
from common.training.derived import quantize_run


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("--workdir", type=place.workdir, required=True, help="workdir of the run")
    parser.add_argument("--step", default="latest", help="latest (default), best or a number")
    parser.add_argument("--to", type=place.folder, required=True, help="workdir to make")
    keys = parser.add_argument_group("the scheme", "keys of config.compress.quantize")
    keys.add_argument("--weights", choices=["int8", "int4"], default="int8", help="default int8")
    keys.add_argument("--activations", choices=["int8"], default="", help="default: floats")
    paths = parameters(quantize.scheme)["paths"].default
    keys.add_argument("--paths", default=paths, help=f"a regex of parameters (default {paths})")
    args = parser.parse_args(argv)
    chosen = {key: getattr(args, key) for key in ("weights", "activations", "paths")}
    print(json.dumps(encode(quantize_run(args.workdir, args.to, args.step, **chosen))))
    return 0


if __name__ == "__main__":
    cli.exit(main)
