"""Vision Transformers in the layouts of `transformers`: ViT, DeiT, masked autoencoders with and
without their decoder, and DINOv2 without and with registers."""

from typing import Any

import numpy as np

from common import inputs
from common.errors import require
from common.weights.family import Family
from common.weights.names import Names
from vision import vit
from vision.masked import mae

_ENCODER = "encoder.layer.{i}"
_ATTENTION = "attention.attention"
_EMBEDDINGS = (
    ("patch", "embeddings.patch_embeddings.projection", "patch"),
    ("class_token", "embeddings.cls_token", "first"),
    ("position/embedding", "embeddings.position_embeddings", "first"),
)


def _blocks(
    block: str = "block_{i}", there: str = _ENCODER, **names: str
) -> tuple[tuple[str, str, str], ...]:
    """Rows of a block, from its name here and there, and the names there of what differs between
    families."""
    here = {
        "attention_norm": ("attention_norm", "norm"),
        "attention_scale": ("attention_scale", "vector"),
        "mlp_norm": ("mlp_norm", "norm"),
        "up": ("mlp/up", "dense"),
        "gate_up": ("mlp", "gate_up"),
        "down": ("mlp/down", "dense"),
        "mlp_scale": ("mlp_scale", "vector"),
    }
    names = {here[part]: there for part, there in names.items()}
    names |= {(f"attention/{x}", "dense"): f"{_ATTENTION}.{x}" for x in ("query", "key", "value")}
    names[("attention/out", "dense")] = "attention.output.dense"
    return tuple((f"{block}/{h}", f"{there}.{t}", kind) for (h, kind), t in names.items())


_VIT_NAMES = {
    "attention_norm": "layernorm_before",
    "mlp_norm": "layernorm_after",
    "up": "intermediate.dense",
    "down": "output.dense",
}
_VIT_BLOCKS = _blocks(**_VIT_NAMES)
_FINAL = ("final_norm", "layernorm", "norm")
_POOLER = r"pooler\..*"
_TEACHER = "save it as DeiTForImageClassificationWithTeacher"
_FIELDS = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 16),
    "width": ("hidden_size", 768),
    "layers": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "hidden": ("intermediate_size", 3072),
    "norm_eps": ("layer_norm_eps", 1e-12),
    "activation": ("hidden_act", "gelu"),
}
_FIXED = {
    "pooling": "class",
    "positions": "learned",
    "pre_norm": True,
    "norm": "layer",
    "bias": True,
}
_REFUSED = {"qkv_bias": (None, True)}


def _few_enough(config: dict, fields: dict, where: str) -> dict:
    patches = (fields["image_size"] // fields["patch_size"]) ** 2
    require(
        patches < inputs.MOST,
        f"{where}: image_size = {fields['image_size']} is too large for patches of "
        f"{fields['patch_size']}",
    )
    return fields


VIT = Family(
    "vit",
    vit.ViT,
    (
        Names(
            (*_EMBEDDINGS, *_VIT_BLOCKS, _FINAL, ("head", "classifier", "dense")),
            prefix="vit.",
            heads=("classifier.",),
            buffers=rf"{_POOLER}|embeddings\.mask_token",
        ),
    ),
    _FIELDS,
    _FIXED | {"gated": False},
    (("", "ViTForImageClassification"),),
    _REFUSED,
    known=("num_channels",),
    read=_few_enough,
)
DEIT = Family(
    "deit",
    vit.ViT,
    (
        Names(
            (
                *_EMBEDDINGS,
                ("distillation_token", "embeddings.distillation_token", "first"),
                *_VIT_BLOCKS,
                _FINAL,
                ("head", "cls_classifier", "dense"),
                ("distillation_head", "distillation_classifier", "dense"),
            ),
            prefix="deit.",
            heads=("cls_classifier.", "distillation_classifier."),
            buffers=rf"{_POOLER}|embeddings\.mask_token",
            refused=(
                (
                    r"classifier\..*",
                    "DeiTForImageClassification gives its distillation token no head, and a ViT "
                    f"here always does; {_TEACHER}",
                ),
            ),
        ),
    ),
    _FIELDS,
    _FIXED | {"gated": False, "distilled": True},
    (("", "DeiTForImageClassificationWithTeacher"),),
    _REFUSED,
    known=("num_channels",),
    read=_few_enough,
)


# ------------------------------------------------------------------------------------------ ViTMAE

_MAE_FIXED = {k: v for k, v in _FIXED.items() if k != "pooling"} | {"gated": False}
_MAE_DECODER = {
    "decoder_width": ("decoder_hidden_size", 512),
    "decoder_layers": ("decoder_num_hidden_layers", 8),
    "decoder_heads": ("decoder_num_attention_heads", 16),
    "decoder_hidden": ("decoder_intermediate_size", 2048),
    "normalised": ("norm_pix_loss", False),
}


def _mae_names(block: str) -> Names:
    """With this name there of a block of the decoder."""
    return Names(
        (
            *_EMBEDDINGS,
            *_VIT_BLOCKS,
            _FINAL,
            ("decoder_embed", "decoder.decoder_embed", "dense"),
            ("mask_token", "decoder.mask_token", "first"),
            ("decoder_position/embedding", "decoder.decoder_pos_embed", "first"),
            *_blocks("decoder/block_{i}", block, **_VIT_NAMES),
            ("decoder/final_norm", "decoder.decoder_norm", "norm"),
            ("pixels", "decoder.decoder_pred", "dense"),
        ),
        prefix="vit.",
        heads=("decoder.",),
    )


MAE = Family(
    "vit_mae",
    mae.MAE,
    # As published; and as transformers 5 writes the decoder's blocks, which it reads as well.
    (_mae_names("decoder.decoder_layers.{i}"), _mae_names("decoder.decoder_encoder.layer.{i}")),
    _FIELDS | _MAE_DECODER | {"channels": ("num_channels", 3)},
    _MAE_FIXED,
    (("", "ViTMAEForPreTraining"),),
    _REFUSED,
    known=("mask_ratio",),  # of training: the model is told which patches it sees
    read=_few_enough,
)
# For classifiers, whose pooling is theirs to say. Nothing is written so.
MAE_ENCODER = Family(
    "vit_mae",
    vit.ViT,
    (Names((*_EMBEDDINGS, *_VIT_BLOCKS, _FINAL), prefix="vit.", buffers=r"decoder\..*"),),
    _FIELDS,
    _MAE_FIXED,
    (),
    _REFUSED,
    known=("num_channels", "mask_ratio", *(key for key, _ in _MAE_DECODER.values())),
    read=_few_enough,
)


# ------------------------------------------------------------------------------------------ DINOv2


def _hidden(width: int, ratio: float, gated: bool) -> int:
    """F of their MLP; a gated one has two thirds of it, rounded up to a multiple of 8."""
    hidden = int(width * ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def _read(config: dict, fields: dict[str, Any], where: str) -> dict[str, Any]:
    """`Family.read`: the MLP's width follows from a ratio, and a gated one is always SwiGLU."""
    ratio, gated = inputs.field(config, "mlp_ratio", float, 4, where), fields["gated"]
    hidden = _hidden(fields["width"], ratio, gated)
    require(0 < hidden < inputs.MOST, f"{where}: mlp_ratio = {ratio} makes an MLP of {hidden}")
    activation = "silu" if gated else fields["activation"]
    return _few_enough(config, fields, where) | {"hidden": hidden, "activation": activation}


def _write(fields: dict[str, Any]) -> dict[str, Any]:
    """`Family.write`."""
    width, hidden, gated = fields["width"], fields["hidden"], fields["gated"]
    near = hidden * 3 // 2 // width if gated else hidden // width
    ratios = [r for r in (near, near + 1) if r and _hidden(width, r, gated) == hidden]
    require(
        bool(ratios),
        f"dinov2 of transformers has no hidden = {hidden}: it is the width {width} times a whole "
        "mlp_ratio" + (", two thirds of it, rounded up to a multiple of 8" if gated else ""),
    )
    swish = not gated or fields["activation"] == "silu"
    require(swish, f"dinov2 of transformers has no gated activation = {fields['activation']!r}")
    return {"mlp_ratio": ratios[0]}


def _mask_token(model: vit.ViT) -> dict[str, np.ndarray]:
    """`Names.unused`: of pretraining by masking; no classifier reads it."""
    return {"embeddings.mask_token": np.zeros((1, model.width), np.float32)}


def _dinov2(name: str, cls: str, patch_size: int, rows: tuple = (), **fields) -> Family:
    """DINOv2, or its sibling with registers.

    Args:
      name: `model_type` of its config.json, and the prefix of its tensors.
      cls: beginning of its classes' names.
      patch_size: the default there.
      rows: of further tokens.
      fields: {field here: (key there, default there)} besides those of both.
    """
    shared = {
        "attention_norm": "norm1",
        "attention_scale": "layer_scale1.lambda1",
        "mlp_norm": "norm2",
        "mlp_scale": "layer_scale2.lambda1",
    }
    plain = _blocks(**shared, up="mlp.fc1", down="mlp.fc2")
    gated = _blocks(**shared, gate_up="mlp.weights_in", down="mlp.weights_out")
    fields |= {k: v for k, v in _FIELDS.items() if k != "hidden"}
    return Family(
        name,
        vit.ViT,
        tuple(
            Names(
                (*_EMBEDDINGS, *rows, *blocks, _FINAL, ("head", "classifier", "dense")),
                prefix=f"{name}.",
                heads=("classifier.",),
                buffers=r"embeddings\.mask_token",
                unused=_mask_token,
            )
            for blocks in (plain, gated)
        ),
        fields
        | {
            "patch_size": ("patch_size", patch_size),
            "norm_eps": ("layer_norm_eps", 1e-6),
            "layer_scale": ("layerscale_value", 1.0),
            "gated": ("use_swiglu_ffn", False),
        },
        _FIXED | {"pooling": "class_mean"},
        (("", f"{cls}ForImageClassification"),),
        _REFUSED,
        known=("num_channels", "mlp_ratio"),
        varies={"hidden": ()},
        read=_read,
        write=_write,
    )


DINOV2 = _dinov2("dinov2", "Dinov2", 14)
DINOV2_WITH_REGISTERS = _dinov2(
    "dinov2_with_registers",
    "Dinov2WithRegisters",
    16,
    (("register_tokens", "embeddings.register_tokens", "first"),),
    registers=("num_register_tokens", 4),
)
FAMILIES = VIT, DEIT, MAE, MAE_ENCODER, DINOV2, DINOV2_WITH_REGISTERS
