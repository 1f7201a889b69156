"""Entities of tagged sentences: from tags to spans, and precision, recall and F1 over spans.

Tags are those of BIO and its kin: O, and PREFIX-TYPE, or PREFIX alone where there is one type, with
a prefix of B (begins), I or M (inside), E or L (ends), S or U (the only word). Sequences that are
not valid are read as by conlleval (Tjong Kim Sang & Buchholz 2000), and by seqeval's default, to
which M is an I: an I after O, or after another type, begins an entity.
"""

import collections
import re
from collections.abc import Iterable, Sequence

TAG = re.compile(r"O|[BIMESLU](-.+)?")
BEGIN, END = "BSU", "ESLU"  # prefixes before which an entity ends, and after which


def are_entities(classes: Iterable[str]) -> bool:
    """Whether classes are tags of entities, rather than of words alone such as parts of speech."""
    classes = tuple(classes)
    prefixed = any(name[:2] in ("B-", "I-", "B", "I") for name in classes)
    return prefixed and all(map(TAG.fullmatch, classes))


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of a sentence, in order: (type, number of the first word, that after the
    last)."""
    made, begin, before = [], None, "O"
    for i, tag in enumerate((*tags, "O")):
        follows = tag[:1] not in BEGIN and before[:1] not in END and tag[2:] == before[2:]
        if begin is not None and (tag == "O" or not follows):
            made.append((before[2:], begin, i))
            begin = None
        if begin is None and tag != "O":
            begin = i
        before = tag
    return made


def scores(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> dict[str, float]:
    """Precision, recall and F1 of entities over all sentences, and the mean F1 of the types that
    occur (`macro_f1`). An entity is right if its type and both of its ends are; a score is 0 where
    its divisor is.

    Args:
      pairs: (true tags, predicted tags) of each sentence.
    """
    true, predicted, right = (collections.Counter() for _ in range(3))
    for tags, guesses in pairs:
        here, there = set(spans(tags)), set(spans(guesses))
        for counter, found in ((true, here), (predicted, there), (right, here & there)):
            counter.update(kind for kind, *_ in found)
    ratio = lambda a, b: a / b if b else 0.0
    each = [ratio(2 * right[k], true[k] + predicted[k]) for k in {*true, *predicted}]
    return {
        "precision": ratio(right.total(), predicted.total()),
        "recall": ratio(right.total(), true.total()),
        "f1": ratio(2 * right.total(), true.total() + predicted.total()),
        "macro_f1": ratio(sum(each), len(each)),
    }
