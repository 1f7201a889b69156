"""Splits that name nothing: one line with the key and the split, exit code 2."""

import itertools
import json

import pytest
from faults import refused
from helpers import DIGITS

from common.data import splits
from common.errors import BadInput
from lm.data.labelled import load_sources

# (split, what the line says)
SPLITS = [
    ("", r"split '': .*[Ee]rror parsing split"),
    ("[", r"split '\[': .*[Ee]rror parsing split"),
    ("+", r"split '\+': "),
    ("train[", r"split 'train\[': "),
    ("train]", r"unknown split 'train\]'; did you mean 'train'"),
    ("train[:]", r"split 'train\[:\]': "),
    ("train[:5%", r"split 'train\[:5%': "),
    ("train[5]", r"split 'train\[5\]': "),
    ("train[:200%]", r"split 'train\[:200%\]': "),
    ("train[:99999999999999999999%]", r"split 'train\[:9+%\]': "),
    ("train[:nan%]", r"split 'train\[:nan%\]': "),
    ("train[:1e3]", r"split 'train\[:1e3\]': "),
    ("train[:1000000000000000000000000]", r"split .*incompatible with 1437 examples"),
    ("train[:-100000]", r"split .*incompatible with 1437 examples"),
    ("train[50%:40%]", r"split 'train\[50%:40%\]' is empty"),
    ("train[:10][:5]", r"split 'train\[:10\]\[:5\]': "),
    ("train[::2]", r"split 'train\[::2\]': "),
    ("train[0shard:1shard]", r"split 'train\[0shard:1shard\]': count examples or %, not shards"),
    ("train+", r"split 'train\+': "),
    ("train++test", r"split 'train\+\+test': "),
    ("train+test[", r"split 'train\+test\[': "),
    ("train ", r"split 'train ': "),
    ("train\n", r"split 'train\\n': it holds a control character"),
    ("TRAIN", r"unknown split 'TRAIN'"),
    ("../train", r"unknown split '\.\./train'; did you mean 'train'"),
    ("all[:5]", r"split 'all\[:5\]': "),
    ("+".join(["train"] * 5000), r"split 'train\+train.*…: more than 100 parts"),
    ("train[fold 0/5]", r"split 'train\[fold 0/5\]': folds are counted from 1"),
    ("train[not fold 6/5]", r"split 'train\[not fold 6/5\]': folds are counted from 1"),
    ("train[fold 1/1]", r"split .*folds are counted from 1: write \[fold 1/5\]"),
    ("train[fold 1/1438]", r"split .*1438 folds of 1437 examples would be empty"),
    ("train[fold 1/5][:3]", r"split 'train\[fold 1/5\]\[:3\]': "),
    ("train[fold 1/5]]", r"split 'train\[fold 1/5\]\]': "),
    ("train[fold -1/5]", r"split 'train\[fold -1/5\]': "),
    ("trian[fold 1/5]", r"unknown split 'trian'; did you mean 'train'"),
    ("(" * 10000, r"unknown split '\(\(.*…"),
]


@pytest.mark.parametrize(("split", "says"), SPLITS, ids=[s[:20] for s, _ in SPLITS])
def test_a_split_that_names_nothing_is_one_line(split, says, capsys):
    words = "--config", f"{DIGITS}:mlp", "--dry-run", f"--config.data.train={split}"
    refused(capsys, "train", *words, says=rf"config\.data\.train: {says}")


@pytest.mark.parametrize("split", ["", "train[", "valid"])
def test_the_split_of_an_evaluator_is_named_by_its_key(split, capsys):
    words = "--config", f"{DIGITS}:mlp", "--dry-run", f"--config.evals.test.split={split}"
    refused(capsys, "train", *words, says=r"config\.evals\.test\.split: ")


@pytest.mark.parametrize("own", [{"all": 5}, {"all": 5, "train": 3}])
def test_a_split_of_ones_own_is_not_called_all(own):
    for split in own:
        with pytest.raises(BadInput, match=r"where: split .* a split of its own .* 'all'.* rename"):
            splits.ranges(split, own, "where")


def test_all_and_parts_from_the_end_are_read():
    sizes = {"train": 10, "test": 4}
    assert sorted(splits.ranges("all", sizes, "where")) == [
        ("test", slice(0, 4)),
        ("train", slice(0, 10)),
    ]
    assert splits.ranges("train[-5:]+test", sizes, "where")[0] == ("train", slice(5, 10))


@pytest.mark.parametrize("count", [2, 3, 7, 19])
@pytest.mark.parametrize("split", ["train", "train[:90%]+test", "train[-19:]+train[:20]", "all"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_each_row_is_in_exactly_one_fold_and_in_no_training_set_of_it(split, count, shuffled):
    sizes = {"train": 101, "test": 19}
    rows = lambda text: [
        (name, row)
        for name, at in splits.ranges(text, sizes, "where", shuffled)
        for row in range(at.start, at.stop)
    ]
    of = lambda text: "+".join(f"{part}[{text}]" for part in split.split("+"))
    held = [rows(of(f"fold {i}/{count}")) for i in range(1, count + 1)]
    assert sorted(itertools.chain(*held)) == sorted(rows(split))
    parts = len(splits.ranges(split, sizes, "where"))
    assert max(map(len, held)) - min(map(len, held)) <= parts
    for i, fold in enumerate(held):
        others = rows(of(f"not fold {i + 1}/{count}"))
        assert sorted(fold + others) == sorted(rows(split))


def test_folds_of_rows_sorted_by_class_hold_all_classes_and_slices_are_warned_of(tmp_path, caplog):
    import corpus

    path, tokenizer = tmp_path / "sorted.csv", corpus.tokenizer(tmp_path, "wordpiece", 150)
    lines = (f"union number {i} of {i * i},{'abcd'[i // 10]},train\n" for i in range(40))
    path.write_text("text,label,split\n" + "".join(lines))

    def loaded(train, test):
        splits = {"train": f"train[{train}]", "test": f"train[{test}]"}
        own = {"name": f"file:{path}", "tokenizer": tokenizer, "train": splits["train"]}
        return [set(source.labels()) for source in load_sources(splits, **own).values()]

    for i in (1, 2):
        assert loaded(f"not fold {i}/2", f"fold {i}/2") == [{0, 1, 2, 3}] * 2
    assert not caplog.records
    loaded(":75%", "75%:")
    assert [text for text in caplog.messages if "consecutive rows" in text] == [caplog.messages[0]]
    assert caplog.messages[0].startswith("config.data.train: 'train[:75%]' is consecutive rows")


def test_an_empty_part_beside_another_is_left_out():
    parts = splits.ranges("train[:0]+empty+test", {"train": 10, "empty": 0, "test": 4}, "where")
    assert parts == [("test", slice(0, 4))]
    with pytest.raises(BadInput, match=r"where: split 'empty\+train\[3:3\]' is empty"):
        splits.ranges("empty+train[3:3]", {"train": 10, "empty": 0}, "where")


def test_a_labelled_file_whose_split_is_called_all(capsys, tmp_path):
    import corpus

    path = tmp_path / "own.jsonl"
    lines = ({"text": f"the union {i}", "label": i % 2, "split": "all"} for i in range(20))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = tmp_path / "config.py"
    config.write_text(
        "def get_config():\n"
        "    return {'task': 'lm.classify', 'data': {'train': 'all', 'name': "
        f"'file:{path}', 'tokenizer': {corpus.tokenizer(tmp_path, 'wordpiece', 150)!r}}}}}\n"
    )
    refused(
        capsys, "train", "--config", str(config), "--dry-run", says=r"data\.train: .* rename it"
    )
