"""Simulated sites of runs without training, their progress, folder and configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flwr.app import ArrayRecord, RecordDict
from rich.progress import Progress, TaskID

from configs import compose, flatten
from mediffusion_core.common.errors import UserError
from mediffusion_core.settings import Settings
from server.reply_contract import ReplyContract
from simulations.engine.in_process import SitesHere


@dataclass(frozen=True)
class Shown:
    """A task of a progress bar, which each answer to a kind of message advances."""

    kind: str
    progress: Progress
    task: TaskID


class ShownSites(SitesHere):
    """The sites of one run, asked one after the other in this process, with their progress."""

    def __init__(
        self,
        config_name: str,
        overrides: Sequence[str],
        settings: Settings,
        contract: ReplyContract,
        shown: Shown,
    ) -> None:
        """Takes the same as `SitesHere`, and the progress."""
        super().__init__(config_name, overrides, settings, contract)
        self._shown = shown

    def _answer(
        self, kind: str, round_number: int, index: int, records: Mapping[str, ArrayRecord]
    ) -> RecordDict:
        content = super()._answer(kind, round_number, index, records)
        if kind == self._shown.kind:
            self._shown.progress.advance(self._shown.task)
        return content


def by_time(parent: Path) -> Path:
    """A folder in another one, named by the time."""
    return parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def flower_configuration(config_name: str, overrides: Sequence[str]) -> str:
    """The run configuration of deployed sites, for `sign` and `flwr run`.

    Raises:
        UserError: for a mistake in settings, or a text that Flower's configuration can't hold.
    """
    compose(config_name, overrides)
    text = flatten(overrides)
    if '"' in text or "\\" in text:
        raise UserError("--run-config: names of classes and folders may hold no quotation marks")
    chosen = "" if config_name == "config" else f'config-name="{config_name}" '
    return f'{chosen}overrides="{text}"'
