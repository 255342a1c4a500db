"""Weights & Biases: online with an API key, else files in the run's folder for `wandb sync`."""

import logging
import os
import uuid
from typing import Any

from server.tracking.tracker import Entry, Tracker

PROJECT = "fed-mediffusion"
OFFLINE = "offline"
LONGEST_START = 30.0
"""Seconds until a start online is given up."""

log = logging.getLogger(__name__)


class WandB(Tracker):
    """Logs to the service if $WANDB_API_KEY is set and the service answers, else to `wandb/`.

    $WANDB_MODE decides otherwise. The names of machine and user, the code and the console are not
    logged; W&B itself adds the versions of Python and of the platform.
    """

    def begin(self, known: str | None) -> str:
        """Continues the run of this id, or begins one."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        identity = known or uuid.uuid4().hex[:8]
        by_key = "online" if os.environ.get("WANDB_API_KEY") else OFFLINE
        mode = os.environ.get("WANDB_MODE") or by_key
        try:
            self._run = self._started(identity, mode)
        except Exception as error:
            if mode == OFFLINE:
                raise
            text = " ".join(str(error).split())
            log.warning("Weights & Biases can't be reached (%s): the run stays offline", text)
            wandb.teardown()  # its process still holds the run
            self._run = self._started(identity, OFFLINE)
        return identity

    def take(self, entry: Entry) -> None:
        """Logs figures and pictures; the step is the number of the line, and only grows."""
        import wandb

        number = f"{entry.stage}/round"
        self._run.define_metric(number, hidden=True)
        self._run.define_metric(f"{entry.stage}/*", step_metric=number)
        pictures = {name: wandb.Image(str(path)) for name, path in entry.pictures.items()}
        self._run.log(
            {**entry.figures, **pictures, number: entry.round_number}, step=entry.place, commit=True
        )

    def end(self, completed: bool) -> None:
        """Uploads the rest, or closes the files."""
        self._run.finish(exit_code=0 if completed else 1)

    def _started(self, identity: str, mode: str) -> Any:
        import wandb

        settings = wandb.Settings(
            mode=mode,
            root_dir=str(self.folder),
            init_timeout=LONGEST_START,
            silent=True,
            console="off",
            host="",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            save_code=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        return wandb.init(
            project=PROJECT, id=identity, name=self.folder.name, resume="allow", settings=settings
        )
