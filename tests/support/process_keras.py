"""Keras' InceptionV3 in float64, for tests/vision/test_inception.py: Keras keeps its backend and
its precision for the whole process, so it gets one of its own.

    python process_keras.py GIVEN.npz FOUND.npz

GIVEN has `images`, `weights` (of the logits, in a sum) and the variables "0", "1", … in the order
in which Keras makes them; FOUND the logits of `inference` and `training`, and under the variables'
names their gradients in training or, of statistics, their new values.
"""

import os
import re
import sys

os.environ |= {"KERAS_BACKEND": "jax", "JAX_ENABLE_X64": "1", "JAX_NUM_CPU_DEVICES": "1"}

import jax
import keras
import numpy as np
from keras.src.backend.common import dtypes


def number(layer) -> int:
    """Layers of a kind are conv2d, conv2d_1, … in the order in which they were made."""
    return int((re.findall(r"_(\d+)$", layer.name) or [0])[0])


def main(given: str, found: str) -> None:
    given = dict(np.load(given))
    images, weights = given.pop("images"), given.pop("weights")
    keras.config.set_floatx("float64")
    dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"  # on JAX it would compute norms in float32
    with keras.StatelessScope(initialize_variables=False):  # which takes half a minute
        model = keras.applications.InceptionV3(
            weights=None,
            input_shape=images.shape[1:],
            classes=weights.shape[1],
            classifier_activation=None,
        )
    kinds = keras.layers.Conv2D, keras.layers.BatchNormalization, keras.layers.Dense
    convs, norms, head = (
        sorted((x for x in model.layers if isinstance(x, kind)), key=number) for kind in kinds
    )
    pairs = [layer for pair in zip(convs, norms, strict=True) for layer in pair]
    paths = [variable.path for layer in pairs + head for variable in layer.weights]
    values = dict(zip(paths, given.values(), strict=True))
    trained, kept = (
        [variable.path for variable in variables]
        for variables in (model.trainable_variables, model.non_trainable_variables)
    )

    @jax.jit
    def run(trained, kept):
        def objective(trained):
            logits, new = model.stateless_call(trained, kept, images, training=True)
            return (logits * weights).sum(), (logits, new)

        gradients, (logits, new) = jax.grad(objective, has_aux=True)(trained)
        inference, _ = model.stateless_call(trained, kept, images, training=False)
        return inference, logits, gradients + new

    inference, training, new = run([values[p] for p in trained], [values[p] for p in kept])
    new = dict(zip(trained + kept, new, strict=True))
    new = {name: new[path] for name, path in zip(given, paths, strict=True)}
    np.savez(found, inference=inference, training=training, **new)


if __name__ == "__main__":
    main(*sys.argv[1:])
