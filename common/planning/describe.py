"""Describes a config before it runs: parameters, memory, schedule and first rows, as text.

The tests keep the same tables as goldens of the configs.
"""

import re

import jax
import numpy as np

from common import tree
from common.config import plain
from common.data import order
from common.devices.memory import local_bytes, spelled_bytes
from common.devices.runtime import start
from common.errors import NotPrepared
from common.sections import call
from common.training import optim
from common.training.initialise import initialise
from common.training.program import (
    Program,
    abstract_arguments,
    described_count,
    prepare,
    task_module,
    task_of,
)


def parameter_table(program: Program) -> str:
    """One row per parameter: path, shape, dtype, decay factor, multiplier, frozen, partition row.

    Identical blocks share a row: block_0-11/mlp/up/kernel.
    """
    flat, partition = tree.flatten(program.like.params), program.task.partition
    every = optim.flags_of(program.config["optim"], flat)
    live = tree.flatten(program.optimizer.live(program.like.params))

    def row(path, leaf):
        flags = every[path]
        names = tree.lookup(partition, path)
        axes = "-" if names is None else " ".join(name or "." for name in names)
        shape = "x".join(map(str, leaf.shape))
        frozen = "frozen" if flags["frozen"] or path not in live else ""
        return (
            path,
            shape,
            leaf.dtype,
            f"{flags['decay']:g}",
            f"{flags['multiplier']:g}",
            frozen,
            axes,
        )

    block_numbers: dict[tuple, list[int]] = {}
    for path, leaf in flat.items():
        number = re.search(r"block_(\d+)", path)
        first, *columns = row(path, leaf)
        key = re.sub(r"block_\d+", "block_*", first, count=1), *columns
        block_numbers.setdefault(key, []).append(int(number[1]) if number else -1)
    rows = (
        (path.replace("block_*", f"block_{_spelled_range(sorted(numbers))}", 1), *columns)
        for (path, *columns), numbers in block_numbers.items()
    )
    header = ("parameter", "shape", "dtype", "decay", "rate x", "", "partition")
    return tree.table_text(header, rows) + f"{described_count(program)}\n"


def _spelled_range(numbers: list[int]) -> str:
    """[0, 1, 2] as '0-2', [0, 2] as '0,2'."""
    contiguous = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]}-{numbers[-1]}" if contiguous else ",".join(map(str, numbers))


def dry_run(config) -> str:
    """Everything known without running a step; compiles the step to learn its memory.

    Where data or weights are not prepared, their outline stands in for them, and the first lines
    say so.

    Args:
      config: a completed `ConfigDict`.

    Raises:
      BadInput: for whatever the user can mend; `NotPrepared` if the task has no outline.
    """
    call(start, config.runtime.to_dict())
    config, missing = plain(config), []
    module = task_module(config["task"])
    try:
        unprepared = module.unprepared(config) if hasattr(module, "unprepared") else None
        if unprepared is not None:
            raise NotPrepared(unprepared)
        program = prepare(config)
    except NotPrepared as error:
        if not hasattr(module, "outline"):
            raise
        program = prepare(config, sources=module.outline(config))
        missing.append(str(error))
    plan, like, task = program.plan, program.like, program.task
    init_args = program.config["init"], like.params, like.extra, task.pretrained, task.files
    init_args += (program.config.get("model", {}), task_of)
    try:
        call(initialise, *init_args)
    except NotPrepared as error:
        missing.append(str(error))
    source = program.task.sources["train"]
    with jax.set_mesh(program.layout.mesh):
        compiled = program.step.lower(*abstract_arguments(program)).compile()
    analysis = compiled.memory_analysis()
    arrays = {
        "parameters": like.params,
        "optimizer": like.opt_state,
        "average": like.average,
        "resident data": program.resident,
    }
    memory = [(name, spelled_bytes(local_bytes(array))) for name, array in arrays.items()]
    if analysis is not None:
        memory.append(("working memory of the step", spelled_bytes(analysis.temp_size_in_bytes)))
    steps = sorted({round(i * (plan.total - 1) / 8) for i in range(9)})
    rates = [(s, f"{float(program.optimizer.learning_rate(np.uint32(s))):.6g}") for s in steps]
    rows = order.rows(program.config["seed"], 0, plan.batch_size, source.order)[:8]
    rows = ", ".join(map(str, rows))
    intervals = [f"{name} {every}" for name, every in program.every.items()]
    notes = [f"not prepared: {text}" for text in missing]
    if missing:
        notes += ["below, shapes and counts are those of an outline, not of the data", ""]
    return "\n".join(
        [
            *notes,
            parameter_table(program),
            tree.table_text(("memory a device", ""), memory),
            tree.table_text(("step", "learning rate"), rates),
            f"{plan.total} steps of {plan.batch_size}; {source.size:,} examples to train on",
            f"steps between evaluations: {', '.join(intervals) or 'none'}; "
            f"between saves: {program.saving.every}",
            f"first rows: {rows}, …",
        ]
    )
