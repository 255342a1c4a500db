"""Rows and loss of each unit in a private step of the joint stage."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.models import JointUNet
from mediffusion_core.models.unet import NONE
from mediffusion_core.privacy.unit_streams import Draws, UnitStreams
from mediffusion_core.privacy.units import UnitIndex
from mediffusion_core.settings import JointTraining
from mediffusion_core.training.denoising import Denoising
from mediffusion_core.training.latent_set import LatentSet

WEIGHTS = tuple[float, float]
"""Weights of the diffusion loss and the classification loss."""


@dataclass(frozen=True)
class Labelled:
    """Labelled latents of the first m units of a batch."""

    inputs: Tensor
    """(m, c, h, w), m ≤ n."""
    timesteps: Tensor
    """(m,)."""
    targets: Tensor
    """(m, C) in {0, 1}, NaN where a label is missing."""

    def take(self, units: Tensor) -> Self:
        """The rows of some units; units from m on have no row."""
        parts = (self.inputs, self.timesteps, self.targets)
        rows = units[units < len(self.inputs)]
        return type(self)(*(part[rows.to(part.device)] for part in parts))


@dataclass(frozen=True)
class JointRows:
    """K noised rows of each unit, and K rows to classify of each labelled unit."""

    units: int
    denoised: tuple[Denoising, ...]
    classified: tuple[Labelled, ...]

    def __len__(self) -> int:
        """Number of units, n."""
        return self.units

    def take(self, units: Tensor) -> Self:
        """The rows of some units, at the positions (m,)."""
        denoised = tuple(one.take(units) for one in self.denoised)
        classified = tuple(one.take(units) for one in self.classified)
        return type(self)(len(units), denoised, classified)


@dataclass(frozen=True)
class SingleRows:
    """One row of each unit, for both losses."""

    noised: Denoising
    targets: Tensor
    """(n, C); NaN without a label, and above the largest noise level of classification."""

    def __len__(self) -> int:
        """Number of units, n."""
        return len(self.targets)

    def take(self, units: Tensor) -> Self:
        """The rows of some units, at the positions (m,)."""
        return type(self)(self.noised.take(units), self.targets[units.to(self.targets.device)])


class UnitRows:
    """Draws rows of units, each from its unit's own stream.

    A row depends on its own unit, the step and the round's secret alone. A number of noised rows
    fixed per batch, or a sampling by the batch's labels, would couple units and void the bound on a
    unit's part.
    """

    def __init__(
        self,
        data: LatentSet,
        index: UnitIndex,
        settings: JointTraining,
        process: DiffusionProcess,
        streams: UnitStreams,
    ) -> None:
        """Takes a site's latents, the unit of each, and the settings of noise and views.

        Args:
            data: The site's latents and labels.
            index: The unit of each latent.
            settings: Noise levels of the classified rows.
            process: The noise process, on the device of the rows.
            streams: Of the units' images, views, noise levels and noise.
        """
        self._data, self._settings, self._process = data, settings, process
        self._device, self._streams = process.device, streams
        self._images = index
        self._labelled = index.subset(data.labelled)
        self._bound = settings.noised_levels(len(process))

    def joint(self, step: int, units: Tensor, multiplicity: int, weights: WEIGHTS) -> JointRows:
        """Draws K rows for each loss with a weight above 0; mode `ghost` uses `single`.

        Args:
            step: Its number in the round.
            units: Numbers (n,) of units.
            multiplicity: K. Each of the K rows has its own image, noise level and noise
                (arXiv 2210.09929, section 4).
            weights: Of both losses.
        """
        known = self._labelled.counts[units] > 0
        units = torch.cat([units[known], units[~known]])
        labelled = units[: int(known.sum())]
        diffusing, classifying = weights[0] > 0, weights[1] > 0 and len(labelled) > 0
        noised, classified = (
            [self._streams.at(those, step, loss, row) for row in range(multiplicity if on else 0)]
            for loss, (those, on) in enumerate([(units, diffusing), (labelled, classifying)])
        )
        return JointRows(
            len(units),
            tuple(self._noised_rows(units, draws) for draws in noised),
            tuple(self._labelled_rows(labelled, draws) for draws in classified),
        )

    def single(self, step: int, units: Tensor) -> SingleRows:
        """Draws one row of each unit (n,), which serves both losses.

        A labelled unit gets a noise level of classification, mostly t = 0, with probability 1/2.
        All other rows get any level. A label counts at every level within the bound.
        """
        draws = self._streams.at(units, step)
        images = self._images.draw(units, draws)
        targets = self._data.targets[images].clone()  # (n, C)
        known = ~targets.isnan().all(dim=1)
        timesteps = self._any_level(draws)
        classify = known & (draws.uniform() < 0.5)
        timesteps = torch.where(classify, self._classifying_level(draws), timesteps)
        targets[timesteps >= self._bound] = torch.nan
        latents = self._data.latents[images].float()
        return SingleRows(self._noised(latents, timesteps, draws), targets.to(self._device))

    def _noised_rows(self, units: Tensor, draws: Draws) -> Denoising:
        latents = self._data.latents[self._images.draw(units, draws)].float()
        return self._noised(latents, self._any_level(draws), draws)

    def _labelled_rows(self, units: Tensor, draws: Draws) -> Labelled:
        """Draws a view of a labelled image of each unit; `noised_fraction` of them are noised."""
        chosen = self._labelled.draw(units, draws)
        view, ways = draws.below(len(self._data.views)), draws.below(8)
        views, targets = self._data.chosen_views(chosen, view, ways)
        timesteps = self._classifying_level(draws)
        noised = self._noised(views, timesteps, draws).inputs
        clean = (timesteps == 0)[:, None, None, None].to(self._device)
        inputs = torch.where(clean, views.to(self._device), noised)
        return Labelled(inputs, timesteps.to(self._device), targets.to(self._device))

    def _any_level(self, draws: Draws) -> Tensor:
        return draws.below(len(self._process))

    def _classifying_level(self, draws: Draws) -> Tensor:
        """Level 0, or with probability `noised_fraction` any level below the bound, (n,)."""
        levels = draws.below(self._bound)
        levels[draws.uniform() >= self._settings.noised_fraction] = 0
        return levels

    def _noised(self, latents: Tensor, timesteps: Tensor, draws: Draws) -> Denoising:
        noise = draws.normal(*latents.shape[1:]).to(self._device)
        latents = latents.to(self._device)
        return Denoising.of(self._process, latents, timesteps, noise)


class UnitLosses:
    """The loss of each unit: w · diffusion + λ · classification, each a mean over K rows.

    A unit without a label has the diffusion loss alone. The sum of the units' gradients has one
    divisor, the expected number of units. So classification weighs λ times the labelled share of
    the units; `training.loss.joint_losses` divides it by labelled rows alone.
    """

    def __init__(self, model: JointUNet, weights: WEIGHTS, multi_label: bool) -> None:
        """Takes the network, the weights w and λ, and whether labels are findings."""
        self._model, self._weights, self._multi_label = model, weights, multi_label

    def joint(self, rows: JointRows) -> Tensor:
        """Losses (n,); calls the network once per row of a unit."""
        losses = torch.zeros(len(rows), device=next(self._model.parameters()).device)
        for noised in rows.denoised:
            output, _ = self._model(noised.inputs, noised.timesteps, classify=NONE)
            errors = noised.losses(output)
            losses = losses + self._weights[0] * errors / len(rows.denoised)
        for one in rows.classified:
            if not len(one.inputs):
                continue
            _, logits = self._model(one.inputs, one.timesteps, denoise=NONE)
            values = self._weights[1] * classification_loss(logits, one.targets, self._multi_label)
            behind = losses.new_zeros(len(rows) - len(values))
            losses = losses + torch.cat([values, behind]) / len(rows.classified)
        return losses

    def single(self, rows: SingleRows) -> Tensor:
        """Losses (n,); calls the network once."""
        output, logits = self._model(rows.noised.inputs, rows.noised.timesteps)
        classified = classification_loss(logits, rows.targets, self._multi_label)
        errors = rows.noised.losses(output)
        return self._weights[0] * errors + self._weights[1] * classified
