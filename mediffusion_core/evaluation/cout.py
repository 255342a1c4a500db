"""COUT and minimality: how small a change of the image has the counterfactual's effect."""

from collections.abc import Callable

import torch
from torch import Tensor

STEPS = 10


def replaced_by_rank(images: Tensor, others: Tensor, maps: Tensor, steps: int) -> Tensor:
    """Replaces the pixels of images by those of others, step by step; (steps + 1, B, C, H, W).

    In step k a share k / steps of the pixels is replaced: those with the largest values in the map.

    Args:
        images: (B, C, H, W).
        others: (B, C, H, W).
        maps: (B, H, W); of equal values the one nearer to the upper left comes first.
        steps: K.
    """
    flat = maps.flatten(1)  # (B, H·W)
    rank = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    pixels = rank.reshape(len(images), 1, *images.shape[2:])
    limits = torch.linspace(0, flat.shape[1], steps + 1).round()
    return torch.stack([torch.where(pixels < limit, others, images) for limit in limits])


def transition_images(sources: Tensor, made: Tensor, steps: int = STEPS) -> Tensor:
    """From source to counterfactual, largest changes first; (steps + 1, B, C, H, W)."""
    return replaced_by_rank(sources, made, (made - sources).abs().sum(dim=1), steps)


def transition_score(
    sources: Tensor,
    made: Tensor,
    margin: Callable[[Tensor], Tensor],
    steps: int = STEPS,
) -> Tensor:
    """COUT (Khorram and Fuxin, CVPR 2022): how few pixels have the effect; (B,).

    The area under the target's probability along the transition minus that under the source's:
    Σ_k ½ (d_k + d_{k+1}) / steps, where d is the target's probability minus the source's. It is
    between -1 and 1, and near 1 where the first pixels suffice.

    Args:
        sources: (B, C, H, W).
        made: The counterfactuals, (B, C, H, W).
        margin: Maps images (B, C, H, W) to d (B,).
        steps: Steps of the transition.
    """
    curve = torch.stack([margin(images) for images in transition_images(sources, made, steps)])
    return torch.trapezoid(curve, dx=1 / steps, dim=0)


def latent_divergence(
    sources: Tensor, made: Tensor, like_source: Tensor, like_target: Tensor
) -> Tensor:
    """Minimality as counterfactual latent divergence (arXiv 2202.10166); (B,).

    log(exp P(S_target ≤ D) + exp P(S_source ≥ D)). D is the distance between counterfactual and
    source, S_target the distance of the source to a real image of the target class, and S_source
    that to a real image of its own class. It is between log 2 and log 2e, and small where D is
    less than S_target and more than S_source. Distances are L1 between features and do not model
    their spread.

    Args:
        sources: Features (B, ...).
        made: Features of the counterfactuals (B, ...).
        like_source: Features of real images of the source's class (M, ...).
        like_target: Features of real images of the target class (N, ...).

    Returns:
        (B,), nan where M or N is 0.
    """
    flat = sources.flatten(1)
    distance = (made.flatten(1) - flat).abs().sum(dim=1, keepdim=True)  # (B, 1)
    to_target = torch.cdist(flat, like_target.flatten(1), p=1)  # (B, N)
    to_source = torch.cdist(flat, like_source.flatten(1), p=1)
    beyond = (to_target <= distance).double().mean(dim=1)
    within = (to_source >= distance).double().mean(dim=1)
    return (beyond.exp() + within.exp()).log()
