"""Scores of translations and of pronunciations against their references.

BLEU and chrF are those of the package sacrebleu, with its signatures (Post 2018, Popović 2015). The
errors of pronunciations are those of grapheme-to-phoneme conversion: any listed pronunciation
counts.
"""

import importlib
import re
from collections.abc import Sequence

from common.errors import BadInput, require

STRESS = re.compile(r"\d")


def check_installed(where: str) -> None:
    """Raises `BadInput` unless sacrebleu can be imported."""
    try:
        importlib.import_module("sacrebleu.metrics")
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{where}: BLEU and chrF need {error.name}, which is missing: "
            "pip install -e '.[translate]'"
        ) from error


def of_texts(written: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Corpus BLEU and chrF, from 0 to 100, each against one reference; and the signatures of
    both, which say how they were computed."""
    from sacrebleu.metrics import BLEU, CHRF

    require(len(written) == len(references), "as many texts as references are needed")
    values: dict[str, float | str] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        values[name] = float(metric.corpus_score(list(written), [list(references)]).score)
        values[f"{name}_signature"] = str(metric.get_signature())
    return values


def of_pronunciations(
    written: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Error rates of words and of phonemes, from 0, with the digits of stress and without: words
    written like none of their references, and insertions, deletions and substitutions by the
    number of phonemes of the nearest reference, the first of equally near ones.

    Args:
      written: of each word, phonemes between spaces.
      references: of each word, one or more of the same kind.
    """
    require(len(written) == len(references), "as many words as lists of references are needed")
    values = {}
    for prefix, plain in (("", str), ("stressless_", lambda text: STRESS.sub("", text))):
        wrong = edits = length = 0
        for text, listed in zip(written, references, strict=True):
            own = plain(text).split()
            each = [plain(reference).split() for reference in listed]
            pairs = [(distance_of(own, other), len(other)) for other in each]
            distance, size = min(pairs, key=lambda pair: pair[0])  # the first of the nearest
            wrong, edits, length = wrong + (distance > 0), edits + distance, length + size
        values[f"{prefix}word_error"] = wrong / max(len(written), 1)
        values[f"{prefix}phoneme_error"] = edits / max(length, 1)
    return values


def distance_of(one: Sequence, other: Sequence) -> int:
    """The least number of insertions, deletions and substitutions between two sequences
    (Levenshtein 1966)."""
    if one == other:
        return 0
    before = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        now = [i]
        for j, b in enumerate(other, 1):
            now.append(min(before[j] + 1, now[-1] + 1, before[j - 1] + (a != b)))
        before = now
    return before[-1]


def exact(written: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """The share of texts that are one of their references."""
    hits = (text in listed for text, listed in zip(written, references, strict=True))
    return sum(hits) / max(len(written), 1)
