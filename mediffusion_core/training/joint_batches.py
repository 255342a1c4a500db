"""The batches of the joint stage: which images a step takes, and at which noise levels."""

import torch
from torch import Tensor

from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.settings import JointTraining
from mediffusion_core.training.batches import Shuffled
from mediffusion_core.training.denoising import Denoising
from mediffusion_core.training.latent_set import LatentSet
from mediffusion_core.training.loss import AlignedRows, JointBatch, LabelledRows
from mediffusion_core.training.semi_supervised.consistency import Consistency


class JointBatches:
    """Draws the batches of one site's round, with the parts of the loss that the site can have.

    A part whose weight is 0 is not drawn: without the diffusion loss a site without labels has
    nothing to train on.
    """

    def __init__(
        self,
        data: LatentSet,
        settings: JointTraining,
        process: DiffusionProcess,
        generator: torch.Generator,
        consistency: Consistency | None = None,
        logit_shift: Tensor | None = None,
    ) -> None:
        """Decides which parts there are.

        Args:
            data: The site's latents and labels.
            settings: Batch sizes and weights.
            process: On the device of training.
            generator: Draws images, views, timesteps and noise.
            consistency: Views of unlabelled images with pseudo-labels.
            logit_shift: τ · log π (C,), where logits are adjusted.
        """
        self._data, self._settings, self._process = data, settings, process
        self._generator, self._consistency, self._shift = generator, consistency, logit_shift
        everyone = Shuffled(torch.arange(len(data.latents)), generator)
        self._everyone = everyone if settings.diffusion_weight else None
        known = settings.classification_weight > 0 and len(data.labelled) > 0
        labelled = Shuffled(torch.arange(len(data.labelled)), generator)
        self._labelled = labelled if known else None
        aligned = Shuffled(torch.arange(len(data.latents)), generator)
        self._aligned = aligned if settings.alignment.enabled else None

    def __bool__(self) -> bool:
        """Whether there is anything to train on."""
        parts = (self._everyone, self._labelled, self._consistency, self._aligned)
        return any(part is not None for part in parts)

    def seen(self, steps: int) -> tuple[int, int]:
        """How many images, and how many labelled ones, are seen in that many steps.

        Labelled images are counted once each: three labels seen a hundred times weigh as three, not
        as three hundred. So are all images where there is no diffusion loss, since the denoiser
        alone sees each image as often as any other.
        """
        settings = self._settings
        labelled = unlabelled = 0
        if self._labelled is not None:
            labelled = min(len(self._data.labelled), steps * settings.labelled_batch_size)
        if self._everyone is not None:
            return steps * settings.batch_size, labelled
        if self._aligned is not None:
            return min(len(self._data.latents), steps * settings.alignment.batch_size), labelled
        if self._consistency is not None:
            unlabelled = min(len(self._data.unlabelled), steps * settings.consistency.batch_size)
        return labelled + unlabelled, labelled

    def next(self) -> JointBatch:
        """The batch of one step."""
        denoising = self._denoising() if self._everyone is not None else None
        drawn = {}
        if self._labelled is not None:
            chosen = self._labelled.next(self._settings.labelled_batch_size)
            drawn["classification_loss"] = self._data.labelled_views(chosen, self._generator)
        if self._consistency is not None:
            drawn["consistency_loss"] = self._consistency.next()
        rows = {name: self._partly_noised(*views) for name, views in drawn.items()}
        aligned = self._aligned_rows() if self._aligned is not None else None
        return JointBatch(denoising, rows, self._data.multi_label, self._shift, aligned)

    def _denoising(self) -> Denoising:
        """Latents of any of the site's images, each at a random noise level."""
        assert self._everyone is not None
        chosen = self._everyone.next(self._settings.batch_size)
        latents = self._data.latents[chosen].float().to(self._process.device)  # (B, c, h, w)
        timesteps = torch.randint(0, len(self._process), (len(latents),), generator=self._generator)
        return Denoising.of(self._process, latents, timesteps, self._noise_for(latents))

    def _aligned_rows(self) -> AlignedRows:
        """Clean latents of any of the site's images, turned where that is as likely."""
        assert self._aligned is not None
        chosen = self._aligned.next(self._settings.alignment.batch_size)
        latents, directions, soft_targets = self._data.aligned_views(chosen, self._generator)
        device = self._process.device
        timesteps = torch.zeros(len(latents), dtype=torch.long, device=device)
        return AlignedRows(
            latents.to(device),
            timesteps,
            directions.to(device),
            None if soft_targets is None else soft_targets.to(device),
        )

    def _partly_noised(self, latents: Tensor, targets: Tensor) -> LabelledRows:
        """Latents (B, c, h, w) with targets (B, C): a share `noised_fraction` of them is noised.

        The published head is trained on clean latents alone. Here its gradient guides at noise
        levels up to `noised_max_timestep`, so it is trained there.
        """
        latents = latents.to(self._process.device)
        clean = round(len(latents) * (1 - self._settings.noised_fraction))
        levels = self._settings.noised_levels(len(self._process))
        timesteps = torch.randint(0, levels, (len(latents),), generator=self._generator)
        timesteps[:clean] = 0
        noised = self._process.add_noise(latents, self._noise_for(latents), timesteps)
        inputs = torch.cat([latents[:clean], noised[clean:]])
        return LabelledRows(inputs, timesteps.to(latents.device), targets.to(latents.device))

    def _noise_for(self, latents: Tensor) -> Tensor:
        return torch.randn(latents.shape, generator=self._generator).to(latents.device)
