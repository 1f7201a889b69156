"""TensorBoard and Weights & Biases: where a log also goes, for people to look at.

Each takes numbers, texts and pictures, and the config as hyperparameters. Nothing here is read
again by a run, and none of it may stop one: `common.runs.log` does without a tracker that fails.
"""

import html
import importlib
import json
import os
import textwrap
import time
from typing import Any

import numpy as np
from etils import epath

from common.config import flatten, to_json
from common.errors import BadInput
from common.runs import place

UNFIT_ID = r"[^a-zA-Z0-9_-]+"  # in the id of a run of W&B, which may have 128 characters
UNFIT_TAG = r"[^-/\w.]+"  # in a tag of TensorBoard
FLUSH_SECONDS = 30
EVENTS = "events.out.tfevents.*"
LONGEST = 119  # bytes of either, before a checksum
# Sections that are no hyperparameters.
ASIDE = ("log.", "runtime.", "mesh.", "checkpoint.", "evals.", "data.workers", "train.log_every")
REFUSALS = ("UsageError", "AuthenticationError", "ValueError")  # which the user can mend


def needed(module: str, extra: str, where: str):
    """The module of an optional package. Raises `BadInput`, naming the extra, if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BadInput(f"{where}: {module} is missing: pip install -e '.[{extra}]'") from error


def hyperparameters(config: dict) -> dict[str, Any]:
    """The numbers, texts and switches of a config that make it what it is, flat. Those that are
    None are left out: TensorBoard has no such value."""
    flat = {k: v for k, v in flatten(config).items() if not k.startswith(ASIDE)}
    plain = lambda v: v if isinstance(v, bool | int | float | str) else str(v)
    return {k: plain(v) for k, v in flat.items() if v is not None and v != ""}


class TensorBoard:
    """Event files in the workdir, whose name TensorBoard shows as that of the run."""

    def __init__(self, folder: epath.Path, step: int, config: dict):
        """Goes on after `step`: what is there of later steps is dropped when it is read."""
        needed("tensorboardX", "tensorboard", "config.log.tensorboard")
        names = ("event_file_writer", "summary", "proto.event_pb2")
        files, self._make, self._proto = (
            importlib.import_module(f"tensorboardX.{n}") for n in names
        )
        before = len(list(folder.glob(EVENTS)))  # two starts in one second would share a file
        # Not `SummaryWriter`, whose thread dies of a full disk: the run would wait for it for ever.
        self._writer = files.EventsWriter(os.fspath(folder / "events"), f".{before}")
        self._flushed_at = time.time()
        begins = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._write(step + 1 if step else 0, session_log=begins)
        if not (step and before):
            _, start, _ = self._make.hparams(hyperparameters(config), {})
            self._write(0, summary=start)
            self.text(step, "config", to_json(config))

    def _write(self, step: int, **what) -> None:
        now = time.time()
        self._writer.write_event(self._proto.Event(wall_time=now, step=step, **what))
        if now - self._flushed_at > FLUSH_SECONDS:
            self.flush()

    def _tag(self, name: str) -> str:
        return place.fitting(name, UNFIT_TAG, LONGEST)

    def numbers(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._write(step, summary=self._make.scalar(self._tag(name), value))

    def text(self, step: int, name: str, text: str) -> None:
        block = textwrap.indent(text, "    ", lambda line: True)  # code, in Markdown
        self._write(step, summary=self._make.text(self._tag(name), block))

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        summary = self._make.image(self._tag(name), picture, dataformats="HWC")
        self._write(step, summary=summary)

    def flush(self) -> None:
        self._writer.flush()
        self._flushed_at = time.time()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases, which goes on if the workdir's run does."""

    def __init__(self, folder: epath.Path, project: str, name: str, config: dict):
        """Begins or resumes the run.

        Raises:
          BadInput: if W&B refuses what it is told: no key, a name.
          Exception: anything else, such as no network.
        """
        self._module = needed("wandb", "wandb", "config.log.wandb")
        try:
            self._run = self._module.init(
                project=project,
                name=place.fitting(name, r"[\x00-\x1f]+", LONGEST),
                id=place.fitting(name, UNFIT_ID, LONGEST),
                dir=os.fspath(folder),
                config=json.loads(to_json(config)),
                resume="allow",
                allow_val_change=True,
            )
        except Exception as error:
            if type(error).__name__ not in REFUSALS:
                raise
            first = str(error).strip().split("\n")[0]
            raise BadInput(
                f"config.log.wandb: {type(error).__name__}: {first}; WANDB_MODE=offline works "
                "without an account"
            ) from error

    def numbers(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def text(self, step: int, name: str, text: str) -> None:
        page = self._module.Html(f"<pre>{html.escape(text)}</pre>", inject=False)
        self._run.log({name: page}, step=step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        self._run.log({name: self._module.Image(picture)}, step=step)

    def flush(self) -> None:
        """W&B sends from a process of its own."""

    def close(self) -> None:
        self._run.finish()
