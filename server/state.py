"""Where a run stands: everything that its continuation needs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mediffusion_core.common.hash_chain import Tip
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.inference.joint_model import (
    TrainedModel,
    build_joint,
    restore_autoencoder,
    restore_joint,
)
from mediffusion_core.messaging.protocol import (
    AUTOENCODER,
    AUTOENCODER_MOMENTS,
    EMA,
    HEAD,
    HEAD_MOMENTS,
    UNET,
    UNET_MOMENTS,
)
from mediffusion_core.models import Autoencoder, LatentCodec
from mediffusion_core.settings import Settings
from mediffusion_core.training.adam_moments import fresh_moments
from server.messages import Census
from server.public_model import PublicModel
from server.selection import Selection

StateDict = Mapping[str, Tensor]


@dataclass
class RunState:
    """Where a run stands.

    Attributes:
        weights: The components that the sites train, Adam's moments among them.
        averages: Moving averages of the global UNet and head.
        latent_scale: `mean` and `std` (c,) of the latents; None before the latent census.
        whitening: Of a public encoder's features; None before the feature census, or without
            alignment.
        optimizer_memory: What the server's optimizers keep, by component.
        controls: SCAFFOLD's gradients, by component and site.
        ledger_tips: By site, the tip of its privacy ledger.
        census: Counts of every site that has taken part.
        autoencoder_rounds: Rounds done.
        joint_rounds: Rounds done.
        selection: The selected model; None before the first evaluation of a trained one.
        evaluated: The joint round of the newest evaluation; -1 before the first.
        saved: The number of the newest checkpoint.
        noised_means: Tip of the record of those of client-level privacy.
        seconds: How long the run has taken.
    """

    weights: dict[str, StateDict] = field(default_factory=dict)
    averages: dict[str, StateDict] = field(default_factory=dict)
    latent_scale: StateDict | None = None
    whitening: StateDict | None = None
    optimizer_memory: dict[str, StateDict] = field(default_factory=dict)
    controls: dict[str, dict[str, StateDict]] = field(default_factory=dict)
    ledger_tips: dict[str, StateDict] = field(default_factory=dict)
    census: dict[str, Census] = field(default_factory=dict)
    autoencoder_rounds: int = 0
    joint_rounds: int = 0
    selection: Selection | None = None
    evaluated: int = -1
    saved: int = 0
    noised_means: Tip | None = None
    seconds: float = 0.0

    def shared(self, names: Iterable[str]) -> dict[str, StateDict]:
        """The named components as they go to the sites: weights, or averages by `EMA` + name."""
        averages = {EMA + name: average for name, average in self.averages.items()}
        return {name: (self.weights | averages)[name] for name in names}

    def model(
        self,
        settings: Settings,
        classes: tuple[str, ...],
        multi_label: bool,
        device: torch.device,
        temperature: float,
    ) -> TrainedModel:
        """The averaged global model of the joint stage, calibrated by a temperature."""
        unet, head = self.averages[UNET], self.averages[HEAD]
        joint = restore_joint(settings, len(classes), unet, head)
        codec = self.codec(settings).to(device)
        return TrainedModel(settings, classes, multi_label, codec, joint.to(device), temperature)

    def codec(self, settings: Settings) -> LatentCodec:
        """The global autoencoder with the latent scale; unit scale before the latent census."""
        autoencoder = restore_autoencoder(settings, self.weights[AUTOENCODER])
        channels = settings.model.autoencoder.latent_channels
        unit = {"mean": torch.zeros(channels), "std": torch.ones(channels)}
        scale = self.latent_scale or unit
        return LatentCodec(autoencoder, scale["mean"], scale["std"])


def fresh_state(settings: Settings, num_classes: int) -> RunState:
    """Untrained weights, drawn from the run's seed, or those of a public model.

    Raises:
        UserError: if the public model does not fit the settings.
    """
    torch.manual_seed(derive_seed(settings.seed, "weights"))
    autoencoder = Autoencoder(settings.model.autoencoder, settings.data.channels)
    joint = build_joint(settings, num_classes)
    networks = {AUTOENCODER: autoencoder, UNET: joint.unet, HEAD: joint.head}
    weights: dict[str, StateDict] = {name: net.state_dict() for name, net in networks.items()}
    latent_scale = None
    if settings.privacy.enabled and settings.privacy.public_model is not None:
        public = PublicModel.load(settings, num_classes)
        weights |= public.weights
        latent_scale = public.latent_scale
    averages = {name: weights[name] for name in (UNET, HEAD)}
    weights |= {
        AUTOENCODER_MOMENTS: fresh_moments(autoencoder),
        UNET_MOMENTS: fresh_moments(joint.unet),
        HEAD_MOMENTS: fresh_moments(joint.head),
    }
    return RunState(weights=weights, averages=averages, latent_scale=latent_scale)
