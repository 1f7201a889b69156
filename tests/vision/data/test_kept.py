"""What stands beside prepared pictures, whether it is believed, and when another set is made."""

import json
import os

import numpy as np
import pytest
from pets import SPLITS, load, pets, warned
from PIL import Image

from common.errors import BadInput
from vision.data import datasets, kept, packed


def test_a_prepared_set_that_was_damaged_is_made_anew(tmp_path, caplog):
    root = pets(tmp_path / "pets")
    before = load(root)["train"].fingerprint
    (file,) = (tmp_path / "prepared").glob(f"*/{packed.NUMBER}/*-train.array_record-*")
    os.truncate(file, 1000)
    assert load(root)["train"].fingerprint == before
    assert "made anew" in caplog.text


def _edited(key, value):
    def edit(folder):
        index = json.loads((folder / kept.INDEX).read_text())
        (folder / kept.INDEX).write_text(json.dumps(index | {key: value}))

    return edit


def _blank(name):
    def blank(folder):
        (path,) = folder.glob(f"{packed.NUMBER}/{name}")
        path.write_bytes(b" " * path.stat().st_size)

    return blank


DAMAGE = {
    "classes": _edited("classes", ["b", "a"]),
    "mean": _edited("mean", [0.1] * 3),
    "sizes": _edited("sizes", {"train": 3}),
    "files": _edited("files", {}),
    "features": _blank("features.json"),
    "info": _blank("dataset_info.json"),
    "labels": _blank("label.labels.txt"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_stands_beside_the_pixels_is_not_believed_if_it_was_changed(tmp_path, caplog, kind):
    root = pets(tmp_path / "pets", 12)
    before = load(root)["train"]
    (folder,) = (tmp_path / "prepared").glob("images*")
    DAMAGE[kind](folder)
    caplog.clear()
    after = load(root)["train"]
    assert (after.facts, after.fingerprint) == (before.facts, before.fingerprint)
    assert "made anew" in warned(caplog)


def test_pixels_that_were_damaged_are_refused_with_what_to_do(tmp_path):
    root = pets(tmp_path / "pets", 12)
    load(root)
    (file,) = (tmp_path / "prepared").glob(f"*/{packed.NUMBER}/*-train.array_record-*")
    data = bytearray(file.read_bytes())
    data[64 : len(data) // 2] = bytes(len(data) // 2 - 64)
    file.write_bytes(data)
    (folder,) = (tmp_path / "prepared").glob("images*")
    with pytest.raises(
        BadInput, match=rf"is damaged .*; remove {folder} and start again"
    ) as caught:
        load(root)
    assert "builder" not in str(caught.value)


def test_another_set_with_the_same_names_sizes_and_times_is_another(tmp_path):
    """As unzipped: two folders of one name, and a file that is replaced by one of its size."""
    roots = [pets(tmp_path / place / "pets", 6) for place in "xy"]

    def swap(root):
        image = np.asarray(Image.open(root / "a" / "0.bmp"))
        Image.fromarray(255 - image).save(root / "a" / "0.bmp")

    for root in roots:
        for path in root.rglob("*.png"):
            Image.open(path).save(path.with_suffix(".bmp"))
            path.unlink()
    swap(roots[1])
    found = []
    for change, root in ((None, roots[0]), (None, roots[1]), (swap, roots[1])):
        if change:
            change(root)
        for path in root.rglob("*.bmp"):
            os.utime(path, (315532800, 315532800))
        of = {"folder": str(tmp_path / "prepared"), "name": f"images:{root}"}
        found.append(datasets.load_sources(SPLITS, **of)["train"].fingerprint)
    assert found[0] == found[2] != found[1]
