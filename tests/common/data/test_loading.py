"""The order of rows: a permutation an epoch, random enough, the same everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.data import loading, order
from common.devices import mesh, processes
from common.errors import BadInput


@pytest.mark.parametrize(("batch_size", "size"), [(7, 10), (10, 7), (64, 1000), (3, 1), (5, 5)])
def test_every_epoch_is_a_permutation(batch_size, size):
    steps = 12 * size // batch_size + 2
    rows = np.concatenate([order.rows(5, s, batch_size, size) for s in range(steps)])
    for epoch in range(len(rows) // size):
        part = rows[epoch * size : (epoch + 1) * size]
        assert sorted(part) == list(range(size))


@pytest.mark.parametrize("step", [0, 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize(("batch_size", "size"), [(128, 60000), (4096, 2**31 - 1), (77, 33)])
def test_positions_divide_exactly_beyond_32_bits(step, batch_size, size):
    with np.errstate(over="ignore"):
        quotient, remainder = order._divide(np.uint32(step), batch_size, size, np)
    epoch, start = divmod(step * batch_size, size)
    assert (int(quotient), int(remainder)) == (epoch % 2**32, start)


@pytest.mark.parametrize(("batch_size", "size"), [(128, 60000), (64, 100), (300, 100)])
def test_host_and_device_agree(batch_size, size):
    traced = jax.jit(lambda seed, step: order.rows(seed, step, batch_size, size, jnp))
    for seed, step in [(0, 0), (2**32 - 1, 5), (1, 4_000_000_000)]:
        expected = order.rows(seed, step, batch_size, size)
        np.testing.assert_array_equal(expected, traced(np.uint32(seed), np.uint32(step)))


@pytest.mark.parametrize(("batch_size", "size"), [(128, 60000), (300, 100), (5000, 60000), (1, 7)])
def test_the_host_works_out_several_steps_at_once(batch_size, size):
    for seed in (0, 2**32 - 1):
        for step in (0, 1, 13, 31, 32, 33, 4095, 4096, 4_000_000_000, 2):
            expected = order.rows(seed, step, batch_size, size)
            found = order.rows_on_host(seed, step, batch_size, size)
            np.testing.assert_array_equal(found, expected)


def test_rows_are_known_from_their_positions():
    size, batch_size = 37, 16
    for step in (0, 3, 11):
        index = order.stream_index(step, batch_size)
        rows, epochs = jax.jit(lambda index: order.rows_at(5, index, size, jnp))(index)
        np.testing.assert_array_equal(rows, order.rows(5, step, batch_size, size))
        np.testing.assert_array_equal(epochs, index // size)
        np.testing.assert_array_equal(rows, order.rows_at(5, index, size)[0])


def classes_of(counts) -> np.ndarray:
    """Labels of a set with so many examples of each class, in some order."""
    labels = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return np.random.default_rng(0).permutation(labels)


@pytest.mark.parametrize("counts", [(1, 40, 7), (90, 0, 10), (5,)])
@pytest.mark.parametrize("batch_size", [7, 64])
def test_classes_are_drawn_equally_often_and_their_rows_evenly(counts, batch_size):
    labels, steps = classes_of(counts), 12
    balanced = order.by_class(labels)
    rows = np.concatenate([order.rows(5, s, batch_size, balanced) for s in range(steps)])
    present = np.flatnonzero(counts)
    drawn = labels[rows]
    whole = len(rows) // len(present) * len(present)
    assert (np.sort(drawn[:whole].reshape(-1, len(present))) == present).all()
    for number in present:  # each epoch of a class is a permutation of its rows
        own, size = rows[drawn == number], counts[number]
        for epoch in range(len(own) // size):
            part = own[epoch * size : (epoch + 1) * size]
            assert sorted(part) == np.flatnonzero(labels == number).tolist()
    if len(own) > 2 * size > 8:
        assert not np.array_equal(own[:size], own[size : 2 * size])


def test_balanced_rows_are_the_same_on_host_and_device_and_by_position():
    balanced = order.by_class(classes_of((1, 40, 7)))
    traced = jax.jit(lambda seed, step: order.rows(seed, step, 16, balanced, jnp))
    for seed, step in [(0, 0), (2**32 - 1, 5), (1, 4_000_000_000), (0, 3)]:
        expected = order.rows(seed, step, 16, balanced)
        np.testing.assert_array_equal(expected, traced(np.uint32(seed), np.uint32(step)))
        np.testing.assert_array_equal(expected, order.rows_on_host(seed, step, 16, balanced))
    at, epochs = order.rows_at(0, order.stream_index(3, 16), balanced)
    np.testing.assert_array_equal(at, expected)
    labels, block = classes_of((1, 40, 7))[expected], (3 * 16 + np.arange(16)) // 3
    np.testing.assert_array_equal(epochs, block // np.array([1, 40, 7])[labels])
    assert not np.array_equal(expected, order.rows(1, 3, 16, balanced))


def test_classes_of_one_size_have_orders_of_their_own():
    labels = np.repeat(np.int32([0, 1]), 50)
    rows = order.rows(0, 0, 100, order.by_class(labels)).astype(int)
    first, second = rows[labels[rows] == 0], rows[labels[rows] == 1] - 50
    assert (first == second).mean() < 0.2
    turns = labels[rows].reshape(-1, 2)[:, 0]  # which class a block begins with
    assert 10 < turns.sum() < 40


@pytest.mark.parametrize("labels", [[0, -1, 1], [0, 1], [0.5, 1, 1], [[0, 1]] * 3])
def test_only_rows_of_a_class_each_are_balanced(labels):
    source = loading.from_arrays({"x": np.zeros(3)})._replace(labels=lambda: np.array(labels))
    with pytest.raises(BadInput, match=r"sampling: 'balanced' is for sets"):
        loading.balanced(source)


def test_seeds_and_epochs_differ():
    first = order.rows(0, 0, 100, 100)
    assert not np.array_equal(first, order.rows(1, 0, 100, 100))
    assert not np.array_equal(first, order.rows(0, 1, 100, 100))


def test_the_shuffle_is_uniform():
    size, keys = 20, 1500
    rows = np.stack([order.rows(seed, 0, size, size) for seed in range(keys)]).astype(int)
    # Where each row lands, and where its neighbour lands relative to it: chi-squared over cells.
    places = np.stack([np.bincount(rows[:, i], minlength=size) for i in range(size)])
    expected = keys / size
    assert ((places - expected) ** 2 / expected).sum() / (size - 1) ** 2 < 1.25
    gaps = np.bincount((rows[:, 1] - rows[:, 0]) % size, minlength=size)[1:]
    expected = keys / (size - 1)
    assert ((gaps - expected) ** 2 / expected).sum() / (size - 2) < 2.0


def test_a_large_shuffle_has_no_serial_correlation():
    rows = order.rows(0, 0, 50_000, 50_000).astype(float)
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(len(rows)), rows)[0, 1]) < 0.02


def test_evaluation_batches_pad_the_last_one():
    source = loading.from_arrays({"x": np.arange(10.0)[:, None]})
    layout = mesh.make_layout(jax.devices()[:2])
    batches = [jax.device_get(b) for b in loading.eval_batches(source, 4, layout)]
    assert [b["valid"].tolist() for b in batches] == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
    assert np.concatenate([b["index"] for b in batches])[:10].tolist() == list(range(10))


def test_prefetch_keeps_order_and_loses_nothing():
    for depth in (1, 2, 5):
        assert list(loading.prefetch(iter(range(7)), depth)) == list(range(7))


def test_the_fingerprint_sees_bytes_names_and_shapes():
    x = np.zeros((4, 2), np.float32)
    prints = {
        loading.from_arrays(arrays).fingerprint
        for arrays in (
            {"x": x},
            {"y": x},
            {"x": x.reshape(4, 2, 1)},
            {"x": np.where(np.arange(8).reshape(4, 2) == 7, 1e-30, 0).astype(np.float32)},
        )
    }
    assert len(prints) == 4
    assert (
        loading.from_arrays({"x": x}).fingerprint
        == loading.from_arrays({"x": x.copy()}).fingerprint
    )


@pytest.mark.parametrize(
    ("error", "starts"),
    [
        (EOFError("Compressed file ended"), 1),  # of the data: reading them again does not help
        (RuntimeError("shapes differ"), 1),
        (RuntimeError("Worker process was terminated unexpectedly with exit code -9."), 4),
    ],
)
def test_only_a_worker_that_was_killed_is_replaced(monkeypatch, error, starts):
    begun = []

    def read_ahead(read, steps, workers):
        begun.append(steps.start)
        yield {"step": steps.start}
        raise error

    monkeypatch.setattr(loading, "_read_ahead", read_ahead)
    kind = type(error) if starts == 1 else processes.Lost
    with pytest.raises(kind):
        list(loading._outliving(None, range(9), 2))
    assert begun == list(range(starts))  # each goes on where the one before ended
