"""Which cells a study of labels has: what a user's words ask for, and what stands without them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mediffusion_core.common.errors import UserError
from simulations.studies.labels.cells import Cell, cells_of
from simulations.studies.labels.methods import JOINT, LABELS_ALONE, METHODS, Method, Trial

FRACTIONS = (0.02, 0.05, 0.1, 0.2, 1.0)
MAIN_FRACTION = 0.2
EVERYWHERE = (JOINT.name, LABELS_ALONE.name)
"""Run at every fraction by default; the others at the main one alone."""
DEFAULT_DATA = "experiment=isic2019_4centres"
SEEDS, MINUTES = 3, 10.0
"""What the command does unless it is told otherwise."""


@dataclass(frozen=True)
class Plan:
    """What of the study is to be run now; a table always shows all of it."""

    base: tuple[str, ...]
    methods: tuple[str, ...]
    fractions: tuple[float, ...] | None
    """None for the default: every method at the main fraction, two of them at all."""
    seeds: int
    minutes: float
    """Of one core, that a run may take on the machine for which the rounds were chosen."""
    tune: bool

    @property
    def options(self) -> list[str]:
        """The command's options that differ from its defaults, as a user would type them."""
        options = []
        if self.methods != tuple(METHODS):
            options.append(f"--methods {','.join(self.methods)}")
        if self.fractions is not None:
            options.append(f"--fractions {','.join(f'{one:g}' for one in self.fractions)}")
        options += [f"--seeds {self.seeds}"] if self.seeds != SEEDS else []
        options += [f"--minutes {self.minutes:g}"] if self.minutes != MINUTES else []
        return [*options, "--tune"] if self.tune else options

    def scaled(self, name: str) -> Method:
        """A method at the plan's budget."""
        return METHODS[name].scaled(self.minutes / MINUTES)

    def cells(self, chosen: dict[str, Trial]) -> Iterator[Cell]:
        """The cells to run, the main fraction of all methods first."""
        for fraction in sorted(self.fractions or FRACTIONS, key=lambda one: one != MAIN_FRACTION):
            for seed in range(self.seeds):
                for name in self.methods:
                    if self.fractions or fraction == MAIN_FRACTION or name in EVERYWHERE:
                        method = self.scaled(name)
                        yield from cells_of(method, chosen[name], self.base, fraction, seed)

    def trials(self) -> Iterator[tuple[str, int, Cell]]:
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
    """The plan that a user's words describe; where they name no data it is ISIC's four centres.

    Raises:
        UserError: a method that does not exist, or a share that is none.
    """
    names_data = any(one.startswith(("experiment=", "data=")) for one in overrides)
    base = tuple(overrides) if names_data else (DEFAULT_DATA, *overrides)
    chosen = tuple(METHODS) if methods is None else tuple(methods.split(","))
    unknown = [name for name in chosen if name not in METHODS]
    if unknown:
        raise UserError(f"--methods: no method {unknown[0]!r}; allowed: {', '.join(METHODS)}")
    return Plan(base, chosen, _shares(fractions), seeds, minutes, tune)


def _shares(given: str | None) -> tuple[float, ...] | None:
    if given is None:
        return None
    try:
        shares = tuple(float(one) for one in given.split(","))
    except ValueError:
        shares = ()
    if not shares or not all(0 < share <= 1 for share in shares):
        raise UserError(f"--fractions {given}: numbers above 0 and up to 1, with commas")
    return shares
