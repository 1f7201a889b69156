"""Prepared TFDS sets of random images, written as array_record by TFDS itself."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def prepare(folder, name: str, shape, sizes, classes=10, file_format="array_record") -> None:
    """Writes a set `name` with splits of these sizes ({split: N}) into TFDS's `folder`: PNG, or
    JPEG with sides of 20 to 39 pixels where the shape leaves them open."""
    kind = "jpeg" if None in shape else "png"

    class Fabricated(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Random images."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="random images",
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=shape, encoding_format=kind),
                        "label": tfds.features.ClassLabel(num_classes=classes),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split, n) for split, n in sizes.items()}

        def _generate_examples(self, split, n):
            rng = np.random.default_rng(len(split))
            for i in range(n):
                label = int(rng.integers(classes))
                sides = [int(rng.integers(20, 40)) if s is None else s for s in shape]
                pixels = rng.integers(0, 256, sides, np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixels.squeeze(-1) if shape[-1] == 1 else pixels).save(file, kind)
                yield i, {"image": io.BytesIO(file.getvalue()), "label": label}

    Fabricated.name = name
    Fabricated(data_dir=str(folder), file_format=file_format).download_and_prepare()
