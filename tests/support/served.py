"""Models without weights behind the server: rows become their sums, in numpy."""

import contextlib
import http.client
import json
import threading
from types import SimpleNamespace

import numpy as np

from common import predict
from common.errors import require
from common.serving import application, server
from common.task import Predictor


def options(*, scale: float = 1.0, top: int = 5) -> dict:
    """Options.

    Args:
      scale: of the sum.
      top: of nothing.
    """
    return {"scale": scale, "top": top}


def read(text, options) -> list[dict]:
    """A row of the codes of a text's characters; or, of a text with "|", one for each part."""
    require(isinstance(text, str) and text != "", f"{text!r} is no text")
    if text == "fault":
        raise RuntimeError("a fault of the program")
    return [{"tokens": np.array([ord(c) for c in part], np.int32)} for part in text.split("|")]


def result(text, rows, outputs, options) -> dict:
    """The sums of the rows."""
    return {"text": text, "sums": [float(output["sum"]) for output in outputs]}


TEXTS = Predictor(read, None, result, str, options, pads={"tokens": 0}, longest=100)
PICTURES = Predictor(
    lambda picture, options: [{"image": np.frombuffer(bytes(picture[:4]), np.uint8)}],
    None, result=lambda picture, rows, outputs, options: {"sum": float(outputs[0]["sum"])},
    line=str, options=options, suffixes=frozenset({".png"}),
)  # fmt: skip
BOTH = PICTURES._replace(
    read=lambda given, options: (read if isinstance(given, str) else PICTURES.read)(given, options),
    result=lambda given, rows, outputs, options: {"sum": float(outputs[0]["sum"])},
    texts=True,
)


def loaded(predictor: Predictor = TEXTS, ways: int = 1, before=lambda rows: None):
    """(a model, a list to which it adds the rows of each batch it computes)."""
    batches = []

    def outputs(rows, index, size, options):
        kinds = {tuple((k, x.shape) for k, x in row.items()) for row in rows}
        assert (len(kinds), size % ways, len(rows) <= size) == (1, 0, True)
        before(rows)
        batches.append(rows)
        (name,) = rows[0]
        sums = np.array([row[name].sum() for row in rows], np.float64) * options["scale"]
        return {"sum": np.where(sums == ord("~"), np.nan, sums)}

    made = predict.Loaded(None, None, None, {}, predictor, None, outputs, ways)
    return made, batches


def expected(text: str, scale: float = 1.0) -> dict:
    """What the model of texts predicts."""
    return {"text": text, "sums": [scale * sum(map(ord, part)) for part in text.split("|")]}


@contextlib.contextmanager
def serving(
    made: predict.Loaded, limits=application.Limits(), token=None, latency=0.0, batch=8, **more
):
    """A server in a thread: yields its port, a function that tells it to end, and `wait`, which
    returns its exit code."""
    told, ready, codes = SimpleNamespace(signal=None), threading.Event(), []
    sock = server.listener("127.0.0.1", 0)
    port = sock.getsockname()[1]
    model = application.model_of("toy", made, more, batch, latency)
    before, server.ending.Told = server.ending.Told, lambda: contextlib.nullcontext(told)

    def run():
        codes.append(server.run(model, limits, token, sock, ready.set))

    def end():
        told.signal = 15

    def wait():
        thread.join(30)
        return codes[0]

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(30)
    server.ending.Told = before
    try:
        yield SimpleNamespace(port=port, end=end, wait=wait, model=model)
    finally:
        end()
        thread.join(30)


def ask(port: int, body, method="POST", path="/predict", **headers) -> tuple[int, dict, dict]:
    """(status, JSON, headers) of a request; a body that is no bytes is sent as JSON."""
    if not isinstance(body, bytes | None):
        headers = {"content-type": "application/json"} | headers
        body = json.dumps(body).encode()
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        content = response.read()
        try:
            content = json.loads(content)
        except ValueError:
            content = content.decode()
        return response.status, content, dict(response.getheaders())
