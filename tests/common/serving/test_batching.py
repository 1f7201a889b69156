"""Batches of many clients' rows: each answer is its own, and there are few programs."""

import threading

import exports
import numpy as np
import pytest
import served

from common import predict
from common.errors import BadInput
from common.serving import batching


def batcher(made, **settings) -> batching.Batcher:
    return batching.Batcher(made, served.options(), **settings)


def submit(queue, text: str):
    rows = served.read(text, {})
    finish = lambda outputs: served.result(text, rows, outputs, {})
    return queue.submit([queue.fitted(row) for row in rows], finish)


def test_answers_are_their_own_whatever_comes_together():
    made, batches = served.loaded()
    queue = batcher(made, batch=8, latency=0.0)
    rng = np.random.default_rng(0)
    texts = [
        "|".join("".join(map(chr, rng.integers(48, 120, rng.integers(1, 99)))) for _ in range(n))
        for n in rng.integers(1, 4, 300)
    ]
    futures = {}

    def client(first: int) -> None:
        for text in texts[first::4]:
            futures[text] = submit(queue, text)

    threads = [threading.Thread(target=client, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    queue.run(lambda: not any(thread.is_alive() for thread in threads))
    queue.close()
    assert len(futures) == len(set(texts)) > 290
    for text, future in futures.items():
        assert future.result(0) == served.expected(text)
    assert {len(rows) for rows in batches} <= {1, 2, 4, 8}
    assert sum(map(len, batches)) == sum(text.count("|") + 1 for text in texts)


def test_every_row_has_a_shape_that_is_compiled():
    made, batches = served.loaded()
    queue = batcher(made, batch=4)
    steps = list(queue.compile())
    assert steps[0] == (0, 15)  # 8, 16, 32, 64 and 100; 1, 2 and 4 rows
    assert steps[-1] == (15, 15)
    compiled = {(len(rows), rows[0]["tokens"].shape) for rows in batches}
    assert len({shape for _, shape in compiled}) == 5
    for length in range(1, 101):
        row = queue.fitted({"tokens": np.zeros(length, np.int32)})
        assert (1, row["tokens"].shape) in compiled
    with pytest.raises(BadInput, match="101 positions, and the server takes 100"):
        queue.fitted({"tokens": np.zeros(101, np.int32)})


def test_what_is_short_beside_a_long_text_stays_short():
    """The places of masks: they are padded as the text is, or to the least."""
    read = lambda text, options: [
        {"tokens": np.zeros(len(text), np.int32), "picked": np.zeros(text.count("["), np.int32)}
    ]
    predictor = served.TEXTS._replace(read=read, pads={"tokens": 0, "picked": 0}, longest=32)
    compiled = {
        (len(row["tokens"]), len(row["picked"])) for row in batching.shapes(predictor, {}, 32)
    }
    assert compiled == {(8, 8), (16, 8), (16, 16), (32, 8), (32, 32)}
    for text in ("[" * 9 + "a" * 4, "[" + "a" * 19, "[" * 20):
        (row,) = read(text, {})
        row = batching.fitted(predictor, row, 32)
        assert (len(row["tokens"]), len(row["picked"])) in compiled


@pytest.mark.parametrize(
    ("times", "tried", "size"),
    [
        ([9.1, 6.8, 5.3, 4.5, 4.25, 3.93, 4.0], 7, 16),  # short texts: from 1 to 64
        ([39.8, 35.9, 34.2, 34.9, 35.9], 4, 2),  # long ones
        ([1.0, 2.0, 3.0, 0.1], 3, 1),
        ([8.0, 4.0, 2.0, 1.0], 4, 8),
        ([1.0], 1, 1),
    ],
)
def test_batches_are_as_large_as_pays(times, tried, size):
    seen = {}
    for i, seconds in enumerate(times):
        seen[2**i] = seconds
        if not batching.gains(seen):
            break
    assert len(seen) == tried
    assert batching.worthwhile(seen) == size


def test_a_row_waits_for_others_until_a_batch_is_full():
    made, batches = served.loaded()
    queue = batcher(made, batch=4, latency=1e9)
    done = threading.Event()
    thread = threading.Thread(target=queue.run, args=(done.is_set,))
    thread.start()
    first = [submit(queue, text) for text in ("ab", "cd", "ef")]
    second = submit(queue, "a text of another length")
    assert not any(future.done() for future in first)
    last = submit(queue, "gh")
    assert last.result(10) == served.expected("gh")
    assert [len(rows) for rows in batches] == [4]
    assert not second.done()
    done.set()  # whatever waits is answered at once
    assert second.result(10) == served.expected("a text of another length")
    thread.join()
    queue.close()


def test_those_who_have_waited_longest_come_first():
    made, batches = served.loaded()
    queue = batcher(made, batch=2, latency=0.0)
    old = submit(queue, "a text that is alone with its length")
    for text in ("ab", "cd", "ef"):
        submit(queue, text)
    queue.run(lambda: True)
    queue.close()
    assert old.done()
    assert [len(rows) for rows in batches] == [1, 2, 1]
    assert len(batches[0][0]["tokens"]) == 64


def test_what_nobody_waits_for_is_not_computed():
    made, batches = served.loaded()
    queue = batcher(made)
    gone, kept = submit(queue, "gone|gone"), submit(queue, "kept")
    assert gone.cancel()
    queue.run(lambda: True)
    queue.close()
    assert kept.result(0) == served.expected("kept")
    assert sum(map(len, batches)) == 1
    assert queue.waiting() == 0


def test_a_batch_that_fails_takes_no_other_with_it():
    def before(rows):
        if len(rows[0]["tokens"]) == 16:
            raise RuntimeError("out of memory")

    made, _ = served.loaded(before=before)
    queue = batcher(made)
    bad, good = submit(queue, "a text of sixteen"[:16]), submit(queue, "short")
    partly = submit(queue, "short|a text of sixteen"[:22])
    queue.run(lambda: True)
    queue.close()
    assert good.result(0) == served.expected("short")
    for future in (bad, partly):
        assert "out of memory" in str(future.exception(0))


def test_batches_are_divided_among_devices():
    made, batches = served.loaded(ways=3)
    queue = batcher(made, batch=4)
    assert queue.sizes() == [3, 6, 12]
    futures = [submit(queue, text) for text in ("a", "b", "c", "d", "e", "f", "g")]
    queue.run(lambda: True)
    queue.close()
    assert [len(rows) for rows in batches] == [6, 1]
    for text, future in zip("abcdefg", futures, strict=True):
        assert future.result(0) == served.expected(text)


TRIED = {
    "mlm": ["[MASK]", "one [MASK]", "one two " * 4 + "[MASK]", "[MASK] " * 12],
    "gpt": ["", "one two three", "seven " * 9],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
def test_models_answer_as_alone_with_what_was_compiled(name, tmp_path, compiled_in_haste):
    made = predict.load(exports.begun(name, tmp_path))
    shapes = []

    def outputs(rows, index, size, options):
        shapes.append((size, *sorted((k, x.shape) for k, x in rows[0].items())))
        return made.outputs(rows, index, size, options)

    settings = {"tokens": 4, "greedy": True} if name == "gpt" else {"top": 2}
    options, predictor = predict.options_of(made.predictor, settings), made.predictor
    queue = batching.Batcher(made._replace(outputs=outputs), options, batch=1)
    list(queue.compile())
    compiled, futures = set(shapes), []
    for text in TRIED[name]:
        rows = predictor.read(text, options)
        finish = lambda outputs, text=text, rows=rows: predictor.result(
            text, rows, outputs, options
        )
        futures.append(queue.submit([queue.fitted(row) for row in rows], finish))
    shapes.clear()
    queue.run(lambda: True)
    queue.close()
    assert set(shapes) <= compiled
    for text, future in zip(TRIED[name], futures, strict=True):
        assert_close(future.result(0), made.predict([text], **settings)[0])


def assert_close(a, b) -> None:
    """Two results say the same, numbers within 1e-5."""
    if isinstance(b, dict):
        assert a.keys() == b.keys()
        b, a = list(b.values()), list(a.values())
    if isinstance(b, list):
        assert len(a) == len(b)
        for pair in zip(a, b, strict=True):
            assert_close(*pair)
    elif isinstance(b, float):
        assert a == pytest.approx(b, abs=1e-5)
    else:
        assert a == b
