"""Checkpoints: what is restored is what was saved, and what is kept is what should be.

Every kind of damage in every file of one is tried in tests/laws/test_damage.py.
"""

import errno
import json
import pathlib
import resource
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common import tree
from common.errors import BadInput
from common.laws.measure import flip
from common.runs import checkpoint, saves
from common.runs.history import best_steps, parse_best
from common.training.initialise import adopted, initialise

RULE = saves.Policy(every=1, keep_latest=3, keep_best=1, best=None)


def state(seed: int) -> dict:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "step": jnp.uint32(seed),
        "params": {
            "a": {"kernel": jax.random.normal(keys[0], (16, 8)), "bias": jnp.zeros(8)},
            "b": {"kernel": jax.random.normal(keys[1], (8, 4)).astype(jnp.bfloat16)},
        },
        "opt_state": ({"mu": jax.random.normal(keys[2], (5,))}, ()),
    }


def like(of=None):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), of or state(0)
    )


def saved(folder, steps=(1, 2), rule=RULE, history=list):
    checkpoints = checkpoint.Checkpoints(folder, rule, history)
    for step in steps:
        checkpoints.save(step, state(step))
    checkpoints.close()


def restore(folder, step=None, of=None):
    checkpoints = checkpoint.Checkpoints(folder, RULE)
    try:
        return checkpoints.restore(like(of), step)
    finally:
        checkpoints.close()


def test_what_is_restored_is_what_was_saved(tmp_path):
    saved(tmp_path)
    for wanted, step in ((None, 2), (1, 1)):
        found, at = restore(tmp_path, wanted)
        assert at == step
        assert tree.hexdigest(found) == tree.hexdigest(state(step))


def of_run(folder, run: dict, step: int | None = None):
    """What is restored for a run that says so of itself."""
    checkpoints = checkpoint.Checkpoints(folder, RULE, run=run)
    try:
        return checkpoints.restore(like(), step)
    finally:
        checkpoints.close()


def save_as(folder, run: dict, *steps: int) -> None:
    checkpoints = checkpoint.Checkpoints(folder, RULE, run=run)
    for step in steps:
        checkpoints.save(step, state(step))
    checkpoints.close()


def test_a_checkpoint_of_another_run_is_damage(tmp_path, caplog):
    own, other = {"seed": 0, "hidden": (1, 2)}, {"seed": 7, "hidden": (1, 2)}
    save_as(tmp_path / "own", own, 1, 2)
    save_as(tmp_path / "other", other, 2)
    shutil.rmtree(tmp_path / "own/checkpoints/2")
    shutil.copytree(tmp_path / "other/checkpoints/2", tmp_path / "own/checkpoints/2")
    with pytest.raises(BadInput, match="damaged: it is of another run: seed is 7 there and 0 here"):
        of_run(tmp_path / "own", own, 2)
    assert of_run(tmp_path / "own", own)[1] == 1
    assert "seed is 7 there and 0 here" in caplog.text
    assert (tmp_path / "own/damaged_checkpoint_2").exists()


def test_keys_that_only_one_version_knows_are_not_compared(tmp_path):
    save_as(tmp_path, {"seed": 0, "old": 1}, 1)
    assert of_run(tmp_path, {"seed": 0, "new": 2})[1] == 1
    assert of_run(tmp_path, {})[1] == 1


@pytest.mark.parametrize("older", [False, True])
def test_a_checkpoint_that_was_renamed_is_damage(tmp_path, monkeypatch, older):
    if older:  # its record is that of the tensors alone
        monkeypatch.setattr(checkpoint, "to_json", lambda record: record.tensors)
    saved(tmp_path)
    (tmp_path / "checkpoints/2").rename(tmp_path / "checkpoints/9")
    with pytest.raises(BadInput, match="damaged: .*that of step 2"):
        restore(tmp_path, 9)
    assert restore(tmp_path)[1] == 1


def test_a_fifo_in_the_place_of_a_file_is_damage(tmp_path):
    saved(tmp_path)
    path = tmp_path / "checkpoints/2/state/manifest.ocdbt"
    path.unlink()
    checkpoint.os.mkfifo(path)
    with pytest.raises(BadInput, match=r"damaged: manifest.ocdbt is not a file"):
        restore(tmp_path, 2)


JUNK = b"[" * 100_000, b"[]", b"7", b'"x"', b'{"commit_timestamp_nsecs": 1%s}' % (b"0" * 40)


@pytest.mark.parametrize("junk", JUNK)
def test_metadata_that_orbax_cannot_pass_over_are_damage(tmp_path, junk):
    saved(tmp_path)
    (tmp_path / "checkpoints/1/_CHECKPOINT_METADATA").write_bytes(junk)
    assert restore(tmp_path)[1] == 2
    assert (tmp_path / "damaged_checkpoint_1").exists()
    saved(tmp_path, steps=(3,))
    assert checkpoint.steps_in(tmp_path) == [2, 3]


def test_what_was_to_be_deleted_is_not_a_checkpoint(tmp_path):
    left = tmp_path / "checkpoints" / checkpoint.DELETED / "1"
    saved(tmp_path, steps=(1, 2, 3, 4, 5))
    assert not left.parent.exists()
    shutil.copytree(tmp_path / "checkpoints/3", left)  # of a process that was killed meanwhile
    assert checkpoint.steps_in(tmp_path) == [3, 4, 5]
    assert restore(tmp_path)[1] == 5
    assert not left.parent.exists()


def test_no_checkpoint_is_none(tmp_path):
    assert restore(tmp_path) is None
    assert checkpoint.Checkpoints(tmp_path / "nowhere").steps() == []
    assert not (tmp_path / "nowhere").exists()


def test_after_a_fallback_the_damaged_step_can_be_saved_again(tmp_path, caplog):
    saved(tmp_path)
    for file in (tmp_path / "checkpoints/2/state/d").iterdir():
        flip(file, file.stat().st_size // 2)
    checkpoints = checkpoint.Checkpoints(tmp_path, RULE)
    _, step = checkpoints.restore(like())
    assert step == 1
    assert "checkpoint 2 is damaged" in caplog.text
    checkpoints.save(2, state(2))
    checkpoints.close()
    assert restore(tmp_path)[1] == 2
    assert (tmp_path / "damaged_checkpoint_2").is_dir()


def test_a_damaged_step_that_was_asked_for_is_an_error(tmp_path):
    saved(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/2/state/d")
    with pytest.raises(BadInput, match="step 2 is damaged"):
        restore(tmp_path, 2)
    with pytest.raises(BadInput, match=r"no checkpoint of step 7 .* \[1, 2\]"):
        restore(tmp_path, 7)


def test_reading_only_moves_nothing(tmp_path):
    saved(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/2/state/d")
    (tmp_path / "checkpoints/3.orbax-checkpoint-tmp").mkdir()
    contents = lambda: {p: p.stat().st_mtime_ns for p in sorted(tmp_path.rglob("*"))}
    before = contents()
    reader = checkpoint.Checkpoints(tmp_path)
    assert reader.steps() == [1, 2]
    assert reader.restore(like())[1] == 1
    reader.close()
    assert contents() == before


def test_what_a_crash_left_half_written_is_no_checkpoint_and_is_cleared_away(tmp_path):
    saved(tmp_path)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "2", folder / "9.orbax-checkpoint-tmp")
    assert restore(tmp_path)[1] == 2
    saved(tmp_path, (3,))
    assert sorted(p.name for p in folder.iterdir()) == ["1", "2", "3"]


def test_a_reader_finds_what_a_living_run_saves_and_deletes_meanwhile(tmp_path, monkeypatch):
    saved(tmp_path, (1,))
    reader = checkpoint.Checkpoints(tmp_path)
    read = reader._records.restore

    def late(folder):
        if folder.parent.name == "1":
            saved(tmp_path, (2,))
            shutil.rmtree(tmp_path / "checkpoints/1")
        return read(folder)

    monkeypatch.setattr(reader._records, "restore", late)
    found, step = reader.restore(like())
    assert (step, tree.hexdigest(found)) == (2, tree.hexdigest(state(2)))
    reader.close()


def test_all_damaged_is_an_error(tmp_path):
    saved(tmp_path)
    for step in (1, 2):
        shutil.rmtree(tmp_path / f"checkpoints/{step}/digests")
    for _ in range(2):  # and stays one: nothing is moved, so nothing begins from scratch
        with pytest.raises(BadInput, match="all checkpoints"):
            restore(tmp_path)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (PermissionError("not yours"), BadInput),
        (OSError(errno.EMFILE, "too many open files"), BadInput),
        (ValueError("UNAVAILABLE: the store is away"), BadInput),
        (MemoryError(), MemoryError),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), None),
    ],
)
def test_what_cannot_be_read_now_is_not_damage(tmp_path, monkeypatch, error, raised):
    saved(tmp_path)

    def refuse(*args, **kwargs):
        raise error

    checkpoints = checkpoint.Checkpoints(tmp_path, RULE)
    monkeypatch.setattr(checkpoints._states, "restore", refuse)
    with pytest.raises(
        raised or type(error), match="cannot be read" if raised is BadInput else None
    ):
        checkpoints.restore(like())
    assert checkpoints.steps() == [1, 2]


def test_a_save_that_is_refused_is_an_error_and_no_checkpoint(tmp_path):
    """A limit on the size of files, which any process may set itself, is as good as a full disk."""
    saved(tmp_path)
    large = {"step": jnp.uint32(3), "x": jax.random.normal(jax.random.key(0), (300, 300))}
    checkpoints = checkpoint.Checkpoints(tmp_path, RULE)

    def save_and_wait():
        checkpoints.save(3, large)
        checkpoints.wait()

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            save_and_wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refused.value.errno == errno.EFBIG
    assert refused.value.filename == str(tmp_path / "checkpoints")
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()
    saved(tmp_path, (3,))
    assert restore(tmp_path)[1] == 3


def test_a_workdir_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved("run")
    assert restore("run")[1] == 2
    params = jax.device_get(state(0)["params"])
    found, _ = initialise(params, {}, path="run")
    assert tree.hexdigest(found) == tree.hexdigest(state(2)["params"])


def test_another_model_is_an_error_that_lists_the_differences(tmp_path):
    saved(tmp_path)
    other = state(0)
    other["params"]["a"]["kernel"] = jnp.zeros((16, 9))
    other["params"]["c"] = jnp.zeros(2)
    other["params"]["b"]["kernel"] = other["params"]["b"]["kernel"].astype(jnp.float32)
    with pytest.raises(BadInput) as error:
        restore(tmp_path, of=other)
    for part in (
        "params/c is not in the checkpoint",
        "params/a/kernel is float32[16, 8] there and float32[16, 9] here",
        "params/b/kernel is bfloat16[8, 4] there and float32[8, 4] here",
    ):
        assert part in str(error.value)
    assert (tmp_path / "checkpoints/2").is_dir()


def test_latest_and_best_are_kept(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.1, 5: 0.2, 6: None}
    history = [{"step": s, "eval/v/accuracy": v} for s, v in scores.items()]
    best = parse_best("x", "max eval/v/accuracy")
    rule = saves.Policy(1, keep_latest=2, keep_best=2, best=best)
    saved(tmp_path, scores, rule, lambda: history)
    assert checkpoint.Checkpoints(tmp_path).steps() == [2, 3, 5, 6]
    assert best_steps(best, history) == [2, 3, 1, 5, 4]
    low = parse_best("x", "min eval/v/accuracy")
    assert best_steps(low, history)[0] == 4
    with pytest.raises(BadInput, match="write 'max"):
        parse_best("here", "eval/v/accuracy")


def test_a_checkpoint_restores_on_another_mesh(tmp_path):
    from common.devices import mesh

    table = ((r"a/kernel", ("embed", "mlp")), (r"b/kernel", (None, "mlp")))
    params = state(1)["params"]

    def placed(**sizes):
        return mesh.shardings(mesh.make_layout(**sizes), table, params)

    checkpoints = checkpoint.Checkpoints(tmp_path, RULE)
    checkpoints.save(1, {"params": jax.device_put(params, placed(data=2, fsdp=2, tensor=2))})
    for sizes in ({"data": 8}, {"fsdp": 8, "data": 1}, {"tensor": 4, "data": 2}):
        shapes = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, placed(**sizes)
        )
        found, _ = checkpoints.restore({"params": shapes})
        assert tree.hexdigest(found["params"]) == tree.hexdigest(params)
        kernel = found["params"]["a"]["kernel"]
        assert kernel.sharding == placed(**sizes)["a"]["kernel"]
    checkpoints.close()


# ---------------------------------------------------------------------------- beginning from a run


def test_parameters_of_another_run(tmp_path):
    saved(tmp_path)
    theirs = jax.device_get(state(2)["params"])
    fresh = jax.tree.map(np.zeros_like, theirs)
    found, _ = initialise(fresh, {}, path=str(tmp_path))
    assert tree.hexdigest(found) == tree.hexdigest(theirs)
    found, _ = initialise(fresh, {}, path=str(tmp_path), step=1, skip=("b/.*",))
    assert tree.hexdigest(found["a"]) == tree.hexdigest(state(1)["params"]["a"])
    assert not found["b"]["kernel"].any()
    renamed = {"new": fresh["a"], "b": fresh["b"]}
    rename = ((r"new/(.*)", r"a/\1"),)
    found, _ = initialise(renamed, {}, path=str(tmp_path), rename=rename)
    assert tree.hexdigest(found["new"]) == tree.hexdigest(theirs["a"])


def test_statistics_come_with_the_parameters(tmp_path):
    statistics = {"batch_stats": {"norm": {"mean": np.arange(4.0), "var": np.ones(4)}}}
    params = {"norm": {"scale": np.full(4, 3.0)}}
    checkpoints = checkpoint.Checkpoints(tmp_path, RULE)
    checkpoints.save(1, jax.device_put({"params": params, "extra": statistics}))
    checkpoints.close()
    fresh = jax.tree.map(np.zeros_like, jax.device_get(jax.device_put((params, statistics))))
    found = initialise(*fresh, path=str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, found, (params, statistics))
    alone = lambda path: {"norm": {"scale": np.full(4, 5.0)}}
    (_, kept) = initialise(params, statistics, alone, path=str(tmp_path / "file"))
    jax.tree.map(np.testing.assert_array_equal, kept, statistics)  # there are none: they stay
    found = initialise(*fresh, path=str(tmp_path), skip=("norm/var",))
    assert not found[1]["batch_stats"]["norm"]["var"].any()
    np.testing.assert_array_equal(found[1]["batch_stats"]["norm"]["mean"], np.arange(4.0))


def test_another_run_is_of_the_same_model(tmp_path):
    """Shapes do not tell the number of heads."""
    saved(tmp_path)
    theirs = {"module": "lm.bert:Bert", "width": 32, "heads": 4, "kv_heads": None, "dropout": 0.1}
    (tmp_path / "config.json").write_text(json.dumps({"task": "lm.mlm", "model": theirs}))
    fresh = jax.device_get(state(2)["params"])
    begin = partial(initialise, fresh, {}, None, None, path=str(tmp_path))
    begin(model=theirs)
    begin(model=theirs | {"kv_heads": 4, "dropout": 0.0, "module": "lm.bert:Classifier"})
    with pytest.raises(BadInput, match="heads = 4 there and 2 here; set --config.model.heads=4,"):
        begin(model=theirs | {"heads": 2, "kv_heads": 4})
    begin(model=theirs | {"heads": 2, "kv_heads": 4}, allow=("heads",))
    config = {"task": "x", "model": theirs | {"heads": 2}}
    config["init"] = {"path": str(tmp_path), "adopt": True}
    assert adopted(config, None)["model"]["heads"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"skip": ("a/.*",)}, "the path is not set"),
        ({"path": "HERE", "skip": ("nothing",)}, "matches no parameter"),
        ({"path": "HERE", "rename": (("b/kernel", "x"),)}, "x is not in the checkpoint"),
        ({"path": "HERE", "step": 9}, "no checkpoint of step 9"),
        ({"path": "HERE/nowhere"}, "no checkpoint in"),
    ],
)
def test_what_cannot_be_taken_is_said(tmp_path, arguments, message):
    saved(tmp_path)
    arguments = arguments | {"path": arguments.get("path", "").replace("HERE", str(tmp_path))}
    with pytest.raises(BadInput, match=message):
        initialise(jax.device_get(state(0)["params"]), {}, **arguments)


def test_the_saved_step_is_a_folder_that_orbax_reads(tmp_path):
    saved(tmp_path)
    assert pathlib.Path(tmp_path, "checkpoints/2/_CHECKPOINT_METADATA").exists()
