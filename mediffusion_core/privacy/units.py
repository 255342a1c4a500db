"""Which of a site's images belong to which unit of privacy: an image, a patient or a lesion."""

from collections.abc import Sequence

import torch
from torch import Tensor


class UnitIndex:
    """Draws an image of each unit that is asked for.

    A step sees at most one row of a unit, whatever the number of its images, so that all of them
    together are bounded as one.
    """

    def __init__(self, unit_of: Tensor, num_units: int) -> None:
        """Takes the unit of each image, (n,) in [0, num_units)."""
        self.counts = torch.bincount(unit_of, minlength=num_units)
        """Images of each unit, (num_units,)."""
        self._order = unit_of.argsort(stable=True)
        self._starts = self.counts.cumsum(0) - self.counts

    def draw(self, units: Tensor, generator: torch.Generator) -> Tensor:
        """A position (u,) for each of the units (u,), all of which have an image."""
        chosen = torch.rand(len(units), generator=generator, dtype=torch.float64)
        within = (chosen * self.counts[units]).long()
        return self._order[self._starts[units] + within]


def numbered(names: Sequence[str | int]) -> tuple[Tensor, int]:
    """Numbers of named units in the order of their names, (n,), and how many units there are."""
    distinct = {name: number for number, name in enumerate(sorted(set(names)))}
    return torch.tensor([distinct[name] for name in names], dtype=torch.long), len(distinct)
