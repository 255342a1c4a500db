"""The report of a site's round of training."""

from collections.abc import Callable
from dataclasses import dataclass, field

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, current loss)."""


@dataclass
class LocalReport:
    """Sums and counts of one site's round of training, never of single samples."""

    steps: int = 0
    images_seen: int = 0
    labelled_seen: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, **losses: float) -> None:
        """Adds one step's mean losses to the sums."""
        self.steps += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Mean of each loss over the steps."""
        return {name: total / max(self.steps, 1) for name, total in self.sums.items()}
