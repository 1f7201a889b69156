"""Tokenizers, and what tasks know of them: trained here (`lm.data.trained`), or loaded from the
files of a published model (`lm.data.published`).

Letters: V vocabulary.
"""

import json
from typing import NamedTuple

import numpy as np
from etils import epath
from tokenizers import Tokenizer

from common import inputs
from common.errors import require
from common.runs import facts as run_facts
from lm.data.published import files, has_files, load, roles_of
from lm.data.templates import Layout, classic, layout
from lm.data.trained import END, KINDS, SPECIAL, SYMBOLS, stand_in, train

__all__ = [
    "END", "KINDS", "ROLES", "SPECIAL", "SYMBOLS", "TextFacts", "elsewhere", "facts", "files",
    "has_files", "kept", "load", "reading", "stand_in", "train",
]  # fmt: skip

# The role of a token, and its names in tokenizers whose files name no roles.
ROLES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "end": (END, "<|end_of_text|>", "</s>", "[SEP]"),
}


class TextFacts(NamedTuple):
    """What models and tasks know about a set of texts: `Source.facts`.

    Attributes:
      tokenizer: of the set.
      vocab_size: V, the highest id plus one.
      special: {"pad", "unk", "cls", "sep", "mask", "end": id or None}, as the tokenizer's files
        name them, else by `ROLES`; "end" closes a document.
      continues: bool[V], tokens that continue a word: `##…`; for byte-level BPE and SentencePiece,
        those that do not start with white space. Special tokens do not.
      token_bytes: i32[V], the UTF-8 bytes that a token stands for, 0 for structural ones; None
        unless the tokenizer is byte-level, as others lose some of the text.
      length: L, of a row; 0 for a tokenizer alone.
      counts: i64[V], token counts of the training stream; None for labelled texts.
      form: of the rows, see `lm.data.text.Form`; "" for labelled texts.
      classes: names of the labels; () for numbers, and for text without labels.
      texts: of a labelled example, 1 or 2; 0 if nobody knows.
      begin, end: what stands before and after a document, by the tokenizer's template: [CLS] and
        [SEP], `<s>` and `</s>`. After a text that its template leaves open comes the token of the
        role "end"; without a template, <|endoftext|> is on both sides. With a mask token, `begin`
        stands at the start of a row of documents rather than of each.
      layouts: the template of one text, and of two; see `lm.data.templates`.
      structural: ids of the special tokens that have a role or stand in the template. Text that
        spells one of them is text.
      added: ids of the other special tokens, such as a user's own [URL]. Text may hold them.
      multi_label: whether an example has any number of classes: its label is u8[K], 0 or 1.
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
    texts: int = 0
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    layouts: tuple[Layout, ...] = ()
    structural: tuple[int, ...] = ()
    added: tuple[int, ...] = ()
    multi_label: bool = False

    @property
    def special_ids(self) -> list[int]:
        """The ids of all special tokens, in order: none of them is ever masked."""
        roles = {i for i in self.special.values() if i is not None}
        return sorted(roles | {*self.structural, *self.added})

    @property
    def document_begin(self) -> tuple[int, ...]:
        """What stands before each document of a stream; see `begin`."""
        return self.begin if self.special["mask"] is None else ()


def facts(tokenizer: Tokenizer) -> TextFacts:
    """The `TextFacts` of a tokenizer alone.

    Raises:
      BadInput: if its template is not one of a text, or has tokens that the vocabulary lacks.
    """
    described = json.loads(tokenizer.to_str())
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    added = {token["content"]: token["special"] for token in described["added_tokens"]}
    size = max(vocab.values(), default=-1) + 1
    special = _roles(tokenizer, vocab)
    layouts = _layouts(tokenizer, special, size)
    begin, end = layout(tokenizer, 1).ids
    if not begin and not end and special["mask"] is not None:
        begin, end = layouts[0].ids
    if not end:
        end = () if special["end"] is None else (special["end"],)
        begin = begin or end
    special["end"] = end[0] if end else None
    named = (*special.values(), *(vocab.get(token) for token in roles_of(tokenizer).values()))
    structural = {*begin, *end, *(i for each in layouts for i in each.special), *named} - {None}
    byte_level = _mentions_byte_level(described["pre_tokenizer"])
    wordpiece = described["model"]["type"] == "WordPiece"
    prefix = described["model"].get("continuing_subword_prefix") or "##"
    # Space, tab, line feed and carriage return in byte-level BPE; space in SentencePiece.
    spaces = ("Ġ", "ĉ", "Ċ", "č", "▁")
    continues, token_bytes = np.zeros(size, bool), np.zeros(size, np.int32)
    for token, i in vocab.items():
        if i in structural:
            continue
        if not added.get(token):
            continues[i] = token.startswith(prefix) if wordpiece else not token.startswith(spaces)
        token_bytes[i] = len(token.encode()) if token in added else len(token)
    return TextFacts(
        tokenizer=tokenizer,
        vocab_size=size,
        special=special,
        continues=continues,
        token_bytes=token_bytes if byte_level else None,
        begin=begin,
        end=end,
        layouts=layouts,
        structural=tuple(sorted(structural)),
        added=tuple(sorted({vocab[t] for t, own in added.items() if own} - structural)),
    )


def _roles(tokenizer: Tokenizer, vocab: dict[str, int]) -> dict[str, int | None]:
    """`TextFacts.special`."""
    named = {role: vocab.get(token) for role, token in roles_of(tokenizer).items()}
    if not named:
        find = lambda names: next((vocab[name] for name in names if name in vocab), None)
        return {role: find(names) for role, names in ROLES.items()}
    end = named["eos"] if named.get("eos") is not None else named.get("sep")
    return {role: named.get(role) for role in ROLES} | {"end": end}


def _layouts(tokenizer: Tokenizer, special: dict, size: int) -> tuple[Layout, ...]:
    """`TextFacts.layouts`."""
    layouts = layout(tokenizer, 1), layout(tokenizer, 2)
    top = max((i for each in layouts for i in each.special), default=-1)
    require(
        top < size,
        f"config.data.tokenizer: its template has the token {top:,}, and its vocabulary ends at "
        f"{size - 1:,}",
    )
    cls, sep = special["cls"], special["sep"]
    if layouts[0].special or cls is None or sep is None:
        return layouts
    return classic(cls, sep, 1), classic(cls, sep, 2)


def _mentions_byte_level(part: dict | None) -> bool:
    parts = (part or {}).get("pretokenizers", [part or {}])
    return any(part.get("type") == "ByteLevel" for part in parts)


def kept(folder, part: str = "") -> Tokenizer | None:
    """The tokenizer that a run keeps in its workdir; None if one of an older version keeps none.

    Args:
      folder: the workdir.
      part: the folder in it, if it keeps several.
    """
    place = epath.Path(folder) / part
    if not inputs.present(place / "tokenizer.json"):
        return None
    tokenizer = load(place / "tokenizer.json")
    for name in files(tokenizer):
        if inputs.present(place / name):
            own = f"{part}/{name}" if part else name
            run_facts.check(folder, place / name, {own: inputs.text("", place / name)})
    return tokenizer


def elsewhere(config: dict, own: dict, folder) -> dict:
    """A config that names other texts, with the tokenizer and the length of a run.

    Args:
      config: nested dicts.
      own: the config of the run.
      folder: its workdir.

    Raises:
      BadInput: if it names another tokenizer or length.
    """
    for key in ("tokenizer", "vocab_size", "length"):
        same = config["data"].get(key) == own["data"].get(key)
        require(same, f"--config.data.{key}: texts are read as the run reads its own; leave it out")
    kept_there = str(epath.Path(folder) / "tokenizer.json")
    return config | {"data": config["data"] | {"tokenizer": kept_there}}


def reading(facts: TextFacts) -> Tokenizer:
    """The tokenizer for the texts of a corpus: what spells a structural token is plain text, so
    that only a document's end looks like one, and only a masked word like a mask. Other added
    tokens are one token, as the tokenizer itself has it.
    """
    described = json.loads(facts.tokenizer.to_str())
    for token in described["added_tokens"]:
        token["special"] &= token["id"] not in facts.added
    plain = Tokenizer.from_str(json.dumps(described))
    plain.encode_special_tokens = True  # as text, that is: they are split
    return plain
