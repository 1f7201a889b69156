"""What a longer `config.train.duration` does to the learning rate of a run that goes on."""

from functools import partial

import numpy as np

from common.sections import call
from common.training import optim
from common.training.duration import steps
from common.training.program import Program

MOST_COMPARED = 1 << 20  # steps of a longer run are compared at this many


def jump(program: Program, before: int, step: int) -> str:
    """Describes in one line how a run's rates up to `step` differ from those of its new length, or
    "" if they do not: a schedule that falls over the whole run has fallen already.

    Args:
      program: the run's program, of its new length.
      before: total steps that the run's last start was of.
      step: completed updates.
    """
    total, section = program.plan.total, program.config["optim"]
    if before == total or not step:
        return ""
    done = np.unique(np.linspace(0, step - 1, min(step, MOST_COMPARED)).round()).astype(np.uint32)
    old, new = (_rates(program, length) for length in (before, total))
    if np.array_equal(old(done), new(done)):
        return ""
    last, following = float(old(done[-1])), float(new(np.uint32(step)))
    return (
        f"config.train.duration: from {before} to {total} steps: schedule {section['schedule']!r} "
        f"(warmup {section['warmup']!r}) depends on the length, so the learning rate jumps from "
        f"{last:.4g} to {following:.4g} at step {step}. To avoid that, begin with 'constant', or "
        "with 'wsd' and extend it before its decay; or begin another run by config.init.path"
    )


def _rates(program: Program, total: int):
    """The learning rate as a function of the step, if the run were of `total` steps."""
    size = program.task.sources["train"].size
    to_steps = partial(_to_steps, batch_size=program.plan.batch_size, size=size, total=total)
    section = program.config["optim"]
    made = call(optim.make_optimizer, section, total, to_steps, section["direction"])
    return made.learning_rate


def _to_steps(text: str, where: str, low: int = 0, **sizes) -> int:
    return steps(text, where=where, low=low, **sizes)
