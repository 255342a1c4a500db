"""Scanners of different make: the same store, seen by each site through a device of its own."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from mediffusion_core.data.partitioning.partitioners import generator_for


@dataclass(frozen=True)
class Scanner:
    """How a device renders: y = gain · x^gamma + offset in [0, 1], after a Gaussian blur."""

    gamma: float = 1.0
    gain: float = 1.0
    offset: float = 0.0
    blur: float = 0.0
    """Standard deviation in pixels."""

    def render(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images (B, H, W, C) as this device shows them; alike for the same image."""
        values = images.astype(np.float32) / 255
        if self.blur > 0:
            values = gaussian_filter(values, (0, self.blur, self.blur, 0))
        values = self.gain * values**self.gamma + self.offset
        return (values.clip(0, 1) * 255).round().astype(np.uint8)


def draw_scanner(strength: float, seed: int, site: str) -> Scanner:
    """A site's scanner, drawn from the run's seed; at strength 0 it changes nothing.

    At strength 1 gamma lies within 1/2 and 2, gain within ±30 %, offset within ±0.15 and blur
    within a pixel.
    """
    gamma, gain, offset, blur = generator_for(seed, "scanner", site).uniform(-1, 1, 4)
    return Scanner(
        gamma=float(2.0 ** (strength * gamma)),
        gain=float(1 + 0.3 * strength * gain),
        offset=float(0.15 * strength * offset),
        blur=float(strength * abs(blur)),
    )


class ScannedImages:
    """A store's images, each as the scanner of its site renders it when it is read."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        scanners: tuple[Scanner, ...],
        scanner_of: NDArray[np.int64],
    ) -> None:
        """Takes N images (N, S, S, C), the scanners, and which of them made each image (N,)."""
        self._images = images
        self._scanners = scanners
        self._scanner_of = scanner_of
        self.shape = images.shape

    def scanner(self, row: int) -> Scanner:
        """The scanner that made the image in a row."""
        return self._scanners[int(self._scanner_of[row])]

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Images (B, S, S, C) at the given rows (B,)."""
        taken = np.array(self._images[rows])
        for number in np.unique(self._scanner_of[rows]):
            chosen = self._scanner_of[rows] == number
            taken[chosen] = self._scanners[number].render(taken[chosen])
        return taken
