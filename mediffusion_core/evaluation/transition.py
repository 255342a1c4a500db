"""How much of a counterfactual's change its effect needs."""

from collections.abc import Callable

import torch
from torch import Tensor

STEPS = 10


def replaced_by_rank(images: Tensor, others: Tensor, maps: Tensor, steps: int) -> Tensor:
    """From one image to another, pixel by pixel; (steps + 1, B, C, H, W).

    Image k has the k / steps of the pixels with the largest values in the map from the other image,
    and the rest from the first.

    Args:
        images: (B, C, H, W).
        others: (B, C, H, W).
        maps: Which pixels come first, (B, H, W); of equal ones the upper left.
        steps: How many parts the way has.
    """
    flat = maps.flatten(1)  # (B, H·W)
    rank = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    pixels = rank.reshape(len(images), 1, *images.shape[2:])
    limits = torch.linspace(0, flat.shape[1], steps + 1).round()
    return torch.stack([torch.where(pixels < limit, others, images) for limit in limits])


def transition_images(sources: Tensor, made: Tensor, steps: int = STEPS) -> Tensor:
    """From source to counterfactual, the pixels that change most first; (steps + 1, B, C, H, W)."""
    return replaced_by_rank(sources, made, (made - sources).abs().sum(dim=1), steps)


def transition_score(
    sources: Tensor,
    made: Tensor,
    balance: Callable[[Tensor], Tensor],
    steps: int = STEPS,
) -> Tensor:
    """COUT (Khorram and Fuxin, CVPR 2022): how few pixels carry the effect; (B,).

    The area under the target's probability along the transition, less that under the source's:
    Σ_k ½ (d_k + d_{k+1}) / steps with d the difference of both. Between -1 and 1; 1 where the
    first pixels are enough.

    Args:
        sources: (B, C, H, W).
        made: The counterfactuals, (B, C, H, W).
        balance: Images (B, C, H, W) to d: the target's probability less that of what was there.
        steps: How many parts the transition has.
    """
    curve = torch.stack([balance(images) for images in transition_images(sources, made, steps)])
    return torch.trapezoid(curve, dx=1 / steps, dim=0)


def latent_divergence(
    sources: Tensor, made: Tensor, like_source: Tensor, like_target: Tensor
) -> Tensor:
    """Minimality as counterfactual latent divergence (arXiv 2202.10166); (B,).

    log(exp P(S_target ≤ D) + exp P(S_source ≥ D)), where D is the distance of counterfactual and
    source, S_target those of the source to real images that are as was asked, and S_source to
    real images that are as the source was. Between log 2 and log 2e, small where the change stays
    below the way to a real image of the target and beyond that to one's own kind. Distances are
    L1 between features, without a model of their spread.

    Args:
        sources: Features (B, ...).
        made: Features of the counterfactuals (B, ...).
        like_source: Features of real images (M, ...).
        like_target: Features of real images (N, ...).

    Returns:
        (B,), nan where there are no such real images.
    """
    flat = sources.flatten(1)
    distance = (made.flatten(1) - flat).abs().sum(dim=1, keepdim=True)  # (B, 1)
    to_target = torch.cdist(flat, like_target.flatten(1), p=1)  # (B, N)
    to_source = torch.cdist(flat, like_source.flatten(1), p=1)
    beyond = (to_target <= distance).double().mean(dim=1)
    within = (to_source >= distance).double().mean(dim=1)
    return (beyond.exp() + within.exp()).log()
