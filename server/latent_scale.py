"""The global scale of the latents, from the sums that each site sends."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from mediffusion_core.messaging.protocol import COUNTS
from mediffusion_core.models import scale_from_sums
from mediffusion_core.privacy.accounting.noisy_statistics import latent_bound
from mediffusion_core.settings import Settings
from server.messages import Reply
from server.pooled import sum_of
from server.robust_statistics import median


def latent_scale(replies: Sequence[Reply], settings: Settings) -> Mapping[str, Tensor]:
    """`mean` and `std` (c,) of each latent channel over all sites.

    The variance over all sites is the mean over their latents of σ_k² + (μ_k - μ)², with the sites'
    deviations and means. With `federation.num_malicious_sites` it and μ are medians over the sites.

    Args:
        replies: To the latent census, at least one.
        settings: Of the run.
    """
    sums = [reply.components[COUNTS] for reply in replies]
    if settings.federation.num_malicious_sites:
        noise = noise_in_sums(settings, 1)
        scales = [
            scale_from_sums(one["total"], one["squares"], float(one["count"]), noise)
            for one in sums
            if float(one["count"])
        ]
        middle = median([mean for mean, _ in scales])
        squares = [std.double().square() + (mean - middle).square() for mean, std in scales]
        return {"mean": middle.float(), "std": median(squares).sqrt().float()}
    count = sum(float(one["count"]) for one in sums)
    mean, std = scale_from_sums(
        sum_of([one["total"] for one in sums]),
        sum_of([one["squares"] for one in sums]),
        count,
        noise_in_sums(settings, len(replies)),
    )
    return {"mean": mean, "std": std}


def noise_in_sums(settings: Settings, sites: int) -> float:
    """Standard deviation of the noise in the sums of so many sites together."""
    if not settings.privacy.enabled:
        return 0.0
    bound = latent_bound(settings.model.autoencoder.latent_channels)
    return settings.privacy.release_noise * bound * math.sqrt(sites)
