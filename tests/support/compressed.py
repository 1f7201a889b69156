"""What smaller models lose, on runs as users train them: `python -m tests.measure compression`.

    python tests/support/compressed.py --workdir runs/compression --only pruned,int8

The runs are ordinary ones, in --workdir: a command that was killed goes on where it was, and
scripts/report.py compares them. Prints a line for each bound, and ends with 1 if one is missed.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
SMALL = "configs/vision/fashion_mnist.py:small"
REVIEWS = "configs/lm/finetune_reviews.py"
SOTU = "configs/lm/bert_sotu.py"
SEEDS = 0, 1, 2
ZEROS = {"kind": "magnitude", "sparsity": 0.8}
WIDE = {"model.width": 384, "model.heads": 6, "model.hidden": 1536, "evals.test.show": 0}
LESSON = {"loss.distill": 0.5, "loss.temperature": 2.0}
# {name of a folder: flags of scripts/quantize.py}
SCHEMES = {
    "int8": (),
    "int8_table": ("--paths", ".*(kernel|token/embedding)"),
    "int8_products": ("--activations", "int8"),
    "int4": ("--weights", "int4"),
}


def script(name: str, *argv: str) -> dict:
    """The JSON that scripts/NAME.py prints last, as a process with the devices that users have."""
    env = {key: value for key, value in os.environ.items() if key != "JAX_NUM_CPU_DEVICES"}
    command = [sys.executable, str(ROOT / f"scripts/{name}.py"), *argv]
    env |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def trained(folder: pathlib.Path, config: str, **keys) -> dict[str, float]:
    """The metrics of the test set of a run, which is trained unless it is."""
    if not (folder / "result.json").exists():
        words = [f"--config.{key}={value}" for key, value in keys.items()]
        script("train", "--config", config, "--workdir", str(folder), *words)
    return json.loads((folder / "result.json").read_text())["eval"]["test"]


def quantized(run: pathlib.Path, scheme: str = "int8") -> dict[str, float]:
    """The metrics of the test set of a run whose kernels became integers."""
    name, dash, seed = run.name.partition("-")
    folder = run.with_name(f"{name}_{scheme}{dash}{seed}")
    if not (folder / "result.json").exists():
        told = script("quantize", "--workdir", str(run), "--to", str(folder), *SCHEMES[scheme])
        print(f"{folder.name}: {told['bytes']}", flush=True)
    return json.loads((folder / "result.json").read_text())["eval"]["test"]


def bound(text: str, lost: list[float], most: float) -> bool:
    """Prints how much was lost; whether the mean is within the bound."""
    kept = statistics.fmean(lost) <= most
    each = ", ".join(f"{value:+.4f}" for value in lost)
    print(f"{text}: lost {each}, at most {most:g}: {'kept' if kept else 'MISSED'}", flush=True)
    return kept


# ------------------------------------------------------------------------------------------- parts


def int8(root: pathlib.Path) -> list[bool]:
    """Kernels in int8 after training."""
    before = trained(root / "sotu", SOTU)["loss"]
    nats = {scheme: quantized(root / "sotu", scheme)["loss"] - before for scheme in SCHEMES}
    print(f"bert_sotu, {before:.4f} nats as trained: {nats}", flush=True)
    lost = []
    for seed in SEEDS:
        run = root / f"small-{seed}"
        before = trained(run, SMALL, seed=seed)["accuracy"]
        lost.append(before - quantized(run)["accuracy"])
    return [
        bound("bert_sotu in int8, nats", [nats["int8"]], 0.02),
        bound("Fashion-MNIST small in int8, accuracy", lost, 0.002),
    ]


def pruned(root: pathlib.Path) -> list[bool]:
    """80% of the kernels' weights zero, in a run that begins with the weights of a trained one."""
    keys, lost = {f"compress.prune.{key}": value for key, value in ZEROS.items()}, []
    for seed in SEEDS:
        run = root / f"small-{seed}"
        before = trained(run, SMALL, seed=seed)["accuracy"]
        keys |= {"seed": seed, "init.path": run}
        lost.append(before - trained(root / f"small_pruned-{seed}", SMALL, **keys)["accuracy"])
    return [bound("Fashion-MNIST small with 80% zeros, accuracy", lost, 0.005)]


def lora(root: pathlib.Path) -> list[bool]:
    """Film reviews by low-rank updates, beside full fine-tuning."""
    keys, lost = {"compress.lora.rank": 8, "optim.lr": 1e-3}, []
    for seed in SEEDS:
        before = trained(root / f"reviews-{seed}", REVIEWS, seed=seed)["accuracy"]
        run = root / f"reviews_lora-{seed}"
        lost.append(before - trained(run, REVIEWS, seed=seed, **keys)["accuracy"])
    return [bound("reviews by updates of rank 8, accuracy", lost, 0.01)]


def distilled(root: pathlib.Path) -> list[bool]:
    """A BERT of three layers that learns from one of six, beside itself alone."""
    trained(root / "sotu_6x384", SOTU, **WIDE, **{"model.layers": 6})
    keys = WIDE | {"model.layers": 3}
    alone = trained(root / "sotu_3x384", SOTU, **keys)["loss"]
    keys |= LESSON | {"loss.teacher": str(root / "sotu_6x384")}
    taught = trained(root / "sotu_taught", SOTU, **keys)["loss"]
    return [bound("a taught BERT 3x384 beside itself alone, nats", [taught - alone], 0)]


PARTS = {"int8": int8, "pruned": pruned, "lora": lora, "distilled": distilled}


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    args = parser.parse_args()
    root = args.workdir.absolute()
    missed = [name for name in args.only.split(",") if not all(PARTS[name](root))]
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
