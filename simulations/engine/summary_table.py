"""The table that `simulate` prints at the end of a run: its figures and the cost in privacy."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from mediffusion_core.common.errors import LedgerError
from mediffusion_core.privacy.ledger.site_ledger import LEFT_OUT, simulated_ledger
from mediffusion_core.reporting.formats import number
from mediffusion_core.reporting.headline import Row, headline
from mediffusion_core.settings import Settings


def summary_table(settings: Settings, folder: Path) -> Table:
    """The figures in `summary.json`, ε of the planned rounds, and ε of the ledger.

    Args:
        settings: Of the run.
        folder: Of the run, with the simulated sites' folders.
    """
    summary = json.loads((folder / "summary.json").read_text())
    table = Table(title="evaluation on the public test set", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("details")
    for row in (*headline(summary), *_promised(summary), *_spent(settings, folder)):
        table.add_row(*map(escape, row))
    return table


def _promised(summary: Mapping[str, Any]) -> Iterator[Row]:
    for site, planned in summary.get("privacy", {}).get("sites", {}).items():
        details = f"noise {planned['noise_multiplier']:.2f}; repeated rounds are not counted"
        yield Row(f"ε of this run's planned rounds, {site}", number(planned["epsilon"], 2), details)
    if client_level := summary.get("client_level"):
        details = f"noise {client_level['noise_multiplier']:.2f}, "
        details += f"{client_level['rounds']} noised means"
        yield Row("ε of a whole site", number(client_level["epsilon"], 2), details)


def _spent(settings: Settings, folder: Path) -> Iterator[Row]:
    """The largest ε of a unit in the ledger of the simulation, wherever the unit was dealt."""
    privacy = settings.privacy
    if not privacy.enabled:
        return
    name = "ε in the ledger of all sites"
    try:
        ledger = simulated_ledger(folder, privacy).open(begin=False)
        spent = ledger.worst(privacy.target_delta)
    except LedgerError as error:
        yield Row(name, "unknown", str(error))
    else:
        logs = [log.name for log in folder.glob("sites/*/site.log") if LEFT_OUT in log.read_text()]
        left_out = "; units with a spent budget were left out, see sites/*/site.log" if logs else ""
        yield Row(name, number(spent, 2), f"all charges, also of other runs{left_out}")
