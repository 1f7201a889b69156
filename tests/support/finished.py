"""Folders of finished runs, written by hand: what reports and logs are read from, untrained."""

import functools
import json
import pathlib

from helpers import DIGITS, load

from common.config import flatten, to_json

STEPS = 8


@functools.cache
def config() -> dict:
    """The config of a run of seed 0; not to be changed."""
    often = {"train.duration": f"{STEPS} steps", "train.log_every": "1 steps"}
    return load(f"{DIGITS}:mlp", **often, **{"evals.test.every": "4 steps"})


def lines(*steps: int, **more) -> list[dict]:
    """Lines of the log: training at each step, and an evaluation after every fourth."""
    found = []
    for step in steps:
        clock = {"time/seconds": step / 7, "time/examples_per_second": 1000.0}
        digests = {"params/head": step, "params/hidden": step}
        found.append({"step": step, "train/loss": 1 / step, "digests": digests, **clock, **more})
        if step % 4 == 0:
            found.append({"step": step, "eval/test/loss": 1 / step, "eval/test/accuracy": 0.9})
    return found


def text(*lines: dict) -> str:
    """Lines as a log holds them."""
    return "".join(json.dumps(line) + "\n" for line in lines)


def start(own: dict, **more) -> dict:
    """A record of environment.json."""
    return {
        "commit": "0" * 40,
        "command": ["scripts/train.py"],
        "python": "3",
        "versions": {"jax": "1"},
        "code": {"common/cli.py": "0", "vision/cnn.py": "1"},
        "device": "cpu",
        "devices": 1,
        "data": {"train": "a"},
        "config": flatten(own),
        "steps": STEPS,
        "population": 1,
        **more,
    }


def write(folder, seed: int = 0, **more) -> pathlib.Path:
    """Writes a finished run; `more` replaces entries of its start. Returns its folder."""
    folder, own = pathlib.Path(folder), config() | {"seed": seed}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(to_json(own))
    (folder / "environment.json").write_text(json.dumps([start(own, **more)]))
    (folder / "metrics.jsonl").write_text(text(*lines(*range(1, STEPS + 1))))
    result = {
        "steps": STEPS, "digest": "d", "parameters": 9, "wall_seconds": 1.0,
        "eval": {"test": {"loss": 1 / STEPS, "accuracy": 0.9}}, "examples_per_second": 1000.0,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return folder
