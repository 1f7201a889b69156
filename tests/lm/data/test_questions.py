"""Questions: windows that lose nothing, answers at their tokens, and files of them."""

import itertools
import json
import logging
import random

import corpus
import numpy as np
import pytest

from common.errors import BadInput
from lm.data import questions, squad

SMALL = {"length": 32, "stride": 8, "question_length": 6}


@pytest.fixture(scope="module")
def wordpiece(tmp_path_factory):
    return corpus.tokenizer(tmp_path_factory.mktemp("questions"), "wordpiece", 300)


def load(name: str, tokenizer: str, split: str = "mine", **sizes):
    sizes = SMALL | sizes
    return questions.load_sources({"all": split}, name=name, tokenizer=tokenizer, **sizes)["all"]


def write(path, *entries) -> str:
    path.write_text("".join(json.dumps({"split": "mine"} | e) + "\n" for e in entries))
    return f"file:{path}"


def entry(context: str, *answers: str, **more) -> dict:
    placed = {"text": [*answers], "answer_start": [context.index(answer) for answer in answers]}
    return {"question": "what is the union", "context": context, "answers": placed} | more


def every(source) -> dict:
    return source.read(np.arange(source.size))


def test_windows_lose_no_token_and_overlap():
    rng = random.Random(0)
    for _ in range(500):
        room = rng.randint(1, 30)
        tokens, stride = rng.randint(1, 100), rng.randint(1, room)
        made = questions.windows(tokens, room, stride)
        assert made[0][0] == 0
        assert made[-1][1] == tokens
        assert all(0 < end - begin <= room for begin, end in made)
        assert all(b[0] - a[0] == stride <= a[1] - a[0] for a, b in itertools.pairwise(made))
        assert len(made) == 1 or made[-2][1] < tokens  # and none is in vain


@pytest.mark.parametrize("length", [24, 32, 200])
def test_every_window_that_holds_an_answer_has_it(tmp_path, wordpiece, length):
    rng, entries = random.Random(1), []
    for i in range(20):
        context = corpus.text(rng, rng.randint(1, 8))
        words = context.split()
        at = rng.randrange(len(words))
        answer = " ".join(words[at : at + rng.randint(1, 3)])
        start = len(" ".join(words[:at])) + (at > 0)
        placed = {"text": [answer], "answer_start": [start]}
        entries.append(entry(context, id=i) | {"answers": placed})
    source = load(write(tmp_path / "a.jsonl", *entries), wordpiece, length=length)
    rows, facts = every(source), source.facts
    tokenizer, held = facts.text.tokenizer, set()
    for row in range(source.size):
        question = facts.questions[facts.question[row]]
        begin, end = rows["context"][row]
        tokens = rows["tokens"][row].tolist()
        encoded = tokenizer.encode(question.context, add_special_tokens=False)
        first = facts.first[row]
        assert tokens[begin:end] == encoded.ids[first : first + end - begin]
        asking = tokenizer.encode(question.text, add_special_tokens=False).ids[:6]
        assert tokens[:begin] == [2, *asking, 3]
        assert tokens[end] == 3
        assert rows["types"][row].tolist() == [0] * begin + [1] * (end + 1 - begin) + [0] * (
            length - end - 1
        )
        assert rows["segments"][row].sum() == end + 1
        start, last = rows["span"][row]
        ((answer, at),) = question.answers
        inside = [i for i, (a, b) in enumerate(encoded.offsets) if a < at + len(answer) and b > at]
        within = first <= inside[0] and inside[-1] < first + end - begin
        expected = [begin + i - first for i in (inside[0], inside[-1])] if within else [0, 0]
        assert [start, last] == expected
        held |= {int(facts.question[row])} if within else set()
        characters = facts.characters[facts.question[row]]
        assert question.context[characters[inside[0]][0] : characters[inside[-1]][1]] == answer
    assert len(held) >= 18  # an answer may be longer than two windows share


def test_neighbours_of_an_answer_are_not_of_it():
    characters = np.array([[0, 1], [1, 4], [4, 5], [6, 8]], np.int32)
    assert questions.covered(characters, 1, 4) == (1, 1)
    assert questions.covered(characters, 3, 7) == (1, 3)
    assert questions.covered(characters, 5, 6) is None


def squad_file(path, **changes) -> str:
    """A file like SQuAD 2.0's, of one article."""
    context = " The people of the union ."
    qas = [
        {"id": "a", "question": "who", "answers": [{"text": "people", "answer_start": 5}] * 2},
        {"id": "b", "question": "what", "answers": [], "is_impossible": True},
    ]
    qas[0] |= changes
    article = {"title": "Union", "paragraphs": [{"context": context, "qas": qas}]}
    path.write_text(json.dumps({"version": "v2.0", "data": [article]}))
    return f"folder:{path.parent}"


def test_squad_as_it_is_distributed(tmp_path, wordpiece):
    name = squad_file(tmp_path / "train-v2.0.json")
    source = load(name, wordpiece, split="train")
    assert [question.id for question in source.facts.questions] == ["a", "b"]
    assert source.facts.unanswerable
    rows, token = every(source), source.facts.text.tokenizer.token_to_id
    start, last = rows["span"][0]
    assert start == last
    assert rows["tokens"][0, start] == token("people")
    assert rows["span"][1].tolist() == [0, 0]
    # Answers are part of what a set is, though only the first has tokens.
    changed = {"answers": [{"text": text, "answer_start": at} for text, at in
                           (("people", 5), ("The people", 1))]}  # fmt: skip
    again = load(squad_file(tmp_path / "train-v2.0.json", **changed), wordpiece, split="train")
    assert again.fingerprint != source.fingerprint
    np.testing.assert_array_equal(every(again)["tokens"], rows["tokens"])


def test_an_answer_at_another_place_is_put_right_or_refused(tmp_path, caplog):
    context = "the war and the peace"
    placed = lambda text, start: {"text": [text], "answer_start": [start]}
    name = write(tmp_path / "a.jsonl", entry(context) | {"answers": placed("peace", 3)})
    with caplog.at_level(logging.WARNING):
        (question,) = squad.read(name)
    assert question.answers == (("peace", 16),)
    assert "answer_start put right, as its text occurs once in the context (once)" in caplog.text
    for text, start, why in (("the", 3, "more than once"), ("Peace", 16, "does not occur")):
        name = write(
            tmp_path / "a.jsonl", entry(context, id="x") | {"answers": placed(text, start)}
        )
        message = rf"line 1: question 'x': its answer '{text}' is not at character {start} .*{why}"
        with pytest.raises(BadInput, match=message):
            squad.read(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": []}, r"qas\[0\]: question 'a' has no answers"),
        ({"is_impossible": True}, r"qas\[0\]: question 'a': is_impossible is True, and it has 2"),
        ({"answers": [], "is_impossible": False}, "is_impossible is False, and it has 0 answers"),
        ({"question": None}, r"question 'a': 'question' is null, not a string"),
        ({"answers": [{"text": "people"}]}, "answer_start is None, not a whole number"),
        ({"answers": [{"text": " ", "answer_start": 0}]}, "an answer is empty"),
        ({"answers": ["people"]}, "an answer is a string, not an object"),
    ],
)
def test_what_is_no_question_is_named(tmp_path, wordpiece, changes, message):
    name = squad_file(tmp_path / "train.json", **changes)
    match = rf"^config\.data\.name: .*train\.json, data\[0\]\.paragraphs\[0\]\..*{message}"
    with pytest.raises(BadInput, match=match) as error:
        load(name, wordpiece, split="train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not like SQuAD's"),
        ('{"data": 3}', "data is 3, not a list"),
        ('{"data": ["a"]}', r"data\[0\]: paragraphs is missing"),
        ('{"a": 1}\n{"a": 2}', "not JSON: .*; if it has an object a line, name it .jsonl"),
        ('{"data": []}', "has no questions"),
    ],
)
def test_a_json_that_is_not_squads_is_named(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadInput, match=rf"^config\.data\.name: .*a\.json.*{message}"):
        squad.read(f"file:{tmp_path / 'a.json'}")


def test_what_has_no_token_is_left_out(tmp_path, wordpiece, caplog):
    context = "the war \u200b and"
    entries = entry(context, "\u200b"), entry(context, "war"), entry("\u200b\u200b")
    with caplog.at_level(logging.WARNING):
        source = load(write(tmp_path / "a.jsonl", *entries), wordpiece)
    assert [question.answers for question in source.facts.questions] == [(("war", 4),)]
    assert "question left out, as no token is of its answer or context (2 times)" in caplog.text


def test_sizes_that_would_lose_tokens_are_refused(tmp_path, wordpiece):
    name = corpus.questions(tmp_path, 20)
    with pytest.raises(
        BadInput, match="stride: 24 would skip tokens: rows of 32 .* hold 23 tokens"
    ):
        load(name, wordpiece, stride=24)
    assert load(name, wordpiece, split="train[:5]", stride=23).facts.question[-1] == 4


def test_a_context_is_on_one_side(tmp_path, wordpiece):
    rng = random.Random(0)
    contexts = [corpus.text(rng, 2) for _ in range(30)]
    entries = [entry(context, question=f"q {i}") for i in range(3) for context in contexts]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in entries))
    parts = {}
    for question in squad.read(f"file:{path}"):
        parts.setdefault(question.context, set()).add(question.split)
    assert all(len(held) == 1 for held in parts.values())
    assert set.union(*parts.values()) == {"train", "valid", "test"}
