"""How torch libraries store ResNet, ViT and EfficientNet-Lite: names, shapes, config.json.

Only tables and their lookup; `vision.weights` reads and writes the files.
"""

import re
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from common import inputs
from common.errors import choice, require
from vision.efficientnet_lite import EfficientNetLite
from vision.resnet import ResNet
from vision.vit import ViT


class HFLayout(NamedTuple):
    """How a library names the tensors of a model.

    Attributes:
      model: our class.
      rows: (regex of a module's full path in our model, its name in the library), where {0} is the
        first number in the path, and {one[0]} the same counted from one. A parameter whose leaf is
        not in `LEAVES` has its own row.
      prefix: prefix of all names but the head's; a file of the model without head may omit it.
      ignored: regex of names, without prefix, that have no counterpart in our model.
    """

    model: type[nn.Module]
    rows: tuple[tuple[str, str], ...]
    prefix: str = ""
    ignored: str = r".*\.num_batches_tracked"


LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}

_BLOCK = r"stage_(\d+)_block_(\d+)"

RESNET = HFLayout(
    ResNet,
    (
        ("stem", "embedder.embedder.convolution"),
        ("stem_norm", "embedder.embedder.normalization"),
        (rf"{_BLOCK}/conv_(\d+)", "encoder.stages.{0}.layers.{1}.layer.{2}.convolution"),
        (rf"{_BLOCK}/norm_(\d+)", "encoder.stages.{0}.layers.{1}.layer.{2}.normalization"),
        (rf"{_BLOCK}/shortcut", "encoder.stages.{0}.layers.{1}.shortcut.convolution"),
        (rf"{_BLOCK}/shortcut_norm", "encoder.stages.{0}.layers.{1}.shortcut.normalization"),
        ("head", "classifier.1"),
    ),
    prefix="resnet.",
)

TORCHVISION_RESNET = HFLayout(
    ResNet,
    (
        ("stem", "conv1"),
        ("stem_norm", "bn1"),
        (rf"{_BLOCK}/conv_(\d+)", "layer{one[0]}.{1}.conv{one[2]}"),
        (rf"{_BLOCK}/norm_(\d+)", "layer{one[0]}.{1}.bn{one[2]}"),
        (rf"{_BLOCK}/shortcut", "layer{one[0]}.{1}.downsample.0"),
        (rf"{_BLOCK}/shortcut_norm", "layer{one[0]}.{1}.downsample.1"),
        ("head", "fc"),
    ),
)

VIT = HFLayout(
    ViT,
    (
        ("patch", "embeddings.patch_embeddings.projection"),
        ("class_token", "embeddings.cls_token"),
        ("position/embedding", "embeddings.position_embeddings"),
        (r"block_(\d+)/attention_norm", "encoder.layer.{0}.layernorm_before"),
        (r"block_(\d+)/attention/query", "encoder.layer.{0}.attention.attention.query"),
        (r"block_(\d+)/attention/key", "encoder.layer.{0}.attention.attention.key"),
        (r"block_(\d+)/attention/value", "encoder.layer.{0}.attention.attention.value"),
        (r"block_(\d+)/attention/out", "encoder.layer.{0}.attention.output.dense"),
        (r"block_(\d+)/mlp_norm", "encoder.layer.{0}.layernorm_after"),
        (r"block_(\d+)/mlp/up", "encoder.layer.{0}.intermediate.dense"),
        (r"block_(\d+)/mlp/down", "encoder.layer.{0}.output.dense"),
        ("final_norm", "layernorm"),
        ("head", "classifier"),
    ),
    prefix="vit.",
    ignored=r"pooler\..*",
)

EFFICIENTNET_LITE = HFLayout(
    EfficientNetLite,
    (
        ("stem", "_conv_stem"),
        ("stem_norm", "_bn0"),
        (r"block_(\d+)/expand", "_blocks.{0}._expand_conv"),
        (r"block_(\d+)/expand_norm", "_blocks.{0}._bn0"),
        (r"block_(\d+)/depthwise", "_blocks.{0}._depthwise_conv"),
        (r"block_(\d+)/depthwise_norm", "_blocks.{0}._bn1"),
        (r"block_(\d+)/project", "_blocks.{0}._project_conv"),
        (r"block_(\d+)/project_norm", "_blocks.{0}._bn2"),
        ("top", "_conv_head"),
        ("top_norm", "_bn1"),
        ("head", "_fc"),
    ),
)

# If a model has several layouts, the first is the one saved.
LAYOUTS = (RESNET, TORCHVISION_RESNET, VIT, EFFICIENTNET_LITE)


def of(model: nn.Module) -> list[HFLayout]:
    """The layouts of a model. Raises `BadInput` if there is none."""
    matching = [layout for layout in LAYOUTS if isinstance(model, layout.model)]
    require(bool(matching), f"{type(model).__name__}: this model has no torch layout")
    return matching


def name(layout: HFLayout, path: str) -> str:
    """The library's name for the parameter or statistic at `path` in its collection.

    Raises:
      BadInput: if it has none.
    """
    module, _, leaf = path.rpartition("/")
    module, end = (module, f".{LEAVES[leaf]}") if leaf in LEAVES else (path, "")
    for regex, template in layout.rows:
        if match := re.fullmatch(regex, module):
            numbers = [int(number) for number in match.groups()]
            prefix = "" if module == "head" else layout.prefix
            return prefix + template.format(*numbers, one=[n + 1 for n in numbers]) + end
    require(False, f"{path}: the torch layout has no name for it")


def ours(path: str, x: np.ndarray) -> np.ndarray:
    """A torch tensor in our layout: OIHW becomes HWIO, dense layers are transposed, and the patch
    convolution becomes a matrix with rows ordered by (row, column, channel)."""
    leaf = path.rpartition("/")[2]
    if leaf == "kernel":
        x = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T
        return x.reshape(-1, x.shape[-1]) if path == "patch/kernel" else x
    return x[0] if leaf in ("class_token", "embedding") else x


def theirs(path: str, x: np.ndarray, patch_size: int | None = None) -> np.ndarray:
    """The inverse of `ours`; a model with patches needs its `patch_size`."""
    leaf = path.rpartition("/")[2]
    if path == "patch/kernel":
        x = x.reshape(patch_size, patch_size, -1, x.shape[-1])
    if leaf == "kernel":
        return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
    return x[None] if leaf in ("class_token", "embedding") else x


# ------------------------------------------------------------------------------------- config.json


class Settings(NamedTuple):
    """How config.json describes a model of `transformers`.

    Attributes:
      model: our class.
      architecture: the class in `transformers`.
      fields: field of our model -> (key of config.json, default).
      fixed: required values of other fields.
      supported: key of config.json -> the only value that our model supports, which is its default.
    """

    model: type[nn.Module]
    architecture: str
    fields: dict[str, tuple[str, Any]]
    fixed: dict[str, Any]
    supported: dict[str, Any]


SETTINGS = {
    "resnet": Settings(
        ResNet,
        "ResNetForImageClassification",
        fields={
            "stages": ("depths", (3, 4, 6, 3)),
            "widths": ("hidden_sizes", (256, 512, 1024, 2048)),
            "block": ("layer_type", "bottleneck"),
            "stem_width": ("embedding_size", 64),
        },
        fixed={"stem": "imagenet", "preactivation": False},
        supported={
            "hidden_act": "relu",
            "downsample_in_first_stage": False,
            "downsample_in_bottleneck": False,
        },
    ),
    "vit": Settings(
        ViT,
        "ViTForImageClassification",
        fields={
            "image_size": ("image_size", 224),
            "patch_size": ("patch_size", 16),
            "width": ("hidden_size", 768),
            "layers": ("num_hidden_layers", 12),
            "heads": ("num_attention_heads", 12),
            "hidden": ("intermediate_size", 3072),
            "norm_eps": ("layer_norm_eps", 1e-12),
        },
        fixed={
            "pooling": "class",
            "positions": "learned",
            "pre_norm": True,
            "norm": "layer",
            "bias": True,
            "activation": "gelu",
            "gated": False,
            "kv_heads": None,
        },
        supported={"hidden_act": "gelu", "qkv_bias": True},
    ),
}


def settings(config: dict, where: str) -> Settings:
    """The `Settings` for a config.json. Raises `BadInput` for an unknown model type."""
    return SETTINGS[choice(f"{where}: model_type", config.get("model_type", ""), SETTINGS)]


def sizes(config: dict, where: str) -> dict[str, Any]:
    """The fields of the model that a config.json describes.

    Raises:
      BadInput: for a setting that our models do not support, or a value of the wrong type.
    """
    known = settings(config, where)
    for key, value in known.supported.items():
        setting = config.get(key, value)
        require(setting == value, f"{where}: {key} = {setting!r} is not supported, only {value!r}")
    fields = {
        field: _value(config, key, default, where) for field, (key, default) in known.fields.items()
    }
    # Files omit defaults, and two labels are the default.
    labels = inputs.field(config, "id2label", dict, None, where)
    count = len(labels) if labels else inputs.field(config, "num_labels", int, 2, where)
    return {"num_classes": count, **fields, **known.fixed}


def _value(config: dict, key: str, default: Any, where: str) -> Any:
    """A field's value; lists of sizes become tuples."""
    if not isinstance(default, tuple):
        return inputs.field(config, key, type(default), default, where)
    sizes = inputs.field(config, key, list, list(default), where)
    return tuple(inputs.field({key: size}, key, int, 0, where) for size in sizes)


def config(model: nn.Module, channels: int) -> dict[str, Any]:
    """The config.json of a model for images of C = `channels`: the inverse of `sizes`.

    Raises:
      BadInput: for a model, or a field's value, that `transformers` does not have.
    """
    kind = next((k for k, known in SETTINGS.items() if isinstance(model, known.model)), None)
    require(kind is not None, f"transformers has no {type(model).__name__}")
    known = SETTINGS[kind]
    for field, value in known.fixed.items():
        actual = getattr(model, field)
        require(actual == value, f"{kind} of transformers has no {field} = {actual!r}")
    labels = [f"LABEL_{i}" for i in range(model.num_classes)]
    return {
        "model_type": kind,
        "architectures": [known.architecture],
        "num_channels": channels,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        **{key: getattr(model, field) for field, (key, _) in known.fields.items()},
        **known.supported,
    }
