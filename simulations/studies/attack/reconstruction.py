"""An image from a site's reply, by the server, after a round of one step on one image.

The site trains with the plain trainer. Its reply has Adam's moments, and those reveal the gradient.
The seed of the step is the run's, so the server can draw noise level and noise again. With
differential privacy they are secret; the adversary has them here all the same, and ε is spent on
this one step alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.evaluation.gradient_inversion import (
    Inversion,
    Step,
    decoder_parameters,
    denoising_gradient,
    invert,
    private_gradient,
)
from mediffusion_core.evaluation.similarity import psnr, structural_similarity
from mediffusion_core.evaluation.update_membership import moment_gradient
from mediffusion_core.inference.joint_model import TrainedModel, restore_joint
from mediffusion_core.messaging.protocol import HEAD, UNET, UNET_MOMENTS
from mediffusion_core.models import JointUNet
from mediffusion_core.privacy.accounting.accountant import Charge
from mediffusion_core.privacy.accounting.filters import GaussianFilter, noise_multiplier_for
from mediffusion_core.settings import AlignmentSettings, ConsistencySettings, Settings
from mediffusion_core.settings.privacy import PrivacySettings
from mediffusion_core.training.joint_batches import JointBatches
from mediffusion_core.training.latent_set import LatentSet
from simulations.studies.attack.model_losses import told
from simulations.studies.attack.pictures import save_reconstructed
from simulations.studies.attack.replay import ROUND, first_image, replayed

IMAGES = 2
"""Sites whose first image is reconstructed."""
STEPS = 60
EPSILON = 8.0
ORIGINAL, PLAIN, PRIVATE, MEAN = "original", "without_privacy", "with_privacy", "mean_image"


@dataclass(frozen=True)
class _Reply:
    """A reply to the first round, as the server reads it."""

    joint: JointUNet
    """At the weights before the round."""
    gradient: Tensor
    """In the parameters of the decoder half, (P,)."""
    step: Step


def reconstruct(
    model: TrainedModel,
    dataset: FederatedDataset,
    settings: Settings,
    noise: float,
    picture: Path,
    console: Console,
) -> dict[str, Any]:
    """Reconstructs the first training image of some sites, with and without differential privacy.

    Args:
        model: Of the run, for its autoencoder.
        dataset: Of the run.
        settings: Of the run.
        noise: Of `noise_of_one_step`.
        picture: The PNG to write.
        console: Shows the progress.

    Returns:
        PSNR and SSIM of the images without privacy and with it, beside those of the mean image, and
        the noise.
    """
    sites = [index for index, client in enumerate(dataset.clients) if len(client.train)][:IMAGES]
    how = Inversion(steps=STEPS, seed=derive_seed(settings.seed, "attack", "dummies"))
    found: dict[str, list[Tensor]] = {ORIGINAL: [], PLAIN: [], PRIVATE: []}
    with told(console, "reconstruction", 2 * how.steps * len(sites)) as on_step:
        for index in sites:
            alone = first_image(dataset, index)
            latents = model.encode(alone.train(0).take(torch.tensor([0])))
            reply = _reply(model, alone, _one_step(settings))
            found[ORIGINAL].append(model.decode(latents))
            seed = derive_seed(settings.seed, "attack", "noise of a gradient", index)
            private = _private(reply, latents, settings.privacy.max_grad_norm, noise, seed)
            for name, gradient in ((PLAIN, reply.gradient), (PRIVATE, private)):
                made = invert(reply.joint, gradient, reply.step, model.codec.decode, how, on_step)
                found[name].append(model.decode(made))
    images = {name: torch.cat(parts) for name, parts in found.items()}
    originals = images.pop(ORIGINAL)
    save_reconstructed(originals, images, EPSILON, picture)
    images[MEAN] = _mean_image(model, dataset).expand_as(originals)
    closeness = {name: _closeness(one, originals) for name, one in images.items()}
    return {
        "adversary": "server: has the weights before a round of one step, and a site's reply",
        "images": len(originals),
        "epsilon": EPSILON,
        "noise_multiplier": noise,
        **closeness,
    }


def noise_of_one_step(privacy: PrivacySettings) -> float:
    """σ of one step of all units at `EPSILON` and the settings' δ.

    Raises:
        UserError: if a package of the accounting is not installed.
    """
    budget = GaussianFilter(EPSILON, privacy.target_delta)
    return noise_multiplier_for(budget, lambda sigma: [Charge(1.0, sigma, 1)])


def _one_step(settings: Settings) -> Settings:
    """The settings of a round of one step on one image, without privacy, in full precision."""
    joint = settings.training.joint
    alone = {
        "local_epochs": 1.0,
        "batch_size": 1,
        "diffusion_weight": joint.diffusion_weight or 1.0,
        "logit_adjustment": 0.0,
        "consistency": ConsistencySettings(),
        "alignment": AlignmentSettings(),
        "control_variates": False,
    }
    training = settings.training.model_copy(
        update={"precision": "fp32", "joint": joint.model_copy(update=alone)}
    )
    return settings.model_copy(update={"training": training, "privacy": PrivacySettings()})


def _reply(model: TrainedModel, alone: FederatedDataset, settings: Settings) -> _Reply:
    """A site's reply to the first round of the joint stage."""
    with replayed(settings, alone) as replay:
        exchange = replay.with_latents_by(model.codec).round(0)
    sent, replied = exchange.sent, exchange.replied
    joint = restore_joint(settings, len(model.classes), sent[UNET], sent[HEAD])
    joint = joint.to(model.device).eval()
    names = list(decoder_parameters(joint))
    gradient = moment_gradient(sent[UNET_MOMENTS], replied[UNET_MOMENTS], names)
    step = _step(model, alone.clients[0].site, settings)
    return _Reply(joint, gradient.float().to(model.device), step)


def _step(model: TrainedModel, site: str, settings: Settings) -> Step:
    """Noise level and noise of the first step, by the run's seed.

    The site's own code draws them, here for a latent of zeros, so that the noise alone remains.
    """
    process, latents = model.process, torch.zeros(1, *settings.latent_shape)
    targets = torch.full((1, len(model.classes)), torch.nan)
    data = LatentSet(latents, latents[None, :0], targets, model.multi_label)
    generator = torch.Generator().manual_seed(derive_seed(settings.seed, "joint", site, ROUND))
    denoising = JointBatches(data, settings.training.joint, process, generator).next().denoising
    assert denoising is not None
    noise = denoising.inputs / (1 - process.alpha_bar(denoising.timesteps)).sqrt()
    return Step(process, denoising.timesteps, noise)


def _private(
    reply: _Reply, latents: Tensor, max_grad_norm: float, noise: float, seed: int
) -> Tensor:
    """The clipped and noised gradient of the same step, (P,).

    Its noise has a seed, since it protects no data and figures are to be repeatable.
    """
    gradient = denoising_gradient(reply.joint, latents, reply.step)
    generator = torch.Generator().manual_seed(seed)
    return private_gradient(gradient, max_grad_norm, noise, generator)


def _mean_image(model: TrainedModel, dataset: FederatedDataset) -> Tensor:
    """The mean of the public test images, (1, C, H, W): a guess that needs no reply."""
    test = dataset.test()
    return model.decode(model.encode(test.take(torch.arange(min(256, len(test)))))).mean(
        dim=0, keepdim=True
    )


def _closeness(images: Tensor, originals: Tensor) -> Mapping[str, list[float]]:
    return {
        "psnr": psnr(images, originals).tolist(),
        "ssim": structural_similarity(images, originals).tolist(),
    }
