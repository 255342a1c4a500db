"""One site's round of the joint stage: one network learns to denoise and to classify."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.diffusion.losses import classification_loss, diffusion_loss, min_snr_weight
from mediffusion_core.diffusion.noise_process import add_noise, prediction_target
from mediffusion_core.model import JointUNet
from mediffusion_core.settings import JointTraining, Prediction
from mediffusion_core.training.augmentation import turn_and_flip
from mediffusion_core.training.batches import Shuffled
from mediffusion_core.training.control_variates import ControlVariate
from mediffusion_core.training.local import (
    LocalReport,
    Progress,
    Proximal,
    autocast,
    cosine,
    local_steps,
)
from mediffusion_core.training.moments import steps_behind


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


class JointObjective:
    """Diffusion on all latents, and classification on labelled ones, clean and noised.

    L = 1/B Σ ‖ε̂(z_t, t) - ε‖² + λ · 1/B_l Σ ℓ(head(z_t', t'), y)   (arXiv 2411.09434, eq. 6;
    there t' = 0 for all; here a share of the labelled rows has t' uniform up to a bound, so that
    the head's gradient means something at the noise levels where it guides.)

    Both sums are divided by the fixed batch size, not by what a batch happens to hold.
    """

    def __init__(
        self,
        settings: JointTraining,
        alphas_cumprod: Tensor,
        prediction: Prediction,
        generator: torch.Generator,
    ) -> None:
        """Takes the weights of the parts, ᾱ (T,), what is predicted, and what draws t and noise."""
        self._settings = settings
        self._prediction = prediction
        self._alphas = alphas_cumprod
        self._generator = generator

    def diffusion(self, model: JointUNet, latents: Tensor) -> Tensor:
        """Mean squared error of the prediction over a batch (B, c, h, w); a scalar.

        With `min_snr_gamma` each sample's error is weighted by its noise level.
        """
        timesteps = torch.randint(0, len(self._alphas), (len(latents),), generator=self._generator)
        alpha_bar = self._alphas[timesteps].to(latents.device)
        noised, noise = self._noised(latents, alpha_bar)
        target = prediction_target(latents, noise, alpha_bar, self._prediction)
        output = model.denoise(noised, timesteps.to(noised.device)).float()
        losses = diffusion_loss(output, target)
        if self._settings.min_snr_gamma is not None:
            losses = losses * min_snr_weight(
                alpha_bar, self._prediction, self._settings.min_snr_gamma
            )
        return losses.sum() / self._settings.batch_size

    def classification(
        self, model: JointUNet, latents: Tensor, targets: Tensor, multi_label: bool
    ) -> Tensor:
        """Cross-entropy over labelled latents (B_l, c, h, w), clean then noised; a scalar."""
        clean = round(len(latents) * (1 - self._settings.noised_fraction))
        bound = max(1, round(self._settings.noised_max_timestep * len(self._alphas)))
        timesteps = torch.randint(0, bound, (len(latents),), generator=self._generator)
        timesteps[:clean] = 0
        noised, _ = self._noised(latents, self._alphas[timesteps].to(latents.device))
        inputs = torch.cat([latents[:clean], noised[clean:]])
        logits = model.classify(inputs, timesteps.to(inputs.device))
        losses = classification_loss(logits.float(), targets, multi_label)
        return losses.sum() / self._settings.labelled_batch_size

    def _noised(self, latents: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randn(latents.shape, generator=self._generator).to(latents.device)
        return add_noise(latents, noise, alpha_bar), noise


def train_joint(
    model: JointUNet,
    optimizer: torch.optim.AdamW,
    data: LatentSet,
    settings: JointTraining,
    alphas_cumprod: Tensor,
    *,
    prediction: Prediction,
    precision: str,
    done: float,
    share: float,
    seed: int,
    on_step: Progress,
    controls: Sequence[ControlVariate] = (),
) -> LocalReport:
    """Trains the joint UNet in place on a site's latents.

    Args:
        model: Trained in place, on the device it stands on.
        optimizer: Of `joint_optimizer`; its moments, fresh or of earlier rounds, are continued.
        data: The site's latents and labels.
        settings: Steps, batches, rates and weights.
        alphas_cumprod: ᾱ (T,).
        prediction: What the network learns to predict.
        precision: "auto", "fp32" or "bf16".
        done: Fraction of the stage's rounds already run; drives the learning rate.
        share: Fraction of the stage that this round is.
        seed: Draws batches, views, timesteps, noise and dropout.
        on_step: Told after each step.
        controls: Of parts of the model, where its gradients are to be corrected by SCAFFOLD.
    """
    report = LocalReport()
    count = len(data.latents)
    if not count:
        return report
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    objective = JointObjective(settings, alphas_cumprod, prediction, generator)
    everyone = Shuffled(torch.arange(count), generator)
    known = len(data.labelled)
    labelled = Shuffled(torch.arange(known), generator) if known else None
    proximal = Proximal(model, settings.proximal_weight)
    behind = steps_behind(optimizer)
    steps = local_steps(count, settings.local_epochs, settings.batch_size)
    # Distinct images: three labels seen a hundred times weigh as three, not as three hundred.
    report.labelled_seen = min(known, steps * settings.labelled_batch_size)
    model.train()
    for step in range(steps):
        _set_rate(optimizer, settings, behind + step, done + share * step / steps)
        latents = data.latents[everyone.next(settings.batch_size)].float().to(device)
        with autocast(precision, device):
            diffusion = objective.diffusion(model, latents)
            losses = {"diffusion_loss": diffusion}
            report.images_seen += len(latents)
            if labelled is not None:
                chosen = labelled.next(settings.labelled_batch_size)
                views, targets = data.labelled_views(chosen, generator)
                losses["classification_loss"] = objective.classification(
                    model, views.to(device), targets.to(device), data.multi_label
                )
        weight = settings.classification_weight
        loss = diffusion + weight * losses.get("classification_loss", torch.zeros(()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for control in controls:
            control.correct_gradients()
        proximal.add_gradients()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        values = {name: float(value.detach()) for name, value in losses.items()}
        report.add(loss=float(loss.detach()), **values)
        on_step(step + 1, steps, float(loss.detach()))
    return report


def joint_optimizer(model: JointUNet, settings: JointTraining) -> torch.optim.AdamW:
    """AdamW over UNet and head, each at its own learning rate."""
    return torch.optim.AdamW(
        [
            {"params": model.unet.parameters(), "base": settings.learning_rate},
            {"params": model.head.parameters(), "base": settings.head_learning_rate},
        ],
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _set_rate(
    optimizer: torch.optim.AdamW, settings: JointTraining, step: float, progress: float
) -> None:
    """Cosine over the stage's rounds, after a rise over the optimizer's first steps."""
    warm = min(1.0, (step + 1) / max(settings.warmup_steps, 1))
    for group in optimizer.param_groups:
        group["lr"] = cosine(group["base"], progress) * warm
