"""Benchmark against other libraries: python scripts/bench.py CASE [--json] [--png FILE]

cnn, resnet18, vit, bert, gpt   a training step, against torch, transformers, Keras and flax
rnn         the gradients and the outputs of LSTM layers, against torch
translate   a training step of an encoder-decoder, against transformers' Marian
generate    tokens a second with the cache
input       the input pipeline alone: arrays in memory, and pictures in files
start       from process start to the first step, with and without cached compiled programs
sweep       a sweep with stacked trials, and with a process for each
overhead    the training program against the same jitted step called by hand; many steps a call
growth      how the cost of our step grows with batch, length, depth and width

Contenders take turns (A B C, C B A, …), each in its own process, so that other load on the machine
affects all of them. "of ours" is a contender's time over ours in the same round, above 1 where we
are faster: the median over the rounds, and the quartiles. FLOPs are the model's own count for all
of them, and "of peak" is relative to a large matrix product in the same run. The other libraries
come with pip install -e '.[bench]'.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax

import _checkout  # noqa: F401
import cases
import contest
from common import cli, config, tree
from common.devices import ending, mesh, runtime
from common.errors import BadInput, choice, require
from common.reports import plots
from common.runs import log
from common.runs.progress import Progress
from common.training import interval, program
from common.training.loop import Run, loop
from contest import Contender

ROOT = pathlib.Path(__file__).parents[1]


# The base sizes, and the values that `growth` gives to one of them at a time.
BASE = {"batch": 8, "length": 128, "depth": 4, "width": 256}
GROWTH = {
    "batch": (1, 2, 4, 8, 16, 32),
    "length": (32, 64, 128, 256, 512),
    "depth": (1, 2, 4, 8, 12),
    "width": (64, 128, 256, 512),
}


def peak() -> tuple[float, dict]:
    """(FLOP/s of a large matrix product, float32 on a CPU and bfloat16 elsewhere; the machine)."""
    with contest.ready(Contender("matrix product", "matmul", {})) as contender:
        fastest = min(contest.work(contender) for _ in range(5))
        return contender.facts["flops"] / fastest, contender.facts["environment"]


# ----------------------------------------------------------------------------------- whole programs


def start(rounds: int) -> list[dict]:
    """Seconds from the start of scripts/train.py, the small CNN on digits, to the first line of its
    log; for Keras, to its first step."""
    with tempfile.TemporaryDirectory() as folder:
        cache = pathlib.Path(folder) / "cache"

        def ours(cold: bool) -> float:
            workdir = pathlib.Path(folder) / "run"
            shutil.rmtree(workdir, ignore_errors=True)
            if cold:
                shutil.rmtree(cache, ignore_errors=True)
            words = [sys.executable, "scripts/train.py", "--config", "configs/vision/digits.py:cnn"]
            words += ["--config.train.log_every=1 steps"]
            words += ["--workdir", str(workdir), "--config.train.duration=1000000 steps"]
            begun = time.perf_counter()
            process = subprocess.Popen(
                words,
                cwd=ROOT,
                env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
                stderr=subprocess.DEVNULL,
            )
            written = workdir / "metrics.jsonl"
            while not (written.exists() and '"train/loss"' in written.read_text()):
                if process.poll() is not None:
                    raise BadInput("start: scripts/train.py ended before its first step")
                time.sleep(0.005)
            took = time.perf_counter() - begun
            process.kill()
            process.wait()
            return took

        def keras() -> float:  # ends after its first step, as its stdin is empty
            begun = time.perf_counter()
            settings = {"batch_size": 128, "backend": "jax"}
            words = [sys.executable, "scripts/contender.py", "keras_cnn", json.dumps(settings)]
            subprocess.run(words, cwd=ROOT, capture_output=True, stdin=subprocess.DEVNULL)
            return time.perf_counter() - begun

        jobs = [lambda: ours(False), lambda: ours(True), keras]
        names = f"{cases.OURS}, warm cache", f"{cases.OURS}, cold cache", "keras on jax"
        ours(True)  # loads the libraries from disk
        return _rows(names, contest.in_turn(jobs, rounds))


def sweep(rounds: int) -> list[dict]:
    """Seconds for six trials of the MLP on digits, from start to finish."""

    def by(launcher: str) -> float:
        with tempfile.TemporaryDirectory() as folder:
            words = ["--config", "configs/vision/digits.py:mlp", "--sweep", "grid", "--trials", "6"]
            words += ["--workdir", folder, "--launcher", launcher, "--jobs", str(os.cpu_count())]
            begun = time.perf_counter()
            command = [sys.executable, "scripts/sweep.py", *words]
            subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
            return time.perf_counter() - begun

    jobs = [lambda: by("vmap"), lambda: by("local")]
    return _rows((f"{cases.OURS}, vmap", f"{cases.OURS}, local"), contest.in_turn(jobs, rounds))


def _rows(names: Sequence[str], seconds: Sequence[Sequence[float]]) -> list[dict]:
    return [
        {"name": name, "seconds": statistics.median(times), **contest.ratio(times, seconds[0])}
        for name, times in zip(names, seconds, strict=True)
    ]


def overhead(rounds: int) -> list[dict]:
    """A step of 20 ms or more, for the ratio; and a short one, where the loop's overhead stands out
    from the noise, alone and with 50 steps per call."""
    long = against_step("cnn", ["train.batch_size=1024"], rounds, 30, 10)
    return [*long, *against_step("mlp", [], rounds, 1000, 50, 50)]


def against_step(
    variant: str, settings: list[str], rounds: int, steps: int, log_every: int, calls: int = 1
) -> list[dict]:
    """The whole loop, logging to disk, against the bare step; both run one compiled program. With
    `calls` > 1, also the loop with that many steps per call."""
    runtime.start()
    path = str(ROOT / "configs/vision/digits.py") + f":{variant}"

    def prepared(calls):
        words = [f"--config.{word}" for word in (*settings, f"train.steps_per_call={calls}")]
        made = program.prepare(config.load(path, words, program.sections))
        return made._replace(plan=made.plan._replace(log_every=log_every), every={})

    made = prepared(1)
    state = program.initial_state(made)
    sums = mesh.put_replicated(made.layout, interval.zeros(made.terms))

    def by_hand() -> float:
        nonlocal state, sums
        begun, before = time.perf_counter(), None
        for _ in range(steps):
            state, sums, _, finite = made.update(made.hypers, state, sums, {}, made.resident)
            jax.block_until_ready(before)  # two in flight: an unbounded queue hangs several devices
            before = finite
        jax.block_until_ready(state)
        return (time.perf_counter() - begun) / steps

    with tempfile.TemporaryDirectory() as folder, ending.Preemption() as preemption:

        def by_program(made: program.Program) -> float:
            nonlocal state
            begun, first = time.perf_counter(), int(state.step)
            ours = made._replace(plan=made.plan._replace(total=first + steps))
            metrics = log.Log(
                folder, first, writing=True, name="bench", config={}, tensorboard=False, wandb=""
            )
            progress = Progress(first + steps, made.plan.batch_size, first, 0.0, show=False)
            state = loop(Run(ours, metrics, progress, preemption=preemption), state)
            jax.block_until_ready(state)
            metrics.close()
            return (time.perf_counter() - begun) / steps

        names, jobs = ["step by hand", "program"], [by_hand, lambda: by_program(made)]
        if calls > 1:
            several = prepared(calls)
            names.append(f"program, {calls} steps a call")
            jobs.append(lambda: by_program(several))
        for job in jobs:  # compile, warm up
            job()
        seconds = contest.in_turn(jobs, rounds)
    return _rows([f"{variant}, {name}" for name in names], seconds)


PROGRAMS = {case.__name__: case for case in (start, sweep, overhead)}


def growth(rounds: int, cpu: bool) -> list[dict]:
    """Times our step at sizes from an eighth to four times the base."""
    rows = []
    for dimension, sizes in GROWTH.items():
        for size in sizes:
            settings = BASE | {dimension: size}
            row = contest.against([cases.grown(cpu, **settings)], rounds)[0]
            rows.append(row | {"what": dimension, "size": size})
    return rows


# ------------------------------------------------------------------------------------------- output


def text(result: dict) -> str:
    """The result of a case as a table."""
    top, rows, notes = result.get("peak_flops_per_second"), [], []
    for row in result["rows"]:
        if "missing" in row:
            extra = "bench-files" if row["missing"] == "torchvision" else "bench"
            notes.append(
                f"{row['name']}: {row['missing']} is missing: pip install -e '.[{extra}]'\n"
            )
            continue
        low, high = row["quartiles"]
        speed = f"{row['per_second']:.4g} {row['unit']}s" if "per_second" in row else ""
        flops = row.get("flops_per_second")
        rows.append(
            (
                f"{row['what']} {row['size']}" if "what" in row else row["name"],
                _duration(row["seconds"]),
                "" if "what" in row else f"{row['ratio']:.3f}",
                "" if "what" in row else f"{low:.3f} to {high:.3f}",
                speed,
                f"{flops / 1e9:.1f}" if flops else "",
                f"{100 * flops / top:.0f}%" if flops and top else "",
            )
        )
    header = "", "time", "of ours", "quartiles", "a second", "GFLOP/s", "of peak"
    filled = [k for k in range(len(header)) if any(row[k] for row in rows)]
    pick = lambda row: tuple(row[k] for k in filled)
    table = tree.table_text(pick(header), map(pick, rows)) if rows else ""
    return table + "".join(notes)


def _duration(seconds: float) -> str:
    return f"{1e3 * seconds:.3f} ms" if seconds < 1 else f"{seconds:.3f} s"


def growth_figure(rows: list[dict], peak_flops: float):
    """Seconds per step against the model's FLOPs, a line per kind of size; rows per second against
    the batch size, and against the model's size."""
    figure = plots.figure(12, 3.6)
    cost, by_batch, by_size = figure.subplots(1, 3)
    for dimension in GROWTH:
        series = [row for row in rows if row["what"] == dimension]
        flops = [row["flops"] / 1e9 for row in series]
        cost.loglog(flops, [1e3 * row["seconds"] for row in series], "o-", label=dimension, ms=4)
        speeds = [row["per_second"] for row in series]
        if dimension == "batch":
            by_batch.loglog([row["size"] for row in series], speeds, "o-", ms=4)
        elif dimension in ("depth", "width"):
            parameters = [row["parameters"] / 1e6 for row in series]
            by_size.loglog(parameters, speeds, "o-", label=dimension, ms=4)
    ends = [min(row["flops"] for row in rows), max(row["flops"] for row in rows)]
    bound = [1e3 * flops / peak_flops for flops in ends]
    cost.loglog([e / 1e9 for e in ends], bound, "k--", lw=1, label="a matrix product's speed")
    cost.set(xlabel="GFLOP a step, by the model's count", ylabel="milliseconds a step")
    by_batch.set(xlabel="rows a step", ylabel="rows a second")
    by_size.set(xlabel="million parameters", ylabel="rows a second")
    for axes in (cost, by_size):
        axes.legend(frameon=False, fontsize="small")
    return figure


def speed_figure(case: str, rows: list[dict]):
    """A bar per contender: its speed relative to ours."""
    rows = [row for row in rows if "ratio" in row][::-1]
    figure = plots.figure(6, 0.6 + 0.4 * len(rows))
    axes = figure.subplots()
    speeds = [1 / row["ratio"] for row in rows]
    bars = axes.barh([row["name"] for row in rows], speeds)
    axes.bar_label(bars, [_duration(row["seconds"]) for row in rows], padding=3, fontsize="small")
    axes.set(xlabel="speed, ours is 1", title=case, xlim=(0, 1.25 * max(speeds)))
    return figure


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    names = *cases.STEPS, *PROGRAMS, "growth"
    parser.add_argument("case", help=", ".join(names))
    parser.add_argument("--rounds", type=int, help="rounds that every contender runs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--png", metavar="FILE", help="also plot the result to FILE")
    args = parser.parse_args(argv)
    choice("CASE", args.case, names)
    require(args.rounds is None or args.rounds > 0, "--rounds: not a positive number")
    result: dict[str, Any] = {"case": args.case}
    if args.case in PROGRAMS:
        result["rows"] = PROGRAMS[args.case](args.rounds or {"overhead": 40}.get(args.case, 5))
        result["environment"] = runtime.environment()
    else:  # this process leaves the device to the contenders
        result["peak_flops_per_second"], result["environment"] = peak()
        cpu = result["environment"]["platform"] == "cpu"
        if args.case == "growth":
            result["rows"] = growth(args.rounds or 5, cpu)
        else:
            contests = cases.STEPS[args.case], *cases.FURTHER.get(args.case, ())
            rounds = args.rounds or 15
            result["rows"] = [row for of in contests for row in contest.against(of(cpu), rounds)]
    if args.png:
        figure = speed_figure(args.case, result["rows"])
        if args.case == "growth":
            figure = growth_figure(result["rows"], result["peak_flops_per_second"])
        figure.savefig(args.png, dpi=120)
    if args.json:
        print(json.dumps(result))
        return 0
    facts = result["environment"]
    versions = {name: v for row in result["rows"] for name, v in row.get("versions", {}).items()}
    versions = versions or {"jax": facts["versions"]["jax"]}
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    flops = result["rows"][0].get("flops") if args.case in cases.STEPS else None
    work = f"; {flops / 1e9:.4g} GFLOP a step" if flops else ""
    print(f"{args.case} on {facts['device']}, {facts['host']['cores']} cores; {libraries}{work}")
    print(text(result), end="")
    return 0


if __name__ == "__main__":
    cli.exit(main)
