"""Prepared TFDS sets of random images, written as array_record by TFDS itself."""

import numpy as np
import tensorflow_datasets as tfds


def prepare(folder, name: str, shape, sizes: dict[str, int], classes: int = 10) -> None:
    """Writes a set `name` with splits of these sizes into TFDS's data folder `folder`."""

    class Fabricated(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Random images."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="random images",
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Tensor(shape=shape, dtype=np.uint8),
                        "label": tfds.features.ClassLabel(num_classes=classes),
                    }
                ),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split, n) for split, n in sizes.items()}

        def _generate_examples(self, split, n):
            rng = np.random.default_rng(len(split))
            real = tuple(4 if s is None else s for s in shape)
            for i in range(n):
                label = int(rng.integers(classes))
                yield i, {"image": rng.integers(0, 256, real, np.uint8), "label": label}

    Fabricated.name = name
    Fabricated(data_dir=str(folder), file_format="array_record").download_and_prepare()
