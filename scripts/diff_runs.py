"""Find where two runs diverge: python scripts/diff_runs.py runs/a runs/b

Prints the first logged step at which their states differ and the modules that do, by the digests in
their logs (`--config.train.log_every='1 steps'` logs every step), and the differences in config,
data, versions and machine. Exit code 0 if they are bit-identical, 1 if not.
"""

import _checkout  # noqa: F401
from common import cli
from common.reports import compare
from common.runs import place


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("a", type=place.folder, help="workdir of a run")
    parser.add_argument("b", type=place.folder, help="workdir of another run")
    args = parser.parse_args(argv)
    found = compare.runs(args.a, args.b)
    print(compare.comparison_text(found), end="")
    return int(found.verdict != compare.IDENTICAL)


if __name__ == "__main__":
    cli.exit(main)
