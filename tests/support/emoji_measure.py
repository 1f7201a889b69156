"""What configs/vision/emoji_clip.py reaches: words to pictures of the other vendor and back, on
names that were trained on and names that were not, beside chance and a baseline of nearest
neighbours among the training pairs.

    python -m tests.measure emoji          # three seeds of 20 minutes on two cores; goes on where
                                           # it was killed

The baseline scores a picture for a text by the training pictures p_j with names n_j: the sum over j
of the cosine of TF-IDF vectors of the text and n_j, times the cosine of features of the picture and
p_j. Features are those of EfficientNet-Lite0, trained on ImageNet.
"""

import argparse
import collections
import json
import math
import pathlib
import re
import subprocess
import sys

import numpy as np

from common import predict
from vision.contrast import captions, retrieval

SPLITS = {"seen": "twitter_seen", "unseen": "twitter_unseen"}
FEATURES = "efficientnet_lite0"


def words(text: str) -> list[str]:
    """Its words, in lower case."""
    return re.findall(r"\w+", text.lower())


def tf_idf(texts: list[str], known: list[str]) -> np.ndarray:
    """f64[N, V], of length 1 or 0, with document frequencies of the texts `known`."""
    counts = collections.Counter(word for text in known for word in set(words(text)))
    column = {word: i for i, word in enumerate(sorted(counts))}
    rows = np.zeros((len(texts), len(column)))
    for row, text in zip(rows, texts, strict=True):
        for word in words(text):
            if word in column:
                row[column[word]] += math.log(len(known) / counts[word])
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def features(found: captions.Captions, rows: list[int]) -> np.ndarray:
    """f64[n, D]."""
    loaded = predict.of_weights(FEATURES, embed=True)
    paths = [str(found.root / found.paths[i]) for i in rows]
    return np.array([each["vector"] for each in loaded.predict(paths)])


def directions(x: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """f64[n, D] from a centre, of length 1."""
    x = x - centre
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def baseline(found: captions.Captions, most: int | None = None) -> dict[str, dict[str, float]]:
    """{"seen", "unseen": {metric: value}}, of the first `most` pictures of each split."""
    of = lambda split: [i for i, name in enumerate(found.splits) if name == split][:most]
    train, texts = of("train"), lambda rows: [found.texts[i] for i in rows]
    vectors, names, values = features(found, train), texts(train), {}
    centre = vectors.mean(axis=0)  # of the training pictures alone
    learnt = directions(vectors, centre)
    known = tf_idf(names, names)
    for key, split in SPLITS.items():
        rows = of(split)
        # Vectors over training pairs, whose products are the scores.
        pictures = directions(features(found, rows), centre) @ learnt.T
        said = tf_idf(texts(rows), names) @ known.T
        _, text = np.unique(texts(rows), return_inverse=True)
        values[key] = retrieval.metrics(pictures, said, np.arange(len(rows)), text.reshape(-1))
    return values


def main() -> None:
    """Runs what is not done yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="runs/emoji")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of one run, to try the command")
    args = parser.parse_args()
    short = [f"--config.train.duration={args.steps} steps", "--config.train.batch_size=32"]
    found = captions.listing(captions.EMOJI, "")
    results = []
    for seed in range(1 if args.steps else args.seeds):
        folder = pathlib.Path(args.workdir, f"tried-{args.steps}" if args.steps else str(seed))
        command = [sys.executable, "scripts/train.py", "--config", "configs/vision/emoji_clip.py"]
        command += ["--workdir", str(folder), f"--config.seed={seed}"]
        command += short if args.steps else []
        if not (folder / "result.json").exists():
            subprocess.run(command, check=True)
        results.append(json.loads((folder / "result.json").read_text()))
    plain = baseline(found, 16 if args.steps else None)
    metrics = [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in retrieval.AT]
    print("| set | ", " | ".join(metrics), " |\n|---|", "---|" * len(metrics), sep="")
    for key, split in SPLITS.items():
        size = found.splits.count(split)
        runs = np.array([[run["eval"][key][m] for m in metrics] for run in results])
        spread = runs.std(0, ddof=1) if len(runs) > 1 else 0 * runs[0]
        cells = [f"{a:.3f} ± {b:.3f}" for a, b in zip(runs.mean(0), spread, strict=True)]
        print(f"| {key}, {size} | " + " | ".join(cells) + " |")
        cells = [f"{plain[key][m]:.3f}" for m in metrics]
        print("| TF-IDF and features | " + " | ".join(cells) + " |")
        cells = [f"{int(m.rpartition('r')[2]) / size:.3f}" for m in metrics]
        print("| chance | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
