"""The parameters that a run with `compress.lora` does not train. Where they come from
`config.init.path`, checkpoints leave them out, and whoever reads one takes them from there: by
their digest in environment.json they are those that the run began with.
"""

from common import tree
from common.compress import lora
from common.devices import mesh
from common.training.initialise import check_unsaved, read_unsaved
from common.training.program import Program, task_of
from common.training.step import TrainState


def kept(program: Program, state: TrainState) -> TrainState:
    """What checkpoints hold of a state: all but what `read` reads again."""
    left_out = lora.left_out(program.config)
    return state._replace(params=program.optimizer.live(state.params)) if left_out else state


def read(program: Program, folder) -> dict:
    """{path: array}: what `kept` leaves out, on the devices, as the run in `folder` began. Raises
    `BadInput` if it cannot be read, or has changed since."""
    if not lora.left_out(program.config):
        return {}
    arrays = read_unsaved(program.config, program.task, task_of)
    like = tree.flatten(program.like.params)
    arrays = {path: mesh.put_like(x, like[path]) for path, x in arrays.items()}
    check_unsaved(folder, program.config, arrays)
    return arrays


def of_state(program: Program, state: TrainState) -> dict:
    """{path: array}: what `kept` leaves out of a state."""
    held = tree.flatten(kept(program, state).params)
    return {path: x for path, x in tree.flatten(state.params).items() if path not in held}


def restored(program: Program, state: TrainState, others: dict) -> TrainState:
    """The inverse of `kept`, with what it leaves out."""
    params = tree.joined(program.like.params, state.params)
    return state._replace(params=tree.joined(params, others))
