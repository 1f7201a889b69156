"""The README's way from data to a service, line by line, as a user types it."""

import json
import re
import subprocess
import sys

import pytest
from helpers import ROOT, free_port
from PIL import Image
from sklearn import datasets

README = (ROOT / "README.md").read_text()
# A run of minutes, in seconds.
SHORT = (
    " --config.train.duration='6 steps' --config.optim.warmup='1 step'"
    " --config.evals.valid.split='valid[:32]' --config.evals.test.split='test[:32]'"
)


def lines(heading: str) -> list[str]:
    """The commands of the first block under a heading, without comments."""
    block = README.split(f"\n## {heading}\n")[1].split("```bash\n")[1].split("```")[0]
    return [line.split("  #")[0].strip() for line in block.splitlines() if line.strip()]


@pytest.mark.slow
def test_from_digits_and_reviews_to_curl(tmp_path):
    for name in ("scripts", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    digits = datasets.load_digits()
    three = digits.images[list(digits.target).index(3)]
    Image.fromarray((three * 15).astype("uint8")).resize((80, 80)).save(tmp_path / "three.png")

    def run(line: str) -> str:
        shell = line.replace("python ", f"{sys.executable} ")
        done = subprocess.run(
            shell, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    train, predict, prepare, tune, sentence = lines("Train")
    install, export, serve, curl = lines("Ship")
    run(train)
    assert run(predict).startswith("three.png: 3 ")
    run(prepare)
    run(tune + SHORT)
    answer = run(sentence)
    extra = re.fullmatch(r"pip install -e '\.\[(\w+)\]'", install)[1]
    assert re.search(rf"touchstone-jax\[[\w,]*\b{extra}\b", (ROOT / "pyproject.toml").read_text())
    run(export)
    port = str(free_port())
    words = [sys.executable, *serve.split()[1:], "--port", port]
    server = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout.readline() == f"http://127.0.0.1:{port}/\n"
        (result,) = json.loads(run(curl.replace("8000", port)))["results"]
        assert answer.startswith(f"{result['class']} {result['probability']:.1%}, ")
    finally:
        server.terminate()
    assert server.wait(60) == 0
