"""Runs of language models, opened for their model and tokenizer alone: to write text, or to fill
masks. Their corpus may have moved, grown or gone."""

import contextlib
from collections.abc import Iterator

from common import inputs
from common.errors import require
from common.runs import files
from common.task import MOST_STEPS
from common.training import saved
from common.training.loop import eval_context
from common.training.program import task_module
from lm.data.tokenizer import TextFacts


@contextlib.contextmanager
def opened(folder: str, task: str, what: str, step: str = "latest") -> Iterator[tuple]:
    """Opens a run by the tokenizer that it keeps. One of an older version keeps none: its data are
    read, and the tokenizer is kept from then on.

    Args:
      folder: the workdir.
      task: that it must be of.
      what: what only such runs do, for the error message.
      step: "latest", "best", or a step's number.

    Yields:
      (config, parameters for evaluation, TextFacts), with the run's mesh set.

    Raises:
      BadInput: if it is of another task, or there is no such step.
    """
    config = saved.read_config(folder)
    require(config["task"] == task, f"{folder}: a run of {config['task']}; only {what}")
    config |= {"data": config["data"] | {"resident": False}}  # its rows are not needed
    kept, sources = files.absolute(folder) / "tokenizer.json", None
    if inputs.present(kept):
        sources = _outline(config, str(kept))
        # Nothing of the model depends on these, and an epoch has no length without the data.
        config |= {"train": config["train"] | {"duration": f"{MOST_STEPS} steps"}}
    with saved.opened(config, folder, step, sources) as (program, state, number):
        facts: TextFacts = program.task.sources["train"].facts
        if sources is None:
            _keep(folder, program.task.files or {})
        yield config, eval_context(program, state, number).params, facts


def _outline(config: dict, tokenizer: str) -> dict:
    """The run's Sources without contents: of one batch, so that an epoch is a step."""
    data = config["data"] | {"tokenizer": tokenizer}
    sources = task_module(config["task"]).outline(config | {"data": data})
    size = config["train"]["batch_size"]
    return {name: source._replace(size=size) for name, source in sources.items()}


def _keep(folder: str, contents: dict[str, str]) -> None:
    with contextlib.suppress(OSError):  # where it cannot be written
        for name, text in contents.items():
            files.replace_text(files.absolute(folder) / name, text)
