"""The cells of a study of labels, from the options of the command."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mediffusion_core.common.errors import UserError
from simulations.studies.labels.cells import LabelsCell, cells_of
from simulations.studies.labels.methods import (
    DIFFUSION,
    JOINT,
    LABELS_ALONE,
    MAIN_FRACTION,
    METHODS,
    Method,
    Trial,
)

FRACTIONS = (0.02, 0.05, 0.1, 0.2, 1.0)
EVERY_FRACTION = (JOINT.name, LABELS_ALONE.name)
"""Methods that run at every fraction by default; the others run at the main fraction alone."""
DEFAULT_METHODS = tuple(name for name, method in METHODS.items() if not method.only_named)
DEFAULT_DATA = "experiment=isic2019_4centres"
SEEDS, MINUTES = 3, 10.0
"""Defaults of the command."""


@dataclass(frozen=True)
class Plan:
    """The methods, fractions and seeds to run."""

    base: tuple[str, ...]
    """Overrides of all methods."""
    methods: tuple[str, ...]
    fractions: tuple[float, ...] | None
    """None for the default: every method at the main fraction, two methods at all fractions."""
    seeds: int
    minutes: float
    """Minutes on one core for a joint run, on the machine for which the rounds were chosen."""
    tune: bool

    @property
    def options(self) -> list[str]:
        """The command's options that differ from its defaults, as on the command line."""
        options = []
        if self.methods != DEFAULT_METHODS:
            options.append(f"--methods {','.join(self.methods)}")
        if self.fractions is not None:
            options.append(f"--fractions {','.join(f'{one:g}' for one in self.fractions)}")
        options += [f"--seeds {self.seeds}"] if self.seeds != SEEDS else []
        options += [f"--minutes {self.minutes:g}"] if self.minutes != MINUTES else []
        return [*options, "--tune"] if self.tune else options

    @property
    def reference(self) -> str:
        """The method that the others are compared with: `joint`, or the first other classifier."""
        classifiers = [name for name in self.methods if name != DIFFUSION.name]
        return JOINT.name if JOINT.name in classifiers else (classifiers or self.methods)[0]

    def scaled(self, name: str) -> Method:
        """A method with the plan's minutes."""
        return METHODS[name].scaled(self.minutes / MINUTES)

    def cells(self, chosen: dict[str, Trial]) -> Iterator[LabelsCell]:
        """The cells to run, the main fraction of all methods first."""
        for fraction in sorted(self.fractions or FRACTIONS, key=lambda one: one != MAIN_FRACTION):
            for seed in range(self.seeds):
                for name in self.methods:
                    if self.fractions or fraction == MAIN_FRACTION or name in EVERY_FRACTION:
                        method = self.scaled(name)
                        yield from cells_of(method, chosen[name], self.base, fraction, seed)

    def trials(self) -> Iterator[tuple[str, int, LabelsCell]]:
        """Method, number and cell of each trial, at the first seed and the main fraction."""
        for name in self.methods:
            for number, trial in enumerate(METHODS[name].trials):
                cells = cells_of(self.scaled(name), trial, self.base, MAIN_FRACTION, seed=0)
                yield from ((name, number, cell) for cell in cells)


def make_plan(
    overrides: Sequence[str],
    methods: str | None,
    fractions: str | None,
    seeds: int,
    minutes: float,
    tune: bool,
) -> Plan:
    """The plan of the command's options; the data set is ISIC's four centres by default.

    Args:
        overrides: Of all methods.
        methods: Names separated by commas; None for those that need not be named.
        fractions: Labelled fractions separated by commas; None for the default.
        seeds: Number of seeds, from 0.
        minutes: On one core, for a joint run.
        tune: Whether each method's trials run first.

    Raises:
        UserError: if a method does not exist, or a fraction is not in (0, 1].
    """
    names_data = any(one.startswith(("experiment=", "data=")) for one in overrides)
    base = tuple(overrides) if names_data else (DEFAULT_DATA, *overrides)
    chosen = DEFAULT_METHODS if methods is None else tuple(methods.split(","))
    unknown = [name for name in chosen if name not in METHODS]
    if unknown:
        raise UserError(f"--methods: no method {unknown[0]!r}; allowed: {', '.join(METHODS)}")
    return Plan(base, chosen, _parsed_fractions(fractions), seeds, minutes, tune)


def _parsed_fractions(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        fractions = tuple(float(one) for one in text.split(","))
    except ValueError:
        fractions = ()
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise UserError(f"--fractions {text}: numbers above 0 and up to 1, separated by commas")
    return fractions
