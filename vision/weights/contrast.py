"""Towers of pictures and texts in the layouts of `transformers`: CLIP, SigLIP (also that of SigLIP
2 at fixed sizes) and, at square pictures of its own size, SigLIP 2 "NaFlex".

    towers = contrast.Towers(**weights.sizes(folder))      # fields from config.json
    params = weights.pretrained(folder)
    weights.save(folder, towers, params)

Their config.json has one of each tower inside; here its keys are "vision_config.hidden_size" and so
on. A key that is of no known meaning is refused by its name.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from PIL import Image

from common import inputs, tree
from common.data import fetch
from common.errors import brief, require
from common.weights import engine, tensors
from common.weights import family as families_of
from common.weights.family import IDLE, Family
from common.weights.names import Names
from lm.data import tokenizer as tokenizers
from vision.contrast.model import CLIP as CLIP_FIELDS
from vision.contrast.model import SIGLIP as SIGLIP_FIELDS
from vision.contrast.model import Towers
from vision.weights import normalisation, preprocessor, vit

CLIP_END = 49407  # id of the token that ends a text
OLD_END = 2  # `eos_token_id` of CLIPs before transformers read it
PARTS = "text_config", "vision_config"
# Of what makes a kind. `transformers` has no limit to the scale: CLIP's is below its own as it was
# trained, SigLIP's is beyond it.
VARIES = "max_length", "activation", "norm_eps", "temperature", "max_scale"


def _blocks(tower: str) -> tuple[tuple[str, str, str], ...]:
    here, there = f"{tower}/block_{{i}}", f"{_THERE[tower]}.encoder.layers.{{i}}"
    pairs = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    rows = [(f"attention/{a}", f"self_attn.{b}", "dense") for a, b in pairs.items()]
    rows += [("attention_norm", "layer_norm1", "norm"), ("mlp_norm", "layer_norm2", "norm")]
    rows += [("mlp/up", "mlp.fc1", "dense"), ("mlp/down", "mlp.fc2", "dense")]
    return tuple((f"{here}/{a}", f"{there}.{b}", kind) for a, b, kind in rows)


_THERE = {"image": "vision_model", "text": "text_model"}
_SHARED = (
    ("text/token", "text_model.embeddings.token_embedding", "vocabulary"),
    ("text/position", "text_model.embeddings.position_embedding", "table"),
    *_blocks("text"),
    ("text/final_norm", "text_model.final_layer_norm", "norm"),
    ("image/position", "vision_model.embeddings.position_embedding", "table"),
    *_blocks("image"),
    ("image/final_norm", "vision_model.post_layernorm", "norm"),
)
_PATCH = "image/patch", "vision_model.embeddings.patch_embedding"
_POOL = "image/attention_pool", "vision_model.head"
_SIGLIP = (
    *_SHARED,
    ("text/head", "text_model.head", "dense"),
    (f"{_POOL[0]}/probe", f"{_POOL[1]}.probe", "first"),
    (_POOL[0], f"{_POOL[1]}.attention.in_proj_weight", "in_proj_weight"),
    (_POOL[0], f"{_POOL[1]}.attention.in_proj_bias", "in_proj_bias"),
    (f"{_POOL[0]}/out", f"{_POOL[1]}.attention.out_proj", "dense"),
    (f"{_POOL[0]}/norm", f"{_POOL[1]}.layernorm", "norm"),
    (f"{_POOL[0]}/mlp/up", f"{_POOL[1]}.mlp.fc1", "dense"),
    (f"{_POOL[0]}/mlp/down", f"{_POOL[1]}.mlp.fc2", "dense"),
    ("logit_scale", "logit_scale", "vector"),
    ("logit_bias", "logit_bias", "vector"),
)
_BUFFERS = r"(text|vision)_model\.embeddings\.position_ids"


def _fields(patch_size: int, text: tuple[int, int, int], more: dict) -> dict:
    """{field here: (key there, default there)}; `text` are the width, heads and hidden of texts."""
    sizes = "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"
    defaults = {"image": (768, 12, 12, 3072), "text": (text[0], 12, text[1], text[2])}
    fields = {
        f"{tower}_{ours}": (f"{part}.{theirs}", default)
        for tower, part in zip(("text", "image"), PARTS, strict=True)
        for ours, theirs, default in zip(
            ("width", "layers", "heads", "hidden"), sizes, defaults[tower], strict=True
        )
    }
    fields |= {"patch_size": ("vision_config.patch_size", patch_size)}
    return fields | more


def _text(vocab_size: int, length: int, activation: str, eps: float) -> dict:
    return {
        "vocab_size": ("text_config.vocab_size", vocab_size),
        "max_length": ("text_config.max_position_embeddings", length),
        "activation": ("text_config.hidden_act", activation),
        "norm_eps": ("text_config.layer_norm_eps", eps),
    }


_IMAGE_SIZE = {"image_size": ("vision_config.image_size", 224)}
# What both towers have here, and each for itself there.
_BOTH = {"hidden_act": str, "layer_norm_eps": float}
_KNOWN = (*(f"vision_config.{key}" for key in _BOTH), "vision_config.num_channels")
_REFUSED = {
    f"{part}.{key}": values for part in PARTS for key, values in families_of.REFUSED.items()
}


def _fixed(fields: dict) -> dict:
    return {key: value for key, value in fields.items() if key not in VARIES}


def _read(activation: str, eps: float) -> Callable:
    """`Family.read`: what both towers have must be the same, and patches tile pictures."""

    def read(config: dict, fields: dict, where: str) -> dict:
        for (key, kind), default in zip(_BOTH.items(), (activation, eps), strict=True):
            image, text = (
                inputs.field(config, f"{part}.{key}", kind, default, where)
                for part in ("vision_config", "text_config")
            )
            require(
                image == text,
                f"{where}: vision_config.{key} = {brief(image)} and text_config.{key} = "
                f"{brief(text)}: here both towers have the same",
            )
        for tower in ("image", "text"):
            width, heads = fields[f"{tower}_width"], fields[f"{tower}_heads"]
            require(
                heads > 0 and width % heads == 0,
                f"{where}: {heads} attention heads do not divide a hidden_size of {width}",
            )
        side, patch = fields["image_size"], fields["patch_size"]
        require(
            0 < patch <= side and (side // patch) ** 2 < inputs.MOST,
            f"{where}: pictures of {side} pixels have no patches of {patch}",
        )
        require(
            side % patch == 0,
            f"{where}: patch_size = {patch} does not divide image_size = {side}: what is left over "
            "at the edges is not read there, and is refused here",
        )
        return fields

    return read


def _read_siglip(config: dict, fields: dict, where: str) -> dict:
    """`Family.read`: a projection of no stated width has that of the texts' tower, and the scale no
    limit."""
    fields = fields | {"vector_width": fields["vector_width"] or fields["text_width"]}
    fields |= {"max_scale": None}
    require(
        fields["vector_width"] == fields["image_width"],
        f"{where}: texts become vectors of {fields['vector_width']}, and pictures of "
        f"{fields['image_width']}",
    )
    return _read("gelu_pytorch_tanh", 1e-6)(config, fields, where)


def _read_naflex(config: dict, fields: dict, where: str) -> dict:
    """`Family.read`: of pictures of any shape, here are the squares of as many patches as positions
    were learned."""
    count = inputs.field(config, "vision_config.num_patches", int, 256, where)
    side = math.isqrt(max(count, 0))
    require(side > 0 and side**2 == count, f"{where}: {count} patches make no square")
    return _read_siglip(config, fields | {"image_size": side * fields["patch_size"]}, where)


def _write(fields: dict) -> dict:
    """`Family.write`: what both towers have, for the pictures'."""
    names = (
        there for there, here in families_of.ACTIVATIONS.items() if here == fields["activation"]
    )
    return {
        "vision_config.hidden_act": next(names),
        "vision_config.layer_norm_eps": fields["norm_eps"],
    }


def _write_naflex(fields: dict) -> dict:
    count = (fields["image_size"] // fields["patch_size"]) ** 2
    return _write(fields) | {"vision_config.num_patches": count}


CLIP = Family(
    "clip",
    Towers,
    (
        Names(
            (
                *_SHARED,
                (*_PATCH, "patch"),
                ("image/class_token", "vision_model.embeddings.class_embedding", "token"),
                ("image/embedding_norm", "vision_model.pre_layrnorm", "norm"),
                ("image/head", "visual_projection", "dense"),
                ("text/head", "text_projection", "dense"),
                ("logit_scale", "logit_scale", "scalar"),
            ),
            buffers=_BUFFERS,
        ),
    ),
    _fields(
        32,
        (512, 8, 2048),
        _text(49408, 77, "quick_gelu", 1e-5)
        | _IMAGE_SIZE
        | {"vector_width": ("projection_dim", 512)},
    ),
    _fixed(CLIP_FIELDS),
    (("", "CLIPModel"),),
    _REFUSED,
    known=(
        *_KNOWN,
        "logit_scale_init_value",
        *(f"{part}.projection_dim" for part in PARTS),  # of a tower alone
    ),
    read=_read("quick_gelu", 1e-5),
    write=_write,
)
_SIGLIP_FIELDS = _text(32000, 64, "gelu_pytorch_tanh", 1e-6)
_SIGLIP_FIELDS |= {"vector_width": ("text_config.projection_size", None)}
_SIGLIP_REFUSED = _REFUSED | {"vision_config.vision_use_head": (None, True)}
SIGLIP = Family(
    "siglip",
    Towers,
    (Names((*_SIGLIP, (*_PATCH, "patch")), buffers=_BUFFERS),),
    _fields(16, (768, 12, 3072), _SIGLIP_FIELDS | _IMAGE_SIZE),
    _fixed(SIGLIP_FIELDS),
    (("", "SiglipModel"),),
    _SIGLIP_REFUSED,
    known=_KNOWN,
    read=_read_siglip,
    write=_write,
)
SIGLIP2 = Family(
    "siglip2",
    Towers,
    (Names((*_SIGLIP, (*_PATCH, "dense")), buffers=_BUFFERS),),
    _fields(16, (768, 12, 3072), _SIGLIP_FIELDS),
    _fixed(SIGLIP_FIELDS),
    (("", "Siglip2Model"),),
    _SIGLIP_REFUSED,
    known=(*_KNOWN, "vision_config.num_patches"),
    varies={"image_size": ()},
    read=_read_naflex,
    write=_write_naflex,
)
FAMILIES = CLIP, SIGLIP, SIGLIP2


# ------------------------------------------------------------------------------------------ reading


def of_towers(folder: epath.PathLike) -> bool:
    """Whether a folder's config.json is of one of the families here."""
    if "://" in str(folder):
        return False
    folder = epath.Path(folder).expanduser()
    file = folder / "config.json"
    if not folder.is_dir() or not inputs.present(file):
        return False
    return inputs.json_object("", file).get("model_type") in [f.name for f in FAMILIES]


def sizes(folder: epath.PathLike) -> dict[str, Any]:
    """The fields of the towers that a folder's config.json describes: `Towers(**sizes(folder))`.

    Raises:
      BadInput: if there is no config.json, or it asks for something that no towers here have.
    """
    config, where = tensors.settings(folder)
    return families_of.describe(_flat(config, where), FAMILIES, where).fields


def _flat(config: dict, where: str) -> dict:
    """A config.json with the keys of its parts in front of theirs. Raises `BadInput` for a key of
    no known meaning."""
    family = families_of.family_of(config, FAMILIES, where)
    flat = {}
    for key, value in config.items():
        if key not in PARTS and key.removesuffix("_dict") not in PARTS:
            flat[key] = value
    for part in PARTS:
        own = inputs.field(config, part, dict, None, where) or {}
        # Old files repeat what there is, and these count.
        own = own | (inputs.field(config, f"{part}_dict", dict, None, where) or {})
        for key, value in own.items():
            if key in families_of.SIDES and isinstance(value, list):
                square = len(value) == 2 and value[0] == value[1]
                require(square, f"{where}: {part}.{key} = {value}: only squares are supported")
                value = value[0]
            if not IDLE.fullmatch(key):
                flat[f"{part}.{key}"] = value
    known = {key for key, _ in family.fields.values()}
    known |= {*families_of.REFUSED, *family.refused, *family.known}
    unknown = sorted(key for key in flat if key not in known and not IDLE.fullmatch(key))
    require(not unknown, f"{where}: not understood: {', '.join(unknown)}")
    return flat


def read(path: epath.PathLike, model: Towers | None = None) -> engine.Read:
    """The contents of a folder of weights, or of a file of tensors. Raises `BadInput` as
    `engine.read`, and for a key of config.json that is of no known meaning."""
    path = epath.Path(path)
    file = (path.parent if path.name in tensors.FILES else path) / "config.json"
    config = None
    if inputs.present(file):
        config = _flat(tensors.json_object(file), str(file))
        return engine.read(path, FAMILIES, model, (config, tensors.read(path)))
    return engine.read(path, FAMILIES, model)


def pretrained(path: epath.PathLike, model: Towers | None = None, init: dict | None = None) -> dict:
    """The parameters of towers, nested dicts of f32 on the host.

    Args:
      path: a folder, or a file of tensors.
      model: the towers; None is those that the folder's config.json describes.
      init: the section `init` of a run's config, for which they are loaded.

    Raises:
      BadInput: as `read`; if tensors are missing, of the wrong shape, or of another model.
    """
    contents = read(path, model)
    if model is None:
        known = contents.described is not None
        require(known, f"{path}: there is no config.json to identify the model; name it")
        model = Towers(**contents.fields())
    with engine.within(path):
        shapes = shapes_of(model, contents.values)
    engine.check(str(path), contents, model, shapes, init or {}, ())
    engine.warn_unmatched(path, contents.unmatched)
    return tree.unflatten(engine.fitted(contents, shapes, str(path)))


def shapes_of(model: Towers, values: dict) -> dict[str, tuple[int, ...]]:
    """{path: shape} of towers, for pictures with as many channels as the file's."""
    images = jnp.zeros((1, model.image_size, model.image_size, _channels(model, values)))
    tokens = jnp.zeros((1, min(model.max_length, 8)), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, tokens)["params"]
    return {path: leaf.shape for path, leaf in tree.flatten(shapes).items()}


def _channels(model: Towers, values: dict) -> int:
    rows = values["image/patch/kernel"].shape[0] if "image/patch/kernel" in values else 0
    return max(1, rows // model.patch_size**2) if rows else 3


def settings(config: dict) -> dict[str, dict[str, Any]]:
    """What the weights at `config.init.path` say: `weights_settings` of a task (`common.task`)."""
    path = fetch.find_pretrained(config["init"]["path"], known={})
    require(of_towers(path), f"config.init.adopt: {path}: no config.json of two towers to adopt")
    known = sizes(path)
    setup = preprocessor.read(path)
    data = {}
    if setup is not None:
        data |= normalisation(setup) | {"image_size": known["image_size"]}
        data["resize"] = _resize(setup, path)
    if tokenizers.has_files(path):
        data |= {"tokenizer": str(path), "length": known["max_length"]}
    return {"model": known, "data": data}


def _resize(setup: preprocessor.Preprocessor, path) -> str:
    """`config.data.resize` of a preprocessor."""
    squash = isinstance(setup.size, tuple)
    sides = (setup.size,) if squash else ((setup.size, setup.size),)
    crops = setup.crop in sides or (squash and setup.crop is None)
    if setup.size is None or not crops or setup.resample != Image.Resampling.BICUBIC:
        logging.warning(
            "config.init.adopt: %s resizes pictures to %s with the filter %d and crops %s; here "
            "config.data.resize does so with filter 3, and crops to config.data.image_size",
            *(path / preprocessor.FILE, setup.size, setup.resample, setup.crop),
        )
    return "squash" if squash else "centre"


def reader(config: dict, model: Towers, vocabulary: dict[str, int]) -> Callable:
    """The reader of `config.init.path` for a task: path -> parameters, of both towers or, from an
    image classifier that is a ViT, of the pictures' tower alone, as LiT begins.

    Args:
      config: the run's config.
      model: the task's towers.
      vocabulary: {token: id} of its tokenizer, which must be that of the weights.
    """
    init = config.get("init", {})

    def read_path(name: str) -> dict:
        path = fetch.find_pretrained(name, known={})
        if path.is_dir() and inputs.present(path / "config.json") and not of_towers(path):
            return tree.unflatten(_of_classifier(path, model, init))
        if path.is_dir() and tokenizers.has_files(path):
            own = tokenizers.load(path).get_vocab(with_added_tokens=True)
            require(
                own == vocabulary or any("text" in regex for regex in init.get("skip", ())),
                f"config.init.path: {name} is of another tokenizer; set config.data.tokenizer to "
                "its own",
            )
        return pretrained(path, model, init)

    return read_path


def _of_classifier(path: epath.Path, model: Towers, init: dict) -> dict:
    """{path: array} of the pictures' tower, from a ViT; its head is left out."""
    require(
        not (model.locked == "image" and model.image_projection),
        f"config.model.image_projection: {path} has no projection, and that of a locked tower "
        "would stay as random as it starts; set it to false, and config.model.vector_width to "
        f"{model.image_width}",
    )
    contents = engine.read(path, vit.FAMILIES)
    tower = model.image_tower(parent=None)
    theirs = {k: v for k, v in contents.fields().items() if k != "num_classes"}
    allowed = set(init.get("allow", ())) & families_of.fields_of(tower).keys()
    families_of.require_same(
        f"config.init.path: {path}", theirs, families_of.fields_of(tower), allowed
    )
    return {f"image/{p}": x for p, x in contents.values.items() if not p.startswith("head/")}


# ------------------------------------------------------------------------------------------ writing


def save(
    folder: epath.PathLike,
    model: Towers,
    params: dict,
    family: str | None = None,
    end: int | None = None,
) -> None:
    """Writes model.safetensors and config.json for `transformers`.

    Args:
      folder: destination; created if missing.
      model: the towers.
      params: their parameters, in the dtypes to write.
      family: `model_type` of the layout; None is the first that has such towers.
      end: id of the token that ends a text (`TextFacts.end[-1]`), whose state is the text's in a
        CLIP; None is that of CLIP's own tokenizer.

    Raises:
      BadInput: if `transformers` has no such model, or would look for another token.
    """
    kind = engine.family_for(model, FAMILIES, family)
    described = families_of.config_of(kind, model)
    values = tree.flatten(params)
    if model.max_scale is not None:  # there it is no part of the model
        scale = np.asarray(values["logit_scale"])
        values["logit_scale"] = scale.clip(max=np.log(model.max_scale).astype(scale.dtype))
    described["vision_config.num_channels"] = _channels(model, values)
    nested: dict[str, Any] = {part: {} for part in PARTS}
    for key, value in described.items():
        part, _, name = key.rpartition(".")
        (nested[part] if part else nested)[name] = value
    if model.text_pooling == "end":
        nested["text_config"]["eos_token_id"] = _end(model, end)
    nested["architectures"] = [kind.architectures[-1][1]]
    epath.Path(folder).mkdir(parents=True, exist_ok=True)
    tensors.write(folder, engine.exported(kind.names[0], model, values), nested)


def _end(model: Towers, end: int | None) -> int:
    """`eos_token_id`: without the right one, transformers takes the state of the first token."""
    end = CLIP_END if end is None else end
    require(
        0 <= end < model.vocab_size,
        f"clip of transformers: of {model.vocab_size:,} tokens, none is {end:,}, which ends a text",
    )
    require(
        end != OLD_END,
        f"clip of transformers: the token that ends a text has the id {end}, at which the highest "
        "id of a text is taken for its end",
    )
    return end


def export(model: Towers, params: dict, family: str) -> dict:
    """Parameters, or a gradient of all of them, as {name there: array}."""
    kind = engine.family_for(model, FAMILIES, family)
    return engine.exported(kind.names[0], model, tree.flatten(params))
