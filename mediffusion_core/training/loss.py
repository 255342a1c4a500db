"""What the joint stage minimises: its parts, each a mean over a batch, and their weighted sum."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.diffusion.process import add_noise
from mediffusion_core.models import JointUNet
from mediffusion_core.settings import JointTraining, Prediction
from mediffusion_core.training.denoising import Denoising


class JointObjective:
    """Diffusion on all latents, and classification on labelled ones, clean and noised.

    L = w · 1/B Σ ‖ε̂(z_t, t) - ε‖² + λ · 1/B_l Σ ℓ(head(z_t', t'), y)   (arXiv 2411.09434, eq. 6;
    there w = 1 and t' = 0 for all; here a share of the labelled rows has t' uniform up to a bound,
    so that the head's gradient means something at the noise levels where it guides.)

    With `consistency` comes λ · λ_u · 1/B_u Σ ℓ(head(strong view), pseudo-label), the labels where
    a teacher is sure enough (FixMatch, arXiv 2001.07685, eq. 4).

    With `logit_adjustment` τ the classifier's loss is taken of logits + τ · log π, so that the
    logits themselves favour no frequent class (arXiv 2007.07314, eq. 10).

    All sums are divided by the fixed batch size, not by what a batch happens to hold.
    """

    def __init__(
        self,
        settings: JointTraining,
        alphas_cumprod: Tensor,
        prediction: Prediction,
        generator: torch.Generator,
        log_prior: Tensor | None = None,
    ) -> None:
        """Takes the settings of its parts, and what they need.

        Args:
            settings: Weights of the parts, and their switches.
            alphas_cumprod: ᾱ (T,).
            prediction: What the network learns to predict.
            generator: Draws timesteps and noise.
            log_prior: log π (C,), or its log-odds for findings, where the logits are adjusted.
        """
        self._settings = settings
        self._prediction = prediction
        self._alphas = alphas_cumprod
        self._generator = generator
        self._shift = None if log_prior is None else settings.logit_adjustment * log_prior

    def denoising(self, latents: Tensor) -> Denoising:
        """Noises a batch of clean latents (B, c, h, w), each at a random level."""
        timesteps = torch.randint(0, len(self._alphas), (len(latents),), generator=self._generator)
        noise = self._noise_for(latents)
        return Denoising.of(latents, timesteps, noise, self._alphas, self._prediction)

    def losses(
        self,
        model: JointUNet,
        denoising: Denoising | None,
        rows: Mapping[str, tuple[Tensor, Tensor]],
        multi_label: bool,
    ) -> dict[str, Tensor]:
        """The losses of one step, each a scalar, of a single pass of the network.

        Args:
            model: Denoises and classifies.
            denoising: What gives `diffusion_loss`.
            rows: To each other loss, `classification_loss` or `consistency_loss`, its latents
                (B, c, h, w), which are seen clean first and noised then, and targets (B, C).
            multi_label: Findings are independent, not exclusive.
        """
        passed = [self._graded(latents) for latents, _ in rows.values()]
        if denoising is not None:
            passed = [(denoising.inputs, denoising.timesteps), *passed]
        inputs, timesteps = (torch.cat(parts) for parts in zip(*passed, strict=True))
        denoised = 0 if denoising is None else len(denoising.inputs)
        output, logits = model(
            inputs, timesteps, denoise=slice(denoised), classify=slice(denoised, None)
        )
        losses = {}
        if denoising is not None:
            errors = denoising.losses(output, self._settings.min_snr_gamma)
            losses["diffusion_loss"] = errors.sum() / self._settings.batch_size
        if rows:
            losses |= self._classification(logits, rows, multi_label)
        return losses

    def _classification(
        self, logits: Tensor, rows: Mapping[str, tuple[Tensor, Tensor]], multi_label: bool
    ) -> dict[str, Tensor]:
        """Cross-entropies of logits, of all rows one after the other."""
        sizes = {
            "classification_loss": self._settings.labelled_batch_size,
            "consistency_loss": self._settings.consistency.batch_size,
        }
        parts = self.adjusted(logits.float()).split([len(latents) for latents, _ in rows.values()])
        return {
            name: classification_loss(part, targets, multi_label).sum() / sizes[name]
            for (name, (_, targets)), part in zip(rows.items(), parts, strict=True)
        }

    def _graded(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, c, h, w), the first as they are and a share of them noised, and their t."""
        clean = round(len(latents) * (1 - self._settings.noised_fraction))
        levels = self._settings.noised_levels(len(self._alphas))
        timesteps = torch.randint(0, levels, (len(latents),), generator=self._generator)
        timesteps[:clean] = 0
        noise = self._noise_for(latents)
        noised = add_noise(latents, noise, self._alphas[timesteps].to(latents.device))
        return torch.cat([latents[:clean], noised[clean:]]), timesteps.to(latents.device)

    def adjusted(self, logits: Tensor) -> Tensor:
        """The logits (B, C) that the classifier's losses are taken of: shifted by τ · log π."""
        return logits if self._shift is None else logits + self._shift.to(logits.device)

    def total(self, losses: Mapping[str, Tensor], progress: float) -> Tensor:
        """The weighted sum of those parts of the loss that a step has; a scalar.

        Args:
            losses: The parts by name; what has no weight is a figure and no loss.
            progress: Fraction of the stage that is done; drives λ.
        """
        settings = self._settings
        classifying = settings.classification_weight * risen(
            progress, settings.classification_warmup
        )
        weights = {
            "diffusion_loss": settings.diffusion_weight,
            "classification_loss": classifying,
            "consistency_loss": classifying * settings.consistency.weight,
        }
        parts = [weight * losses[name] for name, weight in weights.items() if name in losses]
        return torch.stack(parts).sum()

    def _noise_for(self, latents: Tensor) -> Tensor:
        return torch.randn(latents.shape, generator=self._generator).to(latents.device)


def risen(progress: float, warmup: float) -> float:
    """Share of a weight that rises linearly from 0 over the first `warmup` of a stage, then 1."""
    return min(1.0, progress / warmup) if warmup else 1.0
