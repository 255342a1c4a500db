"""Membership in one round, from what a site sends: the adversary is the server.

The server has the global weights before the round and the site's reply: weights and Adam's moments.
Both moved by gradients of the images that the site trained on, so the gradient of such an image at
the global weights is aligned with the movement (white-box attacks on federated training: arXiv
1812.00910). In many dimensions the gradients of two images are nearly orthogonal but for what
all images have in common; the cosine with the movement is then larger for members by the image's
own part of it.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mediffusion_core.evaluation.membership_inference import Losses
from mediffusion_core.messaging.moment_names import MEAN, STEPS

BETA = 0.9
"""Decay of Adam's first moment (arXiv 1412.6980), which no setting changes."""

StateDict = Mapping[str, Tensor]


def weight_movement(before: StateDict, after: StateDict, names: Sequence[str]) -> Tensor:
    """The weights before a round less those after it, (P,), in the order of `names`."""
    return torch.cat([(before[name] - after[name]).flatten().double() for name in names])


def moment_gradient(before: StateDict, after: StateDict, names: Sequence[str]) -> Tensor:
    """The gradients of a round's steps, the last ones weighing most, (P,).

    Adam's first moment is m_k = β m_{k-1} + (1 - β) g_k (arXiv 1412.6980, algorithm 1), so that
    (m_k - β^k m_0) / (1 - β) = Σ β^{k-i} g_i. After one step this is the gradient itself.

    Args:
        before: Moments before the round, as `adam_moments.fresh_moments` shapes them.
        after: The same after it.
        names: Of the parameters.
    """
    kept = BETA ** float(after[STEPS] - before[STEPS])
    parts = [after[name + MEAN].double() - kept * before[name + MEAN].double() for name in names]
    return torch.cat([part.flatten() for part in parts]) / (1 - BETA)


def misalignments(
    parameters: Sequence[Tensor], movements: Sequence[Tensor], losses: Iterable[Tensor]
) -> Losses:
    """How little the gradient of each unit points along each movement, (U, K).

    Args:
        parameters: P values in all, from which the losses are computed.
        movements: K directions (P,), for example gradients that a reply reveals.
        losses: A scalar for each unit at the weights before the round, made one after the other.

    Returns:
        -cos(g_u, movement): smaller for likelier members, 1 for units whose gradient points the
        other way. 0 where one of the two is zero.
    """
    directions = torch.stack([_unit(movement.double()) for movement in movements])  # (K, P)
    rows = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(parameters), allow_unused=True)
        flat = [
            torch.zeros_like(parameter) if one is None else one
            for parameter, one in zip(parameters, gradients, strict=True)
        ]
        gradient = torch.cat([one.flatten().cpu().double() for one in flat])  # (P,)
        rows.append((-directions @ _unit(gradient)).numpy())
    return np.array(rows, dtype=np.float64).reshape(-1, len(movements))


def _unit(vector: Tensor) -> Tensor:
    length = vector.norm()
    return vector / length if length > 0 else vector
