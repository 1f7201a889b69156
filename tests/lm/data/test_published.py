"""Tokenizers of published models: what each of their files says is done, as `transformers` does it,
or refused in one line."""

import json
import pathlib

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from common.data import fetch
from common.errors import BadInput
from lm.data import tokenizer
from lm.pretrained import WEIGHTS

TEXTS = [
    "Ça, façade naïve: ÉCOLE İstanbul straße ﬁn", "Съешь же ещё этих булок",
    "Ξεσκεπάζω την ψυχοφθόρα", "صِفْ خَلقَ خَودٍ", "דג סקרן שט בים", "ऋषियों को सताने वाले",
    "中文分词和天气", "いろはにほへと カタカナ ｶﾅ が", "다람쥐 헌 쳇바퀴 각", "นายสังฆภัณฑ์ เฮง",
    "გთხოვთ ახლავე", "ሰማይ አይታረስ ንጉሥ", "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 e\u0301", "", " ", "  \t\n x  y ",
    "U.S. a.b,c!?  It's", "x\u200by\u00a0z\ufeff\x00",
]  # fmt: skip
ODD = [
    "a <url> b<url>c  <url>", "[MASK] <mask>. [SEP]</s><s> <|endoftext|> [PAD]",
    "zqzq azqzq zqzqs ZQZQ",
]  # fmt: skip


def write(folder: pathlib.Path, files: dict) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, contents in files.items():
        whole = contents if isinstance(contents, str) else json.dumps(contents)
        (folder / name).write_text(whole, encoding="utf-8")
    return folder


def added(content: str, **flags) -> dict:
    every = ("special", "lstrip", "rstrip", "normalized", "single_word")
    return {"content": content} | dict.fromkeys(every, False) | flags


def wordpiece_files() -> dict[str, dict]:
    """BERT's vocabulary, as each of its files."""
    made = tokenizer.train("wordpiece", 420, TEXTS)
    vocab = json.loads(made.to_str())["model"]["vocab"]
    return {
        "txt": {"vocab.txt": "\n".join(sorted(vocab, key=vocab.get)) + "\n"},
        "json": {"tokenizer.json": made.to_str()},
    }


def byte_level_files(first: list[str]) -> dict[str, dict]:
    """A byte-level vocabulary that begins with these tokens."""
    made = tokenizer.train("bpe", 500, TEXTS)
    model = json.loads(made.to_str())["model"]
    pieces = sorted(set(model["vocab"]) - {tokenizer.END}, key=model["vocab"].get)
    vocab = {token: i for i, token in enumerate([*first, *pieces])}
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]) + "\n"
    return {"vocab.json": vocab, "merges.txt": merges}


def llama() -> Tokenizer:
    """Metaspace, bytes for what is unknown, and `<s>` in front of a text."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    first = ["<unk>", "<s>", "</s>"]
    settings = {"vocab_size": 330, "special_tokens": [*first, *bytes_], "show_progress": False}
    made.train_from_iterator(["the people of the union"] * 3, trainers.BpeTrainer(**settings))
    described = json.loads(made.to_str())
    described["added_tokens"] = described["added_tokens"][:3]
    made = Tokenizer.from_str(json.dumps(described))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return made


@pytest.fixture(scope="module")
def files() -> dict[str, dict]:
    """{kind: the files of its vocabulary}."""
    gpt2, roberta = (
        byte_level_files(first)
        for first in ([tokenizer.END], ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    )
    kinds = {f"bert {kind}": these for kind, these in wordpiece_files().items()}
    return kinds | {
        "gpt2": gpt2,
        "roberta": roberta,
        "llama": {"tokenizer.json": llama().to_str()},
    }


CLASSES = {
    "bert": {"tokenizer_class": "BertTokenizer"},
    "gpt2": {"tokenizer_class": "GPT2Tokenizer"},
    "roberta": {"tokenizer_class": "RobertaTokenizerFast"},
    "llama": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
    },
}
TYPED = {"__type": "AddedToken"}  # as in tokenizer_config.json
MASK = added("<mask>", lstrip=True, special=True)
BERT = [
    {}, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False},
    {"do_lower_case": False, "strip_accents": True}, {"tokenize_chinese_chars": False},
    {"mask_token": MASK | TYPED},
    {"additional_special_tokens": ["<url>", added("zqzq", rstrip=True) | TYPED]},
    {"added_tokens_decoder": ["<url>", "zqzq"]},
]  # fmt: skip
OPTIONS = {
    "bert txt": BERT,
    "bert json": [{"do_lower_case": True} | options for options in BERT],
    "gpt2": [
        {}, {"add_prefix_space": True}, {"add_bos_token": True}, {"pad_token": "<pad>"},
        {"add_bos_token": True, "add_eos_token": True}, {"added_tokens_decoder": ["<url>", "zqzq"]},
    ],
    "roberta": [{}, {"add_prefix_space": True}, {"mask_token": MASK | TYPED}],
    "llama": [{}, {"pad_token": "<pad>"}, {"add_bos_token": False}, {"add_prefix_space": False}],
}  # fmt: skip


def options_of(kind: str, options: dict, size: int) -> dict:
    """The contents of tokenizer_config.json; new tokens are numbered behind the others."""
    if "added_tokens_decoder" in options:
        url = added("<url>", special=True, lstrip=True)
        word = added("zqzq", normalized=True, single_word=True)
        options = options | {"added_tokens_decoder": {str(size): url, str(size + 1): word}}
    return CLASSES[kind.split()[0]] | options


def agree(theirs, folder) -> None:
    """The same ids and type ids, of a text and of two, and the same tokens by role."""
    ours = tokenizer.load(folder)
    facts = tokenizer.facts(ours)
    for text in [*TEXTS, *ODD]:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
        pair = theirs(text, "ab c", return_token_type_ids=True)
        found = ours.encode(text, "ab c")
        assert (found.ids, found.type_ids) == (pair["input_ids"], pair["token_type_ids"]), text
    for role in ("pad", "unk", "cls", "sep", "mask"):
        assert facts.special[role] == getattr(theirs, f"{role}_token_id"), role
    assert facts.vocab_size == len(theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"), [(kind, each) for kind, every in OPTIONS.items() for each in every]
)
def test_tokens_are_those_of_transformers(files, tmp_path, kind, options):
    transformers = pytest.importorskip("transformers")
    size = tokenizer.facts(tokenizer.load(write(tmp_path / "a", files[kind]))).vocab_size
    config = options_of(kind, options, size)
    folder = write(tmp_path / "b", files[kind] | {"tokenizer_config.json": config})
    agree(transformers.AutoTokenizer.from_pretrained(str(folder)), folder)
    # What is saved of it is the same again, without the options.
    saved = write(tmp_path / "c", tokenizer.files(tokenizer.load(folder)))
    assert tokenizer.files(tokenizer.load(saved)) == tokenizer.files(tokenizer.load(folder))


@pytest.mark.slow
def test_legacy_files_are_those_of_transformers(files, tmp_path):
    transformers = pytest.importorskip("transformers")
    size = tokenizer.facts(tokenizer.load(write(tmp_path / "a", files["bert txt"]))).vocab_size
    legacy = {
        "tokenizer_config.json": CLASSES["bert"],
        "special_tokens_map.json": {"additional_special_tokens": ["<url>"], "mask_token": MASK},
        "added_tokens.json": {"zqzq": size, "<url>": size + 1, "<mask>": size + 2},
    }
    folder = write(tmp_path / "b", files["bert txt"] | legacy)
    agree(transformers.AutoTokenizer.from_pretrained(str(folder)), folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["minilm", "rxnfp"])
def test_real_ones_are_those_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    try:
        folder = fetch.weights(name, WEIGHTS)
    except BadInput as error:
        pytest.skip(f"{name} cannot be had: {error}")
    # Not AutoTokenizer, as rxnfp's config.json names no model.
    agree(transformers.BertTokenizer.from_pretrained(folder), folder)


# ------------------------------------------------------------------------------ without a reference

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "musste", "müsste", "er", "中", "文", "中文"]


@pytest.mark.parametrize(
    ("options", "text", "tokens"),
    [
        ({"do_lower_case": True}, "Er müsste", ["er", "musste"]),
        ({"do_lower_case": True, "strip_accents": False}, "Er müsste", ["er", "müsste"]),
        ({"do_lower_case": False, "strip_accents": True}, "er müsste", ["er", "musste"]),
        ({"tokenize_chinese_chars": True}, "中文", ["中", "文"]),
        ({"tokenize_chinese_chars": False}, "中文", ["中文"]),
        (
            {"added_tokens_decoder": {"11": added("<url>", special=True)}},
            "er<url>",
            ["er", "<url>"],
        ),
        ({"mask_token": "er"}, "müsste Er er", ["musste", "er", "er"]),
    ],
)
@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
def test_options_are_obeyed(tmp_path, options, text, tokens, form):
    folder = write(tmp_path, {"vocab.txt": "\n".join(VOCAB)})
    if form == "tokenizer.json":  # which says the opposite
        contrary = {key: not value for key, value in options.items() if isinstance(value, bool)}
        write(folder, {"tokenizer_config.json": contrary})
        write(folder, {"tokenizer.json": tokenizer.load(folder).to_str()})
    write(folder, {"tokenizer_config.json": options})
    found = tokenizer.load(folder)
    assert found.encode(text, add_special_tokens=False).tokens == tokens
    mask = options.get("mask_token", "[MASK]")
    assert tokenizer.facts(found).special["mask"] == VOCAB.index(mask)


def test_a_role_is_what_the_files_name_whatever_it_is_called(tmp_path):
    """And it comes along when the tokenizer is saved; one that is null is none."""
    folder = write(tmp_path / "a", {"vocab.txt": "\n".join([*VOCAB, "<cls>", "«", "»"])})
    roles = {"cls_token": "<cls>", "sep_token": {"content": "»"}, "mask_token": "«"}
    write(folder, {"tokenizer_config.json": roles | {"pad_token": None}})
    loaded = tokenizer.load(folder)
    again = tokenizer.load(write(tmp_path / "b", tokenizer.files(loaded)))
    for each in (loaded, again):
        facts = tokenizer.facts(each)
        named = {"pad": None, "unk": 1, "cls": 11, "sep": 13, "mask": 12, "end": 13}
        assert facts.special == named
        assert (facts.begin, facts.end) == ((11,), (13,))
        assert each.encode("er « er").ids == [11, 7, 12, 7, 13]
    alone = Tokenizer.from_str(loaded.to_str())  # the file of a tokenizer names no roles
    assert tokenizer.facts(alone).special["mask"] == 4


def test_a_token_with_a_role_is_special_whatever_its_flags_say(tmp_path):
    tokens = {str(VOCAB.index("er")): added("er", lstrip=True), "11": added("plain")}
    options = {"mask_token": "er", "added_tokens_decoder": tokens}
    write(tmp_path, {"vocab.txt": "\n".join(VOCAB), "tokenizer_config.json": options})
    found = tokenizer.load(tmp_path).get_added_tokens_decoder()
    assert (found[7].special, found[7].lstrip, found[11].special) == (True, True, False)


@pytest.mark.parametrize(
    ("options", "model_type", "lower"),
    [
        ({"tokenizer_class": "Siglip2Tokenizer"}, None, True),
        ({"tokenizer_class": "GemmaTokenizerFast"}, "siglip", True),
        ({"tokenizer_class": "GemmaTokenizer", "processor_class": "SiglipProcessor"}, None, True),
        ({"tokenizer_class": "GemmaTokenizer"}, "gemma", False),
        ({}, "siglip", False),
    ],
)
def test_texts_of_siglip_2_are_in_lower_case(tmp_path, options, model_type, lower):
    vocab = {"<unk>": 0, "\u2581": 1, "a": 2, "A": 3}
    plain = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    plain.normalizer = normalizers.Replace(" ", "\u2581")
    written = {"tokenizer.json": json.loads(plain.to_str()), "tokenizer_config.json": options}
    written |= {"config.json": {"model_type": model_type}} if model_type else {}
    loaded = tokenizer.load(write(tmp_path, written))
    ids = [2, 1, 2] if lower else [3, 1, 2]
    assert loaded.encode("A a").ids == ids
    again = tokenizer.load(write(tmp_path / "run", tokenizer.files(loaded)))
    assert again.encode("A a").ids == ids


def test_templates_are_taken_apart(files, tmp_path):
    """(what begins and ends a document, its template for two)"""
    load = lambda kind, **options: tokenizer.facts(
        tokenizer.load(write(tmp_path / kind, files[kind] | {"tokenizer_config.json": options}))
    )
    bert, roberta = load("bert txt"), load("roberta")
    assert (bert.begin, bert.end, bert.document_begin) == ((2,), (3,), ())
    assert bert.layouts[1].ids == ((2,), (3,), (3,))
    assert bert.layouts[1].types == ((0,), (0,), (1,))
    assert bert.layouts[1].text_types == (0, 1)
    assert (roberta.begin, roberta.end, roberta.document_begin) == ((0,), (2,), ())
    assert roberta.layouts[1].ids == ((0,), (2, 2), (2,))
    assert roberta.layouts[1].text_types == (0, 0)
    for options in ({}, {"add_bos_token": True}, {"add_bos_token": True, "add_eos_token": True}):
        gpt2 = load("gpt2", **options)
        assert gpt2.begin == gpt2.end == gpt2.document_begin == (0,)
    llama = tokenizer.facts(Tokenizer.from_str(files["llama"]["tokenizer.json"]))
    assert (llama.begin, llama.end, llama.document_begin) == ((1,), (2,), (1,))
    assert llama.layouts[0].ids == ((1,), ())


def test_layouts_lay_out_what_the_tokenizer_does(files):
    """Here of XLNet, whose special tokens stand at the end and have a type of their own."""
    made = Tokenizer.from_str(files["bert json"]["tokenizer.json"])
    made.post_processor = processors.TemplateProcessing(
        single="$A [SEP] [CLS]:2",
        pair="$A [SEP] $B:1 [SEP]:1 [CLS]:2",
        special_tokens=[("[SEP]", 3), ("[CLS]", 2)],
    )
    facts = tokenizer.facts(made)
    assert (facts.begin, facts.end) == ((), (3, 2))
    texts = "u.s.", "a b c"
    ids = [made.encode(text, add_special_tokens=False).ids for text in texts]
    for count, layout in enumerate(facts.layouts, 1):
        expected = made.encode(*texts[:count])
        tokens, types = layout.row(*ids[:count])
        assert (tokens.tolist(), types.tolist()) == (expected.ids, expected.type_ids)
        assert len(tokens) == len(layout.special) + sum(map(len, ids[:count]))


def test_what_the_corpus_may_hold_and_what_is_never_masked():
    made = tokenizer.train("bpe", 300, ["of the people"])
    made.add_special_tokens(["[URL]"])
    made.add_tokens(["kilogram"])
    url, word = (made.token_to_id(token) for token in ("[URL]", "kilogram"))
    facts = tokenizer.facts(made)
    assert (facts.structural, facts.added, facts.special_ids) == ((0,), (url,), [0, url])
    plain = tokenizer.reading(facts)
    for text in ("a [URL] kilogram", "<|endoftext|>[URL]"):
        ids = plain.encode(text).ids
        assert 0 not in ids
        assert url in ids
        assert (word in ids) == ("kilogram" in text)
        assert facts.token_bytes[ids].sum() == len(text)
    assert made.encode("<|endoftext|>").ids == [0]


REFUSED = [
    ({"added_tokens_decoder": {"12": added("<url>")}}, r"'<url>' has the id 12 there, and 11 in"),
    ({"added_tokens_decoder": {"4000000000": added("<url>")}}, r"'4000000000' is no id"),
    ({"added_tokens_decoder": {"-1": added("<url>")}}, r"'-1' is no id"),
    ({"added_tokens_decoder": []}, r"added_tokens_decoder is \[\], not an object"),
    ({"added_tokens_decoder": {"11": ""}}, r"'11' is an empty token"),
    ({"added_tokens_decoder": {"11": 3}}, r"'11' is 3, not a token"),
    ({"added_tokens_decoder": {"11": {"content": None}}}, r"content is null, not a string"),
    ({"added_tokens_decoder": {"11": {"content": "a", "lstrip": 1}}}, r"lstrip is 1, not true or"),
    ({"mask_token": ["[MASK]"]}, r"mask_token is \['\[MASK\]'\], not a token"),
    ({"additional_special_tokens": 3}, r"additional_special_tokens is 3, not a list"),
    ({"additional_special_tokens": [None]}, r"additional_special_tokens is None, not a token"),
    ({"tokenizer_class": 3}, r"tokenizer_class is 3, not a string"),
    ({"tokenizer_class": "BertJapaneseTokenizer"}, r"vocab\.txt alone does not make"),
    ({"add_bos_token": True}, r"add_bos_token is true, which the template of this kind"),
    ({"never_split": ["a"]}, r"never_split is \['a'\], which is not supported"),
    ({"do_basic_tokenize": False}, r"do_basic_tokenize is False, which is not supported"),
    ({"split_special_tokens": True}, r"split_special_tokens is True"),
    ({"tokenize_chinese_chars": "no"}, r'tokenize_chinese_chars is "no", not true or false'),
    ({"unk_token": "<unk>"}, r"vocab\.txt has no <unk>"),
]


@pytest.mark.parametrize(("options", "says"), REFUSED)
def test_what_cannot_be_done_is_one_line(tmp_path, options, says):
    folder = write(tmp_path, {"vocab.txt": "\n".join(VOCAB), "tokenizer_config.json": options})
    with pytest.raises(BadInput, match=rf"^config\.data\.tokenizer: [^\n]*{says}[^\n]*$"):
        tokenizer.load(folder)


@pytest.mark.parametrize(
    ("name", "contents", "says"),
    [
        ("added_tokens.json", {"<url>": 12}, "the id 12 there, and 11 in"),
        ("added_tokens.json", {"<url>": "11"}, "'<url>' has the id '11', which is no id"),
        ("added_tokens.json", {"<url>": 4 * 10**9}, "'<url>' has the id 4,000,000,000 there, and"),
        ("added_tokens.json", [], r"added_tokens\.json: a list, not a JSON object"),
        ("special_tokens_map.json", {"pad_token": 0}, "pad_token is 0, not a token"),
        ("special_tokens_map.json", None, "null, not a JSON object"),
    ],
)
def test_other_files_are_refused_as_well(tmp_path, name, contents, says):
    folder = write(tmp_path, {"vocab.txt": "\n".join(VOCAB), name: contents})
    with pytest.raises(BadInput, match=rf"^config\.data\.tokenizer: [^\n]*{says}[^\n]*$"):
        tokenizer.load(folder)


def test_files_that_contradict_each_other_are_refused(files, tmp_path):
    byte_level = json.loads(tokenizer.train("bpe", 300, ["a"]).to_str())
    wrong = json.loads(json.dumps(byte_level))
    wrong["added_tokens"][0]["id"] = 7
    folder = write(tmp_path, {"tokenizer.json": wrong})
    with pytest.raises(BadInput, match=r"'<\|endoftext\|>' has the id 7 there, and 0 in the voc"):
        tokenizer.load(folder)
    write(folder, {"tokenizer.json": byte_level})
    for options in ({"do_lower_case": True}, {"strip_accents": True}):
        write(folder, {"tokenizer_config.json": options})
        with pytest.raises(BadInput, match=f"{next(iter(options))} is true, and what tokenizer"):
            tokenizer.load(folder)
    write(folder, {"tokenizer_config.json": {"do_lower_case": False, "add_prefix_space": True}})
    assert tokenizer.load(folder).encode("a").ids == tokenizer.load(folder).encode(" a").ids
    write(folder, files["bert json"] | {"tokenizer_config.json": {"add_prefix_space": True}})
    with pytest.raises(BadInput, match="add_prefix_space is true, and what tokenizer"):
        tokenizer.load(folder)


def test_a_template_beyond_the_vocabulary_or_out_of_order_is_refused():
    made = tokenizer.train("bpe", 300, ["a"])
    for single, pair, says in (
        ("[X] $A", "$A $B", r"its template has the token 3,000,000,000, and its vocabulary ends"),
        ("$A", "$B $A", r"its template for two texts does not hold each once, in order"),
    ):
        made.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[("[X]", 3 * 10**9)]
        )
        with pytest.raises(BadInput, match=says):
            tokenizer.facts(made)


def test_a_word_may_not_take_the_number_of_another(tmp_path):
    """In a vocabulary with gaps, the library's next number is taken."""
    model = {"vocab": {"a": 0, "b": 2}, "type": "WordLevel", "unk_token": "a"}
    folder = write(tmp_path, {"tokenizer.json": {"model": model}})
    write(folder, {"tokenizer_config.json": {"mask_token": "<mask>"}})
    with pytest.raises(BadInput, match=r"'<mask>' gets the id 2, which another token has"):
        tokenizer.load(folder)
