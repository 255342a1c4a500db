"""The objective of the joint stage: equation 6 of Mediffusion, and the weights of its parts."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.models import JointUNet
from mediffusion_core.settings import JointTraining
from mediffusion_core.training.alignment import alignment_errors
from mediffusion_core.training.denoising import Denoising


@dataclass(frozen=True)
class LabelledRows:
    """Latents with labels or pseudo-labels: the first ones clean, the others noised."""

    inputs: Tensor
    """(B, c, h, w)."""
    timesteps: Tensor
    """(B,); 0 for a clean latent."""
    targets: Tensor
    """(B, C) in {0, 1}, NaN where a label is missing."""


@dataclass(frozen=True)
class AlignedRows:
    """Clean latents, and targets from a public encoder's whitened features of their images."""

    inputs: Tensor
    """(B, c, h, w)."""
    timesteps: Tensor
    """(B,), all 0."""
    directions: Tensor
    """The whitened features, (B, K) float32."""
    soft_targets: Tensor | None = None
    """(B, C) in [0, 1]: probabilities from them (`models.class_means`); None without
    distillation."""


@dataclass(frozen=True)
class JointBatch:
    """The rows of one step."""

    denoising: Denoising | None
    """All images, labelled or not; None without a diffusion loss."""
    labelled: Mapping[str, LabelledRows]
    """Rows of `classification_loss` and of `consistency_loss`, as far as the step has them."""
    multi_label: bool
    """Whether the classes are independent or exclusive."""
    logit_shift: Tensor | None = None
    """τ · log π (C,), added to the logits in the losses (arXiv 2007.07314, eq. 10)."""
    aligned: AlignedRows | None = None
    """Any images, labelled or not; None without alignment."""

    def figures(self) -> dict[str, float]:
        """Metrics of a round beside the losses: the share of images with a pseudo-label."""
        if "consistency_loss" not in self.labelled:
            return {}
        labels = self.labelled["consistency_loss"].targets
        return {"pseudo_labelled": float((~labels.isnan()).float().mean())}


def joint_losses(model: JointUNet, batch: JointBatch, settings: JointTraining) -> dict[str, Tensor]:
    """The parts of the joint objective, each a scalar, from one pass of the network.

    L = w · 1/B Σ ‖û(z_t, t) - target‖² / chw + λ · 1/B_l Σ ℓ(f(z_t', t'), y)
      + λ λ_u · 1/B_u Σ ℓ(f(strong view), pseudo-label)
      + λ_a · 1/B_a Σ ‖R h(z_0) - T‖² / K + λ λ_d · 1/B_a Σ ℓ(f(z_0), q(T))

    (arXiv 2411.09434, eq. 6; there w = 1, t' = 0 for all rows, and there are no further parts.) The
    third part is FixMatch's, arXiv 2001.07685, eq. 4. ℓ is the cross-entropy, binary if the classes
    are independent. The fourth part is `alignment.alignment_errors`, the fifth one distils a linear
    classifier q of the directions T (arXiv 1503.02531; on images without labels as in arXiv
    2006.10029). `total_loss` weights the parts. All sums are divided by the fixed batch size, not
    by the number of rows or labels in a batch. With differential privacy the objective is that of
    `privacy.dp_sgd.joint_rows.UnitLosses`, with one divisor for both parts.
    """
    parts = (batch.denoising, *batch.labelled.values(), batch.aligned)
    rows = [part for part in parts if part is not None]
    encoded = model.encode(
        torch.cat([part.inputs for part in rows]),  # (N, c, h, w)
        torch.cat([part.timesteps for part in rows]),  # (N,)
    )
    first = len(batch.denoising.inputs) if batch.denoising else 0
    last = len(encoded.latents) - (len(batch.aligned.inputs) if batch.aligned else 0)
    soft = batch.aligned.soft_targets if batch.aligned else None
    end = last if soft is None else None
    output, logits = model.outputs(encoded, denoise=slice(first), classify=slice(first, end))
    losses = {}
    if batch.aligned:
        pooled = model.pooled(encoded, slice(last, None))
        errors = alignment_errors(pooled, batch.aligned.directions)
        losses["alignment_loss"] = errors.sum() / settings.alignment.batch_size
    if batch.denoising:
        assert output is not None
        errors = batch.denoising.losses(output)  # (B,)
        losses["diffusion_loss"] = errors.sum() / settings.batch_size
    targets = {name: part.targets for name, part in batch.labelled.items()}
    if soft is not None:
        targets["distillation_loss"] = soft
    if targets:
        sizes = {
            "classification_loss": settings.labelled_batch_size,
            "consistency_loss": settings.consistency.batch_size,
            "distillation_loss": settings.alignment.batch_size,
        }
        assert logits is not None
        logits = adjusted(logits.float(), batch.logit_shift)
        of_part = logits.split([len(own) for own in targets.values()])
        for (name, own), part in zip(targets.items(), of_part, strict=True):
            entropies = classification_loss(part, own, batch.multi_label)  # (B_l,)
            losses[name] = entropies.sum() / sizes[name]
    return losses


def total_loss(losses: Mapping[str, Tensor], settings: JointTraining) -> Tensor:
    """The weighted sum of the parts of `joint_losses`, a scalar.

    Args:
        losses: The parts by name; those without a weight are reported and not trained on.
        settings: w, λ, λ_u, λ_a and λ_d.
    """
    weights = {
        "diffusion_loss": settings.diffusion_weight,
        "classification_loss": settings.classification_weight,
        "consistency_loss": settings.classification_weight * settings.consistency.weight,
        "alignment_loss": settings.alignment.weight,
        "distillation_loss": settings.classification_weight
        * settings.alignment.distillation_weight,
    }
    parts = [weight * losses[name] for name, weight in weights.items() if name in losses]
    return torch.stack(parts).sum()


def adjusted(logits: Tensor, shift: Tensor | None) -> Tensor:
    """Logits (B, C) plus τ · log π (C,), where logits are adjusted."""
    return logits if shift is None else logits + shift.to(logits.device)
