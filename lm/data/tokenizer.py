"""Tokenizers: trained here, or loaded from the files of a published model.

Two kinds are trained: WordPiece as in BERT (Devlin et al. 2019; lower case, no accents) and
byte-level BPE as in GPT-2 (Radford et al. 2019; lossless). The same texts give the same tokenizer,
in any process and with any number of threads.

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

from common import inputs
from common.errors import BadInput, brief, choice, require

WHERE = "config.data.tokenizer"
MOST_TOKENS = 1 << 22  # of a vocabulary
MOST_SPARSE = 1 << 19  # the highest id of one with gaps
KINDS = ("wordpiece", "bpe")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # of WordPiece: ids 0 to 4
END = "<|endoftext|>"  # of byte-level BPE: id 0
ALPHABET = 1000  # characters known to WordPiece; words with others are [UNK]
CHUNK = 1 << 22  # characters counted at a time

# The role of a token, and its names in published tokenizers.
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
      vocab_size: maximum number of tokens, special ones included; a small text may give fewer.
      texts: iterated twice for WordPiece, for which an iterator is read into memory.

    Raises:
      BadInput: if the vocabulary is too small for the single characters or bytes.
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
    """The library numbers the pieces `##c` in the arbitrary order of a hash table, and breaks ties
    by number. Passed as special tokens, they are numbered first; the tokenizer is then rebuilt with
    them as ordinary pieces."""
    _require_room(vocab_size, len(SPECIAL))
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
    """(the most common characters, those of them that ever continue a word), both sorted."""
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = np.zeros(0x110000, np.int64)
    joins = np.zeros(len(counts), bool)  # characters that are part of a word
    continues = np.zeros(len(counts), bool)
    for chunk in _chunks(texts):
        codes = np.frombuffer(normalizer.normalize_str(chunk).encode("utf-32-le"), np.uint32)
        occurrences = np.bincount(codes)
        for code in np.flatnonzero((occurrences > 0) & (counts[: len(occurrences)] == 0)):
            pieces = splitter.pre_tokenize_str(f"a{chr(code)}")
            joins[code] = len(pieces[0][0]) == 2
        counts[: len(occurrences)] += occurrences
        continues[codes[1:][joins[codes[1:]] & joins[codes[:-1]]]] = True
    codes = [c for c in np.flatnonzero(counts) if splitter.pre_tokenize_str(chr(c))]
    kept = sorted(sorted(codes, key=lambda code: (-counts[code], code))[:ALPHABET])
    return [chr(c) for c in kept], [chr(c) for c in kept if continues[c]]


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    """The texts, joined by spaces, in strings of about `CHUNK` characters."""
    chunk, size = [], 0
    for text in itertools.chain(texts, [None]):
        if text is None or size > CHUNK:
            yield " ".join(chunk)
            chunk, size = [], 0
        if text is not None:
            chunk.append(text)
            size += len(text)


def _require_room(vocab_size: int, least: int) -> None:
    require(
        vocab_size <= MOST_TOKENS,
        f"config.data.vocab_size: {vocab_size} is more than {MOST_TOKENS:,} tokens",
    )
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
    """An untrained tokenizer of exactly this size, for compiling programs where the corpus is
    absent (`lm.data.text.outline_sources`).

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
    """Loads the tokenizer of a published model, or a saved one.

    Args:
      path: a tokenizer.json or vocab.txt, or a folder with a tokenizer.json, else a vocab.txt
        (WordPiece; tokenizer_config.json may set `do_lower_case`), else vocab.json and merges.txt
        (byte-level BPE).

    Returns:
      The tokenizer, without padding and truncation.

    Raises:
      BadInput: if there is none, or it cannot be read.
    """
    path = epath.Path(path).expanduser()
    folder = path if path.is_dir() else path.parent
    named = {"tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"}
    present = {name for name in named if inputs.present(folder / name)}
    if not path.is_dir():
        require(inputs.present(path), f"{WHERE}: no such file or folder: {inputs.shown(path)}")
        inputs.file(WHERE, path)
        present &= {path.name} if path.name in ("tokenizer.json", "vocab.txt") else named
        if path.suffix == ".json" and path.name not in named:
            present = {"tokenizer.json"}
    file = path if path.is_file() else folder / "tokenizer.json"
    try:
        if "tokenizer.json" in present:
            tokenizer = Tokenizer.from_str(inputs.text(WHERE, file))
        elif "vocab.txt" in present:
            tokenizer = _load_wordpiece(folder)
        elif {"vocab.json", "merges.txt"} <= present:
            tokenizer = _load_byte_level(folder)
        else:
            tokenizer = None
        if tokenizer is not None:
            tokenizer.no_padding()
            tokenizer.no_truncation()
            tokenizer.encode("a\u2603 \u00e9")  # some lack what only encoding asks for
    except BadInput:
        raise
    except BaseException as error:  # the library raises nothing narrower, or panics
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise BadInput(f"{WHERE}: {path} cannot be read: {inputs.reason(error)}") from error
    require(
        tokenizer is not None,
        f"{WHERE}: {path} has no tokenizer.json, no vocab.txt, and no vocab.json with merges.txt",
    )
    _check_ids(tokenizer.get_vocab(with_added_tokens=True), str(path))
    return tokenizer


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


def has_files(folder: epath.PathLike) -> bool:
    """Whether `load` would find a tokenizer in a folder."""
    have = lambda name: inputs.present(epath.Path(folder) / name)
    return (
        have("tokenizer.json") or have("vocab.txt") or (have("vocab.json") and have("merges.txt"))
    )


def _load_wordpiece(folder: epath.Path) -> Tokenizer:
    file = folder / "vocab.txt"
    vocab = {t: i for i, t in enumerate(inputs.text(WHERE, file).split("\n")) if t}
    require("[UNK]" in vocab, f"{WHERE}: {file} has no [UNK]")
    path = folder / "tokenizer_config.json"
    options = inputs.json_object(WHERE, path) if inputs.present(path) else {}
    lowercase = inputs.field(options, "do_lower_case", bool, True, f"{WHERE}: {path}")
    return _wordpiece(vocab, lowercase=lowercase)


def _load_byte_level(folder: epath.Path) -> Tokenizer:
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
    tokenizer = _byte_level(models.BPE(vocab, merges))
    tokenizer.add_special_tokens([END] if END in vocab else [])
    return tokenizer


# ------------------------------------------------------------------------------------------- facts


class TextFacts(NamedTuple):
    """What models and tasks know about a set of texts: `Source.facts`.

    Attributes:
      tokenizer: of the set.
      vocab_size: V, the highest id plus one.
      special: {"pad", "unk", "cls", "sep", "mask", "end": id or None}; "end" closes a document.
      continues: bool[V], tokens that continue a word: `##…`; for byte-level BPE and SentencePiece,
        those that do not start with white space. Special tokens do not.
      token_bytes: i32[V], the UTF-8 bytes that a token stands for, 0 for special ones; None unless
        the tokenizer is byte-level, as others lose some of the text.
      length: L, of a row; 0 for a tokenizer alone.
      counts: i64[V], token counts of the training stream; None for labelled texts.
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
    # Space, tab, line feed and carriage return in byte-level BPE; space in SentencePiece.
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
