"""What a private step of the joint stage sees of each unit, and the one loss that it has."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.models import JointUNet
from mediffusion_core.models.unet import NONE
from mediffusion_core.privacy.units import UnitIndex
from mediffusion_core.settings import JointTraining
from mediffusion_core.training.denoising import Denoising
from mediffusion_core.training.latent_set import LatentSet

WEIGHTS = tuple[float, float]
"""Of the diffusion loss and of the classification loss."""


@dataclass(frozen=True)
class Labelled:
    """Latents with labels, of the first units of a batch."""

    inputs: Tensor
    """(m, c, h, w), m ≤ n."""
    timesteps: Tensor
    """(m,)."""
    targets: Tensor
    """(m, C) in {0, 1}, NaN where a label is missing."""

    def take(self, units: Tensor) -> Self:
        """Some of the rows; units behind the last row have none."""
        parts = (self.inputs, self.timesteps, self.targets)
        rows = units[units < len(self.inputs)]
        return type(self)(*(part[rows.to(part.device)] for part in parts))


@dataclass(frozen=True)
class JointRows:
    """Of each unit K noised rows and, where it has a label, K rows to classify."""

    units: int
    denoised: tuple[Denoising, ...]
    classified: tuple[Labelled, ...]

    def __len__(self) -> int:
        """How many units, n."""
        return self.units

    def take(self, units: Tensor) -> Self:
        """Of some of the units."""
        denoised = tuple(one.take(units) for one in self.denoised)
        classified = tuple(one.take(units) for one in self.classified)
        return type(self)(len(units), denoised, classified)


@dataclass(frozen=True)
class SingleRows:
    """Of each unit one row, of which both losses are taken."""

    noised: Denoising
    targets: Tensor
    """(n, C); NaN where there is no label, or the row is too noisy to classify."""

    def __len__(self) -> int:
        """How many units, n."""
        return len(self.targets)

    def take(self, units: Tensor) -> Self:
        """Of some of the units."""
        return type(self)(self.noised.take(units), self.targets[units.to(self.targets.device)])


class UnitRows:
    """Draws the rows of units, each unit's independently of all others'.

    Nothing here may look at a second unit: how many rows of a batch are noised, or how a batch's
    labels are distributed, would couple units and void the bound.
    """

    def __init__(
        self,
        data: LatentSet,
        unit_of: Tensor,
        num_units: int,
        settings: JointTraining,
        process: DiffusionProcess,
        generator: torch.Generator,
    ) -> None:
        """Takes a site's latents, the unit (n,) of each, and what draws rows from them."""
        self._data, self._settings, self._process = data, settings, process
        self._device, self._generator = process.device, generator
        self._images = UnitIndex(unit_of, num_units)
        self._labelled = UnitIndex(unit_of[data.labelled], num_units)
        self._bound = settings.noised_levels(len(process))

    def joint(self, units: Tensor, multiplicity: int, weights: WEIGHTS) -> JointRows:
        """K rows for each loss that has a weight; for `ghost` see `single`.

        Args:
            units: Numbers (n,) of units.
            multiplicity: K; each of the K rows is a draw of image, noise level and noise of its own
                (arXiv 2210.09929, section 4).
            weights: Of the losses; a part without weight is not drawn.
        """
        known = self._labelled.counts[units] > 0
        units = torch.cat([units[known], units[~known]])
        labelled = units[: int(known.sum())]
        diffusing, classifying = weights[0] > 0, weights[1] > 0 and len(labelled) > 0
        return JointRows(
            len(units),
            tuple(self._noised_rows(units) for _ in range(multiplicity if diffusing else 0)),
            tuple(self._labelled_rows(labelled) for _ in range(multiplicity if classifying else 0)),
        )

    def single(self, units: Tensor) -> SingleRows:
        """One row a unit, for ghost clipping, which would clip two rows each by itself.

        Half of the units with a label are seen at a level at which one classifies, t = 0 mostly;
        all others at any level. Where such a level comes by chance, the label counts too.
        """
        images = self._images.draw(units, self._generator)
        targets = self._data.targets[images].clone()  # (n, C)
        known = ~targets.isnan().all(dim=1)
        timesteps = self._any_level(len(units))
        classify = known & (self._uniform(len(units)) < 0.5)
        timesteps = torch.where(classify, self._classifying_level(len(units)), timesteps)
        targets[timesteps >= self._bound] = torch.nan
        latents = self._data.latents[images].float()
        return SingleRows(self._noised(latents, timesteps), targets.to(self._device))

    def _noised_rows(self, units: Tensor) -> Denoising:
        images = self._images.draw(units, self._generator)
        return self._noised(self._data.latents[images].float(), self._any_level(len(units)))

    def _labelled_rows(self, units: Tensor) -> Labelled:
        """A view of a labelled image of each unit: clean but for a share `noised_fraction`."""
        chosen = self._labelled.draw(units, self._generator)
        views, targets = self._data.labelled_views(chosen, self._generator)
        timesteps = self._classifying_level(len(units))
        noised = self._noised(views, timesteps).inputs
        clean = (timesteps == 0)[:, None, None, None].to(self._device)
        inputs = torch.where(clean, views.to(self._device), noised)
        return Labelled(inputs, timesteps.to(self._device), targets.to(self._device))

    def _any_level(self, count: int) -> Tensor:
        return torch.randint(0, len(self._process), (count,), generator=self._generator)

    def _classifying_level(self, count: int) -> Tensor:
        """Clean, or for each row with chance `noised_fraction` at a level up to the bound."""
        levels = torch.randint(0, self._bound, (count,), generator=self._generator)
        levels[self._uniform(count) >= self._settings.noised_fraction] = 0
        return levels

    def _uniform(self, count: int) -> Tensor:
        return torch.rand(count, generator=self._generator)

    def _noised(self, latents: Tensor, timesteps: Tensor) -> Denoising:
        noise = torch.randn(latents.shape, generator=self._generator).to(self._device)
        latents = latents.to(self._device)
        return Denoising.of(self._process, latents, timesteps, noise)


class UnitLosses:
    """w · (diffusion) + λ · (classification, where labelled) of each unit, its mean over K rows."""

    def __init__(self, model: JointUNet, settings: JointTraining, multi_label: bool) -> None:
        """Takes the network, and what its losses need."""
        self._model, self._settings, self._multi_label = model, settings, multi_label
        self.weights: WEIGHTS = (settings.diffusion_weight, settings.classification_weight)
        """Of both losses; the second may rise during the stage."""

    def joint(self, rows: JointRows) -> Tensor:
        """(n,); calls the network once for each of a unit's rows."""
        losses = torch.zeros(len(rows), device=next(self._model.parameters()).device)
        for noised in rows.denoised:
            output, _ = self._model(noised.inputs, noised.timesteps, classify=NONE)
            errors = noised.losses(output, self._settings.min_snr_gamma)
            losses = losses + self.weights[0] * errors / len(rows.denoised)
        for one in rows.classified:
            if not len(one.inputs):
                continue
            _, logits = self._model(one.inputs, one.timesteps, denoise=NONE)
            values = self.weights[1] * classification_loss(logits, one.targets, self._multi_label)
            behind = losses.new_zeros(len(rows) - len(values))
            losses = losses + torch.cat([values, behind]) / len(rows.classified)
        return losses

    def single(self, rows: SingleRows) -> Tensor:
        """(n,); calls the network once."""
        output, logits = self._model(rows.noised.inputs, rows.noised.timesteps)
        classified = classification_loss(logits, rows.targets, self._multi_label)
        errors = rows.noised.losses(output, self._settings.min_snr_gamma)
        return self.weights[0] * errors + self.weights[1] * classified
