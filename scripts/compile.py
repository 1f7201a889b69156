"""Compile a config for machines that are not attached, and report what it needs.

    python scripts/compile.py --config configs/lm/bert_base.py --topology v5e:2x4

Compiles the exact train step for TPU v4, v5e, v5p or v6e (with the extra `compile`), H100 GPUs
(with the extra `compile-h100`) or simulated CPU devices, and prints memory, collectives, FLOPs and
a lower bound on the step time, before you rent the pod. Nothing the size of the model is allocated.
Overrides as in train.py: --config.mesh.fsdp=8.
"""

import logging
import sys

import _checkout  # noqa: F401
from common import cli, config
from common.errors import choice
from common.planning import compiled

SEARCHED = ("mesh", "remat", "batch")


def main(argv=None) -> int:
    """Runs the command line; returns the exit code: 0 if it fits, 1 if not."""
    parser = cli.parser(__doc__)
    cli.add_config(parser)
    parser.add_argument("--topology", required=True, help="v5e:16x16, v5p:4x4x4, h100:8, cpu:8, …")
    parser.add_argument("--json", action="store_true", help="print JSON, one line per program")
    parser.add_argument(
        "--search",
        nargs="*",
        metavar="WHAT",
        help="search over mesh, remat and batch (default: all three), and rank what fits",
    )
    args, completed = cli.parse(parser, argv)
    completed = config.plain(completed)
    logging.getLogger().setLevel(logging.ERROR if args.json else logging.WARNING)
    if args.search is None:
        report = compiled.examine(completed, args.topology)
        print(compiled.to_json(report) if args.json else compiled.report_text(report))
        return 0 if report.fits else 1
    over = tuple(args.search) or SEARCHED
    for name in over:
        choice("--search", name, SEARCHED)
    tell = lambda line: print(line, file=sys.stderr, flush=True)
    found = compiled.search(completed, args.topology, over, tell)
    if args.json:
        for overrides, report in found:
            print(compiled.to_json(report, overrides=overrides))
    else:
        print(compiled.ranking(found))
    return 0 if any(report.fits for _, report in found) else 1


if __name__ == "__main__":
    cli.exit(main)
