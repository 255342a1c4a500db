"""The privacy units of a site: the image, patient or lesion that each training image belongs to."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from mediffusion_core.privacy.unit_streams import Draws, UnitStreams


class UnitIndex:
    """The images of each unit, and random draws among them.

    A training step uses at most one image of a unit per row, however many images the unit has.
    Clipping therefore bounds all images of the unit together.
    """

    def __init__(self, unit_of: Tensor, names: Sequence[str]) -> None:
        """Takes the unit of each image, (n,), and the units' names in the order of their numbers.

        Images of units numbered from `len(names)` on belong to no unit and are never drawn.
        """
        self.names = names
        self.counts = torch.bincount(unit_of, minlength=len(names))[: len(names)]
        """Images of each unit, (number of names,)."""
        self._unit_of = unit_of
        self._order = unit_of.argsort(stable=True)
        self._starts = self.counts.cumsum(0) - self.counts

    def subset(self, images: Tensor) -> "UnitIndex":
        """The index of the images at the positions (m,); units keep their numbers."""
        return UnitIndex(self._unit_of[images], self.names)

    def draw(self, units: Tensor, draws: Draws) -> Tensor:
        """Draws one image of each unit (u,), and returns their positions (u,).

        Every unit must have an image.

        Args:
            units: Their numbers.
            draws: Of these units.
        """
        within = (draws.uniform() * self.counts[units]).long()
        return self._order[self._starts[units] + within]

    def draw_each(self) -> Tensor:
        """Draws one image of every unit, under a new secret, and returns their positions."""
        units = torch.arange(len(self.names))
        return self.draw(units, UnitStreams(self.names).at(units))


def numbered(names: Sequence[str], left_out: Collection[str] = ()) -> tuple[Tensor, list[str]]:
    """Numbers units in the order of their names, and those left out after all others.

    Returns:
        The number of each name's unit (n,), and the names of the units that are not left out.
    """
    behind = set(left_out)
    counted = sorted(set(names) - behind)
    order = [*counted, *sorted(set(names) & behind)]
    distinct = {name: number for number, name in enumerate(order)}
    return torch.tensor([distinct[name] for name in names], dtype=torch.long), counted
