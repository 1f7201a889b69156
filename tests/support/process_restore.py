"""One process of several: saves, has its own part of the newest checkpoint damaged, and restores.

Prints what it found as one JSON object: see tests/laws/test_damage.py.
"""

import contextlib
import json
import pathlib
import sys

from common import tree
from common.devices import mesh, runtime
from common.errors import BadInput
from common.laws.measure import flip
from common.runs import checkpoint, saves, workdir

RULE = saves.Policy(every=1, keep_latest=3, keep_best=1, best=None)


def noting(own: list[str]):
    """`checkpoint.together`, noting what this very process ran into."""
    real = checkpoint.together

    @contextlib.contextmanager
    def together(*kinds):
        with real(*kinds):
            try:
                yield
            except Exception as error:
                own.append(type(error).__name__)
                raise

    return together


def refusal(function) -> str:
    """What `function` raises as `BadInput`."""
    try:
        function()
    except BadInput as error:
        return str(error)
    return ""


if __name__ == "__main__":
    folder, taken = map(pathlib.Path, sys.argv[1:])
    runtime.start(cache="none")
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    layout = mesh.make_layout(data=1, fsdp=jax.device_count())
    table = (("kernel", ("embed", None)),)
    host = {
        step: {"kernel": np.random.default_rng(step).normal(size=(1024, 256)).astype(np.float32)}
        for step in (1, 2)
    }
    places = mesh.shardings(layout, table, host[1])
    put = lambda x, place: jax.make_array_from_callback(x.shape, place, lambda i: x[i])
    like = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), host[1], places
    )
    found, own = {"process": jax.process_index(), "processes": jax.process_count()}, []
    checkpoint.together = noting(own)
    with jax.set_mesh(layout.mesh):
        found["taken"] = refusal(lambda: workdir.Lock(taken).__enter__())
        checkpoints = checkpoint.Checkpoints(folder, RULE)
        for step in (1, 2):
            checkpoints.save(step, jax.tree.map(put, host[step], places))
        checkpoints.wait()
        if jax.process_index() == 1:
            state = folder / "checkpoints/2/state"
            largest = max(
                (f for f in (state / "ocdbt.process_1").rglob("*") if f.is_file()),
                key=lambda f: f.stat().st_size,
            )
            flip(largest, largest.stat().st_size // 2)
        multihost_utils.sync_global_devices("damaged")
        restored, found["step"] = checkpoints.restore(like)
        found["own"] = list(own)
        found["same"] = tree.hexdigest(restored) == tree.hexdigest(
            jax.tree.map(put, host[found["step"]], places)
        )
        found["steps"] = checkpoints.steps()
        if jax.process_index() == 1:
            like = {"other": like["kernel"]}
        found["other"] = refusal(lambda: checkpoints.restore(like))
        checkpoints.close()
    print(json.dumps(found))
