"""Continue prompts: python scripts/generate.py --workdir runs/gpt "The people of" [...]

For runs of lm.clm, or with --weights for published GPT-2s, Llamas and their kin. Each prompt starts
a document, and is printed with the model's continuation. `--step` is latest (default), best, or a
number. The same seed gives the same text.
"""

import _checkout  # noqa: F401
from common import cli
from common.errors import require
from common.task import purpose_key
from lm import clm, generate, gpt, run, weights

TOKENS = 64  # the default of --tokens


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("prompts", nargs="+", metavar="PROMPT", help="texts to continue")
    cli.add_model(parser)
    parser.add_argument(
        "--tokens", type=int, help=f"tokens to write (default: {TOKENS}, or as many as fit)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="lower favours likely tokens (default: 0.8)"
    )
    parser.add_argument(
        "--top-k", type=int, help="sample from the K most likely tokens (default: all)"
    )
    parser.add_argument(
        "--top-p", type=float, help="nucleus sampling from probability mass P (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: 0)")
    parser.add_argument("--greedy", action="store_true", help="always take the most likely token")
    args = parser.parse_args(argv)
    require(0 <= args.seed < 2**32, f"--seed: {args.seed} is not in [0, 2^32)")
    if args.weights is not None:
        loaded = weights.load(args.weights, where="--weights")
        kind = type(loaded.model).__name__
        writes = isinstance(loaded.model, gpt.GPT)
        require(writes, f"--weights: {args.weights} is a {kind}; only causal LMs write text")
        _write(args, loaded.model, loaded.params, loaded.facts)
        return 0
    what = "a causal LM, lm.clm, writes text"
    with run.opened(args.workdir, "lm.clm", what, args.step) as (config, params, facts):
        _write(args, clm.model_of(config, facts), params, facts)
    return 0


def _write(args, model, params, facts) -> None:
    """Prints the prompts with their continuations."""
    tokens, lengths = generate.encode(facts, args.prompts)
    room = generate.room(model, tokens.shape[1])
    steps = args.tokens
    if steps is None:
        steps = TOKENS if room is None else max(1, min(TOKENS, room))
    written = generate.generate(
        *(model, params, tokens, lengths, purpose_key(args.seed, "generate")),
        steps=steps,
        temperature=None if args.greedy else args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        end=generate.end_of(facts),
    )
    print("\n\n".join(generate.decode(facts, tokens, lengths, written)))


if __name__ == "__main__":
    cli.exit(main)
