"""A model behind HTTP (`common.serving.application`), from a socket that listens to a process that
ends when it is told to.

The main thread computes (`common.serving.batching`), a second one runs the event loop, and others
read inputs.
"""

import logging
import resource
import socket
import threading
import time
from collections.abc import Callable

import uvicorn
from PIL import Image
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from common.devices import ending, terminal
from common.errors import BadInput
from common.serving.application import Limits, Model, State, application

DRAIN_SECONDS = 20  # in which requests are answered after SIGTERM
MOST_CONNECTIONS = 4096
MOST_PIXELS = 50_000_000  # of a picture
MOST_HEADERS = 1 << 16  # bytes


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
                if not done:
                    terminal.say(f"compiling {count} programs …")
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
