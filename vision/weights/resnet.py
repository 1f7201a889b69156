"""ResNet in the layouts of `transformers` and of `torchvision`."""

from common.errors import choice
from common.weights.family import Family
from common.weights.names import Names
from vision import resnet

_BLOCK = "stage_{i}_block_{j}"
_LAYER = "encoder.stages.{i}.layers.{j}"
COUNTERS = r".*\.num_batches_tracked"

TRANSFORMERS = Names(
    (
        ("stem", "embedder.embedder.convolution", "conv"),
        ("stem_norm", "embedder.embedder.normalization", "batch_norm"),
        (f"{_BLOCK}/conv_{{k}}", f"{_LAYER}.layer.{{k}}.convolution", "conv"),
        (f"{_BLOCK}/norm_{{k}}", f"{_LAYER}.layer.{{k}}.normalization", "batch_norm"),
        (f"{_BLOCK}/shortcut", f"{_LAYER}.shortcut.convolution", "conv"),
        (f"{_BLOCK}/shortcut_norm", f"{_LAYER}.shortcut.normalization", "batch_norm"),
        ("head", "classifier.1", "dense"),
    ),
    prefix="resnet.",
    heads=("classifier.",),
    buffers=COUNTERS,
)
TORCHVISION = Names(
    (
        ("stem", "conv1", "conv"),
        ("stem_norm", "bn1", "batch_norm"),
        (f"{_BLOCK}/conv_{{k}}", "layer{i+1}.{j}.conv{k+1}", "conv"),
        (f"{_BLOCK}/norm_{{k}}", "layer{i+1}.{j}.bn{k+1}", "batch_norm"),
        (f"{_BLOCK}/shortcut", "layer{i+1}.{j}.downsample.0", "conv"),
        (f"{_BLOCK}/shortcut_norm", "layer{i+1}.{j}.downsample.1", "batch_norm"),
        ("head", "fc", "dense"),
    ),
    heads=("fc.",),
    buffers=COUNTERS,
)
RESNET = Family(
    "resnet",
    resnet.ResNet,
    (TRANSFORMERS, TORCHVISION),
    {
        "stages": ("depths", (3, 4, 6, 3)),
        "widths": ("hidden_sizes", (256, 512, 1024, 2048)),
        "block": ("layer_type", "bottleneck"),
        "stem_width": ("embedding_size", 64),
    },
    {"stem": "imagenet", "preactivation": False},
    (("", "ResNetForImageClassification"),),
    {
        "hidden_act": (None, "relu"),
        "downsample_in_first_stage": (None, False),
        "downsample_in_bottleneck": (None, False),
    },
    known=("num_channels",),
    read=lambda config, fields, where: (
        fields | {"block": choice(f"{where}: layer_type", fields["block"], ("basic", "bottleneck"))}
    ),
)
FAMILIES = (RESNET,)
