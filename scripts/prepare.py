"""Prepare a data set, once: python scripts/prepare.py fashion_mnist [--folder DIR] [--files DIR]

`--folder` is where TFDS keeps prepared sets (default: TFDS_DATA_DIR or ~/tensorflow_datasets).
`--files` is where the original archives lie, if they are not to be downloaded. Other sets are
prepared by TFDS
itself: `tfds build NAME --file_format=array_record`, and then named `tfds:NAME` in a config.
"""

from common import cli
from common.config import choice
from vision import datasets


def main(argv=None) -> int:
    """Runs the command line; returns the exit code."""
    parser = cli.parser(__doc__)
    parser.add_argument("name", help="fashion_mnist")
    parser.add_argument("--folder", default="", help="TFDS's data folder")
    parser.add_argument("--files", default="", help="folder of the original archives")
    args = parser.parse_args(argv)
    choice("NAME", args.name, ("fashion_mnist",))
    from vision import fashion_mnist

    fashion_mnist.prepare(datasets.data_dir(args.folder), args.files)
    builder = datasets.open_prepared(args.name, args.folder)
    for split in builder.info.splits:
        print(f"{args.name} {split}: {len(datasets.decoded(builder, split)['label']):,} examples")
    print(f"in {builder.data_dir}")
    return 0


if __name__ == "__main__":
    cli.exit(main)
