"""Check every law on a task, with hints on where to look if one is broken:

    python -m common.laws my.task
    python -m common.laws my_task.py --config.data.size=100
    python -m common.laws --config configs/vision/digits.py:mlp

A bare task, given by import path or file, runs with its functions' defaults. Override keys with
--config.KEY=VALUE. With only a CPU, eight devices are simulated (or JAX_NUM_CPU_DEVICES of them).
The exit code is 1 if a law is broken.
"""

import contextlib
import itertools
import logging
import math
import os
import pathlib
import sys
import sysconfig
import textwrap
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

import jax
import ml_collections

from common import cli, imports
from common.config import changed, flatten, overridden, plain
from common.devices import runtime
from common.errors import BadInput, require
from common.laws import checks, rows
from common.laws.measure import Broken, DoesNotApply
from common.training import program


class Law(NamedTuple):
    """A law, and where to look if it is broken."""

    check: Callable
    look: str


LAWS: dict[str, Law] = {
    "1 position is step": Law(
        checks.position_is_step,
        "`sources` and `prepare`: their output may depend only on the rows and the key",
    ),
    "2 resume is exact": Law(
        checks.resume_is_exact, "`init`, `prepare` and `loss`: anything outside the state is lost"
    ),
    "2 loop is the step": Law(
        checks.loop_ends_where_steps_do,
        "the evaluators: they must not change anything that training uses",
    ),
    "3 mesh": Law(
        lambda config: checks.mesh_changes_nothing(config, corners(jax.device_count())),
        "`loss` and the model: sums over all rows, `constrain` at block boundaries, and no use of "
        "the number of devices",
    ),
    "3 checkpoint fits": Law(
        lambda config: checks.checkpoint_fits_any_mesh(config, corners(jax.device_count())),
        "`init` and `partition`: the state's shapes must not depend on the devices",
    ),
    "3 rows independent": Law(
        rows.rows_are_independent,
        "`loss`: a term is (a sum over rows, the weight of that sum), both times `valid`; if rows "
        "mix (batch norm, a mean over the batch), set rows_independent=False",
    ),
    "3 accumulation": Law(
        checks.accumulation_changes_nothing,
        "`loss`: a term is (a sum over rows, the weight of that sum); if rows mix, set "
        "rows_independent=False",
    ),
    "4 means are exact": Law(
        checks.means_are_exact,
        "the evaluators and `loss`: sums times `valid`, randomness from `row_keys`, and weights "
        "that count rows, not parameters",
    ),
    "5 no dead knob": Law(
        checks.no_dead_knob, "the function of that section: use the argument, or remove it"
    ),
    "6 plain parameters": Law(
        checks.parameters_are_plain,
        "`init` and `partition`: nested dicts of arrays, every matrix in a row of the table",
    ),
    "8 damage is found": Law(
        checks.damage_is_found, "`init`: the state must be arrays that a checkpoint can save"
    ),
}


def meshes(devices: int) -> list[tuple[int, int, int]]:
    """Every mesh shape (data, fsdp, tensor) of all devices; for one device, just (1, 1, 1)."""
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    return [s for s in itertools.product(sizes, repeat=3) if math.prod(s) == devices]


def corners(devices: int) -> list[tuple[int, int, int]]:
    """The meshes split along one axis, and the one split most evenly along all."""
    shapes = meshes(devices)
    return list(dict.fromkeys([s for s in shapes if max(s) == devices] + [min(shapes, key=max)]))


# The settings for a bare task; its own sections take their functions' defaults.
SMALL = {
    "seed": 0,
    "optim": {"lr": 0.01},
    "train": {"batch_size": 32, "duration": "20 steps", "log_every": "1 steps"},
    "checkpoint": {"every": "5 steps"},
}


def bare(word: str, overrides: list[str]) -> ml_collections.ConfigDict:
    """The config of a bare task: 'my.task', or 'FILE.py', whose folder becomes importable."""
    if word.endswith(".py") or os.sep in word:
        file = pathlib.Path(word)
        require(file.is_file(), f"no such file: {word}; give a config as --config FILE")
        require(
            file.stem.isidentifier(),
            f"{word}: a task is imported by its file's name: rename {file.name!r} to letters, "
            "digits and '_'",
        )
        imports.search(file.resolve().parent)
        word = file.stem
    else:
        imports.search(*imports.here())
    return overridden(
        ml_collections.ConfigDict({"task": word, **SMALL}), overrides, program.sections
    )


def fitted(config, devices: int) -> tuple[dict, list[str]]:
    """The config with batches that divide over any mesh of `devices` devices, and the changes
    made."""
    config = config if isinstance(config, dict) else plain(config)
    flat, new = flatten(config), {"train.accumulate": 1}
    new |= {"mesh.data": -1, "mesh.fsdp": 1, "mesh.tensor": 1}
    ways = math.lcm(devices, 4)  # also into the parts of accumulation
    for key, size in flat.items():
        if key == "train.batch_size" or (key.startswith("evals.") and key.endswith(".batch_size")):
            new[key] = -(-size // ways) * ways
    notes = [f"{k}={v}" for k, v in new.items() if v != flat[k]]
    return changed(config, **new), notes


def check(law: Law, config: dict) -> tuple[str, str, str]:
    """(verdict, finding, where to look); any exception that a task raises counts as
    broken."""
    try:
        return "holds", law.check(config), ""
    except DoesNotApply as reason:
        return "does not apply", str(reason), ""
    except Broken as error:
        return "BROKEN", str(error), law.look
    except BadInput as error:  # it says itself where to look
        return "BROKEN", str(error), ""
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0]
        return "BROKEN", f"{type(error).__name__}: {first}", _place(error)


def _place(error: Exception) -> str:
    """'FILE:LINE, in FUNCTION' where an exception arose: the innermost frame outside libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    paths = sysconfig.get_paths()
    libraries = (*(paths[name] for name in ("stdlib", "purelib", "platlib")), "<")
    outside = [f for f in frames if not f.filename.startswith(libraries)]
    own = imports.own_frames(error) or outside or frames
    return f"{own[-1].filename}:{own[-1].lineno}, in {own[-1].name}"


def report(config: dict) -> int:
    """Checks every law, prints the findings, and returns how many laws are broken."""
    counts, shown = {"holds": 0, "BROKEN": 0, "does not apply": 0}, set()
    for name, law in LAWS.items():
        began = time.perf_counter()
        verdict, finding, look = check(law, config)
        seconds = time.perf_counter() - began
        counts[verdict] += 1
        known = (finding, look) in shown
        shown.add((finding, look))
        lines = ["as above"] if known else textwrap.wrap(finding, 84)
        lines[-1] += f" ({seconds:.1f} s)"
        lines += textwrap.wrap(f"look at {look}", 84) if look and not known else []
        print(f"{verdict:14}  {name:18}  " + f"\n{'':36}".join(lines), flush=True)
    tried = counts["holds"] + counts["BROKEN"]
    idle = len(LAWS) - tried
    print(f"{counts['holds']} of {tried} laws hold" + (f"; does not apply: {idle}" if idle else ""))
    return counts["BROKEN"]


def simulate_devices(count: int = 8) -> None:
    """Simulates `count` devices if there is only a CPU, unless the user has set a number or jax has
    started."""
    is_set = "JAX_NUM_CPU_DEVICES" in os.environ
    if not is_set and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)


def _in_haste() -> None:
    """Most of the time is compiling: on a CPU XLA takes its short way, and what several laws
    compile, such as a step on one device, is compiled once."""
    if jax.default_backend() == "cpu":
        jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def main(argv=None) -> int:
    """Checks every law on a task and prints a report; exit code 1 if one is broken."""
    words = list(sys.argv[1:] if argv is None else argv)
    require(bool(words), "name a task, my.task or FILE.py, or --config FILE.py[:ARG]")
    simulate_devices()
    if words[0].startswith("-"):
        parser = cli.parser(__doc__)
        cli.add_config(parser)
        _, config = cli.parse(parser, words)
    else:
        config = bare(words[0], words[1:])
    runtime.start()
    _in_haste()
    config, notes = fitted(config, jax.device_count())
    device = jax.devices()[0]
    print(f"{config['task']}, on {jax.device_count()} devices ({device.device_kind})")
    if notes:
        print(f"changed so that batches divide over them: {', '.join(notes)}")
    logging.disable(logging.WARNING)  # about deliberately damaged checkpoints, and the like
    try:
        return 1 if report(config) else 0
    finally:
        logging.disable(logging.NOTSET)
