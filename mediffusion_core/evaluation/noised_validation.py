"""Validation with differential privacy: noised sums over units, and the figures that they give.

A unit, one image of a validation patient or lesion, adds one vector to its site's sums:

- for each class, in which gap between thresholds its score lies, apart for present and absent;
- how much each temperature would lower its loss below that at temperature 1.

Either part has norm 1 at most, so the sums are one call of the Gaussian mechanism with sensitivity
√2. Units of validation are in no training step. All figures come from the noised sums.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.evaluation.calibration import best_temperature
from mediffusion_core.evaluation.classification import (
    auc_from_histogram,
    class_scores,
    logit_thresholds,
    score_histogram,
)
from mediffusion_core.privacy.dp_sgd.randomness import normal

THRESHOLDS = logit_thresholds(23, limit=8.0)
"""Few, since the noise of an area grows with the root of their number."""
ABSENT = 0.2
"""Weight of a class that is absent. Absent units are many, and may be noised more."""
TEMPERATURES = torch.logspace(-1, 3, 9, base=2, dtype=torch.float64)
"""From 1/2 to 8, (K + 1,)."""
ONE = 2
"""Position of temperature 1, where the gain is 0 and not sent."""
GAIN_BOUND = 8.0
"""Largest norm of a unit's gains; longer ones are clipped."""
LARGEST = 1e4
"""In place of an infinite logit."""
SENSITIVITY = 2**0.5
CERTAIN = 3.0
"""Standard deviations from which on a sum is taken to be more than noise."""


@dataclass(frozen=True)
class ValidationSums:
    """Sums over units, noised or not, of one site or of several."""

    histogram: Tensor
    """(C, 2, G) float64: units by class, absent or present, and gap."""
    gains: Tensor
    """(K,) float64: loss at temperature 1, less that at each other one."""

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor, multi_label: bool) -> Self:
        """Sums without noise.

        Args:
            logits: Of one image of each unit, (N, C).
            targets: (N, C) of 0, 1, or nan where the label is missing.
            multi_label: Whether classes are independent of each other.
        """
        # An error would tell that there is such a unit.
        logits = logits.double().nan_to_num(0.0, LARGEST, -LARGEST)
        if not multi_label:
            several = (targets == 1).sum(dim=1) > 1
            targets = targets.masked_fill(several[:, None], torch.nan)
        histogram = score_histogram(class_scores(logits, multi_label), targets, THRESHOLDS)
        losses = torch.stack(
            [classification_loss(logits / one, targets, multi_label) for one in TEMPERATURES]
        )  # (K + 1, N)
        gains = losses[ONE] - torch.cat([losses[:ONE], losses[ONE + 1 :]])  # (K, N)
        # The loss of a unit is a mean over independent classes.
        gains = (logits.shape[1] if multi_label else 1) * gains.double().nan_to_num(0.0, 0.0, 0.0)
        gains = gains * (GAIN_BOUND / gains.norm(dim=0).clamp_min(GAIN_BOUND))
        return cls(histogram.double(), gains.sum(dim=1))

    @classmethod
    def empty(cls, classes: int) -> Self:
        """The sums over no unit."""
        shape = (classes, 2, len(THRESHOLDS) + 1)
        return cls(
            torch.zeros(shape, dtype=torch.float64),
            torch.zeros(len(TEMPERATURES) - 1, dtype=torch.float64),
        )

    def noised(self, noise_multiplier: float, multi_label: bool) -> Self:
        """The sums with noise."""
        deviation = self.deviations(noise_multiplier, multi_label)
        return type(self)(
            self.histogram + deviation.histogram * normal(self.histogram.shape),
            self.gains + deviation.gains * normal(self.gains.shape),
        )

    def deviations(self, noise_multiplier: float, multi_label: bool) -> Self:
        """Standard deviation of the noise of each number, for one site."""
        classes = len(self.histogram)
        # An exclusive class is present once; independent ones may all be.
        longest = (1 + (classes - 1) * ABSENT**2) ** 0.5 if not multi_label else classes**0.5
        scale = noise_multiplier * SENSITIVITY * longest
        histogram = torch.full_like(self.histogram, scale)
        histogram[:, 0] = scale / ABSENT if not multi_label else scale
        return type(self)(
            histogram, torch.full_like(self.gains, noise_multiplier * SENSITIVITY * GAIN_BOUND)
        )

    def areas(self, deviations: "ValidationSums", known: Tensor | None = None) -> Tensor:
        """Area under each class's curve (C,), nan without one.

        Args:
            deviations: Of the noise of these sums.
            known: The classes that have an area, (C,) bool; by default those whose units with the
                class, and those without it, are more than noise.
        """
        if known is None:
            noise = deviations.histogram.square().sum(dim=2).sqrt()  # (C, 2)
            known = (self.histogram.sum(dim=2) > CERTAIN * noise).all(dim=1)
        areas = auc_from_histogram(self.histogram).clamp(0, 1)
        return torch.where(known, areas, torch.nan)

    def draws(self, deviations: "ValidationSums", areas: Tensor, count: int, seed: int) -> Tensor:
        """Areas of `count` sums that might have come instead, (count, C), around `areas` (C,).

        Each number of units varies with its root (as a Poisson number, here a normal one), and the
        noise is drawn anew.
        """
        generator = torch.Generator().manual_seed(seed)
        spread = (self.histogram.clamp_min(0) + deviations.histogram.square()).sqrt()
        drawn = torch.randn((count, *spread.shape), generator=generator, dtype=torch.float64)
        found = auc_from_histogram(self.histogram + spread * drawn)  # (count, C)
        return (areas + found - found.nanmedian(dim=0).values).clamp(0, 1)

    def temperature(self, deviations: "ValidationSums") -> float:
        """That of the least loss; 1 where the largest gain may be noise alone."""
        if bool((self.gains <= CERTAIN * deviations.gains).all()):
            return 1.0
        zero = torch.zeros(1, dtype=torch.float64)
        losses = -torch.cat([self.gains[:ONE], zero, self.gains[ONE:]])
        return best_temperature(losses, TEMPERATURES)

    def arrays(self) -> dict[str, Tensor]:
        """As they travel: rounded, since the pattern of the noise's last bits may tell the sum."""
        return {"histogram": self.histogram.float(), "gains": self.gains.float()}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Tensor]) -> Self:
        """The sums that travelled."""
        return cls(arrays["histogram"].double(), arrays["gains"].double())
