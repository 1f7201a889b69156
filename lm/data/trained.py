"""Training of tokenizers.

Two kinds are trained on prose: WordPiece as in BERT (Devlin et al. 2019; lower case, no accents)
and byte-level BPE as in GPT-2 (Radford et al. 2019; lossless). Pairs of sequences, such as a word
and its phonemes, may also be cut into "characters", or into the "words" between white space. The
same texts give the same tokenizer, in any process and with any number of threads.
"""

import collections
import itertools
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from common.errors import choice, require

MOST_TOKENS = 1 << 22  # of a vocabulary
KINDS = ("wordpiece", "bpe")
SYMBOLS = ("characters", "words")  # kinds for pairs alone
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # of WordPiece: ids 0 to 4
END = "<|endoftext|>"  # of byte-level BPE: id 0
FRAME = ("<pad>", "<unk>", "</s>")  # of characters and words: ids 0 to 2
ALPHABET = 1000  # characters known to WordPiece; words with others are [UNK]
CHUNK = 1 << 22  # characters counted at a time


def train(
    kind: Literal["wordpiece", "bpe", "characters", "words"], vocab_size: int, texts: Iterable[str]
) -> Tokenizer:
    """A tokenizer trained on texts.

    Args:
      kind: "wordpiece" or "bpe"; "characters" or "words", the most frequent ones.
      vocab_size: maximum number of tokens, special ones included; a small text may give fewer.
      texts: iterated twice for WordPiece, for which an iterator is read into memory.

    Raises:
      BadInput: if the vocabulary is too small for the single characters or bytes.
    """
    if choice("config.data.tokenizer", kind, KINDS + SYMBOLS) == "bpe":
        return _train_bpe(vocab_size, texts)
    if kind in SYMBOLS:
        return _train_symbols(kind, vocab_size, texts)
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


def _train_symbols(kind: str, vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    _require_room(vocab_size, len(FRAME) + 1)
    counts = collections.Counter()
    for text in texts:
        counts.update(text if kind == "characters" else text.split())
    for token in FRAME:
        del counts[token]  # as text it is unknown
    ordered = sorted(counts, key=lambda token: (-counts[token], token))
    return _symbols(kind, [*FRAME, *ordered[: vocab_size - len(FRAME)]])


def _symbols(kind: str, tokens: list[str]) -> Tokenizer:
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=FRAME[1]))
    if kind == "characters":
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(FRAME))
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
    trained = _wordpiece({token: i for i, token in enumerate(SPECIAL)})
    trained.train_from_iterator(texts, trainer)
    return _wordpiece(trained.get_vocab())


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


def _wordpiece(vocab: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL))
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
    if kind in SYMBOLS:
        _require_room(vocab_size, len(FRAME) + 1)
        return _symbols(kind, [*FRAME, *(f"[{i}]" for i in range(len(FRAME), vocab_size))])
    bpe = choice("config.data.tokenizer", kind, KINDS + SYMBOLS) == "bpe"
    first = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())] if bpe else list(SPECIAL)
    _require_room(vocab_size, len(first))
    names = [*first, *(f"[{i}]" for i in range(len(first), vocab_size))]
    vocab = {name: i for i, name in enumerate(names)}
    return _byte_level(models.BPE(vocab, [])) if bpe else _wordpiece(vocab)
