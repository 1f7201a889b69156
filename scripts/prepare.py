"""Prepare data or weights, once: python scripts/prepare.py NAME [--folder DIR] [--files DIR]

    fashion_mnist  images of clothing, as a TFDS set
    emoji          emoji of two vendors with their names
    prose          68 MB of English from six sources, for pretraining
    reviews        film reviews, negative or positive
    topics         first paragraphs of Wikipedia, by topic
    bible          verses in English and Spanish (Debian packages, by apt-get)
    help           paragraphs of help pages in English and German (the same)
    minilm, rxnfp  pretrained BERT weights
    smollm2        SmolLM2-135M-Instruct, a Llama, as GGUF
    efficientnet_lite0, mobilenet_v2  weights pretrained on ImageNet

`--folder` is the destination; by default TFDS_DATA_DIR or ~/tensorflow_datasets for images, and
TOUCHSTONE_DATA or ~/.cache/touchstone/data for everything else. `--files` holds the original
archives of fashion_mnist, instead of a download. TFDS itself prepares other sets, with
`tfds build NAME --file_format=array_record`; configs name them `tfds:NAME`.
"""

import collections
import json
import os

import _checkout  # noqa: F401
from common import cli, inputs
from common.data import fetch, splits
from common.errors import choice
from lm import pretrained as lm_pretrained
from lm.data import labelled, parallel, prose, reviews, translations
from vision import pretrained as vision_pretrained
from vision.contrast import emoji

WEIGHTS = lm_pretrained.WEIGHTS | vision_pretrained.WEIGHTS


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    names = ("fashion_mnist", "emoji", "prose", *labelled.PREPARED, *parallel.PREPARED, *WEIGHTS)
    parser = cli.parser(__doc__)
    parser.add_argument("name", help=", ".join(names))
    parser.add_argument("--folder", default="", help="destination folder")
    parser.add_argument(
        "--files", default="", help="folder with the original archives (fashion_mnist)"
    )
    args = parser.parse_args(argv)
    name = choice("NAME", args.name, names)
    if name == "fashion_mnist":
        _fashion_mnist(args.folder, args.files)
    elif name == "emoji":
        path = emoji.prepare(args.folder)
        print(f"emoji: {sum(1 for _ in path.open(encoding='utf-8')):,} pictures\nin {path.parent}")
    elif name == "prose":
        folder = prose.prepare(args.folder)
        for path in sorted(folder.glob("*.jsonl")):
            texts = [json.loads(line)["text"] for line in path.open(encoding="utf-8")]
            size = sum(len(text.encode()) for text in texts)
            print(f"{path.stem}: {len(texts):,} documents, {size / 1e6:.1f} MB")
        print(f"in {folder}")
    elif name in labelled.PREPARED:
        path = reviews.prepare(name, args.folder)
        print(f"{name}: {sum(1 for _ in path.open(encoding='utf-8')):,} examples\nin {path}")
    elif name in parallel.PREPARED:
        path, notes = translations.prepare(name, args.folder)
        records = map(json.loads, path.open(encoding="utf-8"))
        sizes = collections.Counter(record["split"] for record in records)
        print(f"{name}: " + ", ".join(f"{n:,} {part}" for part, n in sizes.items()) + " pairs")
        if notes:
            print(inputs.said(notes))
        print(f"in {path}")
    else:
        folder = fetch.weights(name, WEIGHTS, args.folder)
        print(f"{WEIGHTS[name].about}: {', '.join(sorted(os.listdir(folder)))}\nin {folder}")
    return 0


def _fashion_mnist(folder: str, files: str) -> None:
    from vision.data import fashion_mnist, prepared

    fashion_mnist.prepare(splits.data_dir(folder), files)
    builder = splits.open_prepared("fashion_mnist", folder, prepared.SCRIPTED)
    for split in builder.info.splits:
        count = len(prepared.decoded(builder, split)["label"])
        print(f"fashion_mnist {split}: {count:,} examples")
    print(f"in {builder.data_dir}")


if __name__ == "__main__":
    cli.exit(main)
