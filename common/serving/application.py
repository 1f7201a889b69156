"""A model behind HTTP: the ASGI application.

| | |
|---|---|
| POST /predict | {"inputs": […], option: value} -> {"results": […]}; also pictures as they are |
| GET / | a page on which a person tries the model |
| GET /model | what it takes, for that page |
| GET /health | 200 while the process lives |
| GET /ready | 200 once all programs are compiled, until it is told to end; otherwise 503 |
| GET /metrics | for Prometheus |

A request that cannot be answered is refused in one line, {"error": …}, before it costs anything.
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
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import prometheus_client
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from common import predict
from common.errors import BadInput
from common.planning.keys import meanings
from common.sections import parameters
from common.serving import requests
from common.serving.batching import Batcher
from common.serving.metrics import metrics_of
from common.serving.requests import Refused

HELD = 16  # bodies of the largest size that are held at once
GONE = 499  # in metrics: the client went away
PAGE = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js"}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
SAFE = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:",
    "x-content-type-options": "nosniff",
}
FAULT = "a fault of the server, which its log names"


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


def application(model: Model, limits: Limits, token: str | None, state: State) -> Callable:
    """The ASGI application."""
    is_open = lambda: state.ready and not state.closing
    metrics = metrics_of(model.batcher, lambda: state.pending, is_open)
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
            if not predict.finite(outputs):
                raise predict.NOT_FINITE
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
            "inputs": "both" if predictor.texts else "pictures" if predictor.suffixes else "texts",
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
        told = Refused(error.status_code, error.detail)
        told.headers |= error.headers or {}  # the methods that there are
        return await refused(request, told)

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
    return _json({"error": str(error) if known else FAULT})


def _fault(error: Exception) -> str:
    """Logs a fault of the program; returns what a client may know of it."""
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    at = f" ({where.tb_frame.f_code.co_filename}:{where.tb_lineno})" if where else ""
    logging.warning("%s: %s%s", type(error).__name__, str(error)[:200], at)
    return FAULT
