"""Guided counterfactuals: the same image, as the classifier would see it with another label.

The latent is noised by DDIM inversion, so that without guidance the way back leads to the source
image; on the way back the head's gradient at the noisy latent pulls towards the target. The head
is trained at these noise levels, so its gradient there means something.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from mediffusion_core.diffusion.noise_process import (
    add_noise,
    ddim_step,
    descending_timesteps,
    noise_from,
    predict_clean,
)
from mediffusion_core.model import JointUNet, class_probabilities
from mediffusion_core.settings import CounterfactualSettings, Prediction


@dataclass(frozen=True)
class Target:
    """What the classifier should see: per image one class, present or absent."""

    index: Tensor
    """Class to change, (B,) integers."""
    present: Tensor
    """Whether the class should be there afterwards, (B,) booleans; all true if exclusive."""
    multi_label: bool

    def to(self, device: torch.device) -> "Target":
        """The same target on another device."""
        return Target(self.index.to(device), self.present.to(device), self.multi_label)

    def reached(self, logits: Tensor) -> Tensor:
        """Which images (B,) the logits (B, C) assign to the target: p ≥ 0.5, or the argmax."""
        if not self.multi_label:
            return logits.argmax(dim=1) == self.index
        return (self._chosen(logits) > 0) == self.present

    def probability(self, logits: Tensor) -> Tensor:
        """Probability (B,) that the logits (B, C) give to the class to change."""
        return self._chosen(class_probabilities(logits, self.multi_label))

    def loss(self, logits: Tensor, source_logits: Tensor) -> Tensor:
        """Cross-entropy to the target (B,); other findings are held at the source's."""
        if not self.multi_label:
            return F.cross_entropy(logits, self.index, reduction="none")
        wanted = source_logits.sigmoid().scatter(
            1, self.index[:, None], self.present[:, None] * 1.0
        )
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(dim=1)

    def _chosen(self, values: Tensor) -> Tensor:
        return values.gather(1, self.index[:, None]).squeeze(1)


def counterfactual_latents(
    model: JointUNet,
    alphas_cumprod: Tensor,
    latents: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    prediction: Prediction,
) -> Tensor:
    """Latents of the nearest images that the classifier assigns to the target.

    ε̂ ← ε̂ + s √(1 - ᾱ_t) √d g/‖g‖, with g = ∇_{z_t} loss(head(z_t, t), target) and d the latent's
    size: classifier guidance (arXiv 2105.05233, algorithm 2) with a normalised gradient, so that
    s means the same for every image. Then ẑ_0 is moved by `closeness` towards the source.

    Args:
        model: The joint UNet, in evaluation mode.
        alphas_cumprod: ᾱ (T,).
        latents: Clean scaled latents of the sources (B, c, h, w).
        target: What the classifier should see.
        settings: Start level, steps, scale s and closeness.
        prediction: What the network predicts.

    Returns:
        (B, c, h, w). An image stops being pulled once the target's probability is sure.
    """
    start = round(settings.start * (len(alphas_cumprod) - 1))
    timesteps = descending_timesteps(start, settings.steps)
    noised = _invert(model, alphas_cumprod, latents, timesteps, prediction)
    source_logits = model.classify(latents).detach()
    current = noised
    for now, after in zip(timesteps, [*timesteps[1:], -1], strict=True):
        alpha_bar = alphas_cumprod[now]
        at = torch.full((len(latents),), now, device=latents.device)
        with torch.no_grad():
            noise_pred = noise_from(model.denoise(current, at), current, alpha_bar, prediction)
        pull = _direction(model, current, at, target, source_logits)
        noise_pred = noise_pred + settings.scale * (1 - alpha_bar).sqrt() * pull
        clean = predict_clean(current, noise_pred, alpha_bar)
        clean = clean + settings.closeness * (latents - clean)
        noise_pred = (current - alpha_bar.sqrt() * clean) / (1 - alpha_bar).sqrt()
        previous = alphas_cumprod[after] if after >= 0 else alphas_cumprod.new_ones(())
        current = ddim_step(current, noise_pred, alpha_bar, previous)
    return current.detach()


@torch.no_grad()
def _invert(
    model: JointUNet,
    alphas_cumprod: Tensor,
    latents: Tensor,
    timesteps: list[int],
    prediction: Prediction,
) -> Tensor:
    """DDIM run backwards: from the clean latent up to the first timestep (2010.02502, s. 4.3)."""
    current = latents
    levels = [0, *reversed(timesteps)]
    for now, after in pairwise(levels):
        at = torch.full((len(latents),), now, device=latents.device)
        output = model.denoise(current, at)
        noise_pred = noise_from(output, current, alphas_cumprod[now], prediction)
        if now == 0:
            current = add_noise(latents, noise_pred, alphas_cumprod[after])
        else:
            current = ddim_step(current, noise_pred, alphas_cumprod[now], alphas_cumprod[after])
    return current


def _direction(
    model: JointUNet, latents: Tensor, timesteps: Tensor, target: Target, source_logits: Tensor
) -> Tensor:
    """Normalised gradient of the target's loss at the noisy latent, (B, c, h, w), RMS 1."""
    with torch.enable_grad():
        inputs = latents.detach().requires_grad_(True)
        logits = model.classify(inputs, timesteps)
        loss = target.loss(logits, source_logits).sum()
        (gradient,) = torch.autograd.grad(loss, inputs)
    sure = target.reached(logits) & (loss.new_tensor(0.95) < _confidence(target, logits))
    norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, 1, 1, 1)
    direction = gradient / norm * gradient[0].numel() ** 0.5
    return torch.where(sure.reshape(-1, 1, 1, 1), torch.zeros_like(direction), direction)


def _confidence(target: Target, logits: Tensor) -> Tensor:
    probability = target.probability(logits)
    return torch.where(target.present, probability, 1 - probability)
