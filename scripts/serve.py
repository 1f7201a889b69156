"""Serve: python scripts/serve.py --artifact exported [--port 8000] [--host 127.0.0.1]

Serves an exported model, a run (--workdir) or published weights (--weights) over HTTP, with a page
at / on which to try it:

    curl localhost:8000/predict -H 'content-type: application/json' -d '{"inputs": ["a text"]}'
    curl localhost:8000/predict -H 'content-type: image/png' --data-binary @three.png

Requests are computed together, those that arrive within --latency milliseconds. /ready answers 200
once all programs are compiled; /health and /metrics are for what watches it. What it cannot take is
refused in one line (413, 429, 503). SIGTERM: what has come is answered, then it ends. Options of
the prediction, which --artifact DIR --help lists, hold for all requests; those that need no other
program, such as a temperature, may be set by each.
"""

import logging
import os
import sys

import _checkout  # noqa: F401
import predict as predicting
from common import cli, inputs, predict
from common.devices import runtime, terminal
from common.errors import BadInput, require
from common.sections import parameters
from common.serving import artifact

PACKAGES = ("multipart", "prometheus_client", "python_multipart", "starlette", "uvicorn")
LOCAL = ("127.0.0.1", "::1", "localhost")


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    server, application = _server()
    first = cli.parser(__doc__)
    _add_own(first)
    sources = ("--artifact", "--workdir", "--weights")
    if not any(word.partition("=")[0] in sources for word in argv):
        first.parse_args(argv)  # says what is needed, or shows the help without options
    words = [word for word in argv if word not in ("-h", "--help")]
    known, _ = first.parse_known_args(words)
    _check(known)
    token = None if known.token_file is None else _token(known.token_file)
    if token is None and known.host not in LOCAL:
        logging.warning("--host %s without --token-file: whoever reaches it may use it", known.host)
    loaded = _loaded(known)
    parser = cli.parser(__doc__)
    _add_own(parser)
    predicting.add_options(parser, loaded.predictor)
    args = parser.parse_args(argv)
    named = parameters(loaded.predictor.options).items()
    settings = {k: getattr(args, k) for k, each in named if getattr(args, k) != each.default}
    name = os.path.basename(os.path.normpath(args.artifact or args.workdir or args.weights))
    latency = args.latency / 1000
    model = application.model_of(name, loaded, settings, args.batch, latency, args.longest)
    limits = application.Limits(int(args.body * 2**20), args.queue, args.timeout)
    with server.listener(args.host, args.port) as sock:
        host, port = sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        tell = lambda: terminal.offer(f"http://{shown}:{port}/")
        return server.run(model, limits, token, sock, tell)


def _server():
    """The modules that serve, which need packages of an extra."""
    try:
        from common.serving import application, server
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name not in PACKAGES:
            raise
        raise BadInput(f"{name} is missing: pip install -e '.[serve]'") from error
    return server, application


def _add_own(parser) -> None:
    model = cli.add_model(parser)
    model.add_argument("--artifact", metavar="DIR", help="what scripts/export.py wrote")
    parser.add_argument("--embed", action="store_true", help="serve vectors, not of an artifact")
    parser.add_argument("--host", default="127.0.0.1", help="address (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0 is a free one (default: 8000)")
    parser.add_argument(
        "--token-file", metavar="FILE", help="holds a token, which requests must bring as Bearer"
    )
    number = lambda name, kind, default, text: parser.add_argument(
        f"--{name}", type=kind, default=default, help=f"{text} (default: {default:g})"
    )
    number("latency", float, 5.0, "milliseconds that a request waits for others")
    number("batch", int, predict.BATCH, "the most rows of a batch, for each device")
    number("queue", int, 1024, "inputs that are not answered yet; more are refused with 429")
    number("body", float, 16.0, "MiB of a request; larger ones are refused with 413")
    number("timeout", float, 30.0, "seconds in which a request must arrive, and be answered")
    parser.add_argument(
        "--longest", type=int, help="the most positions of a text (default: the model's, or 512)"
    )


def _check(args) -> None:
    for name in ("batch", "queue", "body", "timeout"):
        value = getattr(args, name)
        require(0 < value < float("inf"), f"--{name}: {value} is not positive")
    require(0 <= args.latency < float("inf"), f"--latency: {args.latency} is negative")
    require(args.longest is None or args.longest > 0, f"--longest: {args.longest} is not positive")
    require(0 <= args.port < 2**16, f"--port: {args.port} is no port")
    require(args.artifact is None or not args.embed, "--embed: an artifact predicts as exported")


def _token(path: str) -> str:
    token = inputs.text("--token-file", path).strip()
    fit = token.isascii() and token.isprintable() and " " not in token and token != ""
    require(fit, f"--token-file: {path}: a token is one word of ASCII")
    return token


def _loaded(args) -> predict.Loaded:
    if args.artifact is not None:
        runtime.start()
        return artifact.load(args.artifact)
    if args.workdir is not None:
        return predict.of_run(args.workdir, args.step, args.embed)
    return predict.of_weights(args.weights, args.embed)


if __name__ == "__main__":
    cli.exit(main)
