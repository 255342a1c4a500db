"""Sends a run's lines to its trackers: none twice, and no failure of a tracker ends the run."""

import importlib.util
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mediffusion_core.common.errors import UserError
from mediffusion_core.run_io.run_folder import RunFolder, write_json
from mediffusion_core.settings.run import TrackerName
from server.tracking.entries import entries
from server.tracking.mlflow import MLflow
from server.tracking.tensorboard import TensorBoard
from server.tracking.tracker import Entry, Tracker
from server.tracking.wandb import WandB

TRACKERS: dict[TrackerName, Callable[[Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}
LIBRARIES: dict[TrackerName, tuple[str, str]] = {
    "tensorboard": ("tensorboardX", "deployment"),
    "mlflow": ("mlflow", "mlflow"),
    "wandb": ("wandb", "wandb"),
}
"""The package that a tracker imports, and the extra of this project that installs it."""
KEPT = "trackers.json"

log = logging.getLogger(__name__)


def refuse_missing(names: Sequence[TrackerName]) -> None:
    """Checks that the libraries of some trackers are installed.

    Raises:
        UserError: if one is not.
    """
    for name in names:
        library, extra = LIBRARIES[name]
        if importlib.util.find_spec(library) is None:
            raise UserError(
                f"run.trackers has {name}, and {library} is not installed; install it with pip "
                f"install 'fed-mediffusion[{extra}]', or leave {name} out"
            )


class Tracking:
    """Sends the lines of `metrics.jsonl` to a run's trackers.

    Only lines that a checkpoint holds are sent, since a run that continues makes the others anew.
    `trackers.json` has the name of each tracker's run and the number of lines it got. A tracker
    that fails gets no more lines until the run is resumed, and then all that it lacks.
    """

    def __init__(self, names: Sequence[TrackerName], folder: RunFolder) -> None:
        """Takes the trackers and the folder of the run.

        Raises:
            UserError: if a library is not installed.
        """
        refuse_missing(names)
        self._names = names
        self._folder = folder
        self._open: dict[TrackerName, Tracker] = {}
        self._kept: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        """Begins or continues the trackers' runs, and sends what they lack."""
        self._kept = self._read()
        lines = len(self._folder.history())
        for name in self._names:
            with self._surviving(name):
                if name not in self._kept or self._kept[name]["lines"] > lines:
                    # A run that was set back leaves its later lines in the tracker's former run.
                    self._keep(name, run=None, lines=0)
                tracker = TRACKERS[name](self._folder.path)
                self._keep(name, run=tracker.begin(self._kept[name]["run"]))
                self._open[name] = tracker
        self.follow()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the trackers' runs as completed or failed."""
        for name, tracker in list(self._open.items()):
            with self._surviving(name):
                tracker.end(completed=kind is None)

    def follow(self) -> None:
        """Sends the new lines; a checkpoint must hold them."""
        history = self._folder.history()
        for name, tracker in list(self._open.items()):
            with self._surviving(name):
                for entry in entries(self._folder, history, self._kept[name]["lines"]):
                    self._send(name, tracker, entry)

    def _send(self, name: TrackerName, tracker: Tracker, entry: Entry) -> None:
        # Noted first: a line that a killed process was sending is missing, and never there twice.
        self._keep(name, lines=entry.place + 1)
        try:
            tracker.take(entry)
        except Exception:
            self._keep(name, lines=entry.place)
            raise

    @contextmanager
    def _surviving(self, name: TrackerName) -> Iterator[None]:
        """Turns any failure of a tracker into one warning, and the tracker's end."""
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            text = " ".join(str(error).split()) or type(error).__name__
            log.warning("%s gets no more figures until the run is resumed: %s", name, text)

    def _keep(self, name: TrackerName, **values: Any) -> None:
        self._kept[name] = {**self._kept.get(name, {}), **values}
        write_json(self._folder.path / KEPT, self._kept)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            kept = json.loads((self._folder.path / KEPT).read_text(encoding="utf-8"))
            return {name: {key: one[key] for key in ("run", "lines")} for name, one in kept.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}
