"""The server over real sockets, before a model in numpy: what it answers, refuses and outlives."""

import base64
import contextlib
import http.client
import socket
import threading
import types

import pytest
import served
from helpers import wait_for
from served import ask, expected, serving

from common import predict
from common.errors import BadInput
from common.sections import parameters
from common.serving import batching, requests, server
from common.serving.application import Limits


@pytest.fixture(scope="module")
def texts():
    made, _ = served.loaded()
    with serving(made, Limits(body=1 << 16, queue=20, seconds=20)) as running:
        yield running.port


def test_each_input_has_its_result_or_its_own_error(texts):
    inputs = ["one", "two|three", "", 3, "x" * 101, "grüße 日本", "~", "fault"]
    status, answer, _ = ask(texts, {"inputs": inputs})
    results = answer["results"]
    assert status == 200
    assert results[0] == expected("one")
    assert results[1] == expected("two|three")
    assert results[5] == expected("grüße 日本")
    assert [results[i]["error"] for i in (2, 3, 4, 6, 7)] == [
        "'' is no text",
        "3 is no text",
        "101 positions, and the server takes 100 at most",
        str(predict.NOT_FINITE),
        "a fault of the server, which its log names",
    ]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"inputs": [', 400, "the body is no JSON: Expecting value: line 1 column 13 (char 12)"),
        (b"[" * 50_000, 400, "the body is no JSON"),
        (b"\xff\xfe", 400, "the body is no JSON"),
        ([], 400, "no object with a list of inputs"),
        ({"inputs": "one"}, 400, "no object with a list of inputs"),
        ({"inputs": []}, 400, "there is no input"),
        ({"inputs": [""]}, 400, "'' is no text"),
        ({"inputs": ["fault"]}, 500, "a fault of the server, which its log names"),
        ({"inputs": ["a"], "scal": 2}, 400, "'scal': unknown option; did you mean 'scale'?"),
        ({"inputs": ["a"], "scale": "2"}, 400, "scale: '2' is not float"),
        ({"inputs": ["a"], "scale": 10**400}, 400, "scale: 1000"),
        ({"inputs": ["a"], "top": 3}, 400, "top: fixed when the server was started"),
        ({"inputs": ["a"] * 21}, 413, "21 inputs, and the server takes 20 at once"),
        ({"inputs": ["a" * 70_000]}, 413, "the body has more than 0.0625 MiB"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(texts, body, status, message):
    headers = {"content-type": "application/json"} if isinstance(body, bytes) else {}
    got, answer, _ = ask(texts, body, **headers)
    assert (got, message in answer["error"]) == (status, True), answer
    assert "\n" not in answer["error"]


def test_kinds_paths_and_methods(texts):
    like = {"inputs": ["a"]}
    for kind in ("text/plain", "image/png", "multipart/form-data; boundary=x", ""):
        status, _, headers = ask(texts, like, content_type=kind)
        assert (status, headers["accept"]) == (415, "application/json")
    assert ask(texts, like, content_type="Application/JSON; charset=utf-8")[0] == 200
    status, _, headers = ask(texts, None, "GET")
    assert (status, headers["allow"]) == (405, "POST")
    assert ask(texts, None, "GET", "/other")[:2] == (404, {"error": "Not Found"})
    assert ask(texts, None, "GET", "/health")[0] == ask(texts, None, "GET", "/ready")[0] == 200
    about = ask(texts, None, "GET", "/model")[1]
    assert about["inputs"] == "texts"
    assert about["options"] == {"scale": [1.0, "of the sum."]}


def test_options_that_compile_nothing_are_each_requests_own(texts):
    answers = {}

    def client(scale):
        answers[scale] = ask(texts, {"inputs": ["one"], "scale": scale})[1]["results"]

    scales = [1.0, 2.0, 3, 0.5]
    threads = [threading.Thread(target=client, args=(scale,)) for scale in scales]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {scale: [expected("one", scale)] for scale in scales}


def test_a_request_names_no_file_of_the_server():
    """An option that the server has fixed is compared, not checked: a check may open a file."""
    opened = []

    def options(*, among: str = "", scale: float = 1.0) -> dict:
        opened.append(among)
        return {"names": (among,), "scale": scale}

    check = lambda values: predict.options_of(types.SimpleNamespace(options=options), values)
    known = parameters(options)
    mine = requests.Options(check, predict.divided, {"among": "own"}, known)
    assert mine.open == {"scale": 1.0}
    assert mine.of({"among": "own"}) == mine.fixed
    assert mine.of({"among": "own", "scale": 2})["scale"] == 2.0
    with pytest.raises(requests.Refused, match="among: fixed when the server was started"):
        mine.of({"among": "/etc/passwd", "scale": 2})
    assert set(opened) == {"own"}


def test_a_body_without_a_length_is_cut_off(texts):
    connection = http.client.HTTPConnection("127.0.0.1", texts, timeout=30)
    with contextlib.closing(connection):
        parts = iter([b"x" * 1000] * 70)
        headers = {"content-type": "application/json"}
        connection.request("POST", "/predict", parts, headers, encode_chunked=True)
        assert connection.getresponse().status == 413


def test_pictures_as_base64_a_form_or_bytes():
    made, _ = served.loaded(served.PICTURES)
    with serving(made) as running:
        port, picture = running.port, b"\x01\x02\x03\x04"
        words = base64.b64encode(picture).decode()
        inputs = [words, f"data:image/png;base64,{words}", "/etc/passwd!", 3]
        status, answer, _ = ask(port, {"inputs": inputs})
        assert status == 200
        assert answer["results"][:2] == [{"sum": 10.0}] * 2
        assert all("is no picture in base64" in each["error"] for each in answer["results"][2:])
        for kind in ("application/octet-stream", "image/png"):
            status, answer, _ = ask(port, picture, path="/predict?scale=2", content_type=kind)
            assert (status, answer) == (200, {"results": [{"sum": 20.0}]})
        part = "--x\r\ncontent-disposition: form-data; name={}\r\n\r\n{}\r\n"
        named = "a; filename=a.png"
        form = part.format(named, "\1\2\3\4") + part.format("scale", "3")
        form = (form + part.format(named, "\5\0\0\0") + "--x--\r\n").encode()
        kind = "multipart/form-data; boundary=x"
        status, answer, _ = ask(port, form, content_type=kind)
        assert answer == {"results": [{"sum": 30.0}, {"sum": 15.0}]}
        for body, damaged in ((form, "multipart/form-data"), (b"--y\r\n\r\n", kind)):
            assert ask(port, body, content_type=damaged)[0] == 400


def test_texts_beside_pictures():
    """A text is no base64, and never a path."""
    made, _ = served.loaded(served.BOTH)
    with serving(made) as running:
        picture = base64.b64encode(b"\1\2\3\4").decode()
        inputs = ["ab", f"data:image/png;base64,{picture}", " /etc/secret.PNG ", 3]
        _, answer, _ = ask(running.port, {"inputs": inputs})
        assert answer["results"][:2] == [{"sum": 195.0}, {"sum": 10.0}]
        path, number = (each["error"] for each in answer["results"][2:])
        assert "no input is a path" in path
        assert number == "3 is neither a text nor a picture as a data: URL"
        assert ask(running.port, b"\1\2\3\4", content_type="image/png")[1]["results"] == [
            {"sum": 10.0}
        ]
        assert ask(running.port, None, "GET", "/model")[1]["inputs"] == "both"
    kinds = [row.keys() for row in batching.shapes(served.BOTH, {}, 8)]
    assert kinds == [{"image"}, {"tokens"}]  # both are compiled at the start


def test_a_token_is_asked_for():
    made, _ = served.loaded()
    with serving(made, token="secret") as running:
        like = {"inputs": ["one"]}
        for words in ({}, {"authorization": "Bearer secre"}, {"authorization": "secret"}):
            status, answer, headers = ask(running.port, like, **words)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert "a token is needed" in answer["error"]
            for path in ("/metrics", "/model"):
                assert ask(running.port, None, "GET", path, **words)[0] == 401
        right = {"authorization": "Bearer secret"}
        assert ask(running.port, like, **right)[0] == 200
        assert ask(running.port, None, "GET", "/metrics", **right)[0] == 200
        for path in ("/", "/page.js", "/page.css", "/health", "/ready"):
            assert ask(running.port, None, "GET", path)[0] == 200


class Gate:
    """Holds the thread that computes while texts begin with "!"."""

    def __init__(self):
        self.opened, self.reached = threading.Event(), threading.Event()

    def __call__(self, rows):
        if rows[0].get("tokens", [0])[0] == ord("!"):
            self.reached.set()
            assert self.opened.wait(30)


def held(stack, limits, **more):
    """(a running server, its gate, a function that asks in a thread)."""
    gate, threads = Gate(), []
    made, batches = served.loaded(before=gate)
    running = stack.enter_context(serving(made, limits, **more))
    batches.clear()  # those that were compiled

    def begin(text: str) -> list:
        answer = []
        client = lambda: answer.extend(ask(running.port, {"inputs": [text]}))
        threads.append(threading.Thread(target=client))
        threads[-1].start()
        assert not text.startswith("!") or gate.reached.wait(30)
        return answer

    def finish():
        gate.opened.set()
        for thread in threads:
            thread.join(30)

    stack.callback(finish)
    return running, begin, finish, batches


def metric(port: int, name: str) -> float:
    text = ask(port, None, "GET", "/metrics")[1]
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_a_full_queue_refuses_and_recovers():
    with contextlib.ExitStack() as stack:
        running, begin, finish, batches = held(stack, Limits(queue=5, seconds=1e6))
        answers = [begin("!hold"), *[begin(f"text {i}") for i in range(4)]]
        wait_for(lambda: metric(running.port, "touchstone_pending_inputs") == 5)
        wait_for(lambda: metric(running.port, "touchstone_queue_rows") == 4)
        for count in (1, 5):
            status, answer, headers = ask(running.port, {"inputs": ["more"] * count})
            assert (status, headers["retry-after"]) == (429, "1")
            assert answer == {"error": "5 inputs wait; try again"}
        assert ask(running.port, None, "GET", "/health")[0] == 200
        finish()
        assert [answer[0] for answer in answers] == [200] * 5
        assert sum(map(len, batches)) == 5
        assert answers[2][1]["results"] == [expected("text 1")]
        assert ask(running.port, {"inputs": ["more"] * 5})[0] == 200
        assert metric(running.port, 'touchstone_requests_total{status="429"}') == 2
        assert metric(running.port, 'touchstone_requests_total{status="200"}') == 6
        assert metric(running.port, "touchstone_pending_inputs") == 0
        assert metric(running.port, "touchstone_batch_rows_sum") == 10
        assert metric(running.port, "touchstone_request_seconds_count") == 8


def test_what_a_client_that_left_asked_for_is_not_computed():
    with contextlib.ExitStack() as stack:
        running, begin, finish, batches = held(stack, Limits(seconds=1e6))
        begin("!hold")
        body = b'{"inputs": ["gone"]}'
        line = b"POST /predict HTTP/1.1\r\ncontent-type: application/json\r\n"
        with contextlib.closing(socket.create_connection(("127.0.0.1", running.port))) as leaver:
            leaver.sendall(line + b"content-length: %d\r\n\r\n" % len(body) + body)
            wait_for(lambda: metric(running.port, "touchstone_queue_rows") == 1)
        wait_for(lambda: metric(running.port, "touchstone_pending_inputs") == 1)
        finish()
        assert ask(running.port, {"inputs": ["kept"]})[0] == 200
        assert sum(map(len, batches)) == 2
        assert metric(running.port, 'touchstone_requests_total{status="499"}') == 1


def test_bodies_are_held_no_longer_than_their_requests(texts):
    for _ in range(20):
        assert ask(texts, {"inputs": ["x" * 60_000]})[0] == 400


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 30).close()
    except OSError:
        return False
    return True


def test_told_to_end_it_answers_what_has_come_and_takes_no_more():
    with contextlib.ExitStack() as stack:
        running, begin, finish, _ = held(stack, Limits())
        idle = socket.create_connection(("127.0.0.1", running.port), 30)
        stack.enter_context(contextlib.closing(idle))
        answers = [begin("!hold"), *[begin(f"text {i}") for i in range(9)]]
        wait_for(lambda: metric(running.port, "touchstone_queue_rows") == 9)
        running.end()
        finish()
        assert running.wait() == 0
        assert [answer[0] for answer in answers] == [200] * 10
        assert answers[9][1]["results"] == [expected("text 8")]
        assert idle.recv(1) == b""
        assert not accepts(running.port)


def test_a_request_that_comes_while_it_ends_is_told_so():
    with contextlib.ExitStack() as stack:
        running, begin, finish, _ = held(stack, Limits())
        line = b"POST /predict HTTP/1.1\r\ncontent-type: application/json\r\n"
        slow = socket.create_connection(("127.0.0.1", running.port), 30)
        stack.enter_context(contextlib.closing(slow))
        body = b'{"inputs": ["a"]}'
        slow.sendall(line + b"content-length: 17\r\n\r\n" + body[:9])
        begin("!hold")
        wait_for(lambda: metric(running.port, "touchstone_pending_inputs") == 1)
        running.end()
        finish()
        wait_for(lambda: not accepts(running.port))
        slow.sendall(body[9:])
        answer = b"".join(iter(lambda: slow.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"the server is shutting down" in answer
        assert running.wait() == 0


def test_slow_clients_are_let_go():
    with contextlib.ExitStack() as stack:
        running, begin, finish, _ = held(stack, Limits(seconds=0.4))
        connect = lambda: stack.enter_context(
            contextlib.closing(socket.create_connection(("127.0.0.1", running.port), 30))
        )
        silent, headers, half, flood = (connect() for _ in range(4))
        line = b"POST /predict HTTP/1.1\r\ncontent-type: application/json\r\n"
        headers.sendall(line)
        half.sendall(line + b"content-length: 17\r\n\r\n{")
        with contextlib.suppress(OSError):
            flood.sendall(line + b"x: " + b"y" * 10_000_000)
        answer = b"".join(iter(lambda: half.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"the body did not arrive in 0.4 s" in answer
        for one in (silent, headers, flood):
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(1) == b""
        late = begin("!hold")
        wait_for(lambda: late)
        assert late[:2] == [503, {"error": "there was no answer in 0.4 s"}]
        finish()
        assert ask(running.port, {"inputs": ["one"]})[1]["results"] == [expected("one")]


def test_a_port_that_is_taken_is_one_line():
    with (
        contextlib.closing(server.listener("127.0.0.1", 0)) as sock,
        pytest.raises(BadInput, match=r"--port \d+: Address already in use"),
    ):
        server.listener("127.0.0.1", sock.getsockname()[1])
    with pytest.raises(BadInput, match="--host no.such.host.invalid"):
        server.listener("no.such.host.invalid", 0)
