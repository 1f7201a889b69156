"""scripts/serve.py: exported models over HTTP, in processes of their own and in a browser."""

import contextlib
import html
import http.client
import io
import json
import pathlib
import re
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import exports
import numpy as np
import pytest
import served
import serving_load
from helpers import exit_code, start
from PIL import Image

from common import predict
from common.serving import application, artifact


def pictures(count: int) -> list[bytes]:
    """PNGs of noise."""
    rng, made = np.random.default_rng(0), []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(file, "PNG")
        made.append(file.getvalue())
    return made


def differ(answer: dict, solo: dict) -> float:
    """The largest difference of probabilities; infinite if they are of others."""
    ours, theirs = answer["probabilities"], solo["probabilities"]
    if ours.keys() != theirs.keys():
        return np.inf
    return max(abs(ours[name] - theirs[name]) for name in theirs)


@contextlib.contextmanager
def process(*words: str):
    """A server as a process of its own, that is ready: (the process, its port)."""
    running = start("serve", *words, "--port", "0")
    try:
        line = running.stdout.readline()
        assert line, running.stderr.read()
        yield running, int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", line)[1])
    finally:
        running.kill()
        running.communicate()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(workdir, artifact) of a classifier of pictures."""
    folder = tmp_path_factory.mktemp("serve")
    run = exports.begun("cnn", folder)
    assert exit_code("export", "--workdir", run, "--to", str(folder / "to"), "--top", "10") == 0
    return run, str(folder / "to")


def test_what_cannot_be_served_is_one_line(tmp_path, capsys):
    empty = tmp_path / "token"
    empty.write_text("\n")
    run = ["--workdir", str(tmp_path)]
    for words, message in (
        ([], "one of the arguments --workdir --weights --artifact is required"),
        (["--artifact", str(tmp_path)], "no artifact: manifest.json"),
        (run, "no run there"),
        ([*run, "--token-file", str(empty)], "a token is one word of ASCII"),
        ([*run, "--token-file", str(tmp_path)], "is a folder"),
        ([*run, "--batch", "0"], "--batch: 0 is not positive"),
        ([*run, "--latency", "-1"], "--latency: -1.0 is negative"),
        ([*run, "--port", "65536"], "--port: 65536 is no port"),
        (["--artifact", "a", "--embed"], "--embed: an artifact predicts as exported"),
    ):
        assert exit_code("serve", *words) == 2, message
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_an_artifact_answers_as_alone_under_a_flood_and_ends_when_told(exported):
    shown = pictures(64)
    solo = artifact.load(exported[1]).predict(shown)
    with process("--artifact", exported[1], "--queue", "40", "--batch", "16") as (running, port):

        def asked(first: int) -> tuple[int, float]:
            """The status of a request for eight pictures, and by how much answers are wrong."""
            at = [(first + i) % len(shown) for i in range(8)]
            form = b"".join(
                b"--x\r\ncontent-disposition: form-data; name=a; filename=a\r\n\r\n%s\r\n"
                % shown[i]
                for i in at
            )
            kind = "multipart/form-data; boundary=x"
            status, answer, _ = served.ask(port, form + b"--x--\r\n", content_type=kind)
            if status != 200:
                return status, 0.0 if "error" in answer else np.inf
            pairs = zip(answer["results"], (solo[i] for i in at), strict=True)
            return status, max(differ(*pair) for pair in pairs)

        with ThreadPoolExecutor(5) as clients:
            answers = list(clients.map(asked, range(60)))
        assert {status for status, _ in answers} == {200}
        assert max(wrong for _, wrong in answers) < 1e-5
        told = threading.Event()

        def flood(first: int) -> int:
            if first == 100:
                running.terminate()
                told.set()
            try:
                status, wrong = asked(first)
            except (OSError, http.client.HTTPException):
                return 0 if told.is_set() else -1
            assert wrong < 1e-5
            return status

        with ThreadPoolExecutor(32) as clients:
            statuses = list(clients.map(flood, range(400)))
        assert set(statuses[:60]) <= {200, 429}
        assert set(statuses) <= {200, 429, 503, 0}
        assert {200, 429, 0} <= set(statuses)
        assert running.wait(60) == 0
        assert "all requests that had come are answered" in running.stderr.read()


DRIVE = """
const drawn = async () => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 8;
  canvas.getContext("2d").fillRect(2, 1, 3, 5);
  const blob = await new Promise((done) => canvas.toBlob(done));
  return new File([blob], "a.png", { type: "image/png" });
};
const until = async (holds) => {
  while (!holds()) await new Promise((done) => setTimeout(done, 20));
};
const rows = () => [...document.querySelectorAll(".row")].map((row) => [
  row.children[0].innerText, row.children[2].innerText,
  row.querySelector("i").offsetWidth / row.querySelector(".bar").offsetWidth]);
(async () => {
  const seen = {};
  await until(() => model || !at("token-row").hidden);
  seen.asks = !at("token-row").hidden;
  at("token").value = "secret";
  at("form").requestSubmit();
  await until(() => model);
  seen.name = at("name").innerText;
  if (model.inputs === "pictures") {
    const data = new DataTransfer();
    data.items.add(await drawn());
    at("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, cancelable: true }));
    await until(() => rows().length);
    seen.rows = rows();
    seen.shown = at("shown").naturalWidth;
  }
  else {
    document.querySelector("textarea").value = "";
    at("form").requestSubmit();
    await until(() => at("state").classList.contains("bad"));
    seen.wrong = at("state").innerText;
    document.querySelector("textarea").value = "<b>one</b>";
    document.querySelector("#options input").value = "2";
    at("form").requestSubmit();
    await until(() => rows().length);
    seen.rows = rows();
    seen.text = document.querySelector("#answer pre").innerText;
  }
  document.title = JSON.stringify(seen);
})().catch((error) => { document.title = JSON.stringify(`${error}`); });
"""


def browsed(port: int, folder) -> dict:
    """What a person sees on the page, as DRIVE tells it."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=60000",
         f"--user-data-dir={folder / 'profile'}", "--dump-dom", f"http://127.0.0.1:{port}/"],
        check=True, capture_output=True, timeout=120, text=True,
    )  # fmt: skip
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.S)[1]))


@pytest.fixture
def driven(tmp_path, monkeypatch):
    script = tmp_path / "page.js"
    own = pathlib.Path(application.__file__).with_name("page.js")
    script.write_text(own.read_text() + DRIVE)
    monkeypatch.setitem(application.PAGE, "/page.js", str(script))


@pytest.mark.slow
def test_a_person_drops_a_picture_and_sees_its_classes(exported, driven, tmp_path):
    with served.serving(artifact.load(exported[1]), token="secret") as running:
        seen = browsed(running.port, tmp_path)
    assert seen["asks"] is True
    assert (seen["name"], seen["shown"]) == ("toy", 8)
    shares = [float(share.rstrip("%")) / 100 for _, share, _ in seen["rows"]]
    assert len(shares) == 10
    assert shares == sorted(shares, reverse=True)
    for share, (_, _, width) in zip(shares, seen["rows"], strict=True):
        assert width == pytest.approx(share, abs=0.02)


@pytest.mark.slow
def test_a_person_writes_a_text_and_sees_what_comes_of_it(driven, tmp_path):
    def result(text, rows, outputs, options):
        return {"text": text, "probabilities": {"<i>": 0.75, "b": 0.25}, "sum": options["scale"]}

    made, _ = served.loaded(served.TEXTS._replace(result=result))
    with served.serving(made) as running:
        seen = browsed(running.port, tmp_path)
    assert seen["asks"] is False
    assert seen["wrong"] == "'' is no text"
    assert [row[:2] for row in seen["rows"]] == [["<i>", "75.0%"], ["b", "25.0%"]]
    assert seen["text"] == "<b>one</b>"


# ---------------------------------------------------------------------------------------- measure


@pytest.mark.measure("serving")
def test_it_keeps_up(tmp_path, capsys):
    """10,000 requests of 16 clients, none lost, none mixed up; beside the same one by one, and
    beside `transformers` behind FastAPI. Quiet machines only: rates are told, not asserted."""
    pytest.importorskip("fastapi")
    folder = tmp_path / "bert"
    folder.mkdir()
    serving_load.write_bert(folder)
    words = ("--weights", str(folder), "--top", "8", "--longest", "128", "--batch", "16")
    solo = predict.of_weights(str(folder))
    for length, count in ((16, 10_000), (128, 2_000)):
        texts = serving_load.texts(500, length)
        alone = [solo.predict([text], top=8)[0] for text in texts]
        asked = [texts[i % len(texts)] for i in range(count)]
        few = asked[: count // 4]
        with process(*words) as (_, port):
            serving_load.load(port, asked[:200], 16)
            ours = serving_load.load(port, asked, 16)
        wrong = 0.0
        for i, (status, answer) in enumerate(ours.answers):
            assert status == 200
            wrong = max(wrong, differ(answer["results"][0], alone[i % len(texts)]))
        assert wrong < 1e-5
        with process(*words) as (running, port):
            threading.Timer(2, running.kill).start()
            killed = serving_load.load(port, asked, 16)
        assert {answer is None or answer[0] for answer in killed.answers} == {True, 200}
        with process(*words[:-1], "1", "--latency", "0") as (_, port):
            serving_load.load(port, asked[:200], 16)
            single = serving_load.load(port, few, 16)
        with serving_load.rival_process(folder) as port:
            serving_load.load(port, asked[:200], 16)
            rival = serving_load.load(port, few, 16)
        with capsys.disabled():
            print(f"\n{length} tokens, {count} requests of 16 clients, differ by {wrong:.1e}")
            for name, each in (("batches", ours), ("one by one", single), ("transformers", rival)):
                print(f"  {name:14}{each.line()}", flush=True)
