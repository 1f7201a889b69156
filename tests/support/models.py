"""Every model, as small as it gets: what tests that hold for all of them run over."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from common import tree
from lm import bert, gpt, rnn, window
from lm.seq2seq import recurrent, transformer
from vision import airbench, cnn, convnext, efficientnet_lite, inception, mobilenet, resnet, vit
from vision.contrast import model as contrast
from vision.masked import mae

ROWS = 4
TOKENS = np.random.default_rng(0).integers(1, 40, (ROWS, 8)).astype(np.int32)
SEGMENTS = np.array([[1] * 4 + [2] * 2 + [0] * 2] * ROWS, np.int32)
PICKED = np.array([[1, 3]] * ROWS, np.int32)
TEXT = {"vocab_size": 40, "width": 16, "layers": 2, "heads": 2, "hidden": 32, "max_length": 8}
PATCHES = {"image_size": 8, "patch_size": 4, "width": 16, "layers": 2, "heads": 2, "hidden": 32}
DECODER = {"decoder_width": 8, "decoder_layers": 1, "decoder_heads": 2, "decoder_hidden": 16}
SEEN = np.array([[3, 0], [1, 2], [0, 1], [2, 3]], np.int32)
STAGES = {"num_classes": 3, "stages": (1, 2), "widths": (8, 16)}
SEVEN = {"num_classes": 3, "stages": (1, 1, 1, 1, 2, 1, 1), "widths": (8,) * 7, "dropout": 0.1}
TOWERS = {"vocab_size": 40, "vector_width": 16, "image_size": 8, "patch_size": 4, "max_length": 8}
TOWERS |= {"image_width": 16, "image_layers": 2, "image_heads": 2, "image_hidden": 32}
TOWERS |= {"text_width": 16, "text_layers": 2, "text_heads": 2, "text_hidden": 32}
LLAMA = gpt.LLAMA | {"kv_heads": 1, "tied": False, "window": 3, "qk_norm": True}


def images(side: int, channels: int = 3) -> np.ndarray:
    """f32[ROWS, side, side, channels]."""
    shape = ROWS, side, side, channels
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


MODELS: dict[str, tuple[nn.Module, tuple]] = {
    "bert": (
        bert.Bert(**TEXT, next_sentence=True, dropout=0.1, attention_dropout=0.1),
        (TOKENS, SEGMENTS, SEGMENTS // 2, PICKED),
    ),
    "electra": (
        bert.Bert(**TEXT, embedding_width=8, positions="scaled_sinusoidal", dropout=0.1),
        (TOKENS, SEGMENTS),
    ),
    "classifier": (
        bert.Classifier(**TEXT, num_classes=3, head_dropout=0.1),
        (TOKENS, SEGMENTS),
    ),
    "mean_classifier": (
        bert.Classifier(**TEXT, num_classes=3, pooling="mean"),
        (TOKENS, SEGMENTS),
    ),
    "gpt": (gpt.GPT(**TEXT, dropout=0.1, attention_dropout=0.1), (TOKENS, SEGMENTS)),
    "llama": (gpt.GPT(**TEXT, **LLAMA, rope_scaling=("dynamic", 2.0, 4)), (TOKENS, SEGMENTS)),
    "rnn": (
        rnn.RNN(vocab_size=40, width=16, projection_width=8, truncation=3, dropout=0.1),
        (TOKENS, SEGMENTS),
    ),
    "window": (
        window.Window(vocab_size=40, window=3, embedding_width=8, width=16, dropout=0.1),
        (TOKENS, SEGMENTS),
    ),
    "rnn_classifier": (
        rnn.Classifier(vocab_size=40, width=8, cell="gru", num_classes=3, head_dropout=0.1),
        (TOKENS, np.minimum(SEGMENTS, 1)),
    ),
    "recurrent_encoder_decoder": (
        recurrent.EncoderDecoder(vocab_size=40, width=16, layers=2, dropout=0.1),
        (TOKENS, SEGMENTS, TOKENS[:, 2:], SEGMENTS[:, 2:]),
    ),
    "seq2seq": (
        transformer.EncoderDecoder(**TEXT, dropout=0.1, attention_dropout=0.1),
        (TOKENS, SEGMENTS, TOKENS[:, :6], SEGMENTS[:, :6]),
    ),
    "t5": (
        transformer.EncoderDecoder(**TEXT | transformer.T5 | {"head_width": 8}),
        (TOKENS, SEGMENTS, TOKENS[:, :6], SEGMENTS[:, :6]),
    ),
    "mlp": (cnn.MLP(num_classes=3, dropout=0.1), (images(8, 1),)),
    "cnn": (cnn.CNN(num_classes=3, widths=(4, 8), dropout=0.1), (images(12, 1),)),
    "resnet": (resnet.ResNet(**STAGES, stem_width=8, dropout=0.1), (images(16),)),
    "wide_resnet": (
        resnet.ResNet(**STAGES, stem_width=8, block="basic", stem="small", preactivation=True),
        (images(8),),
    ),
    "convnext": (
        convnext.ConvNeXt(**STAGES, patch_size=2, drop_path=0.1, layer_scale=0.1),
        (images(8),),
    ),
    "vit": (
        vit.ViT(
            num_classes=3,
            **PATCHES,
            registers=2,
            layer_scale=0.1,
            pooling="class_mean",
            dropout=0.1,
        ),
        (images(8),),
    ),
    "deit": (vit.ViT(num_classes=3, **PATCHES, distilled=True, positions="sine"), (images(8),)),
    "clip": (
        contrast.Towers(**contrast.CLIP | TOWERS, dropout=0.1),
        (images(8), TOKENS, SEGMENTS > 0),
    ),
    "siglip": (contrast.Towers(**contrast.SIGLIP | TOWERS), (images(8), TOKENS)),
    "mae": (mae.MAE(channels=3, **PATCHES, **DECODER, dropout=0.1), (images(8), SEEN)),
    "efficientnet_lite": (
        efficientnet_lite.EfficientNetLite(**SEVEN, drop_path=0.1),
        (images(33),),
    ),
    "mobilenet": (mobilenet.MobileNetV2(**SEVEN), (images(33),)),
    "airbench": (airbench.Airbench(num_classes=3, widths=(8, 8)), (images(8),)),
    "inception": (inception.InceptionV3(num_classes=3, dropout=0.1), (images(75),)),
}


def variables(model: nn.Module, inputs: tuple) -> dict:
    """Variables of a model, all numbers random, activations neither large nor small."""
    rng = np.random.default_rng(2)

    def value(path, x):
        if path.endswith("var"):
            return rng.uniform(0.5, 1.5, x.shape)
        if len(x.shape) > 1 and not path.endswith("embedding"):
            return rng.normal(size=x.shape) / np.sqrt(np.prod(x.shape[:-1]) / 2)
        return rng.normal(float(path.endswith("scale")), 0.1, x.shape)

    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return tree.map_paths(lambda path, x: value(path, x).astype(x.dtype), shapes)


class Step(NamedTuple):
    """What a step of training computes."""

    value: jax.Array
    outputs: tuple
    statistics: dict
    gradients: dict


def step(model: nn.Module, variables: dict, inputs: tuple) -> Step:
    """A scalar of a model's outputs in training, its gradients, and the new statistics."""

    def objective(params):
        outputs, new = model.apply(
            {**variables, "params": params},
            *inputs,
            train=True,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
        )
        outputs = jax.tree.leaves(outputs)
        return sum(jnp.sin(x.astype(jnp.float32)).mean() for x in outputs), (outputs, new)

    grad = jax.value_and_grad(objective, has_aux=True)
    (value, (outputs, new)), gradients = grad(variables["params"])
    return Step(value, tuple(outputs), new, gradients)
