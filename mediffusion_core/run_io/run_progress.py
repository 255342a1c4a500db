"""The progress of a run, from the files of its folder.

It reads ``metrics.jsonl``, to which the server appends one JSON object per line,
``sites/<site>/progress.json``, which each site replaces, and ``plan.json``.
"""

import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from mediffusion_core.run_io.run_folder import EVALUATION, JOINT_STAGE, STAGES

_NOT_FIGURES = frozenset({"stage", "round", "rounds", "time", "step", "steps"})
_RECENT_ROUNDS = 10


@dataclass
class RunProgress:
    """The state of one run, from its files.

    Attributes:
        run_folder: Folder of the run.
        clock: A monotonic clock, in seconds.
        entry: The last line of ``metrics.jsonl``; empty before the first.
        figures: The last value of each figure of the current stage.
        sites: The last ``progress.json`` of each site.
    """

    run_folder: Path
    clock: Callable[[], float] = time.monotonic
    entry: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    sites: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._offset = 0
        self._read_at = self.clock()
        self._ends: dict[str, dict[int, float]] = defaultdict(dict)

    def read(self) -> list[dict[str, Any]]:
        """Reads the files and returns the new lines, except an incomplete last one."""
        entries = self._new_entries()
        for entry in entries:
            if entry["stage"] != self.entry.get("stage"):
                self.figures = {}
            self.entry = entry
            self.figures |= figures_of(entry)
            if "round" in entry and "time" in entry:
                self._ends[entry["stage"]][int(entry["round"])] = float(entry["time"])
        if entries:
            self._read_at = self.clock()
        for path in self.run_folder.glob("sites/*/progress.json"):
            if (progress := _json_object(path)) is not None:
                self.sites[path.parent.name] = progress
        return entries

    @property
    def stage(self) -> str | None:
        """The latest stage in the files of the server and the sites."""
        stages = [self.entry.get("stage"), *(site.get("stage") for site in self.sites.values())]
        return max((s for s in stages if s in STAGES), key=STAGES.index, default=None)

    def time_left(self) -> tuple[float, str] | None:
        """Seconds left, and "run" or the name of the stage that ends then; None if unknown.

        The estimate uses the median duration of the last rounds, so one slow round or the gap
        before a resumption does not change it.
        """
        plan = _json_object(self.run_folder / "plan.json") or {}
        stage = self.entry.get("stage")
        if stage == EVALUATION and JOINT_STAGE in self._ends:
            stage = JOINT_STAGE  # whose rounds the evaluations belong to
        if "rounds" in self.entry:
            plan.setdefault(str(stage), self.entry["rounds"])
        if stage not in plan or (current := self._stage_left(stage, plan[stage])) is None:
            return None
        current = max(0.0, current - (self.clock() - self._read_at))
        later = [name for name in plan if name in STAGES and name not in self._ends]
        later = [name for name in later if STAGES.index(name) > STAGES.index(stage)]
        return (current, stage) if later else (current, "run")

    def _stage_left(self, stage: str, rounds: int) -> float | None:
        ends = self._ends[stage]
        numbers = sorted(ends)
        durations = [
            ends[after] - ends[before] for before, after in pairwise(numbers) if after == before + 1
        ]
        if not durations:
            return None
        return statistics.median(durations[-_RECENT_ROUNDS:]) * max(0, rounds - numbers[-1])

    def _new_entries(self) -> list[dict[str, Any]]:
        try:
            with (self.run_folder / "metrics.jsonl").open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        parsed = (_parsed(line) for line in complete.splitlines())
        return [entry for entry in parsed if entry is not None and "stage" in entry]


def figures_of(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of `metrics.jsonl`, without its place in the run."""
    numbers = {key: as_number(value) for key, value in entry.items() if key not in _NOT_FIGURES}
    return {key: value for key, value in numbers.items() if value is not None}


def as_number(value: Any) -> float | None:
    """The value as a float; None where it is no number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def position_of(entry: Mapping[str, Any]) -> str:
    """Stage and round, for example "joint 3/12"."""
    name = str(entry.get("stage", ""))
    if "round" not in entry:
        return name
    of = f"/{entry['rounds']}" if "rounds" in entry else ""
    return f"{name} {entry['round']}{of}"


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _json_object(path: Path) -> dict[str, Any] | None:
    try:
        return _parsed(path.read_bytes())
    except FileNotFoundError:
        return None
