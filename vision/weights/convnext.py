"""ConvNeXt in the layout of `transformers`."""

from typing import Any

from common import inputs
from common.errors import require
from common.weights.family import Family
from common.weights.names import Names
from vision import convnext

_BLOCK = "stage_{i}_block_{j}"
_STAGE = "encoder.stages.{i}"
_LAYER = f"{_STAGE}.layers.{{j}}"


def _read(config: dict, fields: dict[str, Any], where: str) -> dict[str, Any]:
    """`Family.read`: a scale that starts at zero is none."""
    number = inputs.field(config, "num_stages", int, 4, where)
    same = number == len(fields["stages"]) == len(fields["widths"])
    require(
        same,
        f"{where}: num_stages = {number}, but depths are of {len(fields['stages'])} stages and "
        f"hidden_sizes of {len(fields['widths'])}",
    )
    return fields | {"layer_scale": fields["layer_scale"] or None}


def _write(fields: dict[str, Any]) -> dict[str, Any]:
    """`Family.write`."""
    scale = fields["layer_scale"]
    return {
        "num_stages": len(fields["stages"]),
        "layer_scale_init_value": 0.0 if scale is None else scale,
    }


CONVNEXT = Family(
    "convnext",
    convnext.ConvNeXt,
    (
        Names(
            (
                ("stem", "embeddings.patch_embeddings", "conv"),
                ("stem_norm", "embeddings.layernorm", "norm"),
                ("downsample_norm_{i}", f"{_STAGE}.downsampling_layer.0", "norm"),
                ("downsample_{i}", f"{_STAGE}.downsampling_layer.1", "conv"),
                (f"{_BLOCK}/depthwise", f"{_LAYER}.dwconv", "conv"),
                (f"{_BLOCK}/norm", f"{_LAYER}.layernorm", "norm"),
                (f"{_BLOCK}/up", f"{_LAYER}.pwconv1", "dense"),
                (f"{_BLOCK}/down", f"{_LAYER}.pwconv2", "dense"),
                (f"{_BLOCK}/scale", f"{_LAYER}.layer_scale_parameter", "vector"),
                ("final_norm", "layernorm", "norm"),
                ("head", "classifier", "dense"),
            ),
            prefix="convnext.",
            heads=("classifier.",),
        ),
    ),
    {
        "stages": ("depths", (3, 3, 9, 3)),
        "widths": ("hidden_sizes", (96, 192, 384, 768)),
        "patch_size": ("patch_size", 4),
        "layer_scale": ("layer_scale_init_value", 1e-6),
        "activation": ("hidden_act", "gelu"),
        "norm_eps": ("layer_norm_eps", 1e-12),
    },
    {},
    (("", "ConvNextForImageClassification"),),
    known=("num_channels", "num_stages", "image_size"),
    read=_read,
    write=_write,
)
FAMILIES = (CONVNEXT,)
