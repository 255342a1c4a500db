"""The interface of a tracker: a library that shows the figures of many runs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One line of `metrics.jsonl`, as trackers get it.

    Attributes:
        place: Number of the line, from 0.
        stage: Of the line.
        round_number: Round of the stage.
        seconds: Time since the start of the run.
        figures: Figures by name; a name starts with the stage.
        pictures: Files by name.
    """

    place: int
    stage: str
    round_number: int
    seconds: float
    figures: Mapping[str, float]
    pictures: Mapping[str, Path]


class Tracker(ABC):
    """One tracker of one run. Every method may raise whatever its library raises."""

    def __init__(self, folder: Path) -> None:
        """Takes the folder of the run; writes nothing."""
        self.folder = folder

    @abstractmethod
    def begin(self, known: str | None) -> str:
        """Continues the tracker's run of this name, or begins a new one; returns its name."""

    @abstractmethod
    def take(self, entry: Entry) -> None:
        """Keeps one line."""

    @abstractmethod
    def end(self, completed: bool) -> None:
        """Closes the tracker's run."""
