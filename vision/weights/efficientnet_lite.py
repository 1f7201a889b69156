"""EfficientNet-Lite as its port to torch stores it; `transformers` has no such model."""

from common.weights.family import Family
from common.weights.names import Names
from vision import efficientnet_lite
from vision.weights.resnet import COUNTERS

_BLOCK, _THERE = "block_{i}", "_blocks.{i}"

EFFICIENTNET_LITE = Family(
    "efficientnet_lite",
    efficientnet_lite.EfficientNetLite,
    (
        Names(
            (
                ("stem", "_conv_stem", "conv"),
                ("stem_norm", "_bn0", "batch_norm"),
                (f"{_BLOCK}/expand", f"{_THERE}._expand_conv", "conv"),
                (f"{_BLOCK}/expand_norm", f"{_THERE}._bn0", "batch_norm"),
                (f"{_BLOCK}/depthwise", f"{_THERE}._depthwise_conv", "conv"),
                (f"{_BLOCK}/depthwise_norm", f"{_THERE}._bn1", "batch_norm"),
                (f"{_BLOCK}/project", f"{_THERE}._project_conv", "conv"),
                (f"{_BLOCK}/project_norm", f"{_THERE}._bn2", "batch_norm"),
                ("top", "_conv_head", "conv"),
                ("top_norm", "_bn1", "batch_norm"),
                ("head", "_fc", "dense"),
            ),
            heads=("_fc.",),
            buffers=COUNTERS,
        ),
    ),
    {},
    {},
    (),
)
FAMILIES = (EFFICIENTNET_LITE,)
