"""What a config would take on devices that may not be here: memory, collectives, FLOPs and the
least time of a step, from the compiled step itself and abstract arrays alone.

    report = compiled.examine(config, "v5e:2x4")
    print(compiled.text(report))

The predicted time is a bound, not an estimate: the largest of what arithmetic, memory traffic and
network would take at the vendor's figures (Williams et al. 2009). Nothing runs that fast.
"""

import itertools
import json
import math
import re
import time
from typing import NamedTuple

import jax
import numpy as np

from common import tree
from common.config import call, changed
from common.data import loading
from common.devices import chips, mesh
from common.errors import BadInput
from common.nn import flops
from common.planning import hlo, topology
from common.planning.describe import local_bytes, spelled_bytes
from common.training import program
from common.training.program import Program

GIB = 2**30


class CostReport(NamedTuple):
    """What a compiled step takes, on one device unless said otherwise.

    Attributes:
      topology, chip, devices: what it was compiled for; `chip` is "" where it is simulated.
      mesh: {axis: devices}.
      batch_size: examples a step over all devices.
      parameters: of the model.
      memory: {what: bytes}: parameters, optimizer, average, data, working, program, total, limit
        (0 where it is not known).
      fits: whether `total` is below `limit`; True where the limit is not known.
      aliased_bytes: of the state that is updated in place.
      collectives: rows {kind, axes, times, bytes}, summed over the program; bytes sent in a step.
      kernels: {name: times a step} of what is called by name: cuDNN's attention, Pallas' kernels.
      model_flops: of the task's own count; None where it has none.
      flops: of matrix products and convolutions as traced, with what is computed again, over the
        devices.
      xla_flops: XLA's count, of all operations; a loop's body counts once.
      loops: that run more than once.
      traffic_bytes: to and from memory (`common.planning.hlo`).
      seconds: {"compute", "memory", "network"}: what each takes at the chip's figures; {} where the
        chip is not known.
      compile_seconds: here.
    """

    topology: str
    chip: str
    devices: int
    mesh: dict
    batch_size: int
    parameters: int
    memory: dict
    fits: bool
    aliased_bytes: int
    collectives: list
    kernels: dict
    model_flops: float | None
    flops: float
    xla_flops: float | None
    loops: int
    traffic_bytes: int
    seconds: dict
    compile_seconds: float


def outlined_program(config: dict, devices) -> Program:
    """The program of a config on these devices, with nothing on them.

    Raises:
      BadInput: for anything that the user can mend. Data are needed only by tasks that have no
        `outlined_program`.
    """
    layout = call(mesh.make_layout, config["mesh"], devices)
    module = program.task_module(config["task"])
    sources = getattr(module, "outline", module.sources)(config)
    return program.lay_out(config, layout, sources)


def arguments(made: Program) -> tuple:
    """Abstract (hypers, state, batch, resident) of a program's step."""
    whole, rows = mesh.replicated(made.layout), mesh.batch_sharding(made.layout)
    place = lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype, sharding=whole)
    everywhere = lambda values: jax.tree.map(place, values)
    batch = {}
    if not made.resident:
        batch = loading.batch_shapes(made.task.sources["train"], made.plan.batch_size, rows)
    return everywhere(made.hypers), made.like, batch, everywhere(made.resident)


def examine(config: dict, where: str) -> CostReport:
    """Compiles a config's step for a topology and reports what it takes.

    Args:
      config: completed, as nested dicts.
      where: a topology, see `common.planning.topology`.

    Raises:
      BadInput: for a config or topology that does not go.
    """
    devices, chip = topology.devices(where)
    made = outlined_program(config, devices)
    given = arguments(made)
    with jax.set_mesh(made.layout.mesh):
        lowered = made.step.trace(*given)
        counted = flops.traced(lowered.jaxpr.jaxpr)
        begun = time.perf_counter()
        try:
            built = lowered.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            return _too_large(made, where, chip, given, counted, error, time.perf_counter() - begun)
    took = time.perf_counter() - begun
    found = built.memory_analysis()
    module = hlo.parse(built.as_text())
    xla = (built.cost_analysis() or {}).get("flops")
    return _report(
        made,
        where,
        chip,
        given,
        counted,
        took,
        working=found.temp_size_in_bytes,
        code=found.generated_code_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        xla_flops=xla,
        module=module,
    )


def _too_large(made, where, chip, given, counted, error, took) -> CostReport:
    """The report of a program that the compiler refuses for its memory."""
    said = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", str(error))
    if said is None:
        raise error
    units = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    used = float(said[1]) * units[said[2]]
    state = sum(_state_bytes(made, given).values())
    return _report(made, where, chip, given, counted, took, working=max(used - state, 0))


def _state_bytes(made: Program, given: tuple) -> dict:
    hypers, like, batch, resident = given
    return {
        "parameters": local_bytes((like.params, like.extra)),
        "optimizer": local_bytes(like.opt_state),
        "average": local_bytes(like.average),
        "data": local_bytes((hypers, batch, resident)),
    }


def _report(
    made: Program,
    where: str,
    chip: chips.Chip | None,
    given: tuple,
    counted: float,
    took: float,
    *,
    working: float,
    code: int = 0,
    aliased: int = 0,
    xla_flops: float | None = None,
    module: hlo.Module | None = None,
) -> CostReport:
    shape = dict(made.layout.mesh.shape)
    count = math.prod(shape.values())
    memory = _state_bytes(made, given) | {"working": int(working), "program": code}
    memory["total"] = sum(memory.values())
    memory["limit"] = int(chip.memory_bytes) if chip else 0
    talk = hlo.collectives(module) if module else []
    rows: dict[tuple, list] = {}
    for one in talk:
        row = rows.setdefault((one.kind, hlo.axes_of(one.group, shape)), [0, 0.0])
        row[0] += one.times
        row[1] += one.sent()
    looped = hlo.loops(module) if module else 0
    traffic = hlo.memory_traffic(module) if module else 0
    each = counted / count
    seconds = {}
    if chip and module:
        # XLA sees what a mesh makes every device repeat; where it sees all of the program.
        most = max(each, xla_flops or 0) if not looped else each
        seconds = {
            "compute": most / chip.flops,
            "memory": traffic / chip.memory_bandwidth,
            "network": sum(one.sent() for one in talk) / chip.link_bandwidth,
        }
    per_example = made.task.flops
    return CostReport(
        topology=where,
        chip=chip.name if chip else "",
        devices=count,
        mesh=shape,
        batch_size=made.plan.batch_size,
        parameters=tree.count(made.like.params),
        memory=memory,
        fits=not memory["limit"] or (module is not None and memory["total"] < memory["limit"]),
        aliased_bytes=aliased,
        collectives=[
            {"kind": kind, "axes": axes, "times": times, "bytes": int(sent)}
            for (kind, axes), (times, sent) in sorted(rows.items())
        ],
        kernels=hlo.kernels(module) if module else {},
        model_flops=per_example and per_example * made.plan.batch_size / count,
        flops=each,
        xla_flops=xla_flops,
        loops=looped,
        traffic_bytes=traffic,
        seconds=seconds,
        compile_seconds=round(took, 1),
    )


def bound(report: CostReport) -> tuple[str, float]:
    """("compute", "memory" or "network", least seconds of a step); ("", nan) if not known."""
    if not report.seconds:
        return "", math.nan
    return max(report.seconds.items(), key=lambda item: item[1])


def report_text(report: CostReport) -> str:
    """A report to read."""
    chip = report.chip or "simulated CPU devices"
    axes = " x ".join(f"{axis} {n}" for axis, n in report.mesh.items() if n > 1) or "one device"
    lines = [
        f"{report.devices} devices ({chip}, {report.topology}): {axes}; "
        f"{report.batch_size} examples a step; {report.parameters:,} parameters; "
        f"compiled in {report.compile_seconds:.0f} s",
        "",
    ]
    names = {
        "data": "batch and data",
        "working": "activations and working memory",
        "program": "the program itself",
    }
    limit = report.memory["limit"]
    parts = [(names.get(k, k), spelled_bytes(v)) for k, v in report.memory.items() if k != "limit"]
    if limit:
        parts.append(("of", spelled_bytes(limit)))
    lines += [tree.table_text(("memory a device", ""), parts)]
    if report.collectives:
        rows = (
            (row["kind"], row["axes"] or "-", row["times"], spelled_bytes(row["bytes"]))
            for row in report.collectives
        )
        lines += [tree.table_text(("collective", "over", "times", "sent a device"), rows)]
    if report.kernels:
        lines += [tree.table_text(("kernel", "times"), sorted(report.kernels.items()))]
    rows = [("FLOPs a device", f"{report.flops:.4g}")]
    if report.model_flops:
        rows += [("by the model's own count", f"{report.model_flops:.4g}")]
    if report.traffic_bytes:
        rows += [("memory traffic", spelled_bytes(report.traffic_bytes))]
    rows += [(f"{what} alone", f"{1e3 * s:.3g} ms") for what, s in report.seconds.items()]
    lines += [tree.table_text(("a step", ""), rows)]
    what, seconds = bound(report)
    if seconds == seconds:
        best = f"bound by {what}: no step takes less than {1e3 * seconds:.3g} ms, "
        best += f"{report.batch_size / seconds:,.0f} examples/s"
        if report.model_flops:
            peak = next(c.flops for c in chips.CHIPS if c.name == report.chip)
            best += f", {100 * report.model_flops / peak / seconds:.0f}% MFU"
        lines.append(best)
    if limit:
        share = f"{100 * report.memory['total'] / limit:.0f}% of the memory"
        lines.append(f"fits: {share}" if report.fits else f"DOES NOT FIT: {share}")
    return "\n".join(lines)


def to_json(report: CostReport, **more) -> str:
    """One line, with `more` in it."""
    what, seconds = bound(report)
    found = report._asdict() | {"bound": what, "step_seconds": seconds if what else None}
    return json.dumps(more | found)


# ------------------------------------------------------------------------------------------ search


def choices(config: dict, count: int, over: tuple[str, ...]) -> list[dict]:
    """Overrides to try: meshes, what is computed again, and batch sizes, in that order.

    Args:
      config: completed, as nested dicts.
      count: of devices.
      over: which of "mesh", "remat", "batch".
    """
    meshes: list[dict] = [{}]
    if "mesh" in over:
        shapes = [(count, 1, 1), (1, count, 1)]
        shapes += [(count // 8, 8, 1)] * (count > 8 and count % 8 == 0)
        shapes += [(1, count // t, t) for t in (2, 4, 8) if count % t == 0 and count > t]
        keys = [f"mesh.{axis}" for axis in mesh.AXES]
        meshes = [dict(zip(keys, shape, strict=True)) for shape in shapes]
    remats: list[dict] = [{}]
    if "remat" in over and "remat" in config["model"]:
        remats = [{"model.remat": remat} for remat in ("none", "dots", "block")]
    batches: list[dict] = [{}]
    if "batch" in over:
        size = config["train"]["batch_size"]
        batches = [{"train.batch_size": size * n} for n in (1, 2, 4)]
    return [a | b | c for a, b, c in itertools.product(meshes, remats, batches)]


def search(config: dict, where: str, over: tuple[str, ...], tell=lambda text: None) -> list[tuple]:
    """Compiles every choice and ranks what fits, the most examples a second first.

    Where a batch does not fit, larger ones are not tried.

    Args:
      config, where: as in `examine`.
      over: which of "mesh", "remat", "batch".
      tell: called with a line after each.

    Returns:
      (overrides, Report) rows; those that do not fit stand last.
    """
    devices, _ = topology.devices(where)
    tries, found, full, begun = choices(config, len(devices), over), [], [], time.perf_counter()
    for number, overrides in enumerate(tries, 1):
        name = " ".join(f"{key}={value}" for key, value in overrides.items()) or "as it is"
        smaller = {k: v for k, v in overrides.items() if k != "train.batch_size"}
        if smaller in full:
            tell(f"{number}/{len(tries)}  {name}: a smaller batch does not fit")
            continue
        try:
            report = examine(changed(config, **overrides), where)
        except BadInput as error:
            tell(f"{number}/{len(tries)}  {name}: {error}")
            continue
        found.append((overrides, report))
        if not report.fits:
            full.append(smaller)
        _, seconds = bound(report)
        speed = "fits" if report.fits else "too large"
        if report.fits and seconds == seconds:
            speed = f"{report.batch_size / seconds:,.0f} examples/s at best"
        left = (time.perf_counter() - begun) / number * (len(tries) - number)
        tell(f"{number}/{len(tries)}  {name}: {speed}; about {left / 60:.0f} min left")
    rate = lambda row: row[1].batch_size / bound(row[1])[1] if row[1].seconds else 0.0
    return sorted(found, key=lambda row: (row[1].fits, rate(row)), reverse=True)


def ranking(found: list[tuple]) -> str:
    """`search`'s rows as a table."""
    rows = []
    for overrides, report in found:
        what, seconds = bound(report)
        share = report.memory["total"] / report.memory["limit"] if report.memory["limit"] else 0
        rows.append(
            (
                " ".join(f"--config.{k}={v}" for k, v in overrides.items()) or "as it is",
                "yes" if report.fits else "no",
                f"{100 * share:.0f}%" if share else "-",
                what or "-",
                f"{1e3 * seconds:.3g}" if what else "-",
                f"{report.batch_size / seconds:,.0f}" if what else "-",
            )
        )
    header = ("settings", "fits", "memory", "bound by", "ms a step", "examples/s at best")
    return tree.table_text(header, rows)
