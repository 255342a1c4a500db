"""The state of a run in a terminal: one screen that is redrawn until the run ends."""

import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deployment.watch.state import RunState, read_state

PAUSE = 2.0
"""Seconds between two looks at the run."""


def watch_in_terminal(folder: Path, console: Console) -> None:
    """Shows a run until it ends; once where the output is no terminal.

    Raises:
        UserError: if the folder cannot be read.
    """
    state = read_state(folder)
    if not console.is_terminal:
        console.print(screen(state))
        return
    with Live(screen(state), console=console, auto_refresh=False) as live:
        while not state.has_ended:
            time.sleep(PAUSE)
            state = read_state(folder)
            live.update(screen(state), refresh=True)


def screen(state: RunState) -> RenderableType:
    """The state of a run as tables."""
    facts = Table.grid(padding=(0, 2))
    for name, text in (("Run", state.run), *state.facts):
        facts.add_row(Text(name, style="dim"), Text(text))
    sites = Table(box=None, pad_edge=False)
    for title in ("Site", "Last reply", "Work", "Not counted", "ε"):
        sites.add_column(title, header_style="dim")
    for site in state.sites:
        cells = (site.name, site.contact, site.work, site.note, site.epsilon)
        sites.add_row(*map(Text, cells))
    figures = Table.grid(padding=(0, 2))
    for name, text in state.figures:
        figures.add_row(Text(name, style="dim"), Text(text))
    return Group(facts, Text(), sites, Text(), figures)
