"""Parses the text of a compiled program: its collectives and its memory traffic.

XLA's own `cost_analysis` counts a loop body once, and the traffic of a chip's scratch memory as HBM
traffic. Here a loop body counts once per iteration, and arrays outside the first memory space
(`S(1)` in a layout) are not HBM. The text format is undocumented; this parser follows jaxlib 0.10
to 0.12.
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
# Opcodes that move no data themselves: views of parts, or calls whose bodies are counted.
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
    """A collective at one place in the program.

    Attributes:
      kind: one of `COLLECTIVES`.
      times: executions per step.
      bytes: per execution, on one device: of a gather's full result, otherwise of the input.
      group: the group of partition 0, itself included.
    """

    kind: str
    times: int
    bytes: int
    group: tuple[int, ...]

    def sent(self) -> float:
        """Bytes that a device sends per step, with ring algorithms (Patarasuk & Yuan 2009)."""
        n = len(self.group)
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}
        return self.times * self.bytes * share.get(self.kind, (n - 1) / n)


class Module(NamedTuple):
    """A parsed program: {computation: its instructions} and {computation: times it runs}."""

    computations: dict[str, list[Instruction]]
    times: dict[str, int]


# ----------------------------------------------------------------------------------------- parsing


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
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
    definition = line[matched.end() :]
    end = _closing(definition, 0) + 1 if definition.startswith("(") else definition.index(" ")
    opened = definition.index("(", end)
    closed = _closing(definition, opened)
    operands = tuple(re.findall(r"%([\w.\-]+)", definition[opened:closed]))
    opcode = definition[end:opened].strip()
    if opcode == "constant":
        operands = (definition[opened + 1 : closed],)
    if opcode == "parameter":
        operands = (definition[opened + 1 : closed],)
    return Instruction(matched[1], definition[:end], opcode, operands, definition[closed + 1 :])


def parse(text: str) -> Module:
    """Parses a module's text into its computations and how often each runs."""
    computations: dict[str, list[Instruction]] = {}
    entry, instructions = "", None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            instructions = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.rstrip() == "}":  # a kernel's attributes may span lines
            instructions = None
        elif instructions is not None and (op := _instruction(line)):
            instructions.append(op)
    times: dict[str, int] = {}

    def visit(name: str, count: int) -> None:
        times[name] = times.get(name, 0) + count
        for op in computations[name]:
            if op.opcode.endswith(("-done", "-update")):
                continue  # completes what its start ran
            for called, repeats in _calls(op, computations):
                visit(called, count * repeats)

    visit(entry, 1)
    return Module(computations, times)


def _calls(op: Instruction, computations: dict) -> list[tuple[str, int]]:
    """(computation, times) pairs that an instruction runs; scalar reducers are left out."""
    if op.opcode == "while":
        body = re.search(r"body=%?([\w.\-]+)", op.attributes)[1]
        condition = re.search(r"condition=%?([\w.\-]+)", op.attributes)[1]
        return [(body, trips(computations[condition]))]
    if op.opcode == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", op.attributes)
        named = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", op.attributes)
        names = re.findall(r"%?([\w.\-]+)", listed[1]) if listed else named
        return [(name, 1) for name in names]
    if op.opcode == "call":
        return [(n, 1) for n in re.findall(r"to_apply=%?([\w.\-]+)", op.attributes)]
    return [(name, 1) for name in re.findall(r"calls=%?([\w.\-]+)", op.attributes)]


def trips(condition: list[Instruction]) -> int:
    """Trip count of a loop: the constant that its condition compares with; 1 if there is none."""
    numbers = [
        int(op.operands[0])
        for op in condition
        if op.opcode == "constant" and re.fullmatch(r"\d+", op.operands[0])
    ]
    return max(numbers, default=1)


def loops(module: Module) -> int:
    """Number of loops that run more than once."""
    return sum(
        _calls(op, module.computations)[0][1] > 1
        for name in module.times
        for op in module.computations[name]
        if op.opcode == "while"
    )


def kernels(module: Module) -> dict[str, int]:
    """{target: calls per step} of kernels called by name: cuDNN's, Pallas' and others."""
    calls: dict[str, int] = {}
    for name, count in module.times.items():
        for op in module.computations[name]:
            if op.opcode == "custom-call" and op.operands:
                target = re.search(r'custom_call_target="([^"]*)"', op.attributes)[1]
                calls[target] = calls.get(target, 0) + count
    return calls


# ------------------------------------------------------------------------------------------- bytes


def parts(shape: str) -> list[tuple[int, int]]:
    """(bytes, memory space) of each array in a shape's text; space 0 is a device's main memory."""
    arrays = []
    for dtype, sizes, layout in re.findall(r"(\w+)\[([\d,<=]*)\](\{[^}]*\})?", shape):
        bits = BITS.get(dtype)
        if bits is None:
            bits = int((re.search(r"\d+", dtype) or ["32"])[0])
        count = math.prod(int(n.lstrip("<=")) for n in sizes.split(",") if n)
        space = re.search(r"S\((\d+)\)", layout)
        arrays.append((-(-count * bits // 8), int(space[1]) if space else 0))
    return arrays


def size(shape: str) -> int:
    """Total bytes of the arrays in a shape's text."""
    return sum(count for count, _ in parts(shape))


def _main(shape: str) -> int:
    """Bytes of those arrays that are in the device's main memory."""
    return sum(count for count, space in parts(shape) if space == 0)


def memory_traffic(module: Module) -> int:
    """Bytes a step reads from and writes to a device's main memory, each instruction on its own.

    A fusion that slices an operand reads only the slice; one that updates a slice of its result in
    place writes only the slice.
    """
    total = 0
    fused = {
        name
        for instructions in module.computations.values()
        for op in instructions
        if op.opcode == "fusion"
        for name, _ in _calls(op, module.computations)
    }
    for name, count in module.times.items():
        if name in fused:
            continue
        shapes = {op.name: op.shape for op in module.computations[name]}
        total += count * sum(
            _moved(op, shapes, module)
            for op in module.computations[name]
            if op.opcode not in FREE and not op.opcode.endswith(("-done", "-update"))
        )
    return total


def _moved(op: Instruction, shapes: dict[str, str], module: Module) -> int:
    operands, result = [shapes.get(name, "") for name in op.operands], op.shape
    if op.opcode in ("slice-start", "dynamic-slice-start", "copy-start"):
        # (source, target, …), or (target, source, …) for a copy: the smaller one is what moves.
        first, second = parts(result)[:2]
        return min(first[0], second[0]) * ((first[1] == 0) + (second[1] == 0))
    if op.opcode in SLICES:
        return 2 * min(_main(result), _main(operands[0]))
    if op.opcode == "dynamic-update-slice":
        return 2 * _main(operands[1])
    if op.opcode == "custom-call" and not operands:
        return 0  # allocates without writing
    if op.opcode != "fusion":
        return _main(result) + sum(map(_main, operands))
    body = _inside(op, module)
    read = sum(
        min(_main(shape), _read(body, body[("parameter", i)].name, module))
        for i, shape in enumerate(operands)
        if _main(shape)
    )
    updates = [u for u in body.values() if u.opcode == "dynamic-update-slice"]
    written = _main(result)
    if updates and len(parts(result)) == len(updates):
        written = min(written, sum(size(body[u.operands[1]].shape) for u in updates))
    return read + written


def _inside(fusion: Instruction, module: Module) -> dict:
    """The instructions of a fusion by name, its parameters also by ("parameter", number)."""
    ops = {u.name: u for u in module.computations[_calls(fusion, module.computations)[0][0]]}
    parameters = [u for u in ops.values() if u.opcode == "parameter"]
    return ops | {("parameter", int(p.operands[0])): p for p in parameters}


def _read(body: dict, name: str, module: Module) -> int:
    """Bytes that a fusion reads of one of its values: only the slices, if it takes nothing else."""
    total = 0
    users = {u.name: u for u in body.values() if name in u.operands and u.opcode != "parameter"}
    for user in users.values():
        if user.opcode in SLICES and user.operands[0] == name:
            total += size(user.shape)
        elif user.opcode == "bitcast":
            total += _read(body, user.name, module)
        elif user.opcode == "fusion":
            inner = _inside(user, module)
            places = [i for i, operand in enumerate(user.operands) if operand == name]
            total += sum(_read(inner, inner[("parameter", i)].name, module) for i in places)
        elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
            total += size(body[name].shape)
    return total


# ------------------------------------------------------------------------------------- collectives


def collectives(module: Module) -> list[Collective]:
    """All collectives that run, over groups of more than one partition."""
    by_channel = {}
    for name, count in module.times.items():
        for op in module.computations[name]:
            kind = op.opcode.removesuffix("-start")
            group = _group(op.attributes, kind) if kind in COLLECTIVES else ()
            if len(group) < 2:
                continue
            nbytes = size(op.shape)
            if name.startswith("all-reduce-scatter"):  # TPU form: a sum that is sliced inside
                kind = "reduce-scatter"
            if op.opcode == "all-gather-start":
                nbytes = nbytes * len(group) // (len(group) + 1)  # the shape includes the operand
            elif op.opcode == "collective-permute-start":
                nbytes //= 2
            elif op.opcode == "reduce-scatter":
                nbytes *= len(group)
            # A collective fused with other work is repeated in each fusion, on the same channel.
            channel = re.search(r"channel_id=(\d+)", op.attributes)
            by_channel[channel[1] if channel else (name, op.name)] = Collective(
                kind, count, nbytes, group
            )
    return list(by_channel.values())


def _group(attributes: str, kind: str) -> tuple[int, ...]:
    """The partitions in the group of partition 0, in any of HLO's notations."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
        targets = dict(re.findall(r"\{(\d+),(\d+)", pairs[1])) if pairs else {}
        ring = ["0"]
        while targets.get(ring[-1], "0") not in ring:
            ring.append(targets[ring[-1]])
        return tuple(sorted(map(int, ring)))
    match = re.search(
        r"replica_groups=(\{\{.*?\}\}|\[[^ ]*|mesh\[.*?\](?: *device_ids=\S+)? *\{[^}]*\}|\{\})",
        attributes,
    )
    if match is None:
        return ()
    text = match[1]
    if text.startswith("mesh"):
        axes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", text)}
        chosen = re.findall(r"'([^']+)'(?!=)", text[text.rindex("{") :])
        ids = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
        index = tuple(slice(None) if name in chosen else 0 for name in axes)
        return tuple(ids[index].reshape(-1).tolist())
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
    """'fsdp' or 'data+fsdp': the mesh axes that a group spans; '' if it spans none exactly.

    Args:
      group: partitions, as in `Collective`.
      mesh_shape: {axis: size}, in the mesh's order.
    """
    names = [name for name, count in mesh_shape.items() if count > 1]
    ids = np.arange(math.prod(mesh_shape.values())).reshape(tuple(mesh_shape.values()))
    for mask in range(1, 1 << len(names)):
        axes = [name for i, name in enumerate(names) if mask >> i & 1]
        index = tuple(slice(None) if name in axes else 0 for name in mesh_shape)
        if set(ids[index].reshape(-1).tolist()) == set(group):
            return "+".join(axes)
    return ""
