"""The status of a run, read from the folder of a server or a site and from the audit log."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mediffusion_core.common.audit_log import Line
from mediffusion_core.common.errors import UserError
from mediffusion_core.run_io.run_folder import RunFolder


@dataclass(frozen=True)
class Last:
    """The last answer of a site: when, to which kind of message, and its outcome."""

    time: str
    kind: str
    outcome: str


@dataclass
class Status:
    """Where a run stands.

    Attributes:
        run: Name of the run's folder.
        state: `running`, `completed` or `failed` at a server; empty at a site.
        stage: Of the newest round.
        round: Its number.
        rounds: Rounds of the stage; 0 at a site.
        answers: The last answer of each site.
        epsilon: By site the largest ε of a patient; without sites that were not charged.
        free: Bytes left on the disk.
    """

    run: str = ""
    state: str = ""
    stage: str = ""
    round: int = 0
    rounds: int = 0
    answers: dict[str, Last] = field(default_factory=dict)
    epsilon: dict[str, float] = field(default_factory=dict)
    free: int = 0

    @classmethod
    def of_folder(cls, folder: Path, lines: Iterable[Line]) -> "Status":
        """The status of a server's run folder, or of a site's folder of runs.

        Args:
            folder: Such a folder.
            lines: Of the audit log.

        Raises:
            UserError: if there is no such folder.
        """
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder of a run, nor of a site's runs")
        is_run = (folder / "settings.json").is_file()
        found = _of_run(folder) if is_run else _of_site(folder)
        found.free = shutil.disk_usage(folder).free
        for line in lines:
            found.note(line.fields)
        return found

    def note(self, fields: Mapping[str, Any]) -> None:
        """Takes an entry of the audit log in."""
        if fields.get("event") not in ("answer", "reply") or fields.get("site") is None:
            return
        site = str(fields["site"])
        self.answers[site] = Last(*(str(fields[name]) for name in ("time", "kind", "outcome")))
        if fields.get("epsilon") is not None:
            self.epsilon[site] = float(fields["epsilon"])

    def text(self) -> list[str]:
        """The status as lines."""
        of = f" of {self.rounds}" if self.rounds else ""
        lines = [
            f"run      {self.run or 'none'}{f', {self.state}' if self.state else ''}",
            f"round    {f'{self.stage} {self.round}{of}' if self.stage else 'none yet'}",
            f"disk     {self.free / 1e9:.1f} GB free",
        ]
        for site in sorted({*self.answers, *self.epsilon}):
            last, epsilon = self.answers.get(site), self.epsilon.get(site)
            said = f"{last.time}  {last.kind} {last.outcome}" if last else "no answer yet"
            spent = "" if epsilon is None else f"  ε = {epsilon:.4g}"
            lines.append(f"site     {site}  {said}{spent}")
        return lines


def _of_run(folder: Path) -> Status:
    """A run at the server, by its own records."""
    found = Status(run=folder.resolve().name, state="running")
    for line in RunFolder(folder).history():
        if line.get("stage") in ("autoencoder", "joint"):
            found.stage, found.round, found.rounds = line["stage"], line["round"], line["rounds"]
    summary = _json(_read(folder / "summary.json"))
    found.state = str(summary.get("status", found.state))
    for site, promised in summary.get("privacy", {}).get("sites", {}).items():
        found.epsilon[site] = float(promised["epsilon"])
    return found


def _of_site(folder: Path) -> Status:
    """The newest run at a site, by the progress that the site keeps."""
    kept = [_json(_read(path)) | {"path": path} for path in folder.glob("*/sites/*/progress.json")]
    if not kept:
        return Status()
    newest = max(kept, key=lambda one: float(one.get("time", 0)))
    found = Status(run=newest["path"].parents[2].name, stage=str(newest.get("stage", "")))
    found.round = int(newest.get("round", 0))
    return found


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _json(text: str) -> dict[str, Any]:
    """A JSON object; empty for a file that is being written."""
    try:
        given = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return given if isinstance(given, dict) else {}
