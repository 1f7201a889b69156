"""The special tokens that a tokenizer puts around a text, or around the two texts of a pair.

They stand in its post-processor: `[CLS] A [SEP]` for BERT, `<s> A </s></s> B </s>` for RoBERTa,
`<s> A` for Llama.
"""

import itertools
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, models

from common.errors import require

WHERE = "config.data.tokenizer"


class Layout(NamedTuple):
    """The template of n texts, n being 1 or 2.

    Attributes:
      ids: n + 1 runs of special tokens: before the first text, after it, and after the second.
      types: the type ids of those tokens.
      text_types: the type id of the tokens of each text.
    """

    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...]
    text_types: tuple[int, ...]

    @property
    def special(self) -> tuple[int, ...]:
        """All of the special tokens, in order."""
        return sum(self.ids, ())

    def row(self, *texts) -> tuple[np.ndarray, np.ndarray]:
        """(tokens i64[L], types i64[L]) of texts, each a sequence of ids."""
        tokens, types = list(self.ids[0]), list(self.types[0])
        for i, text in enumerate(texts):
            tokens += [*text, *self.ids[i + 1]]
            types += [*[self.text_types[i]] * len(text), *self.types[i + 1]]
        return np.array(tokens, np.int64), np.array(types, np.int64)


def layout(tokenizer: Tokenizer, texts: int) -> Layout:
    """The layout of one text or two, whatever the kind of post-processor.

    Raises:
      BadInput: if the template repeats a text, leaves one out or changes their order.
    """
    # Seen by what it does to texts of one token, so that no kind has to be read.
    probe = Tokenizer(models.WordLevel({"a": 0}, "a"))
    probe.post_processor = tokenizer.post_processor
    encoding = probe.encode(*["a"] * texts)
    at = [i for i, text in enumerate(encoding.sequence_ids) if text is not None]
    require(
        [encoding.sequence_ids[i] for i in at] == list(range(texts)),
        f"{WHERE}: its template for {'a text' if texts == 1 else 'two texts'} does not hold "
        f"{'it' if texts == 1 else 'each'} once, in order",
    )
    bounds = [-1, *at, len(encoding.ids)]
    runs = lambda values: tuple(tuple(values[a + 1 : b]) for a, b in itertools.pairwise(bounds))
    types = encoding.type_ids
    return Layout(runs(encoding.ids), runs(types), tuple(types[i] for i in at))


def classic(cls: int, sep: int, texts: int) -> Layout:
    """BERT's layout, `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`: of a tokenizer that has these
    tokens and no template."""
    ids = ((cls,), *[(sep,)] * texts)
    return Layout(ids, ((0,), (0,), (1,))[: texts + 1], (0, 1)[:texts])
