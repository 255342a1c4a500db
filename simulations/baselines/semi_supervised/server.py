"""How a server averages the sites' weights of a baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class Update:
    """The result of a site's round."""

    site: int
    """Its position among the sites."""
    state: StateDict
    """Its weights."""
    moments: StateDict
    """Those of its optimizer."""
    weight: float
    """Its images, as the federation weighs them; 0 where it made no step."""


class Server:
    """One mean over all sites, by their images (FedAvg, arXiv 1602.05629)."""

    def __init__(self, num_sites: int) -> None:
        """Takes the number of sites."""
        self._num_sites = num_sites

    def groups(self, round_number: int) -> list[list[int]]:
        """The sites of each mean; the global weights are the mean of these means."""
        return [list(range(self._num_sites))]

    def weights(self, updates: Sequence[Update]) -> list[float]:
        """The weight of each update of a group in its mean."""
        return [update.weight for update in updates]

    def finish(self, weights: StateDict, round_number: int) -> StateDict:
        """The global weights of the next round, from the mean; tells the sites what they need."""
        return weights
