"""A candidate: one combination of the settings that a sweep varies, at each of its seeds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import fingerprint
from simulations.sweeps.cell import SweepCell
from simulations.sweeps.space import SEED, Space


@dataclass(frozen=True)
class Candidate:
    """The values of the varied settings without the seed, and the cells, one for each seed."""

    chosen: Mapping[str, str]
    cells: tuple[SweepCell, ...]
    trial: int | None = None
    """Its number in a search."""


def candidate_of(space: Space, chosen: Mapping[str, str], trial: int | None = None) -> Candidate:
    """The candidate with the chosen values, at the seeds of the space.

    Raises:
        UserError: one line, if its settings do not compose, or a sweep cannot have them.
    """
    seeds = [{SEED: seed} for seed in space.seeds] or [{}]
    values = [{**chosen, **seed} for seed in seeds]
    cells = (SweepCell(space.overrides(one), tuple(one.items())) for one in values)
    candidate = Candidate(chosen, tuple(cells), trial)
    for cell in candidate.cells:
        _refuse_unsuited(cell)
    return candidate


def refuse_equal(candidates: Iterable[Candidate]) -> None:
    """Refuses cells that differ in nothing that a run's figures depend on.

    Raises:
        UserError: with the first two of them.
    """
    found: dict[str, SweepCell] = {}
    for cell in (cell for candidate in candidates for cell in candidate.cells):
        if cell.settings_hash in found:
            other = found[cell.settings_hash]
            raise UserError(
                f"{other.title} and {cell.title} are one run: they differ in no setting of the "
                "settings' hash"
            )
        found[cell.settings_hash] = cell


def images_differ(cells: Iterable[SweepCell]) -> list[SweepCell]:
    """One cell for each way of reading and dealing the images, without seeds."""
    found: dict[str, SweepCell] = {}
    for cell in cells:
        settings = cell.settings
        parts = {"data": settings.data, "federation": settings.federation}
        key = fingerprint(
            unit=settings.privacy.unit,
            **{name: part.model_dump(mode="json") for name, part in parts.items()},
        )
        found.setdefault(key, cell)
    return list(found.values())


def _refuse_unsuited(cell: SweepCell) -> None:
    settings = cell.settings
    if settings.task != "training":
        raise UserError(f"task={settings.task}: a sweep trains; allowed: task=training")
    if settings.run.folder is not None:
        raise UserError(
            f"run.folder={settings.run.folder}: each cell of a sweep has a folder of its own; "
            "--folder names that of the sweep"
        )
    if settings.privacy.enabled and settings.privacy.ledger is not None:
        raise UserError(
            f"privacy.ledger={settings.privacy.ledger}: cells that charge one ledger would train "
            "on different patients once a budget is spent; leave it out"
        )
