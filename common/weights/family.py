"""Families of published models: their config.json beside our modules' fields, in both directions.

A config.json of another library says more than the tensors do: shapes do not tell the number of
heads, an activation or an epsilon. So every key of it is accounted for: it is a field of ours
(`Family.fields`), has the one value that our modules compute (`refused`), or changes nothing that
they compute (`IDLE`); any other is named in a warning. Only tables and their readers; `engine`
handles the tensors.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn

from common import inputs
from common.errors import BadInput, brief, nearest, require
from common.nn import model as models
from common.weights.names import Names

# Activations there -> here; of two names for one, exports use the first.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

# Keys of config.json that do not change what a trained model computes: bookkeeping, options of
# training and of generation, and how transformers itself runs.
IDLE = re.compile(
    r"_.*|architectures|model_type|transformers_version|(torch_)?dtype|auto_map|name_or_path|"
    r".*dropout.*|.*_prob|.*_pdrop|.*layerdrop|drop_path_rate|init_std|"
    r"initializer_(range|factor|cutoff_factor)|"
    r"(bos|eos|pad|cls|sep|mask|unk|decoder_start|forced_[be]os)_token_id|id2label|label2id|"
    r"num_labels|problem_type|finetuning_task|task_specific_params|language|tokenizer_class|"
    r"output_(attentions|hidden_states|past|scores)|return_dict.*|use_(cache|return_dict|bfloat16)|"
    r"gradient_checkpointing|torchscript|attn_implementation|pretraining_tp|"
    r"chunk_size_feed_forward|tf_legacy_loss|summary_.*|(min|max)_length|do_sample|num_beams|"
    r"temperature|top_[kp]|repetition_penalty|no_repeat_ngram_size|n_ctx|directionality|"
    r"pooler_.*|stage_names|out_(features|indices)|encoder_stride|model_max_length|"
    r"apply_layernorm|reshape_hidden_states|use_mask_token|sparse_.*|deterministic_flash_attn|"
    r"reorder_and_upcast_attn|early_stopping|length_penalty|num_return_sequences"
)
# What no model here computes: key -> the values that mean its absence.
REFUSED = {
    "is_decoder": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    "quantization_config": (None,),
}

SIDES = "image_size", "patch_size"  # keys whose value may also be [height, width]

NOTHING = MappingProxyType({})


class Family(NamedTuple):
    """A kind of model as another library describes and stores it.

    Attributes:
      name: `model_type` of its config.json.
      model: our class.
      names: how its tensors are named; several if there are several libraries, the first of which
        is the one written.
      fields: field of ours -> (key there, the default there). A default of None is an optional
        size.
      fixed: values of our fields that it never varies.
      refused: key -> values that our modules compute; others are refused.
      known: other keys that `read` looks at.
      varies: other fields of ours, which `read` and `write` handle -> the values that it has, ()
        if any.
      read: (config, fields, where) -> fields: what is not one key to one field.
      write: fields -> entries of config.json: the inverse of `read`.
      head: field of our class for a head -> (its value, a parameter that only that head has).
      architectures: (a parameter, the class there whose file has it), the most specific first; the
        last has "".
    """

    name: str
    model: type[nn.Module]
    names: tuple[Names, ...]
    fields: dict[str, tuple[str, Any]]
    fixed: dict[str, Any]
    architectures: tuple[tuple[str, str], ...]
    refused: Mapping[str, tuple] = NOTHING
    known: tuple[str, ...] = ()
    varies: Mapping[str, tuple] = NOTHING
    read: Callable | None = None
    write: Callable | None = None
    head: Mapping[str, tuple[Any, str]] = NOTHING


class Described(NamedTuple):
    """What a config.json says of a model.

    Attributes:
      family: the kind of model.
      fields: the fields of our class, without those of heads.
      classes: the names of the classes in their order, () if it gives none; `LABEL_0` is no name.
      num_classes: their number; None if it gives none.
    """

    family: Family
    fields: dict[str, Any]
    classes: tuple[str, ...]
    num_classes: int | None


def names_of(model: type[nn.Module]) -> set[str]:
    """The names of the fields of a module's class, without those that linen owns."""
    return models.fields_of(model) - {"parent", "name"}


def fields_of(model: nn.Module) -> dict[str, Any]:
    """{field: value} of a module."""
    return {name: getattr(model, name) for name in names_of(type(model))}


# ----------------------------------------------------------------------------------------- reading


def family_of(config: dict, families: Iterable[Family], where: str) -> Family:
    """The family of a config.json; from its keys if it is old and has no `model_type`.

    Raises:
      BadInput: for another kind of model.
    """
    families = tuple(families)
    names = [family.name for family in families]
    if "model_type" not in config:
        best = max(families, key=lambda family: _keys_of(family, config))
        require(
            recognisable(config, families),
            f"{where}: no model_type: it does not say what model it describes; the families read "
            f"here: {', '.join(dict.fromkeys(names))}",
        )
        count = _keys_of(best, config)
        alike = [f for f in families if _keys_of(f, config) == count and f.names == best.names]
        spelled = " or ".join(family.name for family in alike)
        require(len(alike) == 1, f"{where}: no model_type, which is {spelled}: add it")
        return best
    name = config["model_type"]
    require(
        name in names,
        f"{where}: model_type {brief(name)} is not a family that is read here; those are: "
        f"{', '.join(dict.fromkeys(names))}",
    )
    return families[names.index(name)]


def recognisable(config: dict, families: Iterable[Family]) -> bool:
    """Whether a config.json says of what kind its model is."""
    return "model_type" in config or any(_keys_of(family, config) > 1 for family in families)


def _keys_of(family: Family, config: dict) -> int:
    return sum(key in config for key, _ in family.fields.values())


def describe(config: dict, families: Iterable[Family], where: str) -> Described:
    """Reads a config.json.

    Args:
      config: its object.
      families: those to consider.
      where: the file, for messages.

    Raises:
      BadInput: for another kind of model, a setting that no model here has, or a value of the wrong
        type.
    """
    family = family_of(config, families, where)
    for key, allowed in (REFUSED | family.refused).items():
        value = config.get(key)
        require(
            any(type(value) is type(a) and value == a for a in allowed),
            f"{where}: {key} = {brief(value)} is not supported"
            + (f", only {brief(allowed[-1])}" if allowed[-1] is not None else ""),
        )
    fields = {
        field: _value(config, key, default, where)
        for field, (key, default) in family.fields.items()
    }
    if "activation" in fields:
        name = fields["activation"]
        require(
            name in ACTIVATIONS,
            f"{where}: {family.fields['activation'][0]}: {brief(name)} is not an activation here; "
            f"{nearest(str(name), ACTIVATIONS)}",
        )
        fields["activation"] = ACTIVATIONS[name]
    neutral = {k: v for k, v in NEUTRAL.items() if k in names_of(family.model)}
    fields = neutral | family.fixed | fields
    if family.read is not None:
        fields = family.read(config, fields, where)
    keys = {key for key, _ in family.fields.values()}
    keys |= {*REFUSED, *family.refused, *family.known}
    unknown = sorted(key for key in config if key not in keys and not IDLE.fullmatch(key))
    if unknown:
        logging.warning("%s: not understood, and ignored: %s", where, ", ".join(unknown))
    classes, number = _classes(config, where)
    return Described(family, fields, classes, number)


def _value(config: dict, key: str, default: Any, where: str) -> Any:
    if key in SIDES and isinstance(config.get(key), list):
        sides = [inputs.field({key: side}, key, int, 0, where) for side in config[key]]
        square = len(sides) == 2 and sides[0] == sides[1]
        require(square, f"{where}: {key} = {brief(config[key])}: only squares are supported")
        return sides[0]
    if isinstance(default, tuple):
        sizes = inputs.field(config, key, list, list(default), where)
        each = {f"{key}[{i}]": size for i, size in enumerate(sizes)}
        return tuple(inputs.field(each, one, int, 0, where) for one in each)
    # Of several sizes, absent (or null) is one that follows from the others.
    kind = int if default is None else type(default)
    return inputs.field(config, key, kind, default, where)


def _classes(config: dict, where: str) -> tuple[tuple[str, ...], int | None]:
    """(names of the classes in order, their number) of `id2label`."""
    labels = inputs.field(config, "id2label", dict, None, where)
    if not labels:
        return (), inputs.field(config, "num_labels", int, None, where)
    keys = [str(i) for i in range(len(labels))]
    require(
        set(labels) == set(keys),
        f"{where}: id2label has the keys {brief(sorted(labels))}, not those of {len(keys)} classes",
    )
    classes = tuple(inputs.field(labels, key, str, "", f"{where}: id2label") for key in keys)
    generic = all(name == f"LABEL_{i}" for i, name in enumerate(classes))
    other = inputs.field(config, "label2id", dict, None, where)
    same = other is None or all(other.get(name) == i for i, name in enumerate(classes))
    require(same or generic, f"{where}: id2label and label2id contradict each other")
    return (() if generic else classes), len(classes)


# --------------------------------------------------------------------------------------- comparing

# Fields that do not change what given parameters compute in evaluation.
FREE = re.compile(
    r"module|name|parent|constrain|.*dropout|drop_path|init_std|initializer|implementation|dtype|"
    r"remat|scan|vocab_size|num_classes|truncation"
)
# A field left at None -> what it then is, of the other fields.
MEANS = {
    "kv_heads": lambda fields: fields.get("heads"),
    "head_width": lambda fields: fields["width"] // fields["heads"],
    "embedding_width": lambda fields: fields.get("width"),
    "decoder_layers": lambda fields: fields["layers"],
}
# Fields of which only whether they are None counts: otherwise a parameter starts at their value.
STARTS = ("layer_scale",)
# Fields of some families, and what they are in all others.
NEUTRAL = {
    "qk_norm": False,
    "rope_scaling": (),
    "window": None,
    "registers": 0,
    "distilled": False,
    "layer_scale": None,
}
# Fields that only count for one value of another.
ONLY_WITH = {
    "max_length": ("positions", "learned"),
    "theta": ("positions", "rotary"),
    "rope_scaling": ("positions", "rotary"),
    "buckets": ("positions", "relative"),
    "furthest": ("positions", "relative"),
}


def differing(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{field: (there, here)} of the fields in both by which two models compute different outputs
    from the same parameters."""

    def means(fields, field):
        value = fields[field]
        if field in STARTS:
            return value is not None
        return MEANS[field](fields) if value is None and field in MEANS else value

    found = {}
    for field in theirs.keys() & ours.keys():
        other, value = ONLY_WITH.get(field, (None, None))
        if FREE.fullmatch(field) or (other and theirs.get(other, value) != value):
            continue
        if theirs[field] != ours[field] and means(theirs, field) != means(ours, field):
            found[field] = theirs[field], ours[field]
    return dict(sorted(found.items()))


def require_same(what: str, theirs: dict, ours: dict, allowed: Iterable[str] = ()) -> None:
    """Raises `BadInput` if two models compute different outputs from the same parameters.

    Args:
      what: the weights, for the message.
      theirs, ours: the fields of the model that the weights are of, and of the one to load.
      allowed: fields that may differ.
    """
    allowed, different = set(allowed), differing(theirs, ours)
    unknown = sorted(allowed - ours.keys())
    require(not unknown, f"config.init.allow: {brief(unknown)}: no field of this model")
    wrong = {field: pair for field, pair in different.items() if field not in allowed}
    if not wrong:
        return
    spelled = ", ".join(
        f"{k} = {brief(a)} there and {brief(b)} here" for k, (a, b) in wrong.items()
    )
    mend = " ".join(f"--config.model.{k}={_flag(a)}" for k, (a, _) in wrong.items())
    raise BadInput(
        f"{what} is of another model: {spelled}; set {mend}, or --config.init.adopt=true to take "
        "over all that it says"
    )


def _flag(value: Any) -> str:
    text = str(value)
    quote = '"' if "'" in text else "'"  # for the shell
    return f"{quote}{text}{quote}" if re.search(r"[\s()]", text) else text


# ----------------------------------------------------------------------------------------- writing


def config_of(family: Family, model: nn.Module) -> dict[str, Any]:
    """The config.json of a model: the inverse of `describe`.

    Raises:
      BadInput: for a field's value that the family does not have.
    """
    wrong = unlike(family, model)
    require(not wrong, f"{family.name} of transformers has no {wrong[0] if wrong else ''}")
    fields = {field: getattr(model, field) for field in family.fields if hasattr(model, field)}
    if "kv_heads" in fields:
        fields["kv_heads"] = fields["kv_heads"] or fields["heads"]
    written = {family.fields[field][0]: value for field, value in fields.items()}
    if "activation" in fields:
        names = (there for there, here in ACTIVATIONS.items() if here == fields["activation"])
        written[family.fields["activation"][0]] = next(names)
    if family.write is not None:
        written |= family.write(fields_of(model))
    return {"model_type": family.name} | written


def unlike(family: Family, model: nn.Module) -> list[str]:
    """The fields, 'name = value', of a model that the family does not have."""
    every = fields_of(model)
    every = {k: MEANS[k](every) if v is None and k in MEANS else v for k, v in every.items()}
    neutral = NEUTRAL | {k: MEANS[k](every) for k in MEANS.keys() & every.keys()}
    own = {*family.fields, *family.varies}
    fixed = {k: v for k, v in neutral.items() if k not in own} | family.fixed
    fixed |= {k: v for k, (v, _) in family.head.items()}
    allowed = {k: (v,) for k, v in fixed.items()} | {k: v for k, v in family.varies.items() if v}
    wrong = [k for k, values in allowed.items() if k in every and every[k] not in values]
    return [f"{k} = {getattr(model, k)!r}" for k in wrong]
