"""A model behind HTTP.

| | |
|---|---|
| POST /predict | {"inputs": […], option: value} -> {"results": […]}; also pictures as they are |
| GET / | a page on which a person tries the model |
| GET /model | what it takes, for that page |
| GET /health | 200 while the process lives |
| GET /ready | 200 once all programs are compiled, until it is told to end; otherwise 503 |
| GET /metrics | for Prometheus |

The main thread computes (`common.serving.batching`), a second one runs the event loop, and others
read inputs. A request that cannot be answered is refused in one line, {"error": …}, before it costs
anything.
"""

import asyncio
import concurrent.futures
import dataclasses
import hashlib
import hmac
import json
import logging
import os
import pathlib
import resource
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import prometheus_client
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from common import predict
from common.devices import ending, terminal
from common.errors import BadInput
from common.planning.keys import meanings
from common.sections import parameters
from common.serving import requests
from common.serving.batching import Batcher
from common.serving.requests import Refused

DRAIN_SECONDS = 20  # in which requests are answered after SIGTERM
HELD = 16  # bodies of the largest size that are held at once
MOST_CONNECTIONS = 4096
MOST_PIXELS = 50_000_000  # of a picture
MOST_HEADERS = 1 << 16  # bytes
GONE = 499  # in metrics: the client went away
PAGE = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
SAFE = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:",
    "x-content-type-options": "nosniff",
}
LATENCIES = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Limits(NamedTuple):
    """What a server takes.

    Attributes:
      body: bytes of a request.
      queue: inputs that wait or are computed.
      seconds: in which a request must arrive, and be answered.
    """

    body: int = 16 * requests.MIB
    queue: int = 1024
    seconds: float = 30.0


class Model(NamedTuple):
    """What is served.

    Attributes:
      name: for the page.
      loaded: the model.
      batcher: of it.
      options: that requests may set.
    """

    name: str
    loaded: predict.Loaded
    batcher: Batcher
    options: requests.Options


@dataclasses.dataclass
class State:
    """Of a server: whether all programs are compiled, and it is told to end; inputs that are not
    answered yet, and bytes of bodies that are held."""

    ready: bool = False
    closing: bool = False
    pending: int = 0
    held: int = 0


def model_of(
    name: str, loaded: predict.Loaded, settings: dict, batch: int, latency: float, longest=None
) -> Model:
    """A model with its queue; arguments as of `Batcher`, `settings` its options by name.

    Raises:
      BadInput: if an option is wrong.
    """
    predictor = loaded.predictor
    check = lambda values: predict.options_of(predictor, values)
    known = parameters(predictor.options)
    options = requests.Options(check, predict.divided, settings, known)
    return Model(name, loaded, Batcher(loaded, options.fixed, batch, latency, longest), options)


# ----------------------------------------------------------------------------------------- metrics


class Metrics(NamedTuple):
    """Of one server."""

    registry: prometheus_client.CollectorRegistry
    requests: prometheus_client.Counter
    seconds: prometheus_client.Histogram


def metrics_of(batcher: Batcher, state: State) -> Metrics:
    """The metrics of a server; those of batches are kept from then on."""
    registry = prometheus_client.CollectorRegistry()
    counted = prometheus_client.Counter(
        "touchstone_requests", "Requests to /predict.", ["status"], registry=registry
    )
    seconds = prometheus_client.Histogram(
        "touchstone_request_seconds",
        "Time to answer a request to /predict.",
        buckets=LATENCIES,
        registry=registry,
    )
    rows = prometheus_client.Histogram(
        "touchstone_batch_rows", "Rows of a batch.", buckets=batcher.sizes(), registry=registry
    )
    computing = prometheus_client.Histogram(
        "touchstone_batch_seconds",
        "Time to compute a batch.",
        buckets=LATENCIES,
        registry=registry,
    )
    gauges = {
        "touchstone_queue_rows": ("Rows that wait.", batcher.waiting),
        "touchstone_pending_inputs": ("Inputs not answered yet.", lambda: state.pending),
        "touchstone_ready": ("Whether it is ready.", lambda: state.ready and not state.closing),
    }
    for name, (text, function) in gauges.items():
        prometheus_client.Gauge(name, text, registry=registry).set_function(function)
    prometheus_client.ProcessCollector(registry=registry)

    def observe(count: int, duration: float) -> None:
        rows.observe(count)
        computing.observe(duration)

    batcher.observe = observe
    return Metrics(registry, counted, seconds)


# ------------------------------------------------------------------------------------- application


def application(model: Model, limits: Limits, token: str | None, state: State) -> Callable:
    """The ASGI application."""
    metrics = metrics_of(model.batcher, state)
    predictor = model.loaded.predictor
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count(), "read")
    digest = lambda text: hashlib.sha256(text).digest()
    expected = None if token is None else digest(f"Bearer {token}".encode())

    def authorise(request: Request) -> None:
        words = digest(request.headers.get("authorization", "").encode("latin-1"))
        if expected is not None and not hmac.compare_digest(words, expected):
            text = "a token is needed: send the header Authorization: Bearer TOKEN"
            raise Refused(401, text, www_authenticate="Bearer")

    def check_open() -> None:
        if state.closing:
            raise Refused(503, "the server is shutting down", retry_after="5", connection="close")
        if not state.ready:
            raise Refused(503, "the server is starting: see /ready", retry_after="5")

    async def predicted(request: Request) -> Response:
        authorise(request)
        check_open()
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            if state.held + count > HELD * limits.body:
                raise Refused(429, "too many bodies are sent at once", retry_after="1")
            held += count
            state.held += count

        try:
            try:
                async with asyncio.timeout(limits.seconds):
                    content = await requests.body(request, limits.body, hold)
            except TimeoutError as error:
                text = f"the body did not arrive in {limits.seconds:g} s"
                raise Refused(408, text, connection="close") from error
            check_open()
            return await unless_gone(request, answered(request, content))
        finally:
            state.held -= held

    async def answered(request: Request, content: bytes) -> Response:
        inputs, given = await requests.asked(request, content, predictor)
        options, count = model.options.of(given), len(inputs)
        if not inputs:
            raise Refused(400, "there is no input")
        if count > limits.queue:
            raise Refused(413, f"{count} inputs, and the server takes {limits.queue} at once")
        if state.pending + count > limits.queue:
            raise Refused(429, f"{state.pending} inputs wait; try again", retry_after="1")
        kind = json.dumps(given, sort_keys=True, default=str) if given else None
        state.pending += count
        try:
            async with asyncio.timeout(limits.seconds):
                results = await asyncio.gather(
                    *(one(i, value, options, kind) for i, value in enumerate(inputs))
                )
        except TimeoutError as error:
            text = f"there was no answer in {limits.seconds:g} s"
            raise Refused(503, text, retry_after="1") from error
        finally:
            state.pending -= count
        return response(results)

    async def one(index: int, value: Any, options: dict, kind) -> bytes | Exception:
        """The result of an input as JSON, or why there is none."""

        def finish(outputs: list[dict]) -> bytes:
            return _json(predictor.result(value, rows, outputs, options))

        def read() -> tuple[list[dict], list[dict]]:
            if isinstance(value, BadInput):
                raise value
            rows = predictor.read(value, options)
            return rows, [model.batcher.fitted(row) for row in rows]

        try:
            rows, fitted = await asyncio.get_running_loop().run_in_executor(pool, read)
            future = model.batcher.submit(fitted, finish, options, kind, index)
            return await asyncio.wrap_future(future)
        except Exception as error:
            if not isinstance(error, BadInput):
                _fault(error)
            return error

    def response(results: list[bytes | Exception]) -> Response:
        errors = [each for each in results if isinstance(each, Exception)]
        parts = [_error(each) if isinstance(each, Exception) else each for each in results]
        body = b'{"results": [' + b", ".join(parts) + b"]}"
        status = 200
        if len(errors) == len(results):
            status = 400 if all(isinstance(error, BadInput) for error in errors) else 500
            body = _error(errors[0])[:-1] + b", " + body[1:]
        return Response(body, status, media_type="application/json")

    def described(request: Request) -> Response:
        authorise(request)
        known = meanings(predictor.options)
        about = {
            "name": model.name,
            "inputs": "pictures" if predictor.suffixes else "texts",
            "columns": predictor.columns,
            "optional": predictor.optional,
            "options": {k: [v, known.get(k, "")] for k, v in model.options.open.items()},
            "longest": model.batcher.longest,
        }
        return Response(_json(about), media_type="application/json")

    def told(request: Request) -> Response:
        authorise(request)
        text = prometheus_client.generate_latest(metrics.registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    async def health(request: Request) -> Response:
        return Response(b'{"alive": true}', media_type="application/json")

    async def ready(request: Request) -> Response:
        check_open()
        return Response(b'{"ready": true}', media_type="application/json")

    async def refused(request: Request, error: Refused) -> Response:
        return Response(_error(error), error.status, error.headers, "application/json")

    async def failed(request: Request, error: Exception) -> Response:
        return await refused(request, Refused(500, _fault(error)))

    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return await refused(request, Refused(GONE, "the client is gone"))

    async def of_starlette(request: Request, error: HTTPException) -> Response:
        return await refused(request, Refused(error.status_code, error.detail))

    routes = [
        Route("/predict", predicted, methods=["POST"]),
        Route("/model", described),
        Route("/metrics", told),
        Route("/health", health),
        Route("/ready", ready),
        *[Route(path, _file(name)) for path, name in PAGE.items()],
    ]
    handlers = {
        Refused: refused,
        ClientDisconnect: gone,
        HTTPException: of_starlette,
        Exception: failed,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)

    async def counted(scope, receive, send) -> None:
        """Counts requests."""
        begun, status = time.monotonic(), 0

        async def sending(message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await app(scope, receive, sending)
        except Exception:  # `failed` has told of it
            pass
        finally:
            if scope.get("path") == "/predict":
                metrics.requests.labels(status or GONE).inc()
                metrics.seconds.observe(time.monotonic() - begun)

    return counted


async def unless_gone(request: Request, work) -> Response:
    """What `work` returns; it is cancelled if the client goes away."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, gone = asyncio.ensure_future(work), asyncio.ensure_future(leaves())
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        gone.cancel()


def _file(name: str) -> Callable:
    path = pathlib.Path(__file__).parent / name
    content = path.read_bytes()

    async def served(request: Request) -> Response:
        return Response(content, headers=SAFE, media_type=KINDS[path.suffix])

    return served


def _json(value: dict) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise BadInput("the model's prediction is not finite") from error
    return text.encode("utf-8", "backslashreplace")


def _error(error: Exception) -> bytes:
    known = isinstance(error, BadInput | Refused)
    return _json({"error": str(error) if known else "a fault of the server, which its log names"})


def _fault(error: Exception) -> str:
    """Logs a fault of the program; returns what a client may know of it."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    at = f" ({where.tb_frame.f_code.co_filename}:{where.tb_lineno})" if where else ""
    logging.warning("%s: %s%s", type(error).__name__, str(error)[:200], at)
    return "a fault of the server, which its log names"


# --------------------------------------------------------------------------------------- listening


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
      BadInput: if it cannot.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:
        text = getattr(error, "strerror", None) or error
        raise BadInput(f"--host {host} --port {port}: {text}") from error
    return made


class _Connection(AutoHTTPProtocol):
    """A connection that is closed if it waits for its client for `patience` seconds: for the rest
    of the headers, for the next request, or for what was sent to be read."""

    patience = 30.0

    def connection_made(self, transport):
        super().connection_made(transport)
        self._latest, self._since, self._headers = None, time.monotonic(), 0
        self._look()

    def data_received(self, data):
        super().data_received(data)
        in_headers = self.cycle is None or self.cycle.scope is not self.scope
        self._headers = self._headers + len(data) if in_headers else 0
        if self._headers > MOST_HEADERS:
            self.transport.abort()

    def connection_lost(self, error):
        self._timer.cancel()
        super().connection_lost(error)

    def _look(self):
        now, waits = time.monotonic(), self.cycle is None or self.cycle.response_complete
        if self.cycle is not self._latest or not waits:
            self._latest, self._since = self.cycle, now
        if now - self._since > self.patience:
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(self.patience / 4, self._look)


def run(
    model: Model, limits: Limits, token: str | None, sock: socket.socket, tell: Callable
) -> int:
    """Serves until SIGTERM or Ctrl-C: then nothing more is accepted, what has come is answered, and
    it ends, within `DRAIN_SECONDS`.

    Args:
      model: what is served.
      limits: of its requests.
      token: that requests must have; None is none.
      sock: that listens, see `listener`.
      tell: called once, when it is ready.

    Returns:
      the exit code.
    """
    state, batcher = State(), model.batcher
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow refuses twice as many
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = min(hard, 2 * MOST_CONNECTIONS) if hard > 0 else 2 * MOST_CONNECTIONS
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))
    logging.getLogger("uvicorn").setLevel("CRITICAL")
    config = uvicorn.Config(
        application(model, limits, token, state),
        http=type("Connection", (_Connection,), {"patience": limits.seconds}),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=min(MOST_CONNECTIONS, max(soft, files) // 2),
        timeout_keep_alive=max(1, int(limits.seconds)),
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([sock],), name="http", daemon=True)
    with ending.Told() as told, ending.grace(DRAIN_SECONDS + 10.0):

        def stop() -> bool:
            if told.signal is not None and not state.closing:
                state.closing = server.should_exit = True
            return not thread.is_alive()

        def stopped() -> bool:
            return stop() or state.closing

        thread.start()
        with ending.busy("compiling"):
            for done, count in batcher.compile(stopped):
                ending.now_busy(f"compiling: {done} of {count} programs are done")
        if not stopped():
            state.ready = True
            tell()
        with ending.idle():
            batcher.run(stop)
        thread.join()
        batcher.close()
    if not state.closing:
        raise RuntimeError("the thread that serves ended by itself")
    terminal.say("told to end: all requests that had come are answered")
    return 0
