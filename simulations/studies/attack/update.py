"""Membership in what a site sends in one round, by the server.

A candidate is a unit whose images the server has. Its gradient is that of the run's loss at the
global weights before the round, over fixed noise levels and fixed noise.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.evaluation.membership_inference import Losses, OnBatch
from mediffusion_core.evaluation.update_membership import (
    misalignments,
    moment_gradient,
    weight_movement,
)
from mediffusion_core.inference.joint_model import TrainedModel, restore_joint
from mediffusion_core.messaging.protocol import HEAD, HEAD_MOMENTS, UNET, UNET_MOMENTS
from mediffusion_core.settings import Settings
from mediffusion_core.training.denoising import Denoising
from simulations.studies.attack.candidates import Candidates, Scored
from simulations.studies.attack.model_losses import told
from simulations.studies.attack.replay import Exchange, replayed

SERVER = "server: has the weights before a round and a site's reply"
WEIGHTS, MOMENTS = "weights of one round", "moments of one round"
MOST = 200
"""Members, and non-members, of a site that are scored: a gradient of each takes time."""
DRAWS = 8
"""Noise levels at which an image's gradient is averaged."""


def update_attacks(
    run: Path,
    model: TrainedModel,
    candidates: Candidates,
    settings: Settings,
    console: Console,
) -> dict[str, Scored]:
    """The attacks by name, on each site's reply in the first round of the joint stage.

    Args:
        run: Folder of the run, with the latents of its sites.
        model: Of the run, for its autoencoder.
        candidates: Members and non-members.
        settings: Of the run.
        console: Shows the progress.

    Raises:
        UserError: if a site's latents are not there.
    """
    dataset = candidates.dataset
    denoises = _trains_denoiser(settings)
    if not denoises:
        candidates = candidates.labelled()
    members: dict[str, Losses] = {}
    strangers: dict[str, Losses] = {}
    with replayed(settings, dataset) as replay:
        replay.with_latents_of(run)
        for index, client in enumerate(dataset.clients):
            site = client.site
            parts = [
                _by_unit(candidates, images[site], settings.seed)
                for images in (candidates.members, candidates.strangers)
            ]
            title, total = f"update of {site}", sum(map(len, parts))
            with told(console, title, total) as on_batch:
                exchange = replay.round(index)
                gradients = _Gradients(model, exchange, denoises, on_batch)
                members[site], strangers[site] = map(gradients.scores, parts)
    return Scored(SERVER, members, strangers).columns((WEIGHTS, MOMENTS))


def _trains_denoiser(settings: Settings) -> bool:
    head_alone = settings.privacy.enabled and settings.privacy.trained == "head"
    return settings.training.joint.diffusion_weight > 0 and not head_alone


def _by_unit(candidates: Candidates, images: ImageSet, seed: int) -> list[ImageSet]:
    """The images of each unit, of `MOST` units drawn by the seed."""
    positions: dict[str, list[int]] = {}
    for position, unit in enumerate(candidates.units(images)):
        positions.setdefault(unit, []).append(position)
    order = np.random.default_rng(derive_seed(seed, "attack", "units")).permutation(len(positions))
    chosen = list(positions.values())
    return [images.subset(torch.tensor(chosen[number])) for number in order[:MOST]]


class _Gradients:
    """Scores of units by a site's reply."""

    def __init__(
        self, model: TrainedModel, exchange: Exchange, denoises: bool, on_batch: OnBatch
    ) -> None:
        self._model, self._denoises, self._on_batch = model, denoises, on_batch
        sent, replied = exchange.sent, exchange.replied
        joint = restore_joint(model.settings, len(model.classes), sent[UNET], sent[HEAD])
        self._joint = joint.to(model.device).eval()
        self._parameters: list[Tensor] = []
        weights, moments = [], []
        parts = [(joint.unet, UNET, UNET_MOMENTS), (joint.head, HEAD, HEAD_MOMENTS)]
        for part, component, kept in parts[: 1 if self._denoises else 2]:
            names = [name for name, _ in part.named_parameters()]
            self._parameters += list(part.parameters())
            weights.append(weight_movement(sent[component], replied[component], names))
            moments.append(moment_gradient(sent[kept], replied[kept], names))
        self._movements = [torch.cat(weights), torch.cat(moments)]

    def scores(self, units: Sequence[ImageSet]) -> Losses:
        """(U, 2): by the weights, and by the moments."""
        return misalignments(self._parameters, self._movements, self._losses(units))

    def _losses(self, units: Sequence[ImageSet]) -> Iterator[Tensor]:
        for images in units:
            latents = self._model.encode(images.take(torch.arange(len(images))))
            yield self._denoising(latents) if self._denoises else self._classifying(latents, images)
            self._on_batch(1)

    def _denoising(self, latents: Tensor) -> Tensor:
        """The mean diffusion loss of some latents at `DRAWS` noise levels, a scalar."""
        process = self._model.process
        generator = torch.Generator().manual_seed(0)
        levels = torch.linspace(0, len(process) - 1, DRAWS).long()
        timesteps = levels.repeat_interleave(len(latents))
        noise = torch.randn(DRAWS, *latents.shape[1:], generator=generator)
        batch = Denoising.of(
            process,
            latents.repeat(DRAWS, 1, 1, 1),  # (D n, c, h, w)
            timesteps,
            noise.repeat_interleave(len(latents), dim=0).to(latents.device),
        )
        return batch.losses(self._joint.denoise(batch.inputs, batch.timesteps)).mean()

    def _classifying(self, latents: Tensor, images: ImageSet) -> Tensor:
        targets = images.targets.to(latents.device)
        return classification_loss(
            self._joint.classify(latents), targets, self._model.multi_label
        ).mean()
