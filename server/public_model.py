"""The public model that a private run may start from (`privacy.public_model`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.messaging.protocol import AUTOENCODER, HEAD, UNET
from mediffusion_core.settings import Settings

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class PublicModel:
    """The base model that a run starts from.

    Attributes:
        weights: Autoencoder and UNet, and the head where it has as many classes.
        latent_scale: `mean` and `std` (c,), where the autoencoder stays the public one.
    """

    weights: dict[str, StateDict]
    latent_scale: StateDict | None

    @classmethod
    def load(cls, settings: Settings, num_classes: int) -> Self:
        """Reads the model that the settings name.

        Raises:
            UserError: if there is no model, or its networks are not those of the settings.
        """
        folder = settings.privacy.public_model
        assert folder is not None
        public = TrainedModel.load(folder, torch.device("cpu"))
        if _networks(settings) != _networks(public.settings):
            raise UserError(
                f"privacy.public_model={folder}: its networks are not the settings' own"
            )
        if settings.diffusion != public.settings.diffusion:
            raise UserError(f"privacy.public_model={folder}: its noise process is not the run's")
        weights: dict[str, StateDict] = {
            AUTOENCODER: public.codec.autoencoder.state_dict(),
            UNET: public.joint.unet.state_dict(),
        }
        same_head = settings.model.head == public.settings.model.head
        if len(public.classes) == num_classes and same_head:
            weights[HEAD] = public.joint.head.state_dict()
        if settings.privacy.autoencoder != "public":
            return cls(weights, None)
        return cls(
            weights,
            {"mean": public.codec.mean.flatten(), "std": public.codec.std.flatten()},
        )


def _networks(settings: Settings) -> tuple[object, ...]:
    model, data = settings.model, settings.data
    return (model.autoencoder, model.unet, data.image_size, data.channels)
