"""What takes for ever, in C, where Python does not see a signal: a model when it is traced, an
evaluator when it runs. Each only while the file exists that TOY_SLOW, or TOY_SLEEPY, names."""

import hashlib
import os
import time

import flax.linen as nn

from common.task import Evaluator


def is_there(variable: str) -> bool:
    return os.path.exists(os.environ.get(variable, ""))


class Net(nn.Module):
    """One layer."""

    num_classes: int
    width: int = 1
    PARTITION = ((r".*/kernel", (None, None)),)

    @nn.compact
    def __call__(self, images, train: bool = False):
        if is_there("TOY_SLOW") and train:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
        return nn.Dense(self.num_classes)(images.reshape(images.shape[0], -1))


def evaluator(source, logits, *, split: str = "test", every: str = "5 steps", batch_size: int = 8):
    """An evaluator that sleeps, in Python."""

    def run(context):
        while is_there("TOY_SLEEPY") and context.step:
            time.sleep(0.1)
        return {"rows": float(source.size)}

    return Evaluator(every, run)
