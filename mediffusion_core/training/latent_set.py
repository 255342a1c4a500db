"""A site's data in the joint stage: latents, views of some of them, and labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.data.augmentation import cutout, turn_and_flip, turned_and_flipped
from mediffusion_core.data.image_set import labelled_positions, unlabelled_positions


@dataclass(frozen=True)
class LatentSet:
    """A site's training latents with the labels it may use."""

    latents: Tensor
    """(n, c, h, w) float16: each image without augmentation, for the denoiser."""
    views: Tensor
    """(V, m, c, h, w) float16: views of the labelled images, in order, for the classifier alone."""
    targets: Tensor
    """(n, classes) in {0, 1}; NaN where a label is missing or withheld."""
    multi_label: bool
    turns_and_flips: bool = False
    """Whether a turned or mirrored image is as likely as the original. The latents are turned then:
    for a convolutional encoder that is nearly the latent of the turned image, and costs nothing."""
    unlabelled_views: Tensor | None = None
    """(V', u, c, h, w) float16: random views of the unlabelled images, in order, where needed."""
    directions: Tensor | None = None
    """(n, K) float16: a public encoder's whitened features of each image, where needed."""
    soft_targets: Tensor | None = None
    """(n, classes) float16 in [0, 1]: a classifier's probabilities from them, where needed."""

    def __post_init__(self) -> None:
        """Refuses latents, views and labels that are not of the same images."""
        strong = self.unlabelled_views
        if strong is not None and strong.shape[1] != len(self.unlabelled):
            raise ValueError(
                f"views of {strong.shape[1]} images do not fit {len(self.unlabelled)} unlabelled"
            )
        for name, known in (("directions", self.directions), ("soft targets", self.soft_targets)):
            if known is not None and len(known) != len(self.latents):
                raise ValueError(f"{name} of {len(known)} images do not fit {len(self.latents)}")
        if len(self.latents) != len(self.targets) or self.views.shape[1] != len(self.labelled):
            raise ValueError(
                f"{len(self.latents)} latents and views of {self.views.shape[1]} do not fit "
                f"{len(self.targets)} labels, {len(self.labelled)} of them known"
            )

    @property
    def labelled(self) -> Tensor:
        """Positions of the images with at least one known label, (m,)."""
        return labelled_positions(self.targets)

    @property
    def unlabelled(self) -> Tensor:
        """Positions of the images without any label, (u,)."""
        return unlabelled_positions(self.targets)

    def labelled_views(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """One random view of each of the labelled images numbered (B,), and their targets.

        Returns:
            Latents (B, c, h, w) float32 and targets (B, classes).
        """
        views = self._any_view(self.views, chosen, generator)
        return views, self.targets[self.labelled[chosen]]

    def chosen_views(self, chosen: Tensor, view: Tensor, ways: Tensor) -> tuple[Tensor, Tensor]:
        """Views numbered (B,) of the labelled images numbered (B,), and their targets.

        Args:
            chosen: Numbers of the images.
            view: Numbers of their views.
            ways: Of `turned_and_flipped`, (B,); without effect unless `turns_and_flips`.

        Returns:
            Latents (B, c, h, w) float32 and targets (B, classes).
        """
        views = self.views[view, chosen].float()
        held = turned_and_flipped(views, ways) if self.turns_and_flips else views
        return held, self.targets[self.labelled[chosen]]

    def weak_views(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """The unlabelled images numbered (B,), turned but not augmented; (B, c, h, w) float32."""
        return self._held(self.latents[self.unlabelled[chosen]].float(), generator)

    def strong_views(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """One random view of each of the unlabelled images numbered (B,), with a square cut out.

        Returns:
            Latents (B, c, h, w) float32.

        Raises:
            ValueError: if the set was made without views of unlabelled images.
        """
        if self.unlabelled_views is None:
            raise ValueError("consistency needs views of the unlabelled images")
        return cutout(self._any_view(self.unlabelled_views, chosen, generator), generator)

    def aligned_views(
        self, chosen: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images numbered (B,), turned but not augmented, their directions and soft targets.

        Returns:
            Latents (B, c, h, w), directions (B, K) and soft targets (B, classes), float32.

        Raises:
            ValueError: if the set was made without directions.
        """
        if self.directions is None:
            raise ValueError("alignment needs a public encoder's features of the images")
        latents = self._held(self.latents[chosen].float(), generator)
        soft = None if self.soft_targets is None else self.soft_targets[chosen].float()
        return latents, self.directions[chosen].float(), soft

    def _any_view(self, views: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
        view = torch.randint(0, len(views), (len(chosen),), generator=generator)
        return self._held(views[view, chosen].float(), generator)

    def _held(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        return turn_and_flip(latents, generator) if self.turns_and_flips else latents
