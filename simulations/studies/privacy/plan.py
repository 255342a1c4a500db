"""The cells of the study, from the options of the command, and how long they take."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rich.table import Table

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.privacy.accounting.plan import statistics_charge
from simulations.engine.cells import Cell, unfinished
from simulations.studies.privacy.cells import (
    MEASURES,
    PrivacyMeasure,
    epsilon_text,
    private_run,
)
from simulations.studies.run_cells import SECONDS, RunCell

DEFAULT_BASE = "experiment=phantom_private"
MINUTES: Mapping[str, float] = {"run": 1.0, "attack": 0.8, "audit": 0.25}
"""Estimates of the default base on one core, by kind of cell."""

Key = tuple[float, int]
"""ε and seed of a run."""


@dataclass(frozen=True)
class Plan:
    """The runs of the study."""

    base: tuple[str, ...]
    """Overrides of all runs."""
    epsilons: tuple[float, ...]
    """In rising order; infinite without noise."""
    seeds: int
    canaries: int
    """Of each audit."""

    @property
    def is_default_base(self) -> bool:
        """Whether the runs are those of the estimated minutes."""
        return self.base == (DEFAULT_BASE,)


@dataclass(frozen=True)
class Work:
    """The cells of a plan."""

    plan: Plan
    study: Path
    """Folder of the study."""

    @cached_property
    def runs(self) -> Mapping[Key, RunCell]:
        """The runs, first those of the first seed."""
        return {
            (epsilon, seed): private_run(self.plan.base, epsilon, seed)
            for seed in range(self.plan.seeds)
            for epsilon in self.plan.epsilons
        }

    def measure(self, key: Key, name: str) -> PrivacyMeasure:
        """A measurement of a run."""
        return PrivacyMeasure(self.runs[key], name, self.plan.canaries)

    @property
    def measures(self) -> list[PrivacyMeasure]:
        """All measurements."""
        return [self.measure(key, name) for key in self.runs for name in MEASURES]

    def finished(self) -> list[Key]:
        """The runs that have finished."""
        return [key for key, run in self.runs.items() if run.figures(self.study) is not None]

    def kinds(self) -> Iterator[tuple[str, Sequence[Cell]]]:
        """The cells by kind."""
        yield "run", list(self.runs.values())
        for name in MEASURES:
            yield name, [self.measure(key, name) for key in self.runs]


def make_plan(overrides: Sequence[str], epsilons: str, seeds: int, canaries: int) -> Plan:
    """The plan of the command's options; the runs are those of `phantom_private` by default.

    Args:
        overrides: Of all runs.
        epsilons: Numbers above 0 or `infinity`, separated by commas.
        seeds: Number of seeds.
        canaries: Of each audit.

    Raises:
        UserError: if the settings do not train privately, share a ledger, or cannot keep an ε.
    """
    names_data = any(one.startswith(("experiment=", "data=")) for one in overrides)
    base = tuple(overrides) if names_data else (DEFAULT_BASE, *overrides)
    plan = Plan(base, tuple(sorted(set(map(_epsilon, epsilons.split(","))))), seeds, canaries)
    privacy = compose("config", base).privacy
    if not privacy.enabled:
        raise UserError("the study compares private runs; add privacy=dp, or name a private run")
    if privacy.ledger is not None or privacy.max_epsilon is not None:
        raise UserError(
            "the study trains on the same patients many times, each run with a ledger of its own; "
            "remove privacy.ledger and privacy.max_epsilon"
        )
    for epsilon in plan.epsilons:
        statistics_charge(private_run(base, epsilon, 0).settings.privacy)
    return plan


def _epsilon(text: str) -> float:
    try:
        epsilon = float(text)
    except ValueError:
        epsilon = math.nan
    if not epsilon > 0:
        raise UserError(f"--epsilons: {text!r} is not a number above 0, nor infinity")
    return epsilon


def time_plan(work: Work, jobs: int) -> tuple[Table, str]:
    """The cells of each ε that have not finished, and a line with the expected minutes."""
    study = work.study
    table = Table(title="private runs", title_justify="left")
    table.add_column("ε")
    kinds = dict(work.kinds())
    for name in kinds:
        table.add_column(f"{name}s to do", justify="right")
    for epsilon in work.plan.epsilons:
        keys = [key for key in work.runs if key[0] == epsilon]
        counts = [unfinished((work.runs[key] for key in keys), study)]
        counts += [
            unfinished((work.measure(key, name) for key in keys), study) for name in MEASURES
        ]
        table.add_row(epsilon_text(epsilon), *(str(len(one)) for one in counts))
    left = {name: len(unfinished(cells, study)) for name, cells in kinds.items()}
    text = ", ".join(f"{left[name]} of {len(kinds[name])} {name}s" for name in kinds)
    text += f" to do, {jobs} at once"
    minutes = {name: _minutes(work, name, cells) for name, cells in kinds.items() if left[name]}
    known = [left[name] * one for name, one in minutes.items() if one is not None]
    if len(known) < len(minutes):
        return table, f"{text}; the first finished cells will tell how long they take"
    return table, f"{text}: about {sum(known) / jobs:.0f} minutes with a core for each"


def _minutes(work: Work, kind: str, cells: Sequence[Cell]) -> float | None:
    """Mean of the finished cells of a kind, or as estimated for the default base."""
    finished = [found for cell in cells if (found := cell.figures(work.study)) is not None]
    if finished:
        return sum(float(one[SECONDS]) for one in finished) / len(finished) / 60
    return MINUTES[kind] if work.plan.is_default_base else None
