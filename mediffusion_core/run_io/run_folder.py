"""The run folder: everything that a run leaves behind, in one place."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.files import replacing
from mediffusion_core.settings import RunSettings, Settings

EVALUATION = "evaluation"
"""The stage of an evaluation's lines; files of earlier runs have this name, so it stays."""
JOINT_STAGE = "joint"
"""The stage whose rounds are evaluated, and have a selected one."""
STAGES = ("prepare", "census", "autoencoder", "latents", JOINT_STAGE, EVALUATION)
"""Stages of a run in their order, as `metrics.jsonl` names them."""


def run_path(settings: RunSettings, run_id: int) -> Path:
    """The folder of a run: the one it was given, or one named by Flower's id of the run."""
    return settings.folder or Path.cwd() / "runs" / f"flwr-{run_id}"


class RunFolder:
    """Paths and records of one run.

    `settings.json` (resolved), `metrics.jsonl`, `summary.json`, `plan.json`, `checkpoints/`,
    `pictures/`, `model/` (for predict, sample and explain), `sites/` (in simulation, the sites'
    own folders) and the files of trackers.
    """

    def __init__(self, path: Path) -> None:
        """Takes the folder; creates nothing."""
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.pictures = path / "pictures"
        self.model = path / "model"
        self.metrics = path / "metrics.jsonl"

    def round_pictures(self, number: int) -> Path:
        """The folder of the pictures of a joint round's evaluation."""
        return self.pictures / "rounds" / f"{number:04d}"

    def create(self, settings: Settings) -> None:
        """Makes the folder and writes the resolved settings into it.

        Raises:
            UserError: if the folder holds a run with other settings.
        """
        self.refuse_others(settings)
        self.pictures.mkdir(parents=True, exist_ok=True)
        resolved = {"settings_hash": settings.fingerprint(), **settings.shared()}
        write_json(self.path / "settings.json", resolved)

    def refuse_others(self, settings: Settings) -> None:
        """Leaves a folder alone that holds a run with other settings.

        Raises:
            UserError: if it does, if its settings cannot be read, or if it is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run folder {self.path} is not a folder; choose another run.folder")
        written = self.path / "settings.json"
        if written.is_file():
            try:
                before = json.loads(written.read_text(encoding="utf-8"))["settings_hash"]
            except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
                raise UserError(
                    f"{written} cannot be read ({type(error).__name__}); choose another run.folder"
                ) from None
            if before != settings.fingerprint():
                raise UserError(
                    f"run folder {self.path.name} holds a run with other settings "
                    f"(hash {before!a}, now {settings.fingerprint()}); choose another run.folder"
                )

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from writing to the folder, which is made where missing.

        The process that writes holds the lock, so it lasts until the last write, also where what
        started that process was killed.

        Raises:
            UserError: if another process holds it.
        """
        with self._locked("run.lock"):
            yield

    @contextmanager
    def launched(self) -> Iterator[None]:
        """Keeps other launchers out of the folder while one starts a process that writes.

        Raises:
            UserError: if another launcher or a process that writes holds the folder.
        """
        with self._locked("launch.lock"):
            with self.held():
                pass
            yield

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / name, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"another process runs in {self.path}; wait for its end, or choose another "
                "run.folder"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def record(self, **entry: Any) -> None:
        """Appends one line to `metrics.jsonl`; NaN becomes null."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(entry)) + "\n")
            file.flush()

    def history(self) -> list[dict[str, Any]]:
        """All complete lines of `metrics.jsonl`."""
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rewrite(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Replaces all lines of `metrics.jsonl`; they are on disk when this returns."""
        lines = (json.dumps(entry) + "\n" for entry in history)
        with replacing(self.metrics) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json`."""
        write_json(self.path / "summary.json", summary)

    def point_latest(self) -> None:
        """Makes `latest`, beside the folder, point at it; a link that exists is replaced.

        The link is a convenience: where it can't be made, or something else has its name, the run
        goes on without it.
        """
        link = self.path.parent / "latest"
        temporary = self.path.parent / f".latest.{os.getpid()}"
        if link.exists() and not link.is_symlink():
            return
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(self.path.name)
            temporary.replace(link)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON atomically; NaN and infinities become null. It is on disk when this returns."""
    text = json.dumps(_finite(dict(value)), indent=2) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
