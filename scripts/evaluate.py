"""Evaluate a run: python scripts/evaluate.py --workdir runs/digits [--step best] [--set test ...]

`--step` is latest (default), best, or a number. `--set` names evaluators of the run's config, or
splits of its data set such as 'test[:1000]'. Prints one JSON object, with the same numbers that
training logs.

On another set of the same kind, or any other key of `data` and `evals`:
--config.data.name=images:other --set all. `all` is all of its examples; without parts of its own,
`test` is what a hash holds out. Classes are matched by their names; tokenizer, mean and deviation
stay the run's, whose own data need not be there.

Published weights are evaluated on the data of a config, whose model and tokenizer give way to
theirs: python scripts/evaluate.py --weights FOLDER --config configs/lm/gpt_sotu.py
"""

import json

import _checkout  # noqa: F401
from common import cli
from common.runs.log import encode
from common.training.saved import evaluate_run, evaluate_weights


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    cli.add_model(parser)
    cli.add_config(parser, required=False)
    parser.add_argument(
        "--set", nargs="*", dest="sets", help="evaluators or splits (default: all evaluators)"
    )
    args, overrides = parser.parse_known_args(argv)
    if args.workdir is not None and args.config is None:
        found = evaluate_run(args.workdir, args.step, args.sets, overrides=overrides)
    else:
        args, config = cli.parse_model(parser, argv)
        found = evaluate_weights(config, args.weights, args.sets)
    print(json.dumps(encode(found)))
    return 0


if __name__ == "__main__":
    cli.exit(main)
