"""Whole numbers for masked sums, with noise that the sites share.

Masks need whole numbers. With C the largest norm of a unit's part, a site sends its clipped sum x
in steps of γ = C / 2²⁴, rounded, plus its share of noise, rounded too:

    X_i = round(x_i / γ) + round(G_i)    G_i ~ N(0, s² I)    s² = ((σ Δ)² + η²) / h

h is the number of sites whose noise counts, Δ = 2²⁴ + √d the largest change of round(x_i / γ) by
one unit, in norm: rounding adds at most one step in each of d coordinates. The sum over h sites and
more is as private as the Gaussian mechanism with noise multiplier σ, although a sum of rounded
numbers is no rounded sum:

1. With B the uniform density on [-1/2, 1/2] and φ_v the density of N(0, v), round(G) has the
   probabilities (φ_{s²} * B)(k). The sum of h of them has (φ_{h s²} * B * … * B)(k), within a
   factor 1 ± κ₁: in Poisson's summation formula, the product of two Gaussian densities of variances
   j s² and s² has the variance j s² / (j + 1), so that the j-th sum is off by a factor of at most
   1 ± 2.01 exp(-2 π² s² j / (j + 1)). The proof is that of discrete Gaussians (Kairouz et al.,
   arXiv 2102.06387, theorem 9, whose τ has the same exponents) under the mixture over B.
2. A number with these probabilities around a whole X follows, within a factor 1 ± κ₂, from
   Y ~ N(X, (h s² - η²) I) alone: draw k with a probability in proportion to
   (φ_{η²} * B * … * B)(k - Y). The proportions sum to 1 within κ₂ = 2.01 exp(-2 π² η²).
3. So the sum is a function of a Gaussian mechanism with deviation √(h s² - η²) = σ Δ, and d
   coordinates add at most 2 d (κ₁ + κ₂) to ε. With η = 4, κ₂ is below 1e-136, and s is at least η.

Noise of further sites is independent and takes nothing away. Sums do not wrap around: 2³⁸ units add
at most 2⁶² steps, and 10⁴ s are below the other half of the range, or the noise is refused.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mediffusion_core.privacy.dp_sgd.randomness import normal
from mediffusion_core.privacy.secure_aggregation.sites import Numbers

STEPS = 1 << 24
"""C / γ."""
FARTHEST = 1e4
"""Deviations that must fit: 9 of each site's noise, for a thousand sites."""
SMOOTHING = 4.0
"""η, in steps."""


@dataclass(frozen=True)
class Grid:
    """The steps of one run's sums, and the noise in them."""

    max_grad_norm: float
    """C."""
    noise_multiplier: float
    """σ of the sum."""
    counted: int
    """h, the number of sites whose noise counts."""

    def noised(self, total: Tensor) -> Numbers:
        """A site's clipped sum (d,) in steps, with the site's share of the noise, modulo 2⁶⁴."""
        deviation = self.deviation(total.numel())
        if not deviation * FARTHEST < 2**62:
            raise ValueError(f"noise_multiplier={self.noise_multiplier:g} does not fit the grid")
        steps = np.rint(total.double().cpu().numpy() * (STEPS / self.max_grad_norm))
        drawn = normal(total.shape).numpy() * deviation
        whole: NDArray[np.int64] = steps.astype(np.int64) + np.rint(drawn).astype(np.int64)
        return whole.view(np.uint64)

    def deviation(self, dimensions: int) -> float:
        """s, the standard deviation of a site's share in steps."""
        change = STEPS + math.sqrt(dimensions)
        variance = (self.noise_multiplier * change) ** 2 + SMOOTHING**2
        return math.sqrt(variance / self.counted)


def from_steps(total: Numbers, max_grad_norm: float) -> NDArray[np.float64]:
    """A sum of clipped gradients and noise (d,), from that sum in steps modulo 2⁶⁴."""
    signed: NDArray[np.float64] = total.view(np.int64).astype(np.float64)
    return signed * (max_grad_norm / STEPS)
