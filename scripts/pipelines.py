"""Contenders of scripts/bench.py that only read: ours and torch's, from memory and from files."""

from collections.abc import Callable

import numpy as np


def input_ours(count: int, batch_size: int, workers: int) -> tuple[Callable, dict]:
    """Our input pipeline alone: images from host memory, in a keyed order, onto the device.

    Args:
      count: images of 28x28, uint8.
      batch_size: rows per step.
      workers: reader processes; 0 reads with threads.
    """
    from common.data import loading
    from common.devices import runtime

    runtime.start()
    images, labels = _images(count)
    source = loading.from_arrays({"image": images, "label": labels}, resident=False)
    return _read_by_us(source, batch_size, workers)


def _read_by_us(
    source, batch_size: int, workers: int = 0, batches: int = 1
) -> tuple[Callable, dict]:
    import jax

    from common.data import loading
    from common.devices import mesh

    forever = loading.train_batches(
        source, 0, range(2**40), batch_size, mesh.make_layout(), workers=workers
    )

    def work(times):
        for _ in range(times * batches):
            jax.block_until_ready(next(forever))

    return work, {"units": batch_size * batches}


def input_torch(count: int, batch_size: int, workers: int) -> tuple[Callable, dict]:
    """torch's `DataLoader` over the same images, shuffled."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    images, labels = map(torch.from_numpy, _images(count))
    return _read_by_torch(
        DataLoader(TensorDataset(images, labels), batch_size, shuffle=True, num_workers=workers),
        batch_size,
    )


def _read_by_torch(loader, batch_size: int, batches: int = 1) -> tuple[Callable, dict]:
    forever = (batch for _ in iter(int, 1) for batch in loader)

    def work(times):
        for _ in range(times * batches):
            next(forever)

    return work, {"units": batch_size * batches}


def files_ours(folder: str, batch_size: int, batches: int) -> tuple[Callable, dict]:
    """Our input pipeline alone, from pictures in `folder`, prepared if they are not.

    Args:
      folder: with a folder for each class.
      batch_size: rows per step.
      batches: steps at a time: many more than are read ahead while others have their turn.
    """
    from common.devices import runtime
    from vision.data import datasets

    runtime.start()
    sources = datasets.load_sources(
        {"train": "all"}, name=f"images:{folder}", train="all", folder=f"{folder}-prepared",
        resident=False,
    )  # fmt: skip
    return _read_by_us(sources["train"], batch_size, batches=batches)


def files_torchvision(
    folder: str, batch_size: int, batches: int, workers: int
) -> tuple[Callable, dict]:
    """torch's `DataLoader` over torchvision's `ImageFolder`: u8[B, 3, H, W], shuffled; arguments as
    in `files_ours`, and the number of worker processes."""
    import torchvision
    from torch.utils.data import DataLoader

    images = torchvision.datasets.ImageFolder(folder, torchvision.transforms.PILToTensor())
    loader = DataLoader(
        images, batch_size, shuffle=True, num_workers=workers, drop_last=True,
        persistent_workers=True,
    )  # fmt: skip
    return _read_by_torch(loader, batch_size, batches)


def _images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """(u8[N, 28, 28, 1], i32[N]) of random numbers."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 28, 28, 1), np.uint8)
    return images, rng.integers(0, 10, count).astype(np.int32)
