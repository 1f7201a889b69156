"""Measure speed, as ratios of interleaved runs: python scripts/bench.py overhead [--json]

overhead   the training program against the same jitted step called by hand (the small CNN on
digits, at a
           batch size whose step takes 20 ms or more): what logging, checks and the loop cost
"""

import json
import pathlib
import statistics
import tempfile
import time

import jax

from common import cli, config, log, program, runtime, train

ROOT = pathlib.Path(__file__).parents[1]


def interleaved(first, second, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of A B B A A B … runs; the order within a pair alternates, so that drift cancels."""
    times: tuple[list, list] = ([], [])
    for i in range(rounds):
        for which in (0, 1) if i % 2 == 0 else (1, 0):
            begun = time.perf_counter()
            (first, second)[which]()
            times[which].append(time.perf_counter() - begun)
    return times


def against_step(variant: str, settings: list[str], rounds: int, steps: int) -> dict:
    """The whole loop, with its log on disk, against the bare step; both on one compiled program."""
    path = str(ROOT / "configs/vision/digits.py") + f":{variant}"
    made = program.prepare(config.load(path, settings, program.sections))
    made = made._replace(plan=made.plan._replace(log_every=10), every={})
    state = program.initial_state(made)

    def by_hand():
        nonlocal state
        before = None
        for _ in range(steps):
            state, _, finite = made.step(made.hypers, state, {}, made.resident)
            jax.block_until_ready(before)  # two in flight: an unbounded queue hangs several devices
            before = finite
        jax.block_until_ready(state)

    with tempfile.TemporaryDirectory() as folder, runtime.Preemption() as preemption:

        def by_program():
            nonlocal state
            start = int(state.step)
            ours = made._replace(plan=made.plan._replace(total=start + steps))
            metrics = log.Log(
                folder, start, writing=True, name="bench", config={}, tensorboard=False, wandb=""
            )
            progress = log.Progress(start + steps, made.plan.batch_size, start, 0.0, show=False)
            state = train.loop(ours, state, metrics, progress, preemption=preemption)
            jax.block_until_ready(state)
            metrics.close()

        by_hand(), by_program()  # compile, warm up
        hand, ours = interleaved(by_hand, by_program, rounds)
    ratios = [b / a for a, b in zip(hand, ours, strict=True)]
    differences = [(b - a) / steps for a, b in zip(hand, ours, strict=True)]
    return {
        "by_hand_ms": 1e3 * statistics.median(hand) / steps,
        "program_ms": 1e3 * statistics.median(ours) / steps,
        "ratio": statistics.median(ratios),
        "quartiles": tuple(statistics.quantiles(ratios, n=4)[::2]) if rounds > 1 else ratios * 2,
        "added_ms": 1e3 * statistics.median(differences),
    }


def overhead(rounds: int, steps: int) -> dict:
    """A long step for the ratio, and a short one, in which what the loop adds stands out of the
    noise."""
    long = ["--config.train.batch_size=1024"]
    return {
        "case": "overhead",
        "cnn": against_step("cnn", long, rounds, steps),
        "mlp": against_step("mlp", [], rounds, 20 * steps),
    }


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("case", help="overhead")
    parser.add_argument("--rounds", type=int, default=40, help="pairs of runs")
    parser.add_argument("--steps", type=int, default=30, help="steps a run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    cases = {"overhead": overhead}
    config.choice("CASE", args.case, cases)
    runtime.start()
    result = cases[args.case](args.rounds, args.steps) | {"environment": runtime.environment()}
    if args.json:
        print(json.dumps(result))
        return 0
    facts = result["environment"]
    print(f"{facts['device']}, {facts['host']['cores']} cores, jax {facts['versions']['jax']}")
    for name in ("cnn", "mlp"):
        found = result[name]
        low, high = found["quartiles"]
        print(
            f"{name}: step by hand {found['by_hand_ms']:.3f} ms, by the program "
            f"{found['program_ms']:.3f} ms, ratio {found['ratio']:.4f} (median of {args.rounds} "
            f"pairs; half lie in {low:.4f} to {high:.4f})"
        )
    added = result["mlp"]["added_ms"]
    print(f"the program adds {added:.3f} ms a step: {100 * added / 20:.2f}% of a step of 20 ms")
    return 0


if __name__ == "__main__":
    cli.exit(main)
