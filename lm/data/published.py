"""Tokenizers of published models, from their files:

    tokenizer.json           a whole tokenizer
    vocab.txt                WordPiece, as BERT's
    vocab.json, merges.txt   byte-level BPE, as GPT-2's or RoBERTa's
    spiece.model             SentencePiece, as T5's
    tokenizer_config.json    options, special tokens by their role, added tokens
    special_tokens_map.json  special tokens by their role
    added_tokens.json        added tokens: {token: id}

What they say is followed as the fast tokenizers of `transformers` 5 follow it, or refused. The
options of tokenizer_config.json override those in tokenizer.json, unless its `tokenizer_class` is
the generic one, of which tokenizer.json is all. A template in tokenizer.json is not changed by
`add_bos_token` and `add_eos_token`. Here alone, an option that is left out leaves tokenizer.json
as it is, where transformers takes its class's default. SigLIP 2 has Gemma's tokenizer.json, and its
texts are in lower case, as by `Siglip2Tokenizer` there.
"""

import json
import unicodedata
from collections import Counter

from etils import epath
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from common import inputs
from common.errors import BadInput, brief, require
from common.weights import gguf_file, tensors
from lm import gguf
from lm.data import sentencepiece
from lm.data import settings as said
from lm.data.settings import Settings
from lm.data.templates import WHERE, layout
from lm.data.trained import END, MOST_TOKENS

PIECES = "spiece.model"
MOST_SPARSE = 1 << 19  # the highest id of a vocabulary with gaps

# {family, of `lm.data.settings`: its tokens by role, unless the files say others}
TOKENS = {
    "bert": {
        "unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]",
    },
    "roberta": {
        "bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>", "cls": "<s>",
        "mask": "<mask>",
    },
    "gpt2": {"bos": END, "eos": END, "unk": END},
    "t5": {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
}  # fmt: skip


def load(path: epath.PathLike) -> Tokenizer:
    """Loads the tokenizer of a published model, or a saved one.

    Args:
      path: a folder with a tokenizer.json, else a vocab.txt (WordPiece), else vocab.json and
        merges.txt (byte-level BPE), else a spiece.model (SentencePiece), else a .gguf; or one of
        these files, which is read with those beside it; or a tokenizer.json of another name, which
        stands alone.

    Returns:
      The tokenizer, without padding and truncation. Its tokens by role, where the files name
      them, are its `roles_of`.

    Raises:
      BadInput: if there is none, it cannot be read, or its files say what cannot be done.
    """
    path = epath.Path(path).expanduser()
    file = _gguf(path)
    if file is not None:
        metadata = gguf_file.metadata(file)
        try:
            made = gguf.tokenizer(metadata)
        except BadInput as error:
            raise BadInput(f"{WHERE}: {file}: {error}") from None
        _check_ids(made.get_vocab(with_added_tokens=True), str(path))
        return made
    folder = path if path.is_dir() else path.parent
    named = {"tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", PIECES}
    present = {name for name in named if inputs.present(folder / name)}
    if not path.is_dir():
        require(inputs.present(path), f"{WHERE}: no such file or folder: {inputs.shown(path)}")
        inputs.file(WHERE, path)
        single = path.name in ("tokenizer.json", "vocab.txt", PIECES)
        present &= {path.name} if single else named
        if path.suffix == ".json" and path.name not in named:
            present = {"tokenizer.json"}
    file = path if path.is_file() else folder / "tokenizer.json"
    alone = path.is_file() and path.name not in named
    try:
        settings = Settings({}, "", "", {}, {}, []) if alone else said.read(folder)
        if "tokenizer.json" in present:
            tokenizer = _whole(file, settings)
            _add(tokenizer, settings, settings.family)
            if _of_siglip2(folder, settings):
                _lowercase(tokenizer)
            if settings.family in ("bert", "roberta"):
                _check_template(tokenizer, settings)
        elif "vocab.txt" in present:
            tokenizer = _wordpiece(folder, settings)
        elif {"vocab.json", "merges.txt"} <= present:
            tokenizer = _byte_level(folder, settings)
        elif PIECES in present:
            if settings.family not in ("t5", "generic", ""):
                _foreign(settings, PIECES)
            sentinels = inputs.field(settings.options, "extra_ids", int, 100, settings.where)
            tokenizer = sentencepiece.load(WHERE, folder / PIECES, sentinels)
            _add(tokenizer, settings, "t5")
            sentencepiece.close(tokenizer, roles_of(tokenizer).get("eos"))
        else:
            require(
                not inputs.present(folder / "source.spm"),
                f"{WHERE}: {folder}: the source.spm and target.spm of Marian, two ways to cut "
                "texts into one vocabulary, are not read; save a tokenizer.json of each",
            )
            kinds = f"a tokenizer.json, a vocab.txt, a vocab.json with merges.txt, or a {PIECES}"
            verb = "is none of" if path.is_file() else "has none of"
            raise BadInput(f"{WHERE}: {path} {verb} the files that are read: {kinds}")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode("a\u2603 \u00e9")  # some lack what only encoding asks for
    except BadInput:
        raise
    except BaseException as error:  # the library raises nothing narrower, or panics
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        at = file if "tokenizer.json" in present else path
        raise BadInput(f"{WHERE}: {at} cannot be read: {inputs.reason(error)}") from error
    _check_ids(tokenizer.get_vocab(with_added_tokens=True), str(path))
    return tokenizer


def _of_siglip2(folder: epath.Path, settings: Settings) -> bool:
    """Whether a tokenizer is SigLIP 2's: by its class, or Gemma's for a model of that kind."""
    option = lambda key: inputs.field(settings.options, key, str, None, settings.where) or ""
    name = option("tokenizer_class")
    if not name.startswith("GemmaTokenizer"):
        return name.startswith("Siglip2Tokenizer")
    file = folder / "config.json"
    kind = inputs.json_object("", file).get("model_type") if inputs.present(file) else None
    return kind in ("siglip", "siglip2") or option("processor_class").startswith("Siglip")


def _lowercase(tokenizer: Tokenizer) -> None:
    """Texts in lower case, on which SigLIP 2 was trained; Gemma's tokenizer.json keeps capitals."""
    before = tokenizer.normalizer
    if before is None or "A" in before.normalize_str("A"):
        lower = normalizers.Lowercase()
        tokenizer.normalizer = normalizers.Sequence([lower, before] if before else [lower])


def has_files(folder: epath.PathLike) -> bool:
    """Whether `load` would find a tokenizer in a folder."""
    have = lambda name: inputs.present(epath.Path(folder) / name)
    whole = have("tokenizer.json") or have("vocab.txt") or have(PIECES)
    return whole or (have("vocab.json") and have("merges.txt")) or _gguf(folder) is not None


def _gguf(path: epath.PathLike) -> epath.Path | None:
    """The GGUF file that is, or is alone in, `path`, which has no other files of a tokenizer."""
    path = epath.Path(path)
    others = ("tokenizer.json", "vocab.txt", "vocab.json", PIECES)
    if path.is_dir() and any(inputs.present(path / name) for name in others):
        return None
    return tensors.gguf_of(path) if inputs.present(path) else None


def roles_of(tokenizer: Tokenizer) -> dict[str, str]:
    """{role, of `NAMED`: token}, as the files of a loaded tokenizer name them; {} if they name
    none. The library has no place for them: they are an attribute of the object, and lost in a
    tokenizer.json without the other of its `files`."""
    return getattr(tokenizer, "roles", {})


def files(tokenizer: Tokenizer) -> dict[str, str]:
    """{name: contents} of the files from which `load` makes this tokenizer again."""
    saved = {"tokenizer.json": tokenizer.to_str(pretty=True)}
    if roles_of(tokenizer):
        named = {f"{role}_token": token for role, token in sorted(roles_of(tokenizer).items())}
        saved["special_tokens_map.json"] = json.dumps(named, indent=1, ensure_ascii=False)
    return saved


def _check_ids(vocab: dict[str, int], path: str) -> None:
    """Raises `BadInput` for a vocabulary that would make arrays, and a model, of gigabytes: one far
    too large, or with ids far beyond the number of tokens."""
    require(bool(vocab), f"{WHERE}: {path} has no tokens")
    token = max(vocab, key=lambda token: vocab[token])
    size, most = vocab[token] + 1, min(max(2 * len(vocab), MOST_SPARSE), MOST_TOKENS)
    require(
        size <= most,
        f"{WHERE}: {path}: the token {brief(token)} has the id {vocab[token]:,}, with "
        f"{len(vocab):,} tokens in all: ids must be below {most:,}",
    )


# ------------------------------------------------------------------------------------- tokenizers


def _add(tokenizer: Tokenizer, settings: Settings, family: str) -> None:
    """Adds the tokens that the settings name, and sets the tokenizer's roles."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    defaults = {
        role: AddedToken(token, special=True, normalized=False)
        for role, token in TOKENS.get(family, {}).items()
        if token in vocab
    }
    roles = {role: token for role, token in (defaults | settings.named).items() if token}
    wanted = {token.content: token for _, token in sorted(settings.numbered.items())}
    have = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    for token in [*roles.values(), *settings.more]:
        wanted.setdefault(token.content, have.get(token.content, token))
    for token in roles.values():
        wanted[token.content].special = True
    tokenizer.add_tokens(list(wanted.values()))
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    taken = Counter(vocab.values())
    for number, token in settings.numbered.items():
        require(
            vocab[token.content] == number,
            f"{settings.where}: the added token {brief(token.content)} has the id {number:,} "
            f"there, and {vocab[token.content]:,} in the vocabulary; correct the id",
        )
    for content in wanted:
        require(
            taken[vocab[content]] == 1,
            f"{settings.where}: the added token {brief(content)} gets the id {vocab[content]:,}, "
            "which another token has: the vocabulary has gaps",
        )
    if roles:
        tokenizer.roles = {role: token.content for role, token in roles.items()}


def _whole(file: epath.Path, settings: Settings) -> Tokenizer:
    """From tokenizer.json and the options beside it."""
    text = inputs.text(WHERE, file)
    tokenizer = Tokenizer.from_str(text)
    _check_ids(tokenizer.get_vocab(with_added_tokens=True), str(file))  # to write it takes as long
    for token in json.loads(text).get("added_tokens") or []:
        number = tokenizer.token_to_id(token["content"])
        require(
            number == token["id"],
            f"{WHERE}: {file}: the added token {brief(token['content'])} has the id "
            f"{token['id']} there, and {number} in the vocabulary; correct the id",
        )
    asked = {key: _flag(settings, key) for key in (*BERT_OPTIONS, "add_prefix_space")}
    asked = {key: value for key, value in asked.items() if value is not None}
    if settings.family == "generic" or not asked:
        return tokenizer
    described = json.loads(tokenizer.to_str())
    _set(described, asked)
    tokenizer = Tokenizer.from_str(json.dumps(described))
    for key, does in _behaviour(tokenizer, described).items():
        require(
            asked.get(key, does) == does,
            f"{settings.where}: {key} is {json.dumps(not does)}, and what tokenizer.json has "
            "instead of it cannot be set; correct either",
        )
    return tokenizer


def _check_template(tokenizer: Tokenizer, settings: Settings) -> None:
    """Raises `BadInput` if the settings name another "cls" or "sep" than stands in the template."""
    for role, ids in zip(("cls", "sep"), layout(tokenizer, 1).ids, strict=True):
        token = settings.named.get(role)
        require(
            not ids or token is None or ids == (tokenizer.token_to_id(token.content),),
            f"{settings.where}, or special_tokens_map.json beside it: {role}_token is "
            f"{brief(token and token.content)}, and the template in tokenizer.json has "
            f"{brief([tokenizer.id_to_token(i) for i in ids])}; correct either",
        )


# {key of tokenizer_config.json: key of BertNormalizer}
BERT_OPTIONS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def _set(described: dict, asked: dict[str, bool]) -> None:
    """Sets options in a tokenizer.json, in those of its parts that have them."""
    for part in _parts(described["normalizer"], "normalizers"):
        if part["type"] == "BertNormalizer":
            part |= {BERT_OPTIONS[key]: asked[key] for key in BERT_OPTIONS.keys() & asked.keys()}
    prefix = asked.get("add_prefix_space")
    parts = _parts(described["pre_tokenizer"], "pretokenizers")
    for part in [*parts, *_parts(described["decoder"], "decoders")] if prefix is not None else []:
        if part["type"] == "ByteLevel":
            part["add_prefix_space"] = prefix
        elif part["type"] == "Metaspace" and prefix == (part["prepend_scheme"] == "never"):
            part["prepend_scheme"] = "always" if prefix else "never"


def _behaviour(tokenizer: Tokenizer, described: dict) -> dict[str, bool]:
    """{option: what the tokenizer does, whatever its parts are}."""
    normalizer = tokenizer.normalizer
    become = lambda text: normalizer.normalize_str(text) if normalizer else text
    accented = unicodedata.normalize("NFD", become("a\u0301"))
    before = _parts(described["normalizer"], "normalizers")
    parts = [*before, *_parts(described["pre_tokenizer"], "pretokenizers")]
    return {
        "do_lower_case": "A" not in become("A"),
        "strip_accents": "\u0301" not in accented,
        "tokenize_chinese_chars": "a\u4e2d" not in become("a\u4e2d"),
        "add_prefix_space": any(
            part["type"] == "Prepend"
            or part.get("add_prefix_space")
            or part.get("prepend_scheme", "never") != "never"
            for part in parts
        ),
    }


def _parts(part: dict | None, inner: str) -> list[dict]:
    """The normalizers, pre-tokenizers or decoders in one that may be a sequence of them."""
    part = part or {}
    parts = [each for one in part.get(inner, []) for each in _parts(one, inner)]
    return parts or ([part] if "type" in part else [])


def _foreign(settings: Settings, vocabulary: str) -> None:
    """Raises `BadInput` for a class that is not made of this vocabulary alone."""
    name = settings.options.get("tokenizer_class")
    raise BadInput(
        f"{settings.where}: tokenizer_class is {brief(name)}, which {vocabulary} alone does not "
        "make; save its tokenizer.json too (save_pretrained of transformers)"
    )


def _flag(settings: Settings, key: str, default: bool | None = None) -> bool | None:
    """An option of tokenizer_config.json; only one without a default may be null."""
    return inputs.field(settings.options, key, bool, default, settings.where)


def _wordpiece(folder: epath.Path, settings: Settings) -> Tokenizer:
    """BERT's, from vocab.txt and options."""
    if settings.family in ("roberta", "gpt2", "t5", "other"):
        _foreign(settings, "vocab.txt")
    file = folder / "vocab.txt"
    vocab = {t: i for i, t in enumerate(inputs.text(WHERE, file).split("\n")) if t}
    named = settings.named.get("unk")
    unk = named.content if named else TOKENS["bert"]["unk"]
    require(unk in vocab, f"{WHERE}: {file} has no {inputs.shown(unk)}, the unk_token")
    for role in ("cls", "sep"):  # the template's
        token = TOKENS["bert"][role]
        require(role in settings.named or token in vocab, f"{WHERE}: {file} has no {token}")
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=unk))
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=_flag(settings, "do_lower_case", True),
        strip_accents=_flag(settings, "strip_accents"),
        handle_chinese_chars=_flag(settings, "tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _add(tokenizer, settings, "bert")
    ends = _ends(tokenizer, settings, default=None)
    if len(ends) == 2:
        tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer


def _byte_level(folder: epath.Path, settings: Settings) -> Tokenizer:
    """GPT-2's or RoBERTa's, from vocab.json, merges.txt and options."""
    if settings.family in ("bert", "t5", "other"):
        _foreign(settings, "vocab.json with merges.txt")
    vocab, merges = _vocabulary(folder)
    family = settings.family
    if family not in TOKENS:
        family = "roberta" if {"<s>", "</s>"} <= vocab.keys() and END not in vocab else "gpt2"
    prefix = bool(_flag(settings, "add_prefix_space"))
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    _add(tokenizer, settings, family)
    if family == "roberta":
        ends = _ends(tokenizer, settings, default=True)
        require(len(ends) == 2, f"{WHERE}: {folder / 'vocab.json'} has no <s> and </s>")
        tokenizer.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=prefix)
        return tokenizer
    asked = {role: bool(_flag(settings, f"add_{role}_token")) for role in ("bos", "eos")}
    if any(asked.values()):
        roles = roles_of(tokenizer)
        for role, value in asked.items():
            known = role in roles or not value
            require(known, f"{settings.where}: add_{role}_token is true, with no {role}_token")
        used = {role: [roles[role]] if value else [] for role, value in asked.items()}
        around = lambda text, kind: [
            f"{piece}:{kind}" for piece in (*used["bos"], text, *used["eos"])
        ]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=around("$A", 0),
            pair=[*around("$A", 0), *around("$B", 1)],
            special_tokens=[
                (token, tokenizer.token_to_id(token))
                for token in dict.fromkeys([*used["bos"], *used["eos"]])
            ],
        )
    return tokenizer


def _ends(tokenizer: Tokenizer, settings: Settings, default: bool | None) -> list:
    """[(token, id)] of "sep" and "cls", as far as there are any, between which a text stands.

    Raises:
      BadInput: if an option asks for another template; `default` is the value that does not.
    """
    for key in ("add_bos_token", "add_eos_token"):
        value = _flag(settings, key)
        require(
            value in (None, bool(default)),
            f"{settings.where}: {key} is {json.dumps(value)}, which the template of this kind of "
            "tokenizer does not allow; leave it out",
        )
    roles = roles_of(tokenizer)
    tokens = [roles[role] for role in ("sep", "cls") if role in roles]
    return [(token, tokenizer.token_to_id(token)) for token in tokens]


def _vocabulary(folder: epath.Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """vocab.json and merges.txt."""
    file = folder / "vocab.json"
    vocab = inputs.json_object(WHERE, file)
    for token, i in vocab.items():
        require(
            type(i) is int and 0 <= i < MOST_TOKENS,
            f"{WHERE}: {file}: the token {brief(token)} has the id {brief(i)}, which is not a "
            f"number below {MOST_TOKENS:,}",
        )
    file = folder / "merges.txt"
    merges = []
    for number, line in enumerate(inputs.text(WHERE, file).split("\n"), 1):
        if not line or line.startswith("#version"):
            continue
        pieces = line.split(" ")
        two = len(pieces) == 2 and all(pieces)
        require(two, f"{WHERE}: {file}, line {number}: {brief(line)} is not two pieces")
        for token in (*pieces, "".join(pieces)):
            known = token in vocab
            require(known, f"{WHERE}: {file}, line {number}: {brief(token)} is not in vocab.json")
        merges.append(tuple(pieces))
    return vocab, merges
