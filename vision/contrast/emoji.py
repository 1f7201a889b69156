"""Emoji of two vendors with their names, as a table of pictures with texts: `config.data.name =
"emoji"`. scripts/prepare.py runs this.

The pictures are Google's (Noto, Apache-2.0) and Twitter's (CC BY 4.0), 64 x 64, from the packages
emoji-datasource (MIT). A tenth of the names, by a hash, is held out in both. Splits: "train" and
"google_unseen" of Google's, "twitter_seen" and "twitter_unseen" of Twitter's.
"""

import hashlib
import json
import pathlib
import tempfile

from common.data import fetch
from common.errors import require
from vision.contrast.captions import EMOJI

VERSION = "16.0.0"
PACKAGES = {
    "google": fetch.Package(
        "emoji-datasource-google",
        VERSION,
        "npm",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
    "twitter": fetch.Package(
        "emoji-datasource-twitter",
        VERSION,
        "npm",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    ),
}
SPLITS = {
    ("google", True): "train",
    ("google", False): "google_unseen",
    ("twitter", True): "twitter_seen",
    ("twitter", False): "twitter_unseen",
}


def seen(name: str) -> bool:
    """Whether a name is trained on: nine of ten are, by a hash."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 10 != 0


def prepare(folder: str = "") -> pathlib.Path:
    """Fetches both packages and writes the set, once.

    Args:
      folder: the data folder, as for `fetch.data_dir`.

    Returns:
      The table.
    """
    target = pathlib.Path(fetch.data_dir(folder), EMOJI)
    table = target / "emoji.jsonl"
    if table.exists():
        return table
    archives = {vendor: fetch.package(*package, folder) for vendor, package in PACKAGES.items()}
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".emoji-") as temporary:
        staged = pathlib.Path(temporary, EMOJI)
        rows = [
            row for vendor, archive in archives.items() for row in _write(staged, vendor, archive)
        ]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (staged / "emoji.jsonl").write_text("".join(lines), encoding="utf-8")
        fetch.put(staged, target)
    return table


def _write(staged: pathlib.Path, vendor: str, archive) -> list[dict]:
    """Writes a vendor's pictures; returns their records."""
    listed = json.loads(fetch.read_member(archive, "package/emoji.json"))
    drawn = [one for one in listed if one[f"has_img_{vendor}"]]
    texts = {one["image"]: (one["name"] or one["short_name"]).lower() for one in drawn}
    prefix = f"package/img/{vendor}/64/"
    (staged / vendor).mkdir(parents=True)
    drawings = {}
    for name, contents in fetch.members(archive, [prefix + image for image in texts]):
        image = name.removeprefix(prefix)
        (staged / vendor / image).write_bytes(contents)
        drawings[image] = texts[image]
    require(
        len(drawings) == len(texts), f"{archive}: {len(texts) - len(drawings)} pictures are missing"
    )
    return [
        {"path": f"{vendor}/{image}", "text": text, "split": SPLITS[vendor, seen(text)]}
        for image, text in drawings.items()
    ]
