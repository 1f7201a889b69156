"""The cost of a config on devices that need not be attached: memory, collectives, FLOPs and the
minimum time of a step, from the compiled step and abstract arrays alone.

    report = compiled.examine(config, "v5e:2x4")
    print(compiled.report_text(report))

The predicted time is a bound, not an estimate: the largest of the times for arithmetic, memory
traffic and network at the vendor's figures (Williams et al. 2009). No real step is that fast.
"""

import itertools
import json
import math
import re
import time
from typing import NamedTuple

import jax

from common import tree
from common.config import changed
from common.devices import chips, mesh
from common.devices.memory import local_bytes, spelled_bytes
from common.errors import BadInput
from common.nn import flops
from common.planning import hlo, topology
from common.sections import call
from common.training import program
from common.training.program import Program

GIB = 2**30


class CostReport(NamedTuple):
    """The cost of a compiled step, per device unless noted.

    Attributes:
      topology, chip, devices: the compile target; `chip` is "" when simulated.
      mesh: {axis: devices}.
      batch_size: examples per step over all devices.
      parameters: of the model.
      memory: {kind: bytes}: parameters, optimizer, average, data, working, program, total, limit
        (0 if unknown).
      fits: whether `total` is below `limit`; True if the limit is unknown.
      aliased_bytes: state updated in place.
      collectives: rows {kind, axes, times, bytes}, summed over the program; bytes sent per step.
      kernels: {name: calls per step} of kernels called by name: cuDNN attention, Pallas.
      model_flops: by the task's own count; None if it has none.
      flops: of matrix products and convolutions as traced, recomputation included, divided by the
        number of devices.
      xla_flops: XLA's count over all operations; a loop body counts once.
      loops: number of loops that run more than once.
      traffic_bytes: to and from memory (`common.planning.hlo`).
      seconds: {"compute", "memory", "network"}: the time of each at the chip's figures; {} if the
        chip is unknown.
      compile_seconds: on this machine.
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
    """The program of a config on these devices, without placing anything on them.

    Raises:
      BadInput: for any user error. Only tasks without an `outline` need their data.
    """
    layout = call(mesh.make_layout, config["mesh"], devices)
    module = program.task_module(config["task"])
    sources = getattr(module, "outline", module.sources)(config)
    return program.lay_out(config, layout, sources)


def examine(config: dict, where: str) -> CostReport:
    """Compiles a config's step for a topology and reports its cost.

    Args:
      config: completed, as nested dicts.
      where: a topology, see `common.planning.topology`.

    Raises:
      BadInput: for an invalid config or topology.
    """
    devices, chip = topology.devices(where)
    made = outlined_program(config, devices)
    args = program.abstract_arguments(made)
    with jax.set_mesh(made.layout.mesh):
        lowered = made.step.trace(*args)
        traced_flops = flops.traced(lowered.jaxpr.jaxpr)
        start = time.perf_counter()
        try:
            executable = lowered.lower().compile()
        except jax.errors.JaxRuntimeError as error:
            return _too_large(
                made,
                where,
                chip,
                args,
                traced_flops=traced_flops,
                error=error,
                seconds=time.perf_counter() - start,
            )
    seconds = time.perf_counter() - start
    analysis = executable.memory_analysis()
    module = hlo.parse(executable.as_text())
    xla_flops = (executable.cost_analysis() or {}).get("flops")
    return _report(
        made,
        where,
        chip,
        args,
        traced_flops,
        seconds,
        working=analysis.temp_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        xla_flops=xla_flops,
        module=module,
    )


def _too_large(made, where, chip, args, *, traced_flops, error, seconds) -> CostReport:
    """The report of a program that the compiler rejects as too large for memory."""
    match = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", str(error))
    if match is None:
        raise error
    units = {"": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
    used = float(match[1]) * units[match[2]]
    state = sum(_state_bytes(made, args).values())
    return _report(made, where, chip, args, traced_flops, seconds, working=max(used - state, 0))


def _state_bytes(made: Program, args: tuple) -> dict:
    hypers, like, batch, resident = args
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
    args: tuple,
    traced_flops: float,
    compile_seconds: float,
    *,
    working: float,
    code: int = 0,
    aliased: int = 0,
    xla_flops: float | None = None,
    module: hlo.Module | None = None,
) -> CostReport:
    shape = dict(made.layout.mesh.shape)
    count = math.prod(shape.values())
    memory = _state_bytes(made, args) | {"working": int(working), "program": code}
    memory["total"] = sum(memory.values())
    memory["limit"] = int(chip.memory_bytes) if chip else 0
    collectives = hlo.collectives(module) if module else []
    rows: dict[tuple, list] = {}
    for collective in collectives:
        row = rows.setdefault((collective.kind, hlo.axes_of(collective.group, shape)), [0, 0.0])
        row[0] += collective.times
        row[1] += collective.sent()
    loops = hlo.loops(module) if module else 0
    traffic = hlo.memory_traffic(module) if module else 0
    device_flops = traced_flops / count
    seconds = {}
    if chip and module:
        # XLA's count includes work that the mesh replicates, but only one iteration of a loop.
        compute_flops = max(device_flops, xla_flops or 0) if not loops else device_flops
        seconds = {
            "compute": compute_flops / chip.flops,
            "memory": traffic / chip.memory_bandwidth,
            "network": sum(collective.sent() for collective in collectives) / chip.link_bandwidth,
        }
    per_example = made.task.flops
    return CostReport(
        topology=where,
        chip=chip.name if chip else "",
        devices=count,
        mesh=shape,
        batch_size=made.plan.batch_size,
        parameters=tree.count(made.like.params) - made.task.padding,
        memory=memory,
        fits=not memory["limit"] or (module is not None and memory["total"] < memory["limit"]),
        aliased_bytes=aliased,
        collectives=[
            {"kind": kind, "axes": axes, "times": times, "bytes": int(sent)}
            for (kind, axes), (times, sent) in sorted(rows.items())
        ],
        kernels=hlo.kernels(module) if module else {},
        model_flops=per_example and per_example * made.plan.batch_size / count,
        flops=device_flops,
        xla_flops=xla_flops,
        loops=loops,
        traffic_bytes=traffic,
        seconds=seconds,
        compile_seconds=round(compile_seconds, 1),
    )


def bound(report: CostReport) -> tuple[str, float]:
    """("compute", "memory" or "network", minimum seconds per step); ("", nan) if unknown."""
    if not report.seconds:
        return "", math.nan
    return max(report.seconds.items(), key=lambda item: item[1])


def report_text(report: CostReport) -> str:
    """A report as text tables."""
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
    rows += [(f"{resource} alone", f"{1e3 * s:.3g} ms") for resource, s in report.seconds.items()]
    lines += [tree.table_text(("a step", ""), rows)]
    resource, seconds = bound(report)
    if seconds == seconds:
        summary = f"bound by {resource}: no step takes less than {1e3 * seconds:.3g} ms, "
        summary += f"{report.batch_size / seconds:,.0f} examples/s"
        if report.model_flops:
            peak = next(c.flops for c in chips.CHIPS if c.name == report.chip)
            summary += f", {100 * report.model_flops / peak / seconds:.0f}% MFU"
        lines.append(summary)
    if limit:
        share = f"{100 * report.memory['total'] / limit:.0f}% of the memory"
        lines.append(f"fits: {share}" if report.fits else f"DOES NOT FIT: {share}")
    return "\n".join(lines)


def to_json(report: CostReport, **more) -> str:
    """A report as one line of JSON, with the fields `more` added."""
    resource, seconds = bound(report)
    fields = report._asdict() | {"bound": resource, "step_seconds": seconds if resource else None}
    return json.dumps(more | fields)


# ------------------------------------------------------------------------------------------ search


def choices(config: dict, count: int, over: tuple[str, ...]) -> list[dict]:
    """Overrides to try: every combination of meshes, rematerialization and batch sizes.

    Args:
      config: completed, as nested dicts.
      count: number of devices.
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
    """Compiles every combination and ranks those that fit by examples per second, highest first.

    Where a batch size does not fit, larger ones are skipped.

    Args:
      config, where: as in `examine`.
      over: which of "mesh", "remat", "batch".
      tell: called with one line of progress after each combination.

    Returns:
      (overrides, CostReport) rows; those that do not fit come last.
    """
    devices, _ = topology.devices(where)
    tries, results, full, start = choices(config, len(devices), over), [], [], time.perf_counter()
    for number, overrides in enumerate(tries, 1):
        name = " ".join(f"{key}={value}" for key, value in overrides.items()) or "as it is"
        other_settings = {k: v for k, v in overrides.items() if k != "train.batch_size"}
        if other_settings in full:
            tell(f"{number}/{len(tries)}  {name}: a smaller batch does not fit")
            continue
        try:
            report = examine(changed(config, **overrides), where)
        except BadInput as error:
            tell(f"{number}/{len(tries)}  {name}: {error}")
            continue
        results.append((overrides, report))
        if not report.fits:
            full.append(other_settings)
        _, seconds = bound(report)
        speed = "fits" if report.fits else "too large"
        if report.fits and seconds == seconds:
            speed = f"{report.batch_size / seconds:,.0f} examples/s at best"
        left = (time.perf_counter() - start) / number * (len(tries) - number)
        tell(f"{number}/{len(tries)}  {name}: {speed}; about {left / 60:.0f} min left")
    rate = lambda row: row[1].batch_size / bound(row[1])[1] if row[1].seconds else 0.0
    return sorted(results, key=lambda row: (row[1].fits, rate(row)), reverse=True)


def ranking(results: list[tuple]) -> str:
    """The rows of `search` as a table."""
    rows = []
    for overrides, report in results:
        resource, seconds = bound(report)
        share = report.memory["total"] / report.memory["limit"] if report.memory["limit"] else 0
        rows.append(
            (
                " ".join(f"--config.{k}={v}" for k, v in overrides.items()) or "as it is",
                "yes" if report.fits else "no",
                f"{100 * share:.0f}%" if share else "-",
                resource or "-",
                f"{1e3 * seconds:.3g}" if resource else "-",
                f"{report.batch_size / seconds:,.0f}" if resource else "-",
            )
        )
    header = ("settings", "fits", "memory", "bound by", "ms a step", "examples/s at best")
    return tree.table_text(header, rows)
