"""Changes of a folder of texts, and of lines; see `own_data`."""

import collections
import gzip
import json
import os
import pathlib
import random

import fuzz
from fuzz import Change

from lm.data import corpora

LINES = 24  # of a file of texts
DEEP = 100_000


def texts(rng: random.Random) -> list[dict]:
    words = ["peace", "naïve", "图书", "💥", "union", "a\u2028b", "tab\there", '"quoted"', "x" * 30]
    return [
        {"text": f"{i} {' '.join(rng.choices(words, k=5))}", "label": ("yes", "no")[i % 2]}
        for i in range(LINES)
    ]


def jsonl(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in rows)


def make(folder: pathlib.Path) -> None:
    rng = random.Random(0)
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_bytes(jsonl(texts(rng)))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(texts(rng)), mtime=0))
    for i in range(3):
        (folder / f"{i}.txt").write_text(f"A text.\n\nNumber {i}, in two paragraphs.\n")
    (folder / "READ.MD").write_text("# A title\n\nAnd a text.\n")


def change_line(rng: random.Random, path: pathlib.Path) -> Change:
    """Changes a line of a .jsonl."""
    lines = path.read_bytes().split(b"\n")
    at = rng.randrange(len(lines) - 1)
    entry, where = json.loads(lines[at]), (f"line {at + 1}",)
    match rng.randrange(12):
        case 0:
            entry["text"] = rng.choice([None, 7, [], {}, True, ["a"]])
            change = Change(f"text {entry['text']}", where, False)
        case 1:
            del entry["text"]
            change = Change("no text", where, False)
        case 2:
            entry["name"] = rng.choice([None, "x", "", "日本"])
            change = Change(f"name {entry['name']!r}", where, True)
        case 3:
            entry |= {"more": rng.choice([None, [1], {"text": "x"}, float("nan")])}
            change = Change("another field", where, True)
        case 4:
            entry["text"] = rng.choice(["\ud83d alone", "two \udc00\udc00"])
            change = Change("half a character", where, None)
        case 5:
            entry["text"] = "long " * 400_000
            change = Change("a huge line", where, True)
        case 6:
            lines[at] = lines[at][: rng.randrange(1, len(lines[at]))]
            path.write_bytes(b"\n".join(lines))
            return Change("half a line", where, False)
        case 7:
            lines[at] = lines[at].replace(b'"text": "', b'"text": "\xff\xfe', 1)
            path.write_bytes(b"\n".join(lines))
            return Change("bytes that are not UTF-8", where, False)
        case 8:
            lines[at] = rng.choice([b"[" * DEEP, b"[]", b"7", b"null", b'"x"', b"{}", b"{'a': 1}"])
            path.write_bytes(b"\n".join(lines))
            return Change(f"the line {lines[at][:9]!r}", where, False)
        case 9:
            path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))
            return Change("a BOM, and CRLF", (), True)
        case 10:
            lines.insert(at, rng.choice([b"", b"  ", b"\t"]))
            path.write_bytes(b"\n".join(lines)[:-1])
            return Change("a blank line, and no end of the last", (), True)
        case _:
            lines.insert(at, lines[at])
            path.write_bytes(b"\n".join(lines))
            return Change("a line twice", (), True)
    lines[at] = json.dumps(entry).encode()
    path.write_bytes(b"\n".join(lines))
    return change


def change(rng: random.Random, folder: pathlib.Path) -> Change:
    if rng.random() < 0.5:
        return change_line(rng, folder / "a.jsonl")
    path = rng.choice(sorted(folder.iterdir()))
    name = path.name
    match rng.randrange(8):
        case 0 | 1:
            how = rng.choice(["flip a bit of", "cut", "put junk into", "make another kind of"])
            fuzz.MUTATORS[how](rng, path)
            return Change(f"{how} {name}", (name,))
        case 2:
            path.rename(path.with_name(name.upper()))
            return Change(f"{name} in capitals", (), True)
        case 3:
            (folder / "again").symlink_to(rng.choice([".", "..", "nowhere", "/dev"]))
            return Change("a link to a folder", ("again",), None)
        case 4:
            (folder / "0.txt").write_bytes("Ein schöner Text".encode("latin-1"))
            return Change("Latin-1", ("0.txt",), False)
        case 5:
            (folder / "0.txt").write_bytes(b"\xef\xbb\xbf" + "Ein schöner Text".encode())
            return Change("a BOM", (), True)
        case 6:
            for extra in (".DS_Store", "notes.pdf", "x.txt~"):
                (folder / extra).write_bytes(b"\0\xff")
            (folder / "empty").mkdir()
            return Change("files of other kinds", (), True)
        case _:
            os.rename(path, os.fsencode(folder) + b"/\xff.txt")
            return Change(f"{name} is not UTF-8", ("UTF-8",), None)


def read(folder: pathlib.Path, scratch: pathlib.Path) -> collections.Counter:
    return collections.Counter(d.text for d in corpora.documents(f"folder:{folder}"))


def fixed(text: str) -> str:
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


def parsed(data: bytes) -> list[dict]:
    lines = data.decode("utf-8-sig").split("\n")
    entries = [json.loads(line) for line in lines if line.strip()]
    if not all(isinstance(e, dict) and isinstance(e.get("text"), str) for e in entries):
        raise ValueError
    return entries


def expected(folder: pathlib.Path) -> collections.Counter | None:
    found = collections.Counter()
    try:
        for path in folder.iterdir():
            low = path.name.lower()
            if path.is_dir():
                continue
            if not path.is_file():
                raise ValueError
            if low.endswith((".jsonl", ".jsonl.gz")):
                data = path.read_bytes()
                data = gzip.decompress(data) if low.endswith(".gz") else data
                if b"\0" in data:
                    raise ValueError
                found.update(fixed(entry["text"]) for entry in parsed(data))
            elif low.endswith((".txt", ".md")):
                text = path.read_bytes().decode("utf-8-sig")
                if "\0" in text:
                    raise ValueError
                found[text] += 1
    except (ValueError, OSError, EOFError, RecursionError):
        return None
    return collections.Counter({k: n for k, n in found.items() if k.strip()})
