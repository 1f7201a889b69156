"""MobileNetV2 in the layout of `torchvision`, at its published depth."""

from common.weights.family import Family
from common.weights.names import Names
from vision import mobilenet
from vision.weights.resnet import COUNTERS

_FIRST, _BLOCK = "features.1.conv", "features.{i+1}.conv"
_TOP = "features.18"

MOBILENET_V2 = Family(
    "mobilenet_v2",
    mobilenet.MobileNetV2,
    (
        Names(
            (
                ("stem", "features.0.0", "conv"),
                ("stem_norm", "features.0.1", "batch_norm"),
                # The first block does not expand, so that its other layers have other numbers.
                ("block_0/depthwise", f"{_FIRST}.0.0", "conv"),
                ("block_0/depthwise_norm", f"{_FIRST}.0.1", "batch_norm"),
                ("block_0/project", f"{_FIRST}.1", "conv"),
                ("block_0/project_norm", f"{_FIRST}.2", "batch_norm"),
                ("block_{i}/expand", f"{_BLOCK}.0.0", "conv"),
                ("block_{i}/expand_norm", f"{_BLOCK}.0.1", "batch_norm"),
                ("block_{i}/depthwise", f"{_BLOCK}.1.0", "conv"),
                ("block_{i}/depthwise_norm", f"{_BLOCK}.1.1", "batch_norm"),
                ("block_{i}/project", f"{_BLOCK}.2", "conv"),
                ("block_{i}/project_norm", f"{_BLOCK}.3", "batch_norm"),
                ("top", f"{_TOP}.0", "conv"),
                ("top_norm", f"{_TOP}.1", "batch_norm"),
                ("head", "classifier.1", "dense"),
            ),
            heads=("classifier.",),
            buffers=COUNTERS,
        ),
    ),
    {},
    {},
    (),
)
FAMILIES = (MOBILENET_V2,)
