"""What a site trains on in the joint stage: latents, views of some of them, and labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.training.augmentation import turn_and_flip


@dataclass(frozen=True)
class LatentSet:
    """A site's training latents with the labels it may use."""

    latents: Tensor
    """(n, c, h, w) float16: each image as it is, whose distribution the denoiser learns."""
    views: Tensor
    """(V, m, c, h, w) float16: views of the labelled images, in order, for the classifier alone."""
    targets: Tensor
    """(n, classes) in {0, 1}; NaN where a label is missing or withheld."""
    multi_label: bool
    turns_and_flips: bool = False
    """Whether a turned or mirrored image is as likely as the original. The latents are turned then:
    for a convolutional encoder that is nearly the latent of the turned image, and costs nothing."""

    def __post_init__(self) -> None:
        """Refuses latents and labels that are not of the same images."""
        if len(self.latents) != len(self.targets) or self.views.shape[1] != len(self.labelled):
            raise ValueError(
                f"{len(self.latents)} latents and views of {self.views.shape[1]} do not fit "
                f"{len(self.targets)} labels, {len(self.labelled)} of them known"
            )

    @property
    def labelled(self) -> Tensor:
        """Positions of the images with at least one known label, (m,)."""
        return (~self.targets.isnan()).any(dim=1).nonzero().flatten()

    def labelled_views(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One random view of each of the labelled images numbered (B,), and their targets.

        Returns:
            Latents (B, c, h, w) float32 and targets (B, classes).
        """
        view = torch.randint(0, len(self.views), (len(chosen),), generator=generator)
        views = self.views[view, chosen].float()
        if self.turns_and_flips:
            views = turn_and_flip(views, generator)
        return views, self.targets[self.labelled[chosen]]
