"""Tokenizers: trained here, or loaded from the files of a published model.

Two kinds are trained: WordPiece as BERT has it (Devlin et al. 2019; lower case, no accents) and
byte-level BPE as GPT-2 has it (Radford et al. 2019; it loses nothing). Training the same texts
gives the same tokenizer, in any process and with any number of threads.

Letters: V vocabulary.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import numpy as np
from etils import epath
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from common.errors import BadInput, choice, require

KINDS = ("wordpiece", "bpe")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # of WordPiece: ids 0 to 4
END = "<|endoftext|>"  # of byte-level BPE: id 0
ALPHABET = 1000  # characters that WordPiece knows; words with others are [UNK]
CHUNK = 1 << 22  # characters that are counted at a time

# What a token is for, and what published tokenizers call it.
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "end": (END, "<|end_of_text|>", "</s>", "[SEP]"),
}


def train(kind: Literal["wordpiece", "bpe"], vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """A tokenizer trained on texts.

    Args:
      kind: "wordpiece" or "bpe".
      vocab_size: the most tokens, special ones included; a small text may give fewer.
      texts: gone through twice for WordPiece; an iterator is put into memory for that.

    Raises:
      BadInput: if the vocabulary cannot even hold the single characters or bytes.
    """
    if choice("config.data.tokenizer", kind, KINDS) == "bpe":
        return _train_bpe(vocab_size, texts)
    return _train_wordpiece(vocab_size, list(texts) if isinstance(texts, Iterator) else texts)


def _train_bpe(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _require_room(vocab_size, 1 + len(alphabet))
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _train_wordpiece(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    """The library numbers the pieces `##c` as its hash table happens to yield them, and breaks ties
    by number. Given as special tokens they are numbered before it looks; the tokenizer is then
    built anew, where they are ordinary pieces."""
    alphabet, continuing = _alphabet(texts)
    first = [*SPECIAL, *(f"##{c}" for c in continuing)]
    _require_room(vocab_size, len(first) + len(alphabet))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=first,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained = _wordpiece({token: i for i, token in enumerate(SPECIAL)}, lowercase=True)
    trained.train_from_iterator(texts, trainer)
    return _wordpiece(trained.get_vocab(), lowercase=True)


def _alphabet(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """(the commonest characters, those of them that ever continue a word), both sorted."""
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = np.zeros(0x110000, np.int64)
    joins = np.zeros(len(counts), bool)  # characters that are part of a word
    continues = np.zeros(len(counts), bool)
    for chunk in _chunks(texts):
        codes = np.frombuffer(normalizer.normalize_str(chunk).encode("utf-32-le"), np.uint32)
        found = np.bincount(codes)
        for code in np.flatnonzero((found > 0) & (counts[: len(found)] == 0)):
            pieces = splitter.pre_tokenize_str(f"a{chr(code)}")
            joins[code] = len(pieces[0][0]) == 2
        counts[: len(found)] += found
        continues[codes[1:][joins[codes[1:]] & joins[codes[:-1]]]] = True
    codes = [c for c in np.flatnonzero(counts) if splitter.pre_tokenize_str(chr(c))]
    kept = sorted(sorted(codes, key=lambda code: (-counts[code], code))[:ALPHABET])
    return [chr(c) for c in kept], [chr(c) for c in kept if continues[c]]


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    """The texts, a space between them, in strings of about `CHUNK` characters."""
    held, size = [], 0
    for text in itertools.chain(texts, [None]):
        if text is None or size > CHUNK:
            yield " ".join(held)
            held, size = [], 0
        if text is not None:
            held.append(text)
            size += len(text)


def _require_room(vocab_size: int, least: int) -> None:
    require(
        vocab_size >= least,
        f"config.data.vocab_size: {vocab_size} is too small: this text needs at least {least}",
    )


def _wordpiece(vocab: dict[str, int], lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in SPECIAL if token in vocab])
    if "[SEP]" in vocab and "[CLS]" in vocab:
        ends = [(token, vocab[token]) for token in ("[SEP]", "[CLS]")]
        tokenizer.post_processor = processors.BertProcessing(*ends)
    return tokenizer


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def stand_in(kind: str, vocab_size: int) -> Tokenizer:
    """A tokenizer of exactly this size that has learned nothing: for programs that are compiled
    where the corpus is not (`lm.data.text.outline_sources`).

    Raises:
      BadInput: for an unknown kind, or a vocabulary too small for its first tokens.
    """
    bpe = choice("config.data.tokenizer", kind, KINDS) == "bpe"
    first = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())] if bpe else list(SPECIAL)
    _require_room(vocab_size, len(first))
    names = [*first, *(f"[{i}]" for i in range(len(first), vocab_size))]
    vocab = {name: i for i, name in enumerate(names)}
    return _byte_level(models.BPE(vocab, [])) if bpe else _wordpiece(vocab, lowercase=True)


# ----------------------------------------------------------------------------------------- loading


def load(path: epath.PathLike) -> Tokenizer:
    """The tokenizer of a published model, or one that was saved.

    Args:
      path: a tokenizer.json, or a folder with a tokenizer.json, or else with a vocab.txt
        (WordPiece; tokenizer_config.json may say `do_lower_case`), or else with vocab.json and
        merges.txt (byte-level BPE). A vocab.txt may be named itself.

    Returns:
      The tokenizer, which neither pads nor truncates.

    Raises:
      BadInput: if there is none, or it cannot be read.
    """
    path = epath.Path(path).expanduser()
    folder = path if path.is_dir() else path.parent
    named = {"tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"}
    have = {name for name in named if (folder / name).exists()}
    if not path.is_dir():
        require(path.exists(), f"config.data.tokenizer: no such file or folder: {path}")
        have &= {path.name} if path.name in ("tokenizer.json", "vocab.txt") else named
        if path.suffix == ".json" and path.name not in named:
            have = {"tokenizer.json"}
    file = path if path.is_file() else folder / "tokenizer.json"
    try:
        if "tokenizer.json" in have:
            tokenizer = Tokenizer.from_str(file.read_text())
        elif "vocab.txt" in have:
            tokenizer = _load_wordpiece(folder)
        elif {"vocab.json", "merges.txt"} <= have:
            tokenizer = _load_byte_level(folder)
        else:
            tokenizer = None
    except Exception as error:  # the library raises nothing narrower
        said = str(error).splitlines()[0]
        raise BadInput(f"config.data.tokenizer: {path} cannot be read: {said}") from error
    require(
        tokenizer is not None,
        f"config.data.tokenizer: {path} has no tokenizer.json, no vocab.txt, and not vocab.json "
        "with merges.txt",
    )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def has_files(folder: epath.PathLike) -> bool:
    """Whether `load` would find a tokenizer in a folder."""
    have = lambda name: (epath.Path(folder) / name).exists()
    return (
        have("tokenizer.json") or have("vocab.txt") or (have("vocab.json") and have("merges.txt"))
    )


def _load_wordpiece(folder: epath.Path) -> Tokenizer:
    vocab = {t: i for i, t in enumerate((folder / "vocab.txt").read_text().split("\n")) if t}
    require("[UNK]" in vocab, f"config.data.tokenizer: {folder / 'vocab.txt'} has no [UNK]")
    options = folder / "tokenizer_config.json"
    options = json.loads(options.read_text()) if options.exists() else {}
    return _wordpiece(vocab, lowercase=options.get("do_lower_case", True))


def _load_byte_level(folder: epath.Path) -> Tokenizer:
    vocab = json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text().split("\n")
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    tokenizer = _byte_level(models.BPE(vocab, merges))
    tokenizer.add_special_tokens([END] if END in vocab else [])
    return tokenizer


# ------------------------------------------------------------------------------------------- facts


class TextFacts(NamedTuple):
    """What models and tasks know of a set of texts, `Source.facts`.

    Attributes:
      tokenizer: of the set.
      vocab_size: V, the highest id plus one.
      special: {"pad", "unk", "cls", "sep", "mask", "end": id or None}; "end" closes a document.
      continues: bool[V], tokens that continue a word: `##…`, and for byte-level BPE and
        SentencePiece those that do not start with white space. Special tokens do not.
      token_bytes: i32[V], the bytes of UTF-8 text that a token stands for, 0 for special ones; None
        unless the tokenizer is byte-level, as others lose some of the text.
      length: L, of a row; 0 for a tokenizer alone.
      counts: i64[V], of the stream to train on; None for labelled texts.
      form: of the rows, see `lm.data.text.Form`; "" for labelled texts.
      classes: names of the labels; () for numbers, and for text without labels.
    """

    tokenizer: Tokenizer
    vocab_size: int
    special: dict[str, int | None]
    continues: np.ndarray
    token_bytes: np.ndarray | None
    length: int = 0
    counts: np.ndarray | None = None
    form: str = ""
    classes: tuple[str, ...] = ()


def facts(tokenizer: Tokenizer) -> TextFacts:
    """The `TextFacts` of a tokenizer alone."""
    described = json.loads(tokenizer.to_str())
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    added = {token["content"]: token["special"] for token in described["added_tokens"]}
    byte_level = _mentions_byte_level(described["pre_tokenizer"])
    wordpiece = described["model"]["type"] == "WordPiece"
    prefix = described["model"].get("continuing_subword_prefix") or "##"
    # Byte-level BPE writes space, tab, line feed and carriage return so; SentencePiece the last.
    spaces = ("Ġ", "ĉ", "Ċ", "č", "▁")
    size = max(vocab.values(), default=-1) + 1
    continues, token_bytes = np.zeros(size, bool), np.zeros(size, np.int32)
    for token, i in vocab.items():
        if added.get(token):
            continue
        continues[i] = token.startswith(prefix) if wordpiece else not token.startswith(spaces)
        token_bytes[i] = len(token.encode()) if token in added else len(token)
    find = lambda names: next((vocab[name] for name in names if name in vocab), None)
    return TextFacts(
        tokenizer=tokenizer,
        vocab_size=size,
        special={role: find(names) for role, names in ROLES.items()},
        continues=continues,
        token_bytes=token_bytes if byte_level else None,
    )


def _mentions_byte_level(part: dict | None) -> bool:
    parts = (part or {}).get("pretokenizers", [part or {}])
    return any(part.get("type") == "ByteLevel" for part in parts)
