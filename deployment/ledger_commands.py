"""`fed-mediffusion site ledger`: shows, verifies and exports a site's privacy ledger."""

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mediffusion_core.common.errors import UserError
from mediffusion_core.privacy.ledger.ledger import Entry, Ledger, LedgerTip
from mediffusion_core.privacy.ledger.site_ledger import (
    LedgerPlaces,
    ledger_places,
    open_site_ledger,
)
from mediffusion_core.privacy.ledger.storage import ANNOUNCED
from mediffusion_core.privacy.ledger.unit_names import read_names
from mediffusion_core.settings.site_file import SiteFile


@dataclass(frozen=True)
class Opened:
    """A ledger, the δ of its ε, and the site's limit of ε."""

    ledger: Ledger
    delta: float
    max_epsilon: float | None


def open_ledger(path: Path, delta: float | None) -> Opened:
    """Opens the ledger of a site file or in a folder.

    Args:
        path: A site file, or a ledger's folder with its tip beside it.
        delta: δ of ε; by default that of the site file, or 1e-5.

    Raises:
        UserError: if the site file is wrong.
        LedgerError: if the ledger fails verification.
    """
    if path.is_dir():
        return Opened(Ledger.open(path, begin=False), delta or 1e-5, None)
    site = SiteFile.read(path)
    # A limit at one δ does not apply to ε at another.
    same = delta in (None, site.policy.target_delta)
    return Opened(
        open_site_ledger(site, begin=False),
        delta or site.policy.target_delta,
        site.policy.max_epsilon if same else None,
    )


def show_ledger(path: Path, delta: float | None) -> None:
    """Prints the charges by run and stage, and the largest ε of a unit over all of them.

    Raises:
        UserError, LedgerError: as `open_ledger`.
    """
    opened = open_ledger(path, delta)
    table = Table("run", "stage", "rounds", "steps", "units", "ε alone", "first", "last")
    for part in _by_run_and_stage(opened):
        table.add_row(
            *(str(part[name]) for name in ("run", "stage", "rounds", "steps", "units")),
            f"{part['epsilon']:.3g}",
            part["first"],
            part["last"],
        )
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    allowed = "" if opened.max_epsilon is None else f"; the site allows {opened.max_epsilon:g}"
    worst = opened.ledger.worst(opened.delta)
    print(f"worst unit: ε = {worst:.4g} at δ = {opened.delta:g}{allowed}")
    print(f"unit: {_unit(opened.ledger)}")
    announced = sorted({one.run for one in opened.ledger.entries() if one.stage == ANNOUNCED})
    if announced:
        print(
            f"announced with shared noise: {', '.join(announced)}; patients whose first charge is "
            "of these runs take part in no steps of sampled patients"
        )
    print(f"tip: {opened.ledger.verify()}")


def verify_ledger(path: Path, against: str | None, restore_tip: bool) -> str:
    """Checks the chain, the tip in the second place, and a tip kept elsewhere.

    Args:
        path: As for `open_ledger`.
        against: COUNT:DIGEST as the server has it.
        restore_tip: Write a lost tip again, if the ledger contains `against`.

    Returns:
        One line.

    Raises:
        UserError: if `against` has another form, or is missing for `restore_tip`.
        LedgerError: if the ledger fails verification.
    """
    try:
        known = LedgerTip.parse(against) if against else None
    except ValueError as error:
        raise UserError(f"--against {against}: {error}") from None
    if restore_tip:
        if known is None:
            raise UserError("--restore-tip needs --against: a ledger tip kept elsewhere")
        places = LedgerPlaces(path) if path.is_dir() else ledger_places(SiteFile.read(path))
        Ledger.restore_tip(places.folder, places.tip, known)
    ledger = open_ledger(path, None).ledger
    if known is not None:
        ledger.must_extend(known)
    tip = ledger.verify()
    return f"sound: {tip.count} entries, tip {tip}"


def export_ledger(path: Path, delta: float | None, output: Path) -> Path:
    """Writes all entries as JSON or CSV, by the file's ending, without names or hashes of patients.

    Raises:
        UserError: for another ending, and as `open_ledger`.
        LedgerError: as `open_ledger`.
    """
    if output.suffix not in (".json", ".csv"):
        raise UserError(f"{output} must end in .json or .csv")
    opened = open_ledger(path, delta)
    rows = [_row(entry) for entry in opened.ledger.entries()]
    text = _csv(rows) if output.suffix == ".csv" else _json(opened, rows)
    output.write_text(text, encoding="utf-8")
    return output


def _unit(ledger: Ledger) -> str:
    names = read_names(ledger.folder)
    return names.unit if names else "not noted, no run since an earlier version wrote the ledger"


def _by_run_and_stage(opened: Opened) -> Iterator[dict[str, Any]]:
    def key(entry: Entry) -> tuple[str, str]:
        return entry.run, entry.stage

    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in opened.ledger.entries():
        groups.setdefault(key(entry), []).append(entry)
    for (run, stage), epsilon in opened.ledger.worst_by(opened.delta, key).items():
        entries = groups[run, stage]
        yield {
            "run": run,
            "stage": stage,
            "rounds": len({entry.round_number for entry in entries}),
            "steps": sum(entry.charge.steps for entry in entries),
            "units": max(entry.units for entry in entries),
            "epsilon": epsilon,
            "first": entries[0].time,
            "last": entries[-1].time,
        }


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "number": entry.number,
        "time": entry.time,
        "run": entry.run,
        "stage": entry.stage,
        "round": entry.round_number,
        **asdict(entry.charge),
        "units": entry.units,
        "digest": entry.digest,
    }


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    fields = [
        "number",
        "time",
        "run",
        "stage",
        "round",
        "sample_rate",
        "noise_multiplier",
        "steps",
        "units",
        "digest",
    ]
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _json(opened: Opened, rows: list[dict[str, Any]]) -> str:
    worst = opened.ledger.worst(opened.delta)
    content = {
        "delta": opened.delta,
        # JSON has no infinity, the ε of statistics without noise.
        "worst_epsilon": worst if math.isfinite(worst) else "infinite",
        "max_epsilon": opened.max_epsilon,
        "unit": _unit(opened.ledger),
        "tip": str(opened.ledger.verify()),
        "entries": rows,
    }
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
