"""The progress of a run on the terminal that started it."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mediffusion_core.run_io.run_progress import RunProgress, as_number, figures_of, position_of


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
        parts = [position_of(entry), _joined(figures_of(entry)), self._clock_line()]
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
        position = position_of(entry) if entry.get("stage") == stage else (stage or "starting")
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
            step, steps = as_number(site.get("step")), as_number(site.get("steps"))
            loss = as_number(site.get("loss"))
            table.add_row(
                Text(name),
                Text(position_of(site)),
                ProgressBar(total=steps or 1.0, completed=step or 0.0, width=24),
                Text(f"{step or 0:.0f}/{steps:.0f}" if steps else ""),
                Text("" if loss is None else f"loss {loss:.4g}"),
            )
        return table


def _site_lines(entry: Mapping[str, Any]) -> list[str]:
    """One line for each site that joined in a round or was set aside."""
    joined = [f"{site} joined" for site in entry.get("joined", ())]
    aside = [
        f"{a['site']} set aside: {a['kind']} {a['reason']}" for a in entry.get("set_aside", ())
    ]
    return joined + aside


def _joined(figures: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
