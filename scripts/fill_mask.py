"""Predict masked words: python scripts/fill_mask.py --workdir runs/bert "the [MASK] of peace" [...]

For runs of lm.mlm, or with --weights for published BERTs and their kin. Prints each text with the
most likely token in every [MASK], or mask token of the tokenizer, and, below it, the predictions
for each with their probabilities. Several masks in a text are predicted independently of one
another. `--step` is latest (default), best, or a number.
"""

import _checkout  # noqa: F401
from common import cli
from common.errors import require
from lm import bert, fill, mlm, run, weights


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("texts", nargs="+", metavar="TEXT", help=f"texts containing {fill.MASK}")
    cli.add_model(parser)
    parser.add_argument(
        "--top", type=int, default=5, help="predictions shown per mask (default: 5)"
    )
    args = parser.parse_args(argv)
    if args.weights is not None:
        loaded = weights.load(args.weights, where="--weights")
        fills = isinstance(loaded.model, bert.Bert)
        require(fills, f"--weights: {args.weights} has no masked-LM head, which fills masks")
        _print(fill.fill(loaded.model, loaded.params, loaded.facts, args.texts, args.top))
        return 0
    what = "a masked LM, lm.mlm, fills masks"
    with run.opened(args.workdir, "lm.mlm", what, args.step) as (config, params, facts):
        _print(fill.fill(mlm.model_of(config, facts), params, facts, args.texts, args.top))
    return 0


def _print(filled: list[fill.Filled]) -> None:
    for each in filled:
        print(each.text)
        for guesses in each.guesses:
            print("   ", ", ".join(f"{token} {share:.1%}" for token, share in guesses))


if __name__ == "__main__":
    cli.exit(main)
