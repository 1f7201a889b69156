"""What the files beside a vocabulary say: tokenizer_config.json, special_tokens_map.json and
added_tokens.json. `lm.data.published` makes a tokenizer of it.
"""

from typing import Any, NamedTuple

from etils import epath
from tokenizers import AddedToken

from common import inputs
from common.errors import brief, require
from lm.data.templates import WHERE

NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # roles: `mask_token` and so on
GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")

# Families: the classes whose vocabulary alone makes a tokenizer, and their tokens by role.
CLASSES = {
    "bert": ("Bert", "DistilBert", "Electra", "MobileBert", "ConvBert", "LayoutLM", "SqueezeBert"),
    "roberta": ("Roberta", "Bart", "Longformer", "LED"),
    "gpt2": ("GPT2",),
    "t5": ("T5",),
}


class Settings(NamedTuple):
    """What the files beside a vocabulary say.

    Attributes:
      options: the contents of tokenizer_config.json.
      where: that file, for messages.
      family: of `CLASSES`, by `tokenizer_class`; "generic"; "" if none is named; "other".
      named: {role: its token, or None for null}.
      numbered: {id: added token}, of tokenizer_config.json or else added_tokens.json.
      more: special tokens without a role or an id.
    """

    options: dict
    where: str
    family: str
    named: dict[str, AddedToken | None]
    numbered: dict[int, AddedToken]
    more: list[AddedToken]


def read(folder: epath.Path) -> Settings:
    """The settings of a folder. Raises `BadInput` for what is no setting, or not supported."""
    path = folder / "tokenizer_config.json"
    where = f"{WHERE}: {path}"
    options = inputs.json_object(WHERE, path) if inputs.present(path) else {}
    name = inputs.field(options, "tokenizer_class", str, None, where) or ""
    stem = name.removesuffix("Fast").removesuffix("Tokenizer")
    family = next((family for family, stems in CLASSES.items() if stem in stems), "other")
    family = "generic" if name.removesuffix("Fast") in GENERIC else family if name else ""
    unsupported = (
        ("split_special_tokens", lambda value: value is True),
        ("do_basic_tokenize", lambda value: value is False),
        ("never_split", bool),
    )
    for key, asked in unsupported:
        require(
            not asked(options.get(key)),
            f"{where}: {key} is {brief(options.get(key))}, which is not supported; leave it out, "
            "or save the tokenizer as transformers' fast one",
        )
    numbered, more = {}, []
    decoder = inputs.field(options, "added_tokens_decoder", dict, None, where) or {}
    for number, value in decoder.items():
        at = f"{where}: added_tokens_decoder: {brief(number)}"
        valid = number.isascii() and number.isdigit() and len(number) < 10
        require(valid, f"{at} is no id")
        numbered[int(number)] = _token(value, at, special=False)
    named, path = _roles(options, where), folder / "special_tokens_map.json"
    lists = [(options, where)]
    if inputs.present(path):
        mapped, at = inputs.json_object(WHERE, path), f"{WHERE}: {path}"
        theirs = _roles(mapped, at)
        # The newer file, which numbers the added tokens, is believed.
        named = theirs | named if numbered else named | theirs
        lists.append((mapped, at))
    for each, at in lists:
        for key in ("additional_special_tokens", "extra_special_tokens"):
            tokens = each.get(key) or []
            tokens = list(tokens.values()) if isinstance(tokens, dict) else tokens
            require(isinstance(tokens, list), f"{at}: {key} is {brief(tokens)}, not a list")
            more += [_token(token, f"{at}: {key}", special=True) for token in tokens]
        own = {key for key in each if key.endswith("_token") and key[:-6] not in NAMED}
        more += [_token(each[k], f"{at}: {k}", special=True) for k in sorted(own) if _text(each[k])]
    path = folder / "added_tokens.json"
    if inputs.present(path):
        special = {token.content for token in [*named.values(), *more] if token is not None}
        known = {token.content: number for number, token in numbered.items()}
        for content, number in inputs.json_object(WHERE, path).items():
            at = f"{WHERE}: {path}: {brief(content)}"
            valid = type(number) is int and 0 <= number < 1 << 32 and bool(content)
            require(valid, f"{at} has the id {brief(number)}, which is no id of a token")
            same = known.get(content, None if known else number) == number
            require(same, f"{at} has the id {number}, and not in tokenizer_config.json")
            if not known:
                numbered[number] = _token(content, at, special=content in special)
    return Settings(options, where, family, named, numbered, more)


def _text(value: Any) -> bool:
    return isinstance(value, str | dict) and bool(value)


def _roles(said: dict, where: str) -> dict[str, AddedToken | None]:
    """{role: token, or None for null} of the keys `mask_token` and so on."""
    keys = {role: f"{role}_token" for role in NAMED if f"{role}_token" in said}
    return {
        role: None if said[key] is None else _token(said[key], f"{where}: {key}", special=True)
        for role, key in keys.items()
    }


def _token(value: Any, where: str, special: bool) -> AddedToken:
    """A token as files write it: a string, or an object with its flags."""
    value = {"content": value} if isinstance(value, str) else value
    require(isinstance(value, dict), f"{where} is {brief(value)}, not a token")
    content = inputs.field(value, "content", str, inputs.REQUIRED, where)
    require(bool(content), f"{where} is an empty token")
    flag = lambda name, default: inputs.field(value, name, bool, default, where)
    special = flag("special", special)
    return AddedToken(
        content,
        special=special,
        normalized=flag("normalized", not special),
        **{name: flag(name, False) for name in ("lstrip", "rstrip", "single_word")},
    )
