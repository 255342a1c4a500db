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
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mediffusion_core.run_io.run_folder import STAGES

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
            self.figures |= _figures(entry)
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


class LiveView:
    """Shows the progress of a run: redrawn in a terminal, otherwise one line per event.

    Args:
        run_folder: Folder of the run.
        console: Where to show it; standard output by default.
    """

    def __init__(self, run_folder: Path, console: Console | None = None) -> None:
        self._console = console or Console()
        self._progress = RunProgress(run_folder)
        self._started = time.monotonic()
        self._stage: str | None = None
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._progress.read()  # lines of a resumed run's earlier part are not shown again
        if self._console.is_terminal:
            self._live = Live(self._render(), console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.refresh()
        if self._live is not None:
            self._live.stop()

    def refresh(self) -> None:
        """Reads the files and shows the new state."""
        entries = self._progress.read()
        if self._live is not None:
            self._live.update(self._render())
            return
        for entry in entries:
            self._print_stage(entry["stage"])
            for line in _site_lines(entry):
                self._print(line)
            self._print(self._event(entry))
        self._print_stage(self._progress.stage)

    def _print_stage(self, stage: str | None) -> None:
        if stage is not None and stage != self._stage:
            self._stage = stage
            self._print(f"{stage}: started after {_duration(self._elapsed())}")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _event(self, entry: Mapping[str, Any]) -> str:
        parts = [_position(entry), _joined(_figures(entry)), self._clock_line()]
        return "  ".join(part for part in parts if part)

    def _elapsed(self) -> float:
        return time.monotonic() - self._started

    def _clock_line(self) -> str:
        elapsed = f"{_duration(self._elapsed())} elapsed"
        left = self._progress.time_left()
        if left is None:
            return elapsed
        seconds, until = left
        where = "" if until == "run" else f" of {until}"
        return f"{elapsed}, about {_duration(seconds)}{where} left"

    def _render(self) -> RenderableType:
        stage, entry = self._progress.stage, self._progress.entry
        position = _position(entry) if entry.get("stage") == stage else (stage or "starting")
        head = Text.assemble((position, "bold"), "  ", (self._clock_line(), "dim"))
        parts: list[RenderableType] = [head]
        if self._progress.sites:
            parts.append(self._site_table())
        if self._progress.figures:
            parts.append(Text(_joined(self._progress.figures)))
        parts += [Text(line, style="yellow") for line in _site_lines(entry)]
        return Group(*parts)

    def _site_table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, site in sorted(self._progress.sites.items()):
            step, steps = _number(site.get("step")), _number(site.get("steps"))
            loss = _number(site.get("loss"))
            table.add_row(
                Text(name),
                Text(_position(site)),
                ProgressBar(total=steps or 1.0, completed=step or 0.0, width=24),
                Text(f"{step or 0:.0f}/{steps:.0f}" if steps else ""),
                Text("" if loss is None else f"loss {loss:.4g}"),
            )
        return table


def _figures(entry: Mapping[str, Any]) -> dict[str, float]:
    numbers = {key: _number(value) for key, value in entry.items() if key not in _NOT_FIGURES}
    return {key: value for key, value in numbers.items() if value is not None}


def _site_lines(entry: Mapping[str, Any]) -> list[str]:
    """One line for each site that joined in a round or was set aside."""
    joined = [f"{site} joined" for site in entry.get("joined", ())]
    aside = [
        f"{a['site']} set aside: {a['kind']} {a['reason']}" for a in entry.get("set_aside", ())
    ]
    return joined + aside


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _position(entry: Mapping[str, Any]) -> str:
    """Stage and round, for example "joint 3/12"."""
    name = str(entry.get("stage", ""))
    if "round" not in entry:
        return name
    of = f"/{entry['rounds']}" if "rounds" in entry else ""
    return f"{name} {entry['round']}{of}"


def _joined(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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
