"""Export: python scripts/export.py --workdir runs/digits --to exported [--onnx] [--huggingface]

Writes a run as a folder that a process with jax and numpy alone can run, on cpu, cuda and tpu, with
any number of rows: manifest.json names its functions, with their inputs and outputs. `predict` is
what scripts/predict.py computes; runs of lm.mlm and lm.clm also have `logits`, and lm.clm a `step`
of decoding with a cache. The options of the prediction, which --workdir RUN --help lists, are those
of scripts/predict.py.

The export is verified before it is there: in a fresh process its outputs equal the run's on rows of
the run's own evaluation set or, where its data are absent, on --inputs.
"""

import sys

import _checkout  # noqa: F401
import predict as predicting
from common import cli, predict
from common.runs import place
from common.sections import parameters
from common.serving import export

FORMS = ("onnx", "openvino", "huggingface")


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    first = cli.parser(__doc__)
    _add_own(first)
    if not any(word.partition("=")[0] == "--workdir" for word in argv):
        first.parse_args(argv)  # says what is needed, or shows the help without options
    known, _ = first.parse_known_args([word for word in argv if word not in ("-h", "--help")])
    loaded = predict.of_run(known.workdir, known.step)
    parser = cli.parser(__doc__)
    _add_own(parser)
    predicting.add_options(parser, loaded.predictor)
    args = parser.parse_args(argv)
    options = {name: getattr(args, name) for name in parameters(loaded.predictor.options)}
    named = predicting.named_inputs(args.inputs or [], loaded.predictor, args.column)
    forms = [form for form in FORMS if getattr(args, form)]
    export.export(args.workdir, loaded, args.to, options, [each.value for each in named], forms)
    print(f"{args.to}: python {args.to}/read.py predict inputs.npz outputs.npz")
    return 0


def _add_own(parser) -> None:
    parser.add_argument("--workdir", required=True, type=place.workdir, help="workdir of the run")
    parser.add_argument(
        "--step", default="latest", help="checkpoint step: latest (default), best or a number"
    )
    parser.add_argument("--to", required=True, help="the folder to write; it must not exist")
    parser.add_argument(
        "--inputs", nargs="+", metavar="INPUT", help="texts, files or folders to verify it on"
    )
    parser.add_argument("--column", action="append", help="as of scripts/predict.py")
    parser.add_argument("--onnx", action="store_true", help="write ONNX, too")
    parser.add_argument("--openvino", action="store_true", help="write OpenVINO, too")
    parser.add_argument("--huggingface", action="store_true", help="write Hugging Face's layout")


if __name__ == "__main__":
    cli.exit(main)
