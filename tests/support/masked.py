"""What pretraining by masking is worth: a linear probe of a masked autoencoder's encoder on
Fashion-MNIST beside its fine-tuning, one of random features, and a ViT trained with labels from
scratch, three seeds each: `python -m tests.measure masked`.

    python tests/support/masked.py --workdir runs/masked

The runs are ordinary ones, in --workdir: a command that was killed goes on where it was. Durations
are such that by its FLOPs none of the four ways should take more than twenty minutes on two cores,
pretraining included. Prints a line for each way, and ends with 1 unless the probe is better than
that of random features.
"""

import argparse
import pathlib
import statistics
import sys

from compressed import ROOT, SEEDS, trained

CONFIG = str(ROOT / "configs/vision/fashion_mnist_mae.py")
FRESH = {"init.path": "", "init.skip": "()"}
# What each adds to its variant; {} begins with the run of that seed.
WAYS = {
    "probe": ("probe", {}),
    "fine-tuned": ("finetune", {}),
    "random features": ("probe", FRESH),
    "supervised": ("finetune", FRESH | {"optim.layer_decay": None, "train.duration": "6 epochs"}),
}


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, help="of each run, to try the command")
    args = parser.parse_args()
    root, short = args.workdir.absolute(), {}
    if args.steps:
        root /= f"tried-{args.steps}"
        short = {"train.duration": f"{args.steps} steps", "evals.test.split": "test[:256]"}
    accuracy = {way: [] for way in WAYS}
    for seed in SEEDS[:1] if args.steps else SEEDS:
        begun = root / f"pretrained-{seed}"
        metrics = trained(begun, CONFIG, seed=seed, **short)
        print(f"pretrained, seed {seed}: {metrics['explained']:.4f} explained", flush=True)
        for way, (variant, keys) in WAYS.items():
            keys = (keys or {"init.path": begun}) | {"seed": seed} | short
            folder = root / f"{way.replace(' ', '_')}-{seed}"
            accuracy[way].append(trained(folder, f"{CONFIG}:{variant}", **keys)["accuracy"])
    for way, values in accuracy.items():
        each = ", ".join(f"{value:.4f}" for value in values)
        print(f"{way}: {statistics.fmean(values):.4f} ({each})", flush=True)
    better = statistics.fmean(accuracy["probe"]) > statistics.fmean(accuracy["random features"])
    return int(not better)


if __name__ == "__main__":
    sys.exit(main())
