"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, MIT licence) as a TFDS set, prepared without
TensorFlow.

The four files come from a folder (Debian's package `dataset-fashion-mnist` installs them) or from
the official address; their contents are checked either way. scripts/prepare.py runs this.
"""

import gzip
import hashlib
import zlib

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from common import inputs
from common.errors import BadInput, require

DEBIAN = "/usr/share/datasets/fashion-mnist"
ADDRESS = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
# sha256 of the contents: the archives themselves differ between distributors.
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def read_idx(path: epath.PathLike, sha256: str) -> np.ndarray:
    """The array u8[...] in a gzipped IDX file. Raises `BadInput` if it is damaged or not the
    expected file."""
    path = epath.Path(path)
    try:
        raw = gzip.decompress(inputs.contents("", path))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = inputs.reason(error)
        raise BadInput(f"{path}: cannot be read: {reason}; fetch it again") from error
    actual = hashlib.sha256(raw).hexdigest()
    require(
        actual == sha256, f"{path}: its contents have sha256 {actual[:16]}…, not {sha256[:16]}…"
    )
    ndim = raw[3]
    shape = np.frombuffer(raw, ">i4", ndim, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * ndim).reshape(shape)


class FashionMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """60,000 + 10,000 images of clothing, 28x28, ten classes."""

    name = "fashion_mnist"
    VERSION = tfds.core.Version("4.0.0")  # TFDS's own is 3, with PNG images instead of tensors
    files = ""  # folder of the archives; "" is Debian's, else the network

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(names=CLASSES),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://github.com/zalandoresearch/fashion-mnist",
        )

    def _split_generators(self, dl_manager):
        folder = epath.Path(self.files or DEBIAN)
        if all((folder / f"{name}.gz").exists() for name in FILES):
            paths = {name: folder / f"{name}.gz" for name in FILES}
        else:
            require(
                not self.files,
                f"{folder}: not all of {', '.join(f'{n}.gz' for n in FILES)} are there",
            )
            paths = dl_manager.download({name: f"{ADDRESS}/{name}.gz" for name in FILES})
        arrays = {name: read_idx(paths[name], sha256) for name, sha256 in FILES.items()}
        return {
            split: self._generate_examples(
                arrays[f"{stem}-images-idx3-ubyte"], arrays[f"{stem}-labels-idx1-ubyte"]
            )
            for split, stem in (("train", "train"), ("test", "t10k"))
        }

    def _generate_examples(self, images, labels):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image[..., None], "label": int(label)}


def prepare(folder: str, files: str = "") -> None:
    """Writes the set into TFDS's `folder` as array_record, unless it is already there.

    Args:
      folder: TFDS's data folder.
      files: folder of the four archives; "" is Debian's if they are there, else the network.
    """
    builder = FashionMnist(data_dir=folder, file_format="array_record")
    builder.files = files
    builder.download_and_prepare()
