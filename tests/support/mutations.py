"""A fuzzer of other libraries' weights: one thing in a whole folder is changed at random, and what
is then loaded must be what the folder says, or a refusal in one line.

A try is a pure function of its number. Weights are loaded in both ways: into the model that the
folder described before, which only the same weights may enter, and as whatever the folder describes
now, by its own files or by what `transformers` makes of it (`foreign_rival`).
"""

import json
import pathlib
import random
import shutil
import time
from collections.abc import Callable
from typing import NamedTuple

import fuzz
import numpy as np
from foreign_folders import Ground, adopt, enter, ids, same

from common.errors import BadInput, brief
from common.weights import family as families
from common.weights import gguf_file
from lm import weights as texts
from lm.weights import rope
from vision import weights as images

DEEP = 100_000
VOCABULARY = "tokenizer", "special_tokens", "vocab", "model.gguf"  # files that may change ids
# Keys that mean something to some family, and values that do for some key.
KEYS = (
    "attention_bias", "mlp_bias", "is_decoder", "quantization_config", "rope_scaling",
    "partial_rotary_factor", "sliding_window", "use_sliding_window", "layer_types", "head_dim",
    "tie_word_embeddings", "num_labels", "id2label", "pruned_heads", "logit_scale", "rope_theta",
    "position_embedding_type", "embedding_size", "scale_attn_weights", "qkv_bias", "torch_dtype",
    "downsample_in_first_stage", "do_lower_case", "add_prefix_space", "add_bos_token",
    "added_tokens_decoder", "mask_token", "unk_token", "extra_special_tokens", "strip_accents",
    "model_type", "num_key_value_heads", "hidden_act", "rope_parameters", "original_max_length",
)  # fmt: skip
VALUES = (
    None, True, False, 0, -1, 1, 2, 3, 7, 10**9, 10**30, 1.5, 0.0, -0.5, float("nan"),
    float("inf"), 1e308, "", "x", "a" * 5000, "💥", [], {}, [1], {"x": 1}, "bert", "roberta",
    "llama", "gpt2", "mistral", "qwen2", "vit", "resnet", "relu", "gelu", "silu", "gelu_new",
    "tanh", "basic", "linear", "dynamic", "yarn", "default", "[MASK]", "<s>", "BertTokenizer",
    "GPT2Tokenizer", "PreTrainedTokenizerFast", "F16", "I32", "F64", "XX", "float16", "..",
)  # fmt: skip


class Try(NamedTuple):
    """One try: its number decides everything; `words` are what a refusal may name."""

    number: int
    ground: str
    file: str
    what: str
    words: tuple[str, ...]


class Outcome(NamedTuple):
    """What a try came to: how each way of loading ended, what is `wrong`, "" if nothing, and the
    seconds of the slower one."""

    tried: Try
    ends: dict[str, str]
    wrong: str
    seconds: float


# --------------------------------------------------------------------------------------- mutations


def _json(rng: random.Random, path: pathlib.Path) -> tuple[str, tuple[str, ...]]:
    """One change in a JSON file: (what, what a refusal may name)."""
    values = json.loads(path.read_bytes())
    at, key = fuzz.place(rng, values)
    before, late = at[key], lambda text: text
    others = [v for v in values.values() if isinstance(v, str)] or ["x"]
    match rng.randrange(8):
        case 0:
            del at[key]
            what = f"delete {key}"
        case 1 if type(before) in (int, float):
            at[key] = rng.choice([0, -1, before + 1, before * 2, before - 1, 1.5, float(before)])
            what = f"{key} = {at[key]}, not {before}"
        case 2:
            at[key] = rng.choice(others)
            what = f"{key} = {brief(at[key])}"
        case 3:
            at[key], opening = "@deep", rng.choice(["[", '{"a":'])
            late = lambda text: text.replace('"@deep"', opening * DEEP)
            what = f"{key} is nested deep"
        case 4 if isinstance(at, dict):
            at["@again"] = rng.choice([before, *VALUES])
            late = lambda text: text.replace('"@again"', json.dumps(key))
            what = f"{key} twice, then {brief(at['@again'])}"
        case 5:
            key = rng.choice(KEYS)
            values[key] = rng.choice(VALUES)
            what = f"more: {key} = {brief(values[key])}"
        case 6 if isinstance(at, dict):
            other = rng.choice(sorted(at))
            at[key], at[other] = at[other], at[key]
            key, what = f"{key}\0{other}", f"swap {key} and {other}"
        case _:
            at[key] = rng.choice(VALUES)
            what = f"{key} = {brief(at[key])}, not {brief(before)}"
    path.write_text(late(json.dumps(values)))
    # Sizes, and defaults in their place, show in the tensors.
    sizes = type(before) in (int, list) or what.startswith("delete") or "size" in str(key)
    return what, (*str(key).split("\0"), *(("tensors", "there and") if sizes else ()))


def _safetensors(rng: random.Random, path: pathlib.Path) -> tuple[str, tuple[str, ...]]:
    """One change in the header, with which the file says something else about its bytes."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    names = sorted(header.keys() - {"__metadata__"})
    name = rng.choice(names)
    entry, size = header[name], None
    match rng.randrange(8):
        case 0:
            unlike = [n for n in names if header[n]["shape"] != entry["shape"]]
            other = rng.choice(unlike)
            header[name], header[other] = header[other], entry
            what = f"swap {name} and {other}"
        case 1:
            entry["dtype"] = rng.choice(["F16", "F64", "I32", "I8", "BOOL", "XX", "", None, 3])
            what = f"{name} is {entry['dtype']}"
        case 2:
            shapes = [[], [0], [1, *entry["shape"]], [int(np.prod(entry["shape"]))], None, [-1]]
            shapes += [[2**62, 4], [1.5], [n + 1 for n in entry["shape"]]]
            entry["shape"] = rng.choice([s for s in shapes if s != entry["shape"]])
            what = f"{name} is {entry['shape']}"
        case 3:
            begin, end = entry["data_offsets"]
            entry["data_offsets"] = rng.choice(
                [[begin + 4, end + 4], [end, begin], [begin], None, [begin, end + 4], [-4, end],
                 [begin, 2**62], [begin, end - 1], ["0", end]]
            )  # fmt: skip
            what = f"{name} at {entry['data_offsets']}"
        case 4:
            del header[name]
            what = f"delete {name}"
        case 5:
            header[rng.choice([f"{name}.more", "x", "", f"model.{name}"])] = header.pop(name)
            what = f"rename {name}"
        case 6:
            size = rng.choice([0, 1, length - 1, length + 1, 2**40, 2**64 - 1])
            what = f"a header of {size} bytes"
        case _:
            at, key = fuzz.place(rng, header)
            at[key] = rng.choice([None, {}, [], "x", -1, 2**70])
            what = f"{key} = {at[key]}"
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    size = len(text) if size is None else size
    path.write_bytes(size.to_bytes(8, "little") + text + raw[8 + length :])
    plain = {name.partition(".")[2] for name in names}
    return what, tuple({*names, *plain, *header, "there and", "not in the checkpoint"})


def _gguf(rng: random.Random, path: pathlib.Path) -> tuple[str, tuple[str, ...]]:
    """Some bytes of the header become others."""
    raw = bytearray(path.read_bytes())
    *_, begin = gguf_file._header(path)
    match rng.randrange(4):
        case 0:
            at = rng.randrange(begin)
            raw[at] ^= 1 << rng.randrange(8)
            what = f"flip a bit of byte {at}"
        case 1:
            at, value = rng.randrange(begin - 8), rng.choice([0, 1, 2**31, 2**63, 2**64 - 1])
            raw[at : at + 8] = value.to_bytes(8, "little")
            what = f"{value} at {at}"
        case 2:  # where keys and the names of tensors are, rather than tokens
            keys = [b"llama.", b"tokenizer.ggml.", b"general.", b"blk.0.", b".weight"]
            key = rng.choice([key for key in keys if key in raw])
            starts = [i for i in range(begin) if raw.startswith(key, i)]
            at = rng.choice(starts) + rng.randrange(60)
            raw[at] = rng.choice([0, 1, 2, 255, raw[at] ^ 1, rng.randrange(256)])
            what = f"byte {at} is {raw[at]}"
        case _:
            a, b = rng.sample([b"attn_q.weight", b"attn_k.weight", b"ffn_up.weight"], 2)
            i, j = raw.find(a), raw.find(b)
            raw[i : i + 6], raw[j : j + 6] = raw[j : j + 6], raw[i : i + 6]
            what = f"swap letters of {a.decode()} and {b.decode()}"
    path.write_bytes(raw)
    return what, ("there and", "other tokens")


def mutate(number: int, name: str, folder: pathlib.Path) -> Try:
    """Changes something in a folder."""
    rng = random.Random(number)
    files = sorted(path.name for path in folder.iterdir())
    file = rng.choice(files + ["config.json"] * ("config.json" in files))
    path = folder / file
    own = {".json": _json, ".safetensors": _safetensors, ".gguf": _gguf}.get(path.suffix)
    if own is None or rng.random() < 0.15:
        others = ["cut", "put junk into", "put a BOM before", "make another kind of", "delete"]
        what = rng.choice(others + (["disturb the lines of"] if path.suffix == ".txt" else []))
        fuzz.MUTATORS[what](rng, path)
        words = ()
    else:
        what, words = own(rng, path)
    return Try(number, name, file, what, words)


# ----------------------------------------------------------------------------------------- judging


def attempt(
    number: int, name: str, ground: Ground, folder: pathlib.Path, theirs: Callable | None = None
) -> Outcome:
    """One try, in a folder that is not there yet.

    Args:
      number: of the try.
      name, ground: what is mutated.
      folder: where.
      theirs: judges what was adopted, as `as_said` does, which None is.
    """
    shutil.copytree(ground.folder, folder)
    tried = mutate(number, name, folder)
    ends, wrong, seconds = {}, "", 0.0
    ways = {"enter": lambda: enter(folder, ground), "adopt": lambda: adopt(folder, name)}
    for way, load in ways.items():
        begun = time.monotonic()
        try:
            got = load()
        except BadInput as error:
            ends[way] = str(error)
            wrong = wrong or _reason(tried, ends[way])
        except Exception as error:
            ends[way] = wrong = f"{way}: {type(error).__name__} came out: {error}"
        else:
            ends[way] = "loaded"
        seconds = max(seconds, time.monotonic() - begun)
        if ends[way] == "loaded":
            if way == "enter":
                right = same(got, ground.values)
                wrong = wrong or ("" if right else "other weights entered the model in silence")
            elif not wrong:
                wrong = _traced(lambda got=got: (theirs or as_said)(tried, folder, ground, *got))
                if ends["enter"] == "loaded":
                    wrong = wrong or _unlike(ground.model, got[0])
    return Outcome(tried, ends, wrong, seconds)


def _traced(judge: Callable) -> str:
    try:
        return judge()
    except Exception as error:
        return f"{type(error).__name__} came out of the model: {error}"


def _unlike(model, other) -> str:
    """What is wrong about weights of a model that entered another one."""
    before, now = families.fields_of(model), families.fields_of(other)
    idle = {"max_length"} if before.get("positions") == "rotary" else set()
    fields = [f for f in now if f not in idle and not families.FREE.fullmatch(f)]
    unlike = [f for f in fields if now[f] != before.get(f)]
    return f"weights of a model with other {unlike} entered in silence" if unlike else ""


def _reason(tried: Try, message: str) -> str:
    """What is wrong about a refusal: it must name the file, or what was changed in it."""
    if "\n" in message or len(message) > 1500:
        return f"not one line of a length to read: {message[:300]}"
    fields = {f for family in (*texts.FAMILIES, *images.FAMILIES)
              for f, (key, _) in family.fields.items() if key in tried.words}  # fmt: skip
    if tried.file.startswith(VOCABULARY):
        fields |= {"other tokens", "tokenizer has"}
    if tried.file.endswith(".index.json"):
        fields |= {"file name too long"}
    if tried.what == "delete":
        fields |= {"no weights", "no tokenizer"}
    rotary = {*rope.KEYS, *(key for keys in rope.TYPES.values() for key in keys), "rope_type"}
    if rotary & {*tried.words}:
        fields |= {"theta", "rope_scaling"}
    if "model_type" in tried.words:
        fields |= {"is of another model"}
    if any(word.endswith("_bias") for word in tried.words):
        fields |= {"bias"}
    named = any(word and word in message for word in (tried.file, *tried.words, *fields))
    return "" if named else f"names nothing that was changed: {message}"


def as_said(tried: Try, folder: pathlib.Path, ground: Ground, model, values: dict, facts) -> str:
    """What is wrong about an adopted model, by the files alone: a field that is another than before
    has the value that config.json has, and the same model has the same weights."""
    spared = facts is None or tried.file.startswith(VOCABULARY)
    if not spared and ids(facts.tokenizer) != ids(ground.facts.tokenizer):
        return "another tokenizer in silence"
    before, now = (families.fields_of(m) for m in (ground.model, model))
    if type(model) is type(ground.model) and before == now:
        return "" if same(values, ground.values) else "other weights in silence"
    path = folder / "config.json"
    if not path.exists():
        return ""
    config = json.loads(path.read_bytes())
    domain = images if facts is None else texts
    family = families.family_of(config, domain.FAMILIES, "")
    for field in now:
        key, default = family.fields.get(field, (None, None))
        said = config.get(key, default)
        if key is None or now[field] == before.get(field) or said is None:
            continue
        said = families.ACTIVATIONS.get(said, said) if isinstance(said, str) else said
        if (tuple(said) if isinstance(said, list) else said) != now[field]:
            return f"{field} = {now[field]}, and config.json says {said}"
    return ""


def tell(outcome: Outcome) -> str:
    """An outcome in a few lines."""
    return f"{outcome.wrong}\n  {outcome.tried._replace(words=())}"
