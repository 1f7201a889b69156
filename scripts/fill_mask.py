"""Predict masked words: python scripts/fill_mask.py --workdir runs/bert "the [MASK] of peace" [...]

For runs of lm.mlm. Prints each text with the most likely token in every [MASK] and, below it, the
predictions for each with their probabilities. Several masks in a text are predicted independently
of one another. `--step` is latest (default), best, or a number.
"""

from common import cli
from common.errors import require
from common.runs import place
from common.training.loop import eval_context
from common.training.saved import opened, read_config
from lm import fill, mlm


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("texts", nargs="+", metavar="TEXT", help=f"texts containing {fill.MASK}")
    parser.add_argument("--workdir", type=place.workdir, required=True, help="workdir of the run")
    parser.add_argument(
        "--step", default="latest", help="checkpoint step: latest (default), best or a number"
    )
    parser.add_argument(
        "--top", type=int, default=5, help="predictions shown per mask (default: 5)"
    )
    args = parser.parse_args(argv)
    config = read_config(args.workdir)
    require(
        config["task"] == "lm.mlm",
        f"{args.workdir}: a run of {config['task']}; only a masked LM, lm.mlm, fills masks",
    )
    config |= {"data": config["data"] | {"resident": False}}  # its rows are not needed
    with opened(config, args.workdir, args.step) as (program, state, step):
        params = eval_context(program, state, step).params
        facts = program.task.sources["train"].facts
        model = mlm.model_of(config, facts)
        for filled in fill.fill(model, params, facts, args.texts, args.top):
            print(filled.text)
            for guesses in filled.guesses:
                print("   ", ", ".join(f"{token} {share:.1%}" for token, share in guesses))
    return 0


if __name__ == "__main__":
    cli.exit(main)
