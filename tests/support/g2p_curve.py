"""CMUdict from scratch, as a curve: python tests/support/g2p_curve.py --workdir DIR [--minutes 60]

Trains each variant of configs/lm/g2p_cmudict.py with each seed, one after the other, until its time
is up, and prints the test errors without stress at the marks: those of the last evaluation before
each. The clock is the wall's, from the start of training, and includes evaluation and compilation.
A run of --workdir that has had its time is not repeated; one that was killed begins again. On two
cores: six hours.
"""

import argparse
import json
import pathlib
import shutil
import signal
import subprocess
import sys

from helpers import ROOT

MARKS = (5, 10, 20, 30, 40, 60)  # minutes
KEYS = "stressless_word_error", "stressless_phoneme_error", "word_error", "phoneme_error"


def train(variant: str, seed: int, minutes: float, folder: pathlib.Path) -> list[dict]:
    """The evaluations of a run that is told to end after these minutes: [{"minutes", …}]."""
    ended = folder.with_suffix(".json")
    if ended.exists():
        return json.loads(ended.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "scripts/train.py", "--workdir", str(folder)]
    command += ["--config", f"configs/lm/g2p_cmudict.py:{variant}", f"--config.seed={seed}"]
    command += ["--config.train.duration=500 epochs", "--config.evals.valid=None"]
    command += ["--config.evals.test.every=1 epoch", "--config.evals.test.show=0"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        code = process.wait(60 * minutes)
        raise SystemExit(f"{folder} ended by itself with {code}: see its console.log")
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # it saves, and can go on
        process.wait()
    curve = []
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        if "eval/test/word_error" in line:
            values = {key: line[f"eval/test/{key}"] for key in KEYS}
            curve.append({"minutes": line["time/seconds"] / 60, "step": line["step"]} | values)
    ended.write_text(json.dumps(curve))
    return curve


def main() -> None:
    """Prints a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the runs")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=["transformer", "lstm"])
    args = parser.parse_args()
    marks = [mark for mark in MARKS if mark <= args.minutes] or [args.minutes]
    print("word errors without stress, after minutes:", *marks, sep="\t", flush=True)
    args.workdir.mkdir(parents=True, exist_ok=True)
    for variant in args.variants:
        for seed in args.seeds:
            own = args.workdir.resolve() / f"{variant}-{seed}-{args.minutes:g}"
            curve = train(variant, seed, args.minutes, own)
            row = []
            for mark in marks:
                before = [point for point in curve if point["minutes"] <= mark]
                row.append(f"{before[-1][KEYS[0]]:.3f}" if before else "-")
            print(f"{variant}, seed {seed}", *row, sep="\t", flush=True)
            print(json.dumps(curve[-1] if curve else {}), flush=True)


if __name__ == "__main__":
    main()
