"""Quantization after training: another run whose checkpoint holds integers."""

import jax
import jax.numpy as jnp

from common.compress import lora, quantize
from common.config import changed, in_full
from common.errors import require
from common.runs import files, workdir
from common.training import saved, train
from common.training.loop import eval_context, loop
from common.training.program import prepare, sections

# Sections that say how the parameters came about, of which their quantized run has the defaults.
TRAINED_BY = "optim", "init"


def quantize_run(folder, to, step: str = "latest", show: bool = True, **keys) -> dict:
    """Quantizes the parameters of a run, as its evaluators see them, and begins and ends another
    run with them: its checkpoint and its evaluations are those of the same step.

    Args:
      folder: the workdir of the run, whose data have to be there.
      to: the workdir of the other, which must not exist, or be empty.
      step: of the run: "latest", "best" (by config.checkpoint.best), or a step's number.
      show: whether to print progress to standard error.
      keys: those of the section `compress.quantize`.

    Returns:
      {"step": …, "bytes": {"before": …, "after": …} of the parameters, "before", "after":
      {NAME: {metric: value}} of the evaluators}.

    Raises:
      BadInput: if there is no such run or step, `to` is taken, or the keys do not fit the model.
    """
    config = saved.read_config(folder)
    require(not quantize.of(config).after, f"{folder}: its parameters are integers already")
    own = files.absolute(to)
    require(not workdir.begun(to), f"--to: {own} holds a run; name a new folder")
    with saved.opened(config, folder, step) as (program, state, number):
        context = eval_context(program, state, number)
        evaluators = program.task.evaluators.items()
        before = {name: evaluator.run(context) for name, evaluator in evaluators}
        made = quantized_config(config, number, keys)
        other = prepare(made, sources=program.task.sources)
        params = jax.jit(lambda x: quantize.stored(quantize.of(made), x))(
            lora.merged(context.params, config)
        )
        first = other.adopt(other.hypers, params, context.extra)._replace(step=jnp.uint32(number))
        with (
            workdir.Lock(to) as lock,
            train.refusals(to),
            train.begun(other, to, lock, show, first=first) as (run, state),
        ):
            result = train.finish(run, loop(run, state))
    sizes = {"before": _bytes(context.params), "after": _bytes(params)}
    return {"step": number, "bytes": sizes, "before": before, "after": result["eval"]}


def quantized_config(config: dict, step: int, keys: dict) -> dict:
    """The config of a run's quantized one, which ends at `step` and is not trained: nested dicts
    with every key. Raises `BadInput` for an unknown key of the scheme, or a value out of range."""
    chosen = {"weights": "int8"} | keys | {"how": "after"}
    made = {key: section for key, section in config.items() if key not in TRAINED_BY}
    made |= {
        "optim": {"name": "sgd"},
        "compress": {**lora.without(config)["compress"], "quantize": chosen},
    }
    return in_full(
        changed(made, **{"train.duration": f"{step} steps", "train.average": None}), sections
    )


def _bytes(params) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))
