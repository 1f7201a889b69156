"""Labelled texts: what a row is, fixed splits, and lines that are no examples."""

import collections
import json
import logging
import random

import corpus
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from tokenizers import processors

from common.errors import BadInput
from lm.data import labelled, own
from lm.data import tokenizer as tokenizers


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    texts = [corpus.text(random.Random(0), 60)]
    tokenizers.train("wordpiece", 150, texts).save(str(path))
    return str(path)


def write(path, entries) -> str:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return f"file:{path}"


def reviews(count=400) -> list[dict]:
    rng = random.Random(0)
    labels = ("positive", "negative")
    return [{"text": corpus.text(rng, 2), "label": labels[i % 2]} for i in range(count)]


def every(source) -> dict:
    return source.read(np.arange(source.size))


def test_a_text_and_its_class(tmp_path, tokenizer):
    entries = reviews()
    splits = {"train": "train+valid", "test": "test"}
    sources = labelled.load_sources(
        splits,
        name=write(tmp_path / "a.jsonl", entries),
        train="train+valid",
        tokenizer=tokenizer,
        length=16,
    )
    facts = sources["train"].facts
    assert facts.classes == ("negative", "positive")
    assert facts.length == 16
    kept = [e for e in entries if own.part((e["text"],)) == "test"]
    rows = every(sources["test"])
    assert sources["test"].size == len(kept)
    assert sources["train"].size == len(entries) - len(kept)
    for i, entry in enumerate(kept):
        ids = facts.tokenizer.encode(entry["text"], add_special_tokens=False).ids[:14]
        used = len(ids) + 2
        assert rows["tokens"][i].tolist() == [2, *ids, 3] + [0] * (16 - used)
        assert rows["segments"][i].tolist() == [1] * used + [0] * (16 - used)
        assert not rows["types"][i].any()
        assert facts.classes[rows["label"][i]] == entry["label"]
    assert rows["label"].dtype == np.int32


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_text_and_several_classes(tmp_path, tokenizer, kind):
    entries = [
        {"text": one["text"], "label": [name for k, name in enumerate("xyz") if i >> k & 1]}
        for i, one in enumerate(reviews(64))
    ]
    name, separator = write(tmp_path / "a.jsonl", entries), ""
    if kind == "csv":
        lines = [f"{e['text']},{'|'.join(e['label'])}" for e in entries]
        (tmp_path / "a.csv").write_text("\n".join(["text,label", *lines]))
        name, separator = f"file:{tmp_path}/a.csv", "|"
    source = labelled.load_sources(
        {"train": "train"}, name=name, tokenizer=tokenizer, label_separator=separator
    )["train"]
    assert (source.facts.classes, source.facts.multi_label) == (("x", "y", "z"), True)
    kept = [e["label"] for e in entries if own.part((e["text"],)) == "train"]
    expected = [[name in own for name in "xyz"] for own in kept]
    np.testing.assert_array_equal(every(source)["label"], expected)
    assert source.spec["label"] == jax.ShapeDtypeStruct((3,), np.uint8)


def test_a_separator_is_for_files_alone(tokenizer):
    with pytest.raises(BadInput, match=r"^config\.data\.label_separator: .* not of 'reviews'"):
        labelled.load_sources({}, tokenizer=tokenizer, label_separator=";")


def test_splits_are_shares_that_a_text_never_leaves():
    """Also a golden: texts that moved would be trained on and tested on."""
    texts = [(f"text {i}",) for i in range(20000)]
    shares = collections.Counter(map(own.part, texts))
    for name, share in {"train": 0.72, "valid": 0.08, "test": 0.2}.items():
        spread = np.sqrt(share * (1 - share) / len(texts))
        assert shares[name] / len(texts) == pytest.approx(share, abs=4 * spread)
    held = {i: own.part(one) for i, one in enumerate(texts[:27]) if i > 18}
    assert {i for i, name in held.items() if name == "test"} == {19, 20, 26}
    assert {i for i, name in held.items() if name == "valid"} == {25}


@pytest.mark.parametrize("lengths", [(3, 4), (20, 3), (3, 20), (20, 30), (1, 1)])
def test_two_texts_and_a_number(tmp_path, tokenizer, lengths):
    one, two = ("the " * count for count in lengths)
    entries = [{"text": one, "text_b": two, "label": 2.5, "split": "mine"}]
    source = labelled.load_sources(
        {"valid": "mine"}, name=write(tmp_path / "a.jsonl", entries), tokenizer=tokenizer, length=16
    )["valid"]
    assert source.facts.classes == ()
    (tokens,), (segments,), (types,) = (every(source)[k] for k in ("tokens", "segments", "types"))
    assert every(source)["label"].tolist() == [2.5]
    assert source.spec["label"].dtype == np.float32
    the = source.facts.tokenizer.token_to_id("the")
    # Thirteen places: the longer text gives way until both are as long, or it fits.
    first, second = lengths
    while first + second > 13:
        first, second = (first - 1, second) if first > second else (first, second - 1)
    line = [2, *[the] * first, 3, *[the] * second, 3]
    assert tokens[: len(line)].tolist() == line
    assert segments.sum() == len(line)
    assert np.flatnonzero(types).tolist() == list(range(first + 2, len(line)))


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize(
    ("single", "double"),
    [
        ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
        ("<s> $A", "<s> $A <s>:1 $B:1"),
        ("$A </s> <s>:2", "$A </s> $B:1 </s>:1 <s>:2"),
    ],
)
def test_rows_are_laid_out_as_the_tokenizer_has_it(tmp_path, single, double, pair):
    """As it encodes a text or two itself, and with the longer text cut where they do not fit."""
    words = ["the people of", "the states and the union"]
    made = tokenizers.train("bpe", 300, words)
    made.add_special_tokens(["<s>", "</s>"])
    known = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(
        single=single, pair=double, special_tokens=known
    )
    made.save(str(tmp_path / "tokenizer.json"))
    second = {"text_b": words[1]} if pair else {}
    entries = [{"text": words[0], "label": 1.5, "split": "x"} | second]
    load = lambda length: every(
        labelled.load_sources(
            {"v": "x"}, name=write(tmp_path / "a.jsonl", entries), tokenizer=str(tmp_path),
            length=length,
        )["v"]
    )  # fmt: skip
    expected = made.encode(*words[: 1 + pair])
    rows, size = load(64), len(expected.ids)
    assert rows["tokens"][0, :size].tolist() == expected.ids
    assert rows["types"][0, :size].tolist() == expected.type_ids
    assert rows["segments"].sum() == size
    assert not rows["types"][0, size:].any()
    cut, ends = load(8), [token for token in expected.ids if token in dict(map(reversed, known))]
    assert [t for t in cut["tokens"][0].tolist() if t in ends] == ends
    assert cut["segments"].sum() == min(size, 8)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["b", "a"], ("a", "b")),
        ([7, 3], ("3", "7")),
        ([True, False], ("False", "True")),
        ([1, 2.5], ()),
    ],
)
def test_kinds_of_labels(tmp_path, tokenizer, labels, classes):
    entries = [{"sentence": "peace", "label": label, "split": "all-of-it"} for label in labels]
    source = labelled.load_sources(
        {"valid": "all-of-it"}, name=write(tmp_path / "a.jsonl", entries), tokenizer=tokenizer
    )["valid"]
    assert source.facts.classes == classes
    assert every(source)["label"].tolist() == (labels if not classes else [1, 0])


def test_fingerprints_and_the_device(tmp_path, tokenizer):
    load = lambda name, **changes: labelled.load_sources(
        {"train": "train"}, name=name, tokenizer=tokenizer, **changes
    )["train"]
    name = write(tmp_path / "a.jsonl", reviews())
    other = write(tmp_path / "b.jsonl", [e | {"label": e["label"][:3]} for e in reviews()][1:])
    first = load(name)
    assert load(name, resident=False).resident is None
    assert load(name, resident=False).fingerprint == first.fingerprint
    assert len({first.fingerprint, load(name, length=20).fingerprint, load(other).fingerprint}) == 3


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"text": "a", "label": 1}', "{"], "line 2, is not JSON"),
        (['{"text": "a"}'], "line 1, is not an example like .*: its columns are 'text'"),
        (['{"label": "a"}'], "line 1, is not an example like .*: its columns are 'label'"),
        (['{"text": 1, "label": 1}'], "line 1: 'text' is a whole number"),
        (["", '{"text": null, "label": 1}'], "line 2: 'text' is null"),
        (['{"text": "a", "label": [["x"]]}'], "line 1: a label in the list is a list"),
        (
            ['{"text": "a", "label": "b"}', '{"text": "a", "label": null}'],
            "line 2: the label is nu",
        ),
        (['{"text": "a", "label": NaN}'], "line 1: a label is not finite"),
        (
            ['{"text": "a", "label": 1}', '{"text": "a", "label": "b"}'],
            r"labels are of several kinds: 1 \(line 1\), 'b' \(line 2\)",
        ),
        (
            ['{"text": "a", "label": 1, "split": "x"}', '{"text": "a", "label": 1}'],
            "line 1 has a split, and line 2 has none",
        ),
        (
            ['{"text": "a", "label": 1}', '{"text": "a", "label": 1, "text_b": "x"}'],
            "line 2 has a text_b, and line 1 has none",
        ),
        (['{"text": "a", "label": 1, "split": ""}'], "line 1: split '' is not a name"),
        (['{"text": "a", "label": 1, "split": 1}'], "line 1: 'split' is a whole number"),
        (
            ['{"text": "a", "label": 1, "split": "x"}', '{"text": "a", "label": 1, "split": "X"}'],
            "the splits 'x', 'X' differ in case only",
        ),
        (['{"text": "a", "label": 1, "split": "x", "Split": 1}'], "'split', 'Split' are both"),
        (['{"text": "a", " Label": 1}'], "its columns are 'text', ' Label'; rename ' Label' to"),
        (['{"text": " ", "label": 1}'], r"has no examples: example without text left out \(once"),
        (["", ""], "holds no records"),
        (['{"text": "a", "label": 1}'] * 9, r"too few different texts \(1, in 9 examples\)"),
    ],
)
def test_lines_that_are_no_examples_are_named(tmp_path, tokenizer, lines, said):
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(BadInput, match=rf"^config\.data\.name: .*a\.jsonl.*{said}"):
        labelled.load_sources(
            {"train": "x"}, name=f"file:{tmp_path}/a.jsonl", train="x", tokenizer=tokenizer
        )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "reviews"}, r"config\.data\.name: .*run: python scripts/prepare\.py reviews"),
        ({"name": "topics"}, r"config\.data\.name: .*run: python scripts/prepare\.py topics"),
        ({"name": "revews"}, r"config\.data\.name: unknown 'revews'"),
        ({"name": "file:/no"}, r"config\.data\.name: no such file: /no"),
        ({"name": "tfds:glue/sst2"}, r"config\.data\.name: .*run: tfds build glue/sst2"),
        ({"tokenizer": "minilm"}, r"config\.data\.tokenizer: .*run: python scripts/prepare\.py m"),
        ({"tokenizer": "/no"}, r"config\.data\.tokenizer: no such file or folder: /no"),
        ({"length": 3}, r"config\.data\.length: 3"),
        ({"split": "validation"}, r"config\.evals\.v\.split: unknown split 'validation'; .*'va"),
    ],
)  # fmt: skip
def test_refusals(tmp_path, tokenizer, changes, said):
    given = {"name": write(tmp_path / "a.jsonl", reviews()), "tokenizer": tokenizer}
    given |= {"folder": str(tmp_path)} | changes
    with pytest.raises(BadInput, match=rf"^{said}"):
        labelled.load_sources({"v": given.pop("split", "test")}, **given)


def load(name, tokenizer, **splits) -> dict:
    """Rows of {key: split}: {key: [(tokens, segments, types, label)]}."""
    splits = splits or {"train": "train", "valid": "valid", "test": "test"}
    more = {"train": splits["train"]} if "train" in splits else {}
    sources = labelled.load_sources(splits, name=name, tokenizer=tokenizer, length=16, **more)
    lists = lambda source: [array.tolist() for array in every(source).values()]
    return {key: (source.facts.classes, lists(source)) for key, source in sources.items()}


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_a_table_of_each_kind_is_the_same_set(tmp_path, tokenizer, pair, split):
    rows = [
        {"text": f'{e["text"]}, "and"', "label": e["label"]}
        | ({"text_b": f"the\n{i % 9}"} if pair else {})
        | ({"SPLIT": ("train", "valid", "test")[i % 3]} if split else {})
        for i, e in enumerate(reviews(60))
    ]
    expected = load(write(tmp_path / "a.jsonl", rows), tokenizer)
    assert sum(len(lists[-1]) for _, lists in expected.values()) == 60
    quoted = lambda value: '"' + value.replace('"', '""') + '"'
    for kind, comma in (".csv", ","), (".TSV", "\t"):
        lines = [comma.join(rows[0]), *(comma.join(map(quoted, row.values())) for row in rows)]
        path = tmp_path / f"a{kind}"
        path.write_text("\n".join(lines), encoding="utf-8-sig")
        assert load(f"file:{path}", tokenizer) == expected
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    assert load(f"file:{tmp_path}/a.parquet", tokenizer) == expected


def test_a_small_set_has_no_empty_part(tmp_path, tokenizer, caplog):
    texts = [text for i in range(60) if own.part((text := f"text {i}",)) == "train"]
    rows = [{"text": text, "label": "a"} for text in texts[:19]]
    with caplog.at_level(logging.WARNING):
        found = load(write(tmp_path / "a.jsonl", rows), tokenizer)
    assert {key: len(lists[-1]) for key, (_, lists) in found.items()} == {
        "train": 17, "valid": 1, "test": 1,
    }  # fmt: skip
    assert "text moved into 'test', which had none by the hash of its texts (once)" in caplog.text
    rows = [{"text": f"text {i % 3}", "label": "a"} for i in range(6)]
    found = load(write(tmp_path / "a.jsonl", rows), tokenizer)
    assert [len(set(map(str, lists[0]))) for _, lists in found.values()] == [1, 1, 1]


def test_texts_on_two_sides_are_counted(tmp_path, tokenizer, caplog):
    rows = [{"text": f"text {i}", "label": i % 2, "split": "train"} for i in range(8)]
    rows += [{"text": f"text {i}", "label": i % 2, "split": "test"} for i in range(5, 12)]
    name = write(tmp_path / "a.jsonl", rows)
    with caplog.at_level(logging.WARNING):
        load(name, tokenizer, train="train[:4]", valid="train[4:]", same="train[:2]")
        assert caplog.messages == []
        load(name, tokenizer, train="train", test="test")
        load(name, tokenizer, test="test")
    (message,) = caplog.messages
    assert message.endswith(
        "a.jsonl: 3 of the 7 examples of config.evals.test.split that are not trained on have the "
        "text of one that is, first 'text 5'"
    )


CSV_LABELS = {
    "1.5 2.0": "labels of a .csv or .tsv are text, here 2 classes; ",
    "3 4.5 2": "labels of a .csv or .tsv are text, here 3 classes; ",
    "1 2 01": "here 3 classes, of 2 values; numbers need a .jsonl",
    "1 2 1e0": "here 3 classes, of 2 values",
    "1 2 10": "",
    "1.5 x": "",
    "0 1 -1": "2 of the examples have the label -1, a class here; if they are unlabelled, remove",
}


def test_what_is_mended_or_doubtful_is_said(tmp_path, tokenizer, caplog):
    rows = [{"text": f"text {i} \ud83d", "label": ("Yes", "yes ", "no")[i % 3]} for i in range(60)]
    rows.append({"text": "\n", "label": "no"})
    with caplog.at_level(logging.WARNING):
        load(write(tmp_path / "a.jsonl", rows), tokenizer)
        spellings, mended = caplog.messages
        for labels, said in CSV_LABELS.items():
            cells = labels.split()
            rows = (f"text {i},{cells[i % len(cells)]}\n" for i in range(6))
            (tmp_path / "b.csv").write_text("text,label\n" + "".join(rows))
            caplog.clear()
            load(f"file:{tmp_path}/b.csv", tokenizer)
            assert (
                [line for line in caplog.messages if said in line]
                if said
                else all("moved" in line or "has no example" in line for line in caplog.messages)
            )
    assert "'Yes' (20) and 'yes ' (20)" in spellings
    assert "example without text left out (once)" in mended
    assert "lone surrogate replaced by U+FFFD (60 times)" in mended


def test_a_prepared_set(tmp_path, tokenizer):
    folder = str(tmp_path)
    rows = {
        "train": [
            {"sentence": corpus.text(random.Random(i), 1), "label": i % 3} for i in range(30)
        ],
        "test": [{"sentence": "Peace.", "label": -1}],
    }
    corpus.prepare(folder, "feelings", {"sentence": "text", "label": "label"}, rows)
    load = lambda name, split: labelled.load_sources(
        {"v": split}, name=f"tfds:{name}", tokenizer=tokenizer, folder=folder
    )["v"]
    source = load("feelings", "train[:10]")
    assert source.size == 10
    assert source.facts.classes == ("no", "maybe", "yes")
    decode = source.facts.tokenizer.decode
    texts = {decode(row[row > 0].tolist()) for row in every(source)["tokens"]}
    known = {
        " ".join(source.facts.tokenizer.encode(row["sentence"]).tokens) for row in rows["train"]
    }
    assert len(texts) == 10
    assert len(known) == 30
    with pytest.raises(BadInput, match="has no labels in 'test'"):
        load("feelings", "test")
    pair = {"sentence1": "War.", "sentence2": "Peace.", "label": 0.5}
    kinds = {"sentence1": "text", "sentence2": "text", "label": "number"}
    corpus.prepare(folder, "likeness", kinds, {"train": [pair]})
    likeness = load("likeness", "train")
    assert likeness.facts.classes == ()
    assert every(likeness)["label"].tolist() == [0.5]
    assert every(likeness)["types"].sum() == 3
    corpus.prepare(folder, "bare", {"label": "label"}, {"train": [{"label": 1}]})
    with pytest.raises(BadInput, match="has no text with a label"):
        load("bare", "train")
