"""What a private run promises, and the public model that it may start from."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.messaging.protocol import AUTOENCODER, HEAD, LEDGER_HEAD, UNET
from mediffusion_core.privacy.accounting.accountant import epsilon
from mediffusion_core.privacy.accounting.noisy_statistics import latent_bound
from mediffusion_core.privacy.accounting.plan import Plan
from mediffusion_core.settings import Settings
from server.messages import Reply

SCALE = "latent_scale"
HEAD_OF = "ledger_"
"""Before a site's name: the head of its ledger, in the checkpoints."""


def promised(settings: Settings, census: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """ε of the run for the units of each site, from what the sites' noised counts say.

    It is what the planned rounds cost. A round that was made again, or an earlier run on the same
    patients, stands in the site's ledger alone.
    """
    privacy = settings.privacy
    sites = {}
    for site, counts in census.items():
        plan = Plan.of(settings, counts["train"])
        spent = epsilon(plan.charges(), privacy.target_delta)
        sites[site] = {
            "epsilon": spent,
            "noise_multiplier": plan.noise_multiplier,
            "sample_rate": plan.sample_rate,
        }
    return {"unit": privacy.unit, "target_delta": privacy.target_delta, "sites": sites}


def sums_deviation(settings: Settings, sites: int) -> float:
    """Standard deviation of the noise in so many sites' latent sums together."""
    if not settings.privacy.enabled:
        return 0.0
    bound = latent_bound(settings.model.autoencoder.latent_channels)
    return settings.privacy.release_noise * bound * math.sqrt(sites)


def nothing_pooled(classes: Sequence[str]) -> tuple[dict[str, Any], Tensor, float]:
    """Figures, bootstraps and temperature where no site tells of its validation patients."""
    figures: dict[str, Any] = {
        "auc_pooled": math.nan,
        "auc_pooled_interval": (math.nan, math.nan),
        "auc_pooled_per_class": dict.fromkeys(classes, math.nan),
        "auc_pooled_per_site": {},
    }
    return figures, torch.full((1,), math.nan), 1.0


def known_heads(
    components: Mapping[str, Mapping[str, Tensor]], sites: Collection[str]
) -> dict[str, dict[str, Mapping[str, Tensor]]]:
    """By site, the newest head of its ledger that the server was told of, for it alone."""
    return {
        site: {LEDGER_HEAD: components[HEAD_OF + site]}
        for site in sites
        if HEAD_OF + site in components
    }


def told_heads(replies: Sequence[Reply]) -> dict[str, Mapping[str, Tensor]]:
    """The heads in the replies of a private run, as the server keeps them."""
    return {
        HEAD_OF + reply.site: reply.components[LEDGER_HEAD]
        for reply in replies
        if LEDGER_HEAD in reply.components
    }


def public_components(settings: Settings, num_classes: int) -> dict[str, Mapping[str, Tensor]]:
    """What a run starts from where `privacy.public_model` names a model.

    Returns:
        Autoencoder and UNet, the head where it has as many classes, and with a public autoencoder
        the scale of its latents.

    Raises:
        UserError: if there is no model, or its networks are not those of the settings.
    """
    folder = settings.privacy.public_model
    assert folder is not None
    public = TrainedModel.load(folder, torch.device("cpu"))
    if _networks(settings) != _networks(public.settings):
        raise UserError(f"privacy.public_model={folder}: its networks are not the settings' own")
    if settings.diffusion != public.settings.diffusion:
        raise UserError(f"privacy.public_model={folder}: its noise process is another one")
    components: dict[str, Mapping[str, Tensor]] = {
        AUTOENCODER: public.codec.autoencoder.state_dict(),
        UNET: public.joint.unet.state_dict(),
    }
    same_head = settings.model.head == public.settings.model.head
    if len(public.classes) == num_classes and same_head:
        components[HEAD] = public.joint.head.state_dict()
    if settings.privacy.autoencoder == "public":
        components[SCALE] = {
            "mean": public.codec.mean.flatten(),
            "std": public.codec.std.flatten(),
        }
    return components


def _networks(settings: Settings) -> tuple[object, ...]:
    model, data = settings.model, settings.data
    return (model.autoencoder, model.unet, data.image_size, data.channels)
