"""Rows of text: nothing lost, nothing twice, nothing held out is seen; and stores that survive."""

import functools
import itertools
import json
import logging
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys

import corpus
import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors

from common.errors import BadInput
from lm.data import corpora, store, text

SPLITS = {"train": "train", "valid": "valid", "test": "test"}
FORMS = [("mlm", "wordpiece"), ("clm", "bpe"), ("clm", "wordpiece"), ("pairs", "wordpiece")]


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    return corpus.write(tmp_path_factory.mktemp("corpus") / "mine", 200)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def load(name, folder):
    def load(splits=SPLITS, form="mlm", tokenizer="wordpiece", **changes):
        size = 150 if tokenizer == "wordpiece" else 300
        given = {"name": name, "length": 32, "vocab_size": size, "folder": folder} | changes
        return text.load_sources(splits, form, tokenizer=tokenizer, **given)

    return load


def every(source) -> dict:
    return source.read(np.arange(source.size))


def opened(name, folder, tokenizer="wordpiece") -> store.Store:
    return store.get(name, tokenizer, 150 if tokenizer == "wordpiece" else 300, folder)


def stream(held: store.Store, split: str) -> np.ndarray:
    first, last = held.splits[split]
    return np.array(held.tokens[held.documents[first] : held.documents[last]])


# ------------------------------------------------------------------------------------------- store


def test_a_store_holds_every_document_in_its_part(name, folder):
    held = opened(name, folder)
    names = json.loads(pathlib.Path(held.path, "names.json").read_text())
    texts = {d.name: d.text for d in corpora.documents(name)}
    assert sorted(names) == sorted(texts)
    for split in corpora.PARTS:
        first, last = held.splits[split]
        assert last > first
        assert {corpora.part(n) for n in names[first:last]} == {split}
    for i, document in enumerate(names):
        ids = held.tokens[held.documents[i] : held.documents[i + 1]].tolist()
        whole = held.tokenizer.encode(texts[document], add_special_tokens=False).ids
        assert ids == [*whole, held.tokenizer.token_to_id("[SEP]")]
    counts = np.bincount(stream(held, "train"), minlength=len(held.counts))
    np.testing.assert_array_equal(held.counts, counts)


def test_bytes_are_stored_exactly(name, folder):
    held = opened(name, folder, "bpe")
    names = json.loads(pathlib.Path(held.path, "names.json").read_text())
    texts = {d.name: d.text for d in corpora.documents(name)}
    facts = text.tokenizers.facts(held.tokenizer)
    for i, document in enumerate(names):
        ids = np.array(held.tokens[held.documents[i] : held.documents[i + 1]])
        assert ids[0] == ids[-1] == 0
        assert held.tokenizer.decode(ids[1:-1].tolist()) == texts[document]
        assert facts.token_bytes[ids].sum() == len(texts[document].encode())
        assert ids[1:-1].tolist() == held.tokenizer.encode(texts[document]).ids


@pytest.mark.parametrize("tokenizer", ["wordpiece", "bpe"])
def test_sentences_begin_where_they_begin(name, folder, tokenizer):
    held = opened(name, folder, tokenizer)
    full_stop = held.tokenizer.token_to_id(".")
    first = {*(held.documents[:-1] + (tokenizer == "bpe")).tolist()}
    assert first <= set(held.sentences.tolist())
    inner = sorted({*held.sentences.tolist()} - first)
    assert len(inner) > len(held.documents)
    assert all(held.tokens[start - 1] == full_stop for start in inner)


@pytest.mark.parametrize(
    ("whole", "parts"),
    [
        ("One. Two! “Three?” (Four.) 5.", 5),
        ("Mr. Adams and J. Q. Adams of the U.S. Senate, No. 3. They met.", 2),
        ("a line\nand its end\n\nanother paragraph\n \nand one", 3),
        ("It cost 4.50 e.g. in May", 1),
        ("   ", 1),
        ("", 0),
    ],
)
def test_sentences_are_the_text(whole, parts):
    found = store.sentences(whole)
    assert "".join(found) == whole
    assert len(found) == parts


def test_what_looks_like_a_special_token_is_text(tmp_path):
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"hidden {i} [MASK] and [SEP] <|endoftext|> here")
    for kind, size in (("wordpiece", 100), ("bpe", 300)):
        held = store.get(f"folder:{tmp_path}", kind, size, str(tmp_path / "data"))
        ends = np.isin(held.tokens, [0] if kind == "bpe" else [0, 2, 3, 4]).sum()
        assert ends == (80 if kind == "bpe" else 40)


def documents(held: store.Store) -> dict[str, list[int]]:
    """{name: the tokens of a document}."""
    names = json.loads(pathlib.Path(held.path, "names.json").read_text())
    bounds = itertools.pairwise(held.documents.tolist())
    return {n: held.tokens[a:b].tolist() for n, (a, b) in zip(names, bounds, strict=True)}


def test_what_a_user_added_is_one_token(tmp_path):
    """Special or not; and so is what the tokenizer has of any other text."""
    files = {f"{i}.txt": f"one {i}, two. [URL] [SEP] kilogram" for i in range(20)}
    for file, words in files.items():
        (tmp_path / file).write_text(words)
    for kind, size in (("wordpiece", 60), ("bpe", 300)):
        made = text.tokenizers.train(kind, size, [*files.values()])
        made.add_special_tokens(["[URL]"])
        made.add_tokens(["kilogram"])
        held = store.get(f"folder:{tmp_path}", made, 0, str(tmp_path / "data"))
        begin, end = ([], [3]) if kind == "wordpiece" else ([0], [0])
        made.encode_special_tokens = True  # [SEP] is text
        for file, ids in documents(held).items():
            pieces = files[file].split("[URL]")
            one, two = (made.encode(each, add_special_tokens=False).ids for each in pieces)
            assert ids == [*begin, *one, made.token_to_id("[URL]"), *two, *end]
            assert made.token_to_id("kilogram") in two


@functools.cache
def byte_level() -> str:
    return text.tokenizers.train("bpe", 300, [corpus.text(corpus.random.Random(0), 40)]).to_str()


def framed(begin: str, pair: str, mask: bool, space: bool = False) -> Tokenizer:
    """Byte-level, with a template."""
    made = Tokenizer.from_str(byte_level())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    made.add_special_tokens(["<s>", "</s>", *["<mask>"] * mask])
    known = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(
        single=begin, pair=pair, special_tokens=known
    )
    return made


ROBERTA = "<s> $A </s>", "<s> $A </s> </s> $B </s>", True


def test_documents_are_framed_by_the_template(name, folder):
    texts = {d.name: d.text for d in corpora.documents(name)}
    kinds = [
        (framed("<s> $A", "<s> $A <s> $B:1", False), ["<s>"], ["<|endoftext|>"]),
        (framed("$A </s>", "$A </s> $B </s>", False), [], ["</s>"]),
        (framed(*ROBERTA), [], ["</s>"]),  # <s> begins a row
        (framed(*ROBERTA, True), [], ["</s>"]),  # each text, and not each sentence, gets a space
    ]
    stores = set()
    for made, begin, end in kinds:
        held = store.get(name, made, 0, folder)
        stores.add(held.path)
        begin, end = ([made.token_to_id(token) for token in run] for run in (begin, end))
        for document, ids in documents(held).items():
            whole = made.encode(texts[document], add_special_tokens=False).ids
            assert ids == [*begin, *whole, *end]
    assert len(stores) == len(kinds)
    roles = Tokenizer.from_str(kinds[-1][0].to_str())
    roles.roles = {"eos": "<s>", "mask": "<mask>"}
    again = store.get(name, roles, 0, folder)
    assert again.path not in stores  # other roles are another store, which keeps them
    assert text.tokenizers.facts(again.tokenizer).special["mask"] == roles.token_to_id("<mask>")
    assert text.tokenizers.facts(again.tokenizer).special["sep"] is None


def test_a_document_has_the_tokens_of_its_whole_text(tmp_path):
    """Though sentences are tokenised one by one, where that makes no difference."""
    paragraphs = "One two. Three\nfour.\n\n\tFive. Six! [A. B]  Seven?\n\n Eight."
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"{i}. {paragraphs}")
    kinds = {"spaced": framed(*ROBERTA, True), "split": framed(*ROBERTA), "own": framed(*ROBERTA)}
    kinds["own"].add_tokens([". Six"])
    lines = pre_tokenizers.Split(Regex(r"[.!?]\s*|\w+|\s+"), "isolated")  # as Llama 3 does
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    kinds["split"].pre_tokenizer = pre_tokenizers.Sequence([lines, bytes_])
    kinds["words"] = text.tokenizers.train("wordpiece", 80, [paragraphs])
    kinds["words"].add_tokens([AddedToken("[A. B]", normalized=False)])
    for made in kinds.values():
        held = store.get(f"folder:{tmp_path}", made, 0, str(tmp_path / "data"))
        for file, ids in documents(held).items():
            whole = made.encode((tmp_path / file).read_text(), add_special_tokens=False).ids
            assert ids[:-1] == whole
    assert len(held.sentences) == 20  # its token spans two


def test_a_document_needs_an_end(name, folder):
    made = Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a"))
    with pytest.raises(BadInput, match="it has no token that ends a document"):
        store.get(name, made, 0, folder)


# -------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("form", ["mlm", "pairs"])
def test_rows_have_the_template_of_the_tokenizer(name, folder, load, tmp_path, form):
    made = framed(*ROBERTA)
    begin, end = made.token_to_id("<s>"), made.token_to_id("</s>")
    made.save(str(tmp_path / "tokenizer.json"))
    source = load({"train": "train"}, form, str(tmp_path), resident=False)["train"]
    rows, held = every(source), store.get(name, text.tokenizers.load(tmp_path), 0, folder)
    if form == "mlm":
        assert (rows["tokens"][:, 0] == begin).all()
        inside = rows["segments"][:, 1:] > 0
        np.testing.assert_array_equal(rows["tokens"][:, 1:][inside], stream(held, "train"))
        return
    for i, (a, b, c, d, _) in enumerate(source.read.table):
        line = [begin, *held.tokens[a:b], end, end, *held.tokens[c:d], end]
        assert rows["tokens"][i][: len(line)].tolist() == line
        assert rows["segments"][i].sum() == len(line) <= 32
        assert not rows["types"][i].any()  # its types are all 0


@pytest.mark.parametrize("split", ["train", "valid", "test-letters"])
def test_mlm_rows_are_the_stream(name, folder, load, split):
    rows = every(load({"train": split}, train=split)["train"])
    held = opened(name, folder)
    assert (rows["tokens"][:, 0] == 2).all()
    inside = rows["segments"] > 0
    assert inside[:-1].all()  # full, but for the last
    np.testing.assert_array_equal(rows["tokens"][:, 1:][inside[:, 1:]], stream(held, split))
    assert (rows["tokens"][~inside] == 0).all()
    assert rows["tokens"].dtype == np.uint16


@pytest.mark.parametrize("tokenizer", ["wordpiece", "bpe"])
def test_clm_rows_predict_every_token_once(name, folder, load, tokenizer):
    rows = every(load({"valid": "valid"}, "clm", tokenizer)["valid"])
    whole = stream(opened(name, folder, tokenizer), "valid")
    assert rows["tokens"].shape[1] == 33
    inside = rows["segments"] > 0
    assert inside[:, 1].all()
    np.testing.assert_array_equal(rows["tokens"][:, 1:][inside[:, 1:]], whole[1:])
    np.testing.assert_array_equal(rows["tokens"][1:, 0], rows["tokens"][:-1, -1])
    assert rows["tokens"][0, 0] == whole[0]


@pytest.mark.parametrize(("form", "tokenizer"), FORMS[:3])
def test_segments_change_exactly_between_documents(load, form, tokenizer):
    rows = every(load({"train": "train"}, form, tokenizer)["train"])
    tokens, segments = rows["tokens"].astype(int), rows["segments"].astype(int)
    assert (segments[:, 0] == 1).all()
    steps = np.diff(segments, axis=1)
    going_on = segments[:, 1:] > 0
    if tokenizer == "wordpiece":  # a document ends with [SEP], and so behind each the next begins
        new = tokens[:, :-1] == 3
    else:  # it ends with the same token that the next begins with
        new = (tokens[:, :-1] == 0) & (tokens[:, 1:] == 0)
    np.testing.assert_array_equal((steps == 1)[going_on], new[going_on])
    assert set(np.unique(steps[going_on])) <= {0, 1}
    assert (steps == 1).sum() > 50


@pytest.mark.parametrize(("form", "tokenizer"), FORMS)
def test_rows_are_the_same_from_memory_and_disk_in_any_order(load, form, tokenizer):
    splits = {"train": "train", "valid": "valid[2:]+test[:50%]"}
    memory = load(splits, form, tokenizer)
    disk = load(splits, form, tokenizer, resident=False)
    for key in splits:
        assert memory[key].resident is not None
        assert disk[key].resident is None
        assert disk[key].fingerprint == memory[key].fingerprint
        assert disk[key].spec == memory[key].spec
        assert disk[key].size == memory[key].size
        whole = every(memory[key])
        rows = np.random.default_rng(0).permutation(disk[key].size).astype(np.uint32)
        sent = pickle.loads(pickle.dumps(disk[key].read))
        assert len(pickle.dumps(disk[key].read)) < 30_000 + 50 * disk[key].size
        for read in (disk[key].read, sent):
            for name, value in read(rows).items():
                np.testing.assert_array_equal(value, whole[name][rows])
                assert value.dtype == disk[key].spec[name].dtype
                assert value.shape[1:] == disk[key].spec[name].shape


def test_slices_count_rows_and_may_be_added(load):
    whole = every(load({"valid": "valid"})["valid"])["tokens"]
    cut = every(load({"valid": "valid[3:]+valid[:3]"})["valid"])["tokens"]
    np.testing.assert_array_equal(cut, np.concatenate([whole[3:], whole[:3]]))


def test_held_out_documents_are_not_trained_on(name, folder, load):
    """No row of the training set has a word of a document that is held out."""
    marked = pathlib.Path(folder, "marked")
    marked.mkdir()
    for i in range(200):
        held = corpora.part(f"{i}.txt") != "train"
        (marked / f"{i}.txt").write_text("secret words " * 20 if held else "open words " * 20)
    changes = {"name": f"folder:{marked}", "vocab_size": 60}
    for form in ("mlm", "pairs"):
        sources = load(form=form, **changes)
        decode = sources["train"].facts.tokenizer.decode
        texts = {k: decode(every(s)["tokens"].ravel().tolist()) for k, s in sources.items()}
        assert "open" in texts["train"]
        assert "open" not in texts["valid"] + texts["test"]
        assert "secret" not in texts["train"]
        # The tokenizer has not seen it either.
        assert sources["train"].facts.tokenizer.token_to_id("secret") is None


# ------------------------------------------------------------------------------------------- pairs


def texts_of(row: dict) -> tuple[list[int], list[int]]:
    """The two texts of a row, by what its types say."""
    tokens, segments, types = (row[key].astype(int) for key in ("tokens", "segments", "types"))
    used = segments.sum()
    second = int(types.sum())
    assert (segments == (np.arange(len(segments)) < used)).all()
    assert (types == (np.arange(len(types)) >= used - second) * segments).all()
    first, second = tokens[: used - second], tokens[used - second : used]
    assert first[0] == 2
    assert first[-1] == second[-1] == 3
    return first[1:-1].tolist(), second[:-1].tolist()


@pytest.mark.parametrize(("length", "split"), [(64, "train"), (16, "train"), (8, "valid")])
def test_next_is_told_by_the_stream(name, folder, load, length, split):
    """`next` = 1 exactly if B stands behind A in a document; sentences are whole where they fit."""
    held = opened(name, folder)
    sources = load({"valid": split}, "pairs", length=length, resident=False)
    table, rows = sources["valid"].read.table, every(sources["valid"])
    ends = {*held.sentences.tolist(), *(held.documents[1:] - 1).tolist()}
    first, last = held.splits[split]
    covered = np.zeros(len(held.tokens), int)
    cut = 0
    for i, (a, b, c, d, follows) in enumerate(table):
        one, two = texts_of({key: value[i] for key, value in rows.items()})
        assert one == held.tokens[a:b].tolist()
        assert two == held.tokens[c:d].tolist()
        assert len(one) >= 1 <= len(two)
        assert len(one) + len(two) <= length - 3
        where = np.searchsorted(held.documents, [a, b - 1, c, d - 1], side="right") - 1
        assert ((first <= where) & (where < last)).all()
        assert where[0] == where[1]
        assert where[2] == where[3]
        assert rows["next"][i] == follows == (b == c)
        assert follows == (where[0] == where[2])
        assert {b, c} <= ends
        cut += not {a, d} <= ends
        covered[a:b] += 1
        covered[c:d] += follows
    assert rows["next"].sum() == pytest.approx(len(table) / 2, abs=3)
    assert covered.max() == 1  # a sentence that was not used begins the next row
    if length == 64:
        assert cut == 0
        inside = np.isin(held.tokens, [3], invert=True)
        inside[: held.documents[first]] = inside[held.documents[last] :] = False
        np.testing.assert_array_equal(covered, inside)


def test_single_sentences_are_made_up_for(tmp_path):
    """Documents of one sentence have nothing that follows; the others give more of it."""
    for i in range(300):
        (tmp_path / f"{i}.txt").write_text("One two three. " * (1 if i % 3 else 30))
    options = {"name": f"folder:{tmp_path}", "vocab_size": 60, "folder": str(tmp_path / "data")}
    rows = every(text.load_sources({"train": "train"}, "pairs", length=16, **options)["train"])
    assert rows["next"].mean() == pytest.approx(0.5, abs=0.02)


# ------------------------------------------------------------------------------- facts and refusals


def test_facts(name, folder, load):
    sources = load()
    facts = sources["valid"].facts
    assert (facts.length, facts.form, facts.vocab_size) == (32, "mlm", 150)
    np.testing.assert_array_equal(facts.counts, opened(name, folder).counts)
    section = {"name": name, "tokenizer": "wordpiece", "vocab_size": 150, "folder": folder}
    assert text.tokenizer_of(section).to_str() == facts.tokenizer.to_str()


def test_fingerprints_know_what_matters(load, tmp_path):
    """The same wherever it is kept; another for another split, form, length, tokenizer or text."""
    one = lambda **changes: load({"valid": changes.pop("split", "valid")}, **changes)["valid"]
    first = one().fingerprint
    assert one(folder=str(tmp_path / "else")).fingerprint == first
    others = [
        one(split="valid[:3]"), one(form="clm"), one(form="pairs"), one(length=31),
        one(vocab_size=140), one(name=corpus.write(tmp_path / "other", 200, seed=1)),
    ]  # fmt: skip
    assert len({first, *(source.fingerprint for source in others)}) == 7


def test_a_tokenizer_from_elsewhere(load, folder, tmp_path):
    """By its files, by the name of prepared weights, and by the workdir of a run."""
    made = load()["train"].facts.tokenizer
    prepared = pathlib.Path(folder, "minilm")
    prepared.mkdir()
    made.save(str(prepared / "tokenizer.json"))
    run = tmp_path / "run"
    run.mkdir()
    section = {"name": "sotu", "tokenizer": "minilm", "vocab_size": 1, "folder": folder}
    (run / "config.json").write_text(json.dumps({"data": section}))
    for found in (str(prepared), "minilm", str(run)):
        assert text.find_tokenizer(found, folder).to_str() == made.to_str()
    other = load(tokenizer="minilm", vocab_size=1)["train"]
    np.testing.assert_array_equal(every(other)["tokens"], every(load()["train"])["tokens"])
    (run / "config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"config\.data\.tokenizer: .* is not a run"):
        text.find_tokenizer(str(run), folder)
    with pytest.raises(BadInput, match=r"run: python scripts/prepare\.py rxnfp --folder"):
        text.find_tokenizer("rxnfp", folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"length": 7}, r"config\.data\.length: 7 is not in 8 to"),
        ({"workers": -1}, r"config\.data\.workers: -1"),
        ({"vocab_size": 20}, r"config\.data\.vocab_size: 20 is too small"),
        ({"name": "sotuu"}, r"config\.data\.name: unknown corpus"),
        ({"name": "folder:/nowhere"}, r"config\.data\.name: no such folder: /nowhere"),
        ({"tokenizer": "wordpeace"}, r"config\.data\.tokenizer: no such file or folder"),
        ({"tokenizer": "bpe"}, r"config\.data\.tokenizer: 'bpe' has no cls, sep, mask token"),
        ({"splits": {"train": "trian"}}, r"config\.data\.train: unknown split 'trian'; .*'train'"),
        ({"splits": {"v": "test-poems"}}, r"config\.evals\.v\.split: unknown split 'test-poems'"),
        ({"splits": {"v": "all"}}, r"config\.evals\.v\.split: unknown split 'all'"),
        ({"splits": {"v": "valid[:x]"}}, r"config\.evals\.v\.split: split 'valid\[:x\]'"),
        ({"splits": {"v": "valid[5:5]"}}, r"config\.evals\.v\.split: .* is empty"),
        ({"splits": {"v": ""}}, r"config\.evals\.v\.split"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(load, changes, said):
    splits = changes.get("splits", SPLITS)
    rest = {k: v for k, v in changes.items() if k != "splits"}
    if "train" in splits:
        rest["train"] = splits["train"]
    with pytest.raises(BadInput, match=rf"^{said}") as error:
        load(splits, **rest)
    assert "\n" not in str(error.value)


def said(caplog, tmp_path, splits=SPLITS, form="mlm") -> list[str]:
    """The warnings of a run that reads the corpus `own`."""
    caplog.clear()
    options = {"name": f"folder:{tmp_path}/own", "folder": str(tmp_path / "data")}
    with caplog.at_level(logging.WARNING):
        text.load_sources(splits, form, vocab_size=60, **options)
    return [record.getMessage() for record in caplog.records]


def test_too_few_documents_to_hold_any_out(tmp_path, caplog):
    (tmp_path / "own").mkdir()
    book = tmp_path / "own" / "b.txt"
    book.write_text("A text of the people, by the people, for the people.")
    with pytest.raises(BadInput, match=r"one document \(52 characters\) of fewer than three lines"):
        said(caplog, tmp_path)
    book.write_text("\n\n".join(f"Line {i} of the people." for i in range(99)))
    for _ in "built", "opened":
        (note,) = said(caplog, tmp_path)
        assert "own: document divided at its paragraphs into characters of" in note
    with pytest.raises(BadInput, match=r"pairs need two documents, and 'valid' has one \(1 in 'tr"):
        said(caplog, tmp_path, {"valid": "valid"}, "pairs")
    (tmp_path / "own" / "c.txt").write_text("By the people.")
    (tmp_path / "own" / "d.txt").write_text("\u200b")  # no token for WordPiece
    assert said(caplog, tmp_path, {"train": "train"})


def test_texts_on_two_sides_are_counted_at_each_start(tmp_path, caplog):
    (tmp_path / "own").mkdir()
    names = [f"{i}" for i in range(60)]
    held = [name for name in names if corpora.part(f"{name}.txt") == "valid"]
    trained = [name for name in names if corpora.part(f"{name}.txt") == "train"]
    for name in names:
        (tmp_path / "own" / f"{name}.txt").write_text(f"The text {name}.")
    assert said(caplog, tmp_path) == []
    (tmp_path / "own" / f"{held[0]}.txt").write_text(f"The text {trained[-1]}.")
    for _ in "built", "opened":
        (note,) = said(caplog, tmp_path)
        assert note.endswith(
            f"own: documents whose text is also in 'train': 1 of the {len(held)} in 'valid' (first "
            f"'{held[0]}.txt')"
        )


def test_a_store_of_an_older_version_is_kept_unless_a_part_is_empty(tmp_path, caplog):
    (tmp_path / "own").mkdir()
    for i in range(3):
        (tmp_path / "own" / f"{i}.txt").write_text(f"The text {i}.")
    note = said(caplog, tmp_path)
    (index,) = (tmp_path / "data" / "tokens").glob("*/index.json")
    held = json.loads(index.read_text())
    del held["notes"]
    index.write_text(json.dumps(held))
    assert said(caplog, tmp_path) == []
    held["splits"]["valid"] = [2, 2]
    index.write_text(json.dumps(held))
    assert said(caplog, tmp_path)[1:] == note


# ---------------------------------------------------------------------------------------- survival


@pytest.fixture
def built(name, folder, load, tmp_path):
    """(a copy of the store's folder in a data folder of its own, load from there)."""
    load()
    shutil.copytree(opened(name, folder).path, tmp_path / "tokens" / "x")
    path = tmp_path / "tokens" / pathlib.Path(opened(name, folder).path).name
    (tmp_path / "tokens" / "x").rename(path)
    return path, lambda: load(folder=str(tmp_path))


def test_a_store_is_built_once(built, monkeypatch):
    path, load = built
    monkeypatch.setattr(store, "_build", None)
    assert load()["train"].fingerprint.startswith(
        json.loads((path / "index.json").read_text())["digest"]
    )


@pytest.mark.parametrize("file", ["tokens.npy", "index.json", "tokenizer.json", "sentences.npy"])
@pytest.mark.parametrize("harm", ["torn", "flipped", "gone"])
def test_a_damaged_store_is_built_again(built, file, harm):
    path, load = built
    raw = (path / file).read_bytes()
    if harm == "torn":
        (path / file).write_bytes(raw[: len(raw) // 2])
    elif harm == "gone":
        (path / file).unlink()
    elif file != "index.json":
        (path / file).write_bytes(raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:])
    load()
    assert (path / file).read_bytes() == raw


def test_a_store_too_large_to_be_read_at_each_start_is_read_when_it_changed(built, monkeypatch):
    path, load = built
    monkeypatch.setattr(store, "CHECKED_BYTES", 0)
    raw = (path / "tokens.npy").read_bytes()
    for harm in (raw + b"..", raw[:-3] + bytes([raw[-3] ^ 1]) + raw[-2:]):
        load()
        with monkeypatch.context() as patched:
            patched.setattr(store.fetch, "sha256", None)  # nothing is read in full again
            load()
        (path / "tokens.npy").write_bytes(harm)
        load()
        assert (path / "tokens.npy").read_bytes() == raw
    (path / "tokens.npy.checked").write_bytes(b"\xff")
    load()


def test_changed_text_is_noticed(tmp_path):
    name = corpus.write(tmp_path / "mine", 40)
    options = {"name": name, "vocab_size": 150, "folder": str(tmp_path / "data")}
    first = text.load_sources({"train": "train"}, "mlm", **options)["train"]
    with (tmp_path / "mine" / "speeches.jsonl").open("a") as file:
        file.write('{"text": "One more."}\n')
    second = text.load_sources({"train": "train"}, "mlm", **options)["train"]
    assert first.fingerprint != second.fingerprint


def test_a_place_that_cannot_be_written_is_no_obstacle(load, tmp_path):
    (tmp_path / "tokens").write_text("")
    with pytest.warns(UserWarning, match="cannot be written"):
        elsewhere = load(folder=str(tmp_path))["train"]
    assert elsewhere.fingerprint == load()["train"].fingerprint


BUILD = """
import sys, time
from lm.data import store
name, folder, pause = sys.argv[1:]
if pause == "pause":
    finish = store._finish
    def late(*arguments):
        finish(*arguments)
        print("all but done", flush=True)
        time.sleep(60)
    store._finish = late
print("begun", flush=True)
print(store.get(name, "wordpiece", 150, folder).digest, flush=True)
"""


def test_a_killed_build_leaves_nothing_half_made_and_two_builders_agree(name, folder, tmp_path):
    def begin(pause):
        return subprocess.Popen(
            [sys.executable, "-c", BUILD, name, str(tmp_path), pause],
            stdout=subprocess.PIPE,
            text=True,
        )

    killed = begin("pause")
    assert killed.stdout.readline() == "begun\n"
    assert killed.stdout.readline() == "all but done\n"
    others = [begin("no"), begin("no")]
    assert [other.stdout.readline() for other in others] == ["begun\n"] * 2
    tokens = tmp_path / "tokens"
    assert not [path for path in tokens.iterdir() if not path.name.startswith(".")]
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    digests = {other.communicate(timeout=60)[0].strip() for other in others}
    assert digests == {opened(name, folder).digest}
    (kept,) = (path for path in tokens.iterdir() if path.is_dir())
    assert not kept.name.startswith(".")


@pytest.mark.slow
def test_the_addresses_as_rows(tmp_path):
    sources = text.load_sources(SPLITS, "mlm", folder=str(tmp_path))
    assert sources["train"].facts.counts.sum() == pytest.approx(1.97e6, rel=0.01)
    assert sources["train"].size == -(-sources["train"].facts.counts.sum() // 127)
    assert sources["valid"].size > 500
    assert sources["test"].size > 400
    assert sources["train"].facts.vocab_size == 8192
    unknown = sources["train"].facts.counts[1] / sources["train"].facts.counts.sum()
    assert unknown < 1e-4
