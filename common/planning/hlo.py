"""Reads the text of a compiled program: its collectives, and what it moves to and from memory.

XLA's own `cost_analysis` counts the body of a loop once, and the traffic of a chip's scratch memory
as if it went to HBM. Here a loop's body counts as often as it runs, and what lies in another memory
space than the first (`S(1)` in a layout) is not HBM. The text is no documented format; it is read
as jaxlib 0.10 to 0.12 write it.
"""

import math
import re
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# What moves nothing by itself: names for parts, or calls whose inside is counted.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while"),
    *("conditional", "call", "iota", "partition-id", "replica-id", "domain", "opt-barrier"),
}
SLICES = ("dynamic-slice", "slice", "gather")
BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}


class Instruction(NamedTuple):
    """One line: `shape` and `attributes` are text, `operands` names in the same computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str


class Collective(NamedTuple):
    """What devices tell each other at one place of the program.

    Attributes:
      kind: one of `COLLECTIVES`.
      times: how often a step does it.
      bytes: each time, on one device: of the whole result of a gather, else of what goes in.
      group: the partitions that partition 0 speaks with, itself included.
    """

    kind: str
    times: int
    bytes: int
    group: tuple[int, ...]

    def sent(self) -> float:
        """Bytes that a device sends a step, as a ring does it (Patarasuk & Yuan 2009)."""
        n = len(self.group)
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}
        return self.times * self.bytes * share.get(self.kind, (n - 1) / n)


class Module(NamedTuple):
    """A parsed program: {computation: its instructions} and {computation: times it runs}."""

    computations: dict[str, list[Instruction]]
    times: dict[str, int]


# ----------------------------------------------------------------------------------------- parsing


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return start + match.start()
    raise ValueError(f"no closing parenthesis: {text[:80]}")


def _instruction(line: str) -> Instruction | None:
    matched = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if matched is None:
        return None
    rest = line[matched.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opened = rest.index("(", end)
    closed = _closing(rest, opened)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[opened:closed]))
    opcode = rest[end:opened].strip()
    if opcode == "constant":
        operands = (rest[opened + 1 : closed],)
    if opcode == "parameter":
        operands = (rest[opened + 1 : closed],)
    return Instruction(matched[1], rest[:end], opcode, operands, rest[closed + 1 :])


def parse(text: str) -> Module:
    """The computations of a module's text, and how often each runs."""
    computations: dict[str, list[Instruction]] = {}
    entry, inside = "", None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            inside = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.rstrip() == "}":  # attributes of kernels may go over several lines
            inside = None
        elif inside is not None and (found := _instruction(line)):
            inside.append(found)
    times: dict[str, int] = {}

    def visit(name: str, count: int) -> None:
        times[name] = times.get(name, 0) + count
        for one in computations[name]:
            if one.opcode.endswith(("-done", "-update")):
                continue  # runs what its start has begun
            for called, more in _calls(one, computations):
                visit(called, count * more)

    visit(entry, 1)
    return Module(computations, times)


def _calls(one: Instruction, computations: dict) -> list[tuple[str, int]]:
    """(computation, times) that an instruction runs; reducers of single elements are left out."""
    if one.opcode == "while":
        body = re.search(r"body=%?([\w.\-]+)", one.attributes)[1]
        condition = re.search(r"condition=%?([\w.\-]+)", one.attributes)[1]
        return [(body, trips(computations[condition]))]
    if one.opcode == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
        named = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", one.attributes)
        names = re.findall(r"%?([\w.\-]+)", listed[1]) if listed else named
        return [(name, 1) for name in names]
    if one.opcode == "call":
        return [(n, 1) for n in re.findall(r"to_apply=%?([\w.\-]+)", one.attributes)]
    return [(name, 1) for name in re.findall(r"calls=%?([\w.\-]+)", one.attributes)]


def trips(condition: list[Instruction]) -> int:
    """How often a counted loop runs: the constant that its condition compares with; else 1."""
    numbers = [
        int(one.operands[0])
        for one in condition
        if one.opcode == "constant" and re.fullmatch(r"\d+", one.operands[0])
    ]
    return max(numbers, default=1)


def loops(module: Module) -> int:
    """Loops that run more than once."""
    return sum(
        _calls(one, module.computations)[0][1] > 1
        for name in module.times
        for one in module.computations[name]
        if one.opcode == "while"
    )


def kernels(module: Module) -> dict[str, int]:
    """{target: times a step} of kernels that are called by name: cuDNN's, Pallas' and others."""
    found: dict[str, int] = {}
    for name, count in module.times.items():
        for one in module.computations[name]:
            if one.opcode == "custom-call" and one.operands:
                target = re.search(r'custom_call_target="([^"]*)"', one.attributes)[1]
                found[target] = found.get(target, 0) + count
    return found


# ------------------------------------------------------------------------------------------- bytes


def parts(shape: str) -> list[tuple[int, int]]:
    """(bytes, memory space) of each array of a shape's text; space 0 is a device's main memory."""
    found = []
    for dtype, sizes, layout in re.findall(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?", shape):
        bits = BITS.get(dtype)
        if bits is None:
            bits = int((re.search(r"\d+", dtype) or ["32"])[0])
        count = math.prod(int(n.lstrip("<=")) for n in sizes.split(",") if n)
        space = re.search(r"S\((\d+)\)", layout)
        found.append((-(-count * bits // 8), int(space[1]) if space else 0))
    return found


def size(shape: str) -> int:
    """Bytes of every array of a shape's text."""
    return sum(count for count, _ in parts(shape))


def _main(shape: str) -> int:
    """Those of them in the device's main memory."""
    return sum(count for count, space in parts(shape) if space == 0)


def memory_traffic(module: Module) -> int:
    """Bytes a step reads from and writes to a device's main memory, every instruction by itself.

    A fusion that takes a slice of an operand reads that slice; one that updates a slice of its
    result in place writes that slice.
    """
    total = 0
    fused = {
        name
        for instructions in module.computations.values()
        for one in instructions
        if one.opcode == "fusion"
        for name, _ in _calls(one, module.computations)
    }
    for name, count in module.times.items():
        if name in fused:
            continue
        shapes = {one.name: one.shape for one in module.computations[name]}
        total += count * sum(
            _moved(one, shapes, module)
            for one in module.computations[name]
            if one.opcode not in FREE and not one.opcode.endswith(("-done", "-update"))
        )
    return total


def _moved(one: Instruction, shapes: dict[str, str], module: Module) -> int:
    takes, gives = [shapes.get(name, "") for name in one.operands], one.shape
    if one.opcode in ("slice-start", "dynamic-slice-start", "copy-start"):
        # (from, to, …), but (to, from, …) of a copy: what is moved is as large as the smaller one.
        first, second = parts(gives)[:2]
        return min(first[0], second[0]) * ((first[1] == 0) + (second[1] == 0))
    if one.opcode in SLICES:
        return 2 * min(_main(gives), _main(takes[0]))
    if one.opcode == "dynamic-update-slice":
        return 2 * _main(takes[1])
    if one.opcode == "custom-call" and not takes:
        return 0  # room that is taken, with nothing in it
    if one.opcode != "fusion":
        return _main(gives) + sum(map(_main, takes))
    inside = _inside(one, module)
    read = sum(
        min(_main(shape), _read(inside, inside[("parameter", i)].name, module))
        for i, shape in enumerate(takes)
        if _main(shape)
    )
    updates = [u for u in inside.values() if u.opcode == "dynamic-update-slice"]
    written = _main(gives)
    if updates and len(parts(gives)) == len(updates):
        written = min(written, sum(size(inside[u.operands[1]].shape) for u in updates))
    return read + written


def _inside(fusion: Instruction, module: Module) -> dict:
    """The instructions of a fusion by name, and its parameters by ("parameter", number) too."""
    found = {u.name: u for u in module.computations[_calls(fusion, module.computations)[0][0]]}
    parameters = [u for u in found.values() if u.opcode == "parameter"]
    return found | {("parameter", int(p.operands[0])): p for p in parameters}


def _read(inside: dict, name: str, module: Module) -> int:
    """Bytes that a fusion reads of one of its values: the slices, where it takes nothing else."""
    total = 0
    users = {u.name: u for u in inside.values() if name in u.operands and u.opcode != "parameter"}
    for user in users.values():
        if user.opcode in SLICES and user.operands[0] == name:
            total += size(user.shape)
        elif user.opcode == "bitcast":
            total += _read(inside, user.name, module)
        elif user.opcode == "fusion":
            inner = _inside(user, module)
            places = [i for i, operand in enumerate(user.operands) if operand == name]
            total += sum(_read(inner, inner[("parameter", i)].name, module) for i in places)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            total += size(inside[name].shape)
    return total


# ------------------------------------------------------------------------------------- collectives


def collectives(module: Module) -> list[Collective]:
    """Every collective that runs, of groups of more than one."""
    found = {}
    for name, count in module.times.items():
        for one in module.computations[name]:
            kind = one.opcode.removesuffix("-start")
            group = _group(one.attributes, kind) if kind in COLLECTIVES else ()
            if len(group) < 2:
                continue
            moved = size(one.shape)
            if name.startswith("all-reduce-scatter"):  # how TPUs write it: a sum, cut inside
                kind = "reduce-scatter"
            if one.opcode == "all-gather-start":
                moved = moved * len(group) // (len(group) + 1)  # the operand is in it as well
            elif one.opcode == "collective-permute-start":
                moved //= 2
            elif one.opcode == "reduce-scatter":
                moved *= len(group)
            # One that runs beside others is written again in each of them, on the same channel.
            channel = re.search(r"channel_id=(\d+)", one.attributes)
            found[channel[1] if channel else (name, one.name)] = Collective(
                kind, count, moved, group
            )
    return list(found.values())


def _group(attributes: str, kind: str) -> tuple[int, ...]:
    """The partitions in the group of partition 0, however they are written."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
        targets = dict(re.findall(r"\{(\d+),(\d+)", pairs[1])) if pairs else {}
        ring = ["0"]
        while targets.get(ring[-1], "0") not in ring:
            ring.append(targets[ring[-1]])
        return tuple(sorted(map(int, ring)))
    written = re.search(
        r"replica_groups=(\{\{.*?\}\}|\[[^ ]*|mesh\[.*?\](?: *device_ids=\S+)? *\{[^}]*\}|\{\})",
        attributes,
    )
    if written is None:
        return ()
    text = written[1]
    if text.startswith("mesh"):
        axes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", text)}
        chosen = re.findall(r"'([^']+)'(?!=)", text[text.rindex("{") :])
        ids = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
        at = tuple(slice(None) if name in chosen else 0 for name in axes)
        return tuple(ids[at].reshape(-1).tolist())
    if text.startswith("["):
        shape, dims, order = re.match(
            r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text
        ).groups()
        numbers = lambda s: [int(n) for n in s.split(",")]
        ids = np.arange(math.prod(numbers(dims))).reshape(numbers(dims))
        ids = ids.transpose(numbers(order)) if order else ids
        rows = ids.reshape(numbers(shape)).tolist()
    else:
        rows = [[int(n) for n in row.split(",") if n] for row in re.findall(r"\{([\d,]+)\}", text)]
    return tuple(next((row for row in rows if 0 in row), []))


def axes_of(group: tuple[int, ...], mesh_shape: dict[str, int]) -> str:
    """'fsdp' or 'data+fsdp': the mesh axes along which a group lies; '' if along none.

    Args:
      group: partitions, as in `Collective`.
      mesh_shape: {axis: size}, in the mesh's order.
    """
    names = [name for name, count in mesh_shape.items() if count > 1]
    ids = np.arange(math.prod(mesh_shape.values())).reshape(tuple(mesh_shape.values()))
    for chosen in range(1, 1 << len(names)):
        some = [name for i, name in enumerate(names) if chosen >> i & 1]
        at = tuple(slice(None) if name in some else 0 for name in mesh_shape)
        if set(ids[at].reshape(-1).tolist()) == set(group):
            return "+".join(some)
    return ""
