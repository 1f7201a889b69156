"""Kernels that XLA would differentiate wrongly on a mesh that divides over all of its three axes.

Where `data`, `fsdp` and `tensor` are all above 1 and a kernel is divided over both of the last two,
its product with activations divided over `tensor` gets a wrong gradient in silence: off by more
than half, under both of XLA's partitioners, jax 0.10 to 0.12. It is right if the kernel is gathered
over `fsdp` first, as `common.nn.layers.Dense` does; a product that does not is refused here.
"""

import jax
from jax.extend import core

from common import tree
from common.data import loading
from common.devices.mesh import AXES, Layout
from common.errors import require
from common.task import Task
from common.training.step import Plan

PRODUCTS = ("dot_general", "conv_general_dilated")


def check_products(task: Task, schedule: Plan, layout: Layout, params, extra) -> None:
    """Raises `BadInput` if the loss multiplies by a kernel that the mesh divides over two axes and
    nothing has gathered, where XLA's gradient of it is wrong.

    Args:
      params, extra: of the task, as ShapeDtypeStructs, those of params with shardings.
    """
    if min(layout.mesh.shape[axis] for axis in AXES) == 1:
        return
    row, key = loading.batch_shapes(task.sources["train"], schedule.batch_size), jax.random.key(0)
    batch = jax.eval_shape(lambda row, key: task.prepare(key, row, True), row, key)
    program = jax.make_jaxpr(task.loss)(params, extra, batch, key).jaxpr
    twice = lambda leaf: {"fsdp", "tensor"} <= set(jax.tree.leaves(tuple(leaf.sharding.spec)))
    marks = [path if twice(leaf) else "" for path, leaf in tree.flatten(params).items()]
    marks += [""] * (len(program.invars) - len(marks))
    multiplied, _ = _multiplied(program, marks)
    require(
        not multiplied,
        "config.mesh: data, fsdp and tensor above 1: XLA would compute a wrong gradient of "
        f"{', '.join(sorted(multiplied)[:3])}, which is divided over fsdp and tensor and used as "
        "it is stored; make the layer a common.nn.layers.Dense, or divide over two of the axes",
    )


def _multiplied(program: core.Jaxpr, marks: list[str]) -> tuple[set[str], list[str]]:
    """(the marks of what a jaxpr multiplies without having gathered it, those of its outputs).

    What an elementwise operation or a change of shape makes of an array has the mark of that array,
    and so has a call's; a sharding constraint takes it away.
    """
    known, multiplied = dict(zip(program.invars, marks, strict=True)), set()
    read = lambda variable: "" if isinstance(variable, core.Literal) else known.get(variable, "")
    for equation in program.eqns:
        name, inputs = equation.primitive.name, [read(variable) for variable in equation.invars]
        if not any(inputs) or name == "sharding_constraint":
            continue
        if name in PRODUCTS:
            multiplied |= set(filter(None, inputs))
            continue
        # A kernel's program also has its outputs as inputs: it is no call of these.
        inner = core.jaxprs_in_params(equation.params)
        inner = [called for called in inner if len(called.invars) <= len(inputs)]
        for called in inner:  # the first inputs of a `cond` or a `while` are not its program's
            found, outputs = _multiplied(called, inputs[len(inputs) - len(called.invars) :])
            multiplied |= found
            if len(outputs) == len(equation.outvars):
                known |= dict(zip(equation.outvars, outputs, strict=True))
        for output in () if inner else equation.outvars:
            same = (
                mark
                for mark, variable in zip(inputs, equation.invars, strict=True)
                if mark and variable.aval.size == output.aval.size
            )
            known[output] = next(same, "")
    return multiplied, [read(variable) for variable in program.outvars]
