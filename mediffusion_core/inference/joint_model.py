"""A trained model: it is saved and loaded, and it classifies, samples and explains images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from mediffusion_core.common.component_folder import (
    STATE,
    StateDict,
    read_folder,
    write_folder,
)
from mediffusion_core.common.errors import UserError
from mediffusion_core.counterfactuals.baselines.mediffusion import mediffusion_latents
from mediffusion_core.counterfactuals.compose import counterfactual_latents
from mediffusion_core.counterfactuals.editable import EditableRegion
from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.diffusion.samplers import ddim_step, denoise, sampling_levels
from mediffusion_core.inference.classify import logits_of
from mediffusion_core.messaging.protocol import AUTOENCODER, HEAD, UNET
from mediffusion_core.models import (
    DECODER_HALF,
    Autoencoder,
    JointUNet,
    LatentCodec,
    class_probabilities,
    encoder_half,
    untrained_codec,
)
from mediffusion_core.settings import CounterfactualSettings, Settings

BATCH = 128
TOGETHER = 32
"""Images that are classified at once, no more and no fewer."""
REASON = 200
"""Signs of a library's error that a message quotes."""


@dataclass
class TrainedModel:
    """Codec and joint UNet with the names of their classes. All images are in [0, 1]."""

    settings: Settings
    classes: tuple[str, ...]
    multi_label: bool
    codec: LatentCodec
    joint: JointUNet
    temperature: float = 1.0
    """Divisor of the logits of calibrated probabilities; 1 where nothing is calibrated."""

    def __post_init__(self) -> None:
        """Puts both networks into evaluation mode and makes the noise process."""
        self.codec.eval()
        self.joint.eval()
        self.process = DiffusionProcess.of(self.settings.diffusion).to(self.device)

    @property
    def device(self) -> torch.device:
        """Of both networks."""
        return self.codec.mean.device

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) to scaled latents (N, c, h, w)."""
        return torch.cat([self.codec.encode(part.to(self.device)) for part in images.split(BATCH)])

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (N, c, h, w) to images (N, C, H, W), on the CPU."""
        return torch.cat([self.codec.decode(part).cpu() for part in latents.split(BATCH)])

    @property
    def guided(self) -> GuidedModel:
        """The joint UNet with its noise process, as guidance takes it."""
        until = self.settings.training.joint.classified_until(len(self.process))
        return GuidedModel(self.joint, self.process, until, self.temperature)

    def logits(self, latents: Tensor) -> Tensor:
        """Logits (N, classes) of clean latents (N, c, h, w), on the CPU."""
        return logits_of(self.settings, self.joint, latents)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities (N, classes); logits as `logits` gives them."""
        return class_probabilities(logits / self.temperature, self.multi_label)

    def classify(self, images: Tensor) -> Tensor:
        """Calibrated probabilities (N, classes) of images (N, C, H, W).

        Raises:
            UserError: if the classifier was not trained.
        """
        self.refuse_to_classify()
        parts = []
        for part in images.split(TOGETHER):
            # Kernels round differently where a batch is small, so all batches are of one size: an
            # image alone has the probabilities that it has among others.
            filled = torch.cat([part, part[:1].expand(TOGETHER - len(part), -1, -1, -1)])
            logits = self.logits(self.encode(filled))[: len(part)]
            parts.append(self.probabilities(logits))
        return torch.cat(parts)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The head's pooled inputs (N, F) for clean images (N, C, H, W), on the CPU."""
        found: list[Tensor] = []
        pooling = self.joint.head.get_submodule("pooling")
        hook = pooling.register_forward_hook(
            lambda _module, _maps, pooled: found.append(pooled.cpu())
        )
        try:
            for part in images.split(BATCH):
                self.joint.classify(self.encode(part))
        finally:
            hook.remove()
        return torch.cat(found)

    def refuse_to_draw(self) -> None:
        """Refuses to draw with an untrained denoiser.

        Raises:
            UserError: if the diffusion loss had no weight.
        """
        self._refuse_untrained("draws", "denoiser", "diffusion_weight")

    def refuse_to_classify(self) -> None:
        """Refuses to classify with an untrained classifier.

        Raises:
            UserError: if the classification loss had no weight.
        """
        self._refuse_untrained("classifies", "classifier", "classification_weight")

    def _refuse_untrained(self, does: str, half: str, weight: str) -> None:
        if not getattr(self.settings.training.joint, weight):
            raise UserError(
                f"this model {does} and changes no images: its {half} was not trained "
                f"(training.joint.{weight}=0)"
            )

    def sample(self, count: int, steps: int, seed: int) -> Tensor:
        """New images (count, C, H, W), the same for the same seed.

        Raises:
            UserError: if the denoiser was not trained.
        """
        self.refuse_to_draw()
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, *self.settings.latent_shape, generator=generator)
        levels = sampling_levels(len(self.process), steps)
        step = partial(ddim_step, self.process)
        parts = [
            denoise(self._noise_pred, step, part.to(self.device), levels)
            for part in noise.split(BATCH)
        ]
        return self.decode(torch.cat(parts))

    @torch.no_grad()
    def _noise_pred(self, latents: Tensor, timestep: int) -> Tensor:
        """ε̂ (B, c, h, w) in float32, under autocast too."""
        timesteps = torch.full((len(latents),), timestep, device=latents.device)
        output = self.joint.denoise(latents, timesteps).float()
        return self.process.noise_pred(output, latents, timestep)

    def detail(self, images: Tensor, latents: Tensor) -> Tensor:
        """The detail that the autoencoder loses, x - D(z), (N, C, H, W), on the CPU."""
        return images.cpu() - self.decode(latents)

    def render(self, latents: Tensor, detail: Tensor) -> Tensor:
        """Images x' = x + D(z') - D(z) in [0, 1], (N, C, H, W), on the CPU.

        Pixels that guidance did not change are those of the source x, for latents z' (N, c, h, w).
        """
        return (self.decode(latents) + detail).clamp(0, 1)

    def explain(
        self,
        latents: Tensor,
        target: Target,
        settings: CounterfactualSettings,
        detail: Tensor,
        region: EditableRegion | None = None,
    ) -> Tensor:
        """Latents (B, c, h, w) of counterfactuals of the images with the given latents.

        The search classifies each candidate as the evaluation does: as an image, encoded again.

        Args:
            latents: Of the images, (B, c, h, w).
            target: The classification of the counterfactuals.
            settings: Guidance.
            detail: Of the images, (B, C, H, W), as `detail` gives it.
            region: Where the images may change; everywhere if None.

        Raises:
            UserError: if the denoiser or the classifier was not trained.
        """
        self.refuse_to_draw()
        self.refuse_to_classify()
        cells = None if region is None else region.cells(*latents.shape[2:]).to(self.device)

        def explained(part: Tensor, asked: Target, positions: Tensor) -> Tensor:
            def classify(made: Tensor, rows: Tensor) -> Tensor:
                at = positions[rows.cpu()]
                images = self.render(made, detail[at])
                if region is not None:
                    images = region.compose(images, at)
                return self.logits(self.encode(images)) / self.temperature

            editable = None if cells is None else cells[positions]
            return counterfactual_latents(self.guided, part, asked, settings, classify, editable)

        return self.by_batch(latents, target, explained)

    def by_batch(
        self, latents: Tensor, target: Target, made: Callable[[Tensor, Target, Tensor], Tensor]
    ) -> Tensor:
        """Applies a method to latents (B, c, h, w), targets and positions (n,), in batches."""
        parts = [
            made(latents[rows].to(self.device), target.rows(rows).to(self.device), rows)
            for rows in torch.arange(len(latents)).split(BATCH)
        ]
        return torch.cat(parts)

    def explain_as_published(
        self, latents: Tensor, target: Target, *, strength: float, guidance_scale: float, seed: int
    ) -> Tensor:
        """As `explain`, by the Mediffusion baseline: all timesteps, no mask, no search."""
        seeds = count(seed)

        def published(part: Tensor, asked: Target, _positions: Tensor) -> Tensor:
            return mediffusion_latents(
                self.guided,
                part,
                asked,
                strength=strength,
                guidance_scale=guidance_scale,
                seed=next(seeds),
            )

        return self.by_batch(latents, target, published)

    def save(self, folder: Path) -> None:
        """Writes weights (safetensors) and description into a folder, atomically."""
        components = {
            AUTOENCODER: self.codec.state_dict(),
            UNET: self.joint.unet.state_dict(),
            HEAD: self.joint.head.state_dict(),
        }
        description = {
            "classes": list(self.classes),
            "multi_label": self.multi_label,
            "temperature": self.temperature,
            "settings": self.settings.shared(),
        }
        write_folder(folder, components, description)

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> Self:
        """Opens a folder written by `save`.

        Raises:
            UserError: if there is no model in the folder, it is damaged, or it was written by
                another program.
        """
        if not (folder / STATE).is_file():
            raise UserError(f"no trained model in {folder}; has the run finished an evaluation?")
        saved = read_folder(folder)
        state = saved.state
        weights = {name: saved.load(name) for name in (AUTOENCODER, UNET, HEAD)}
        try:
            return cls._restored(state, weights, device)
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:REASON]
            raise UserError(f"{folder} holds no model of this program ({reason})") from None

    @classmethod
    def _restored(
        cls, state: Mapping[str, Any], weights: Mapping[str, StateDict], device: torch.device
    ) -> Self:
        settings = Settings.model_validate(state["settings"])
        classes = tuple(map(str, state["classes"]))
        codec = untrained_codec(settings.model.autoencoder, settings.data.channels)
        codec.load_state_dict(weights[AUTOENCODER])
        joint = restore_joint(settings, len(classes), weights[UNET], weights[HEAD])
        multi_label = bool(state["multi_label"])
        # Models that were written before there was a temperature have none.
        temperature = float(state.get("temperature", 1.0))
        return cls(settings, classes, multi_label, codec.to(device), joint.to(device), temperature)


def restore_autoencoder(settings: Settings, weights: Mapping[str, Tensor]) -> Autoencoder:
    """The autoencoder with a copy of these weights, on the CPU."""
    autoencoder = Autoencoder(settings.model.autoencoder, settings.data.channels)
    autoencoder.load_state_dict(dict(weights))
    return autoencoder


def build_joint(settings: Settings, num_classes: int) -> JointUNet:
    """An untrained joint UNet as the settings describe it."""
    return JointUNet(settings.model.unet, settings.model.head, settings.latent_shape, num_classes)


def restore_joint(
    settings: Settings,
    num_classes: int,
    unet: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
) -> JointUNet:
    """The joint UNet with a copy of the weights of its two components, on the CPU."""
    with torch.device("meta"):  # no weights are drawn that would be loaded over
        joint = build_joint(settings, num_classes)
    _load(joint, unet, head)
    return joint


def restore_classifier(
    settings: Settings,
    num_classes: int,
    unet: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
) -> JointUNet:
    """As `restore_joint`, to classify alone: the decoder half is removed, and need not be given."""
    with torch.device("meta"):
        joint = build_joint(settings, num_classes)
    for part in DECODER_HALF:
        setattr(joint.unet, part, nn.Identity())
    _load(joint, encoder_half(unet), head)
    return joint


def _load(joint: JointUNet, unet: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> None:
    for part, state in ((joint.unet, unet), (joint.head, head)):
        own = {name: value.to(torch.float32, copy=True) for name, value in state.items()}
        part.load_state_dict(own, assign=True)
