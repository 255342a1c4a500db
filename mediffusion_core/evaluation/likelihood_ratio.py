"""The likelihood-ratio attack with offline shadow models: LiRA, arXiv 2112.03570, section VI.

A shadow model is trained on other units drawn like those of the attacked model. The confidence that
models without a unit have in its labels says how hard the unit is. A member stands out by a
confidence that is far above these.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mediffusion_core.evaluation.classification import class_scores
from mediffusion_core.evaluation.membership_inference import Losses

FEW = 64
"""Below this number of shadow models all units have one variance (section VI-C)."""


def label_confidences(logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
    """log(p / (1 - p)) of the probability p of each image's own labels, (n,) (eq. 6).

    Args:
        logits: (n, C).
        targets: (n, C) in {0, 1}, NaN where a label is missing; each image has one at least.
        multi_label: Whether the classes are independent; the mean over the known ones is taken.
    """
    scores = class_scores(logits, multi_label)
    if multi_label:
        known = ~targets.isnan()
        signed = torch.where(targets > 0.5, scores, -scores) * known
        return signed.sum(dim=1) / known.sum(dim=1)
    return scores.gather(1, targets.argmax(dim=1, keepdim=True)).squeeze(1)


def shadow_sets(units: int, size: int, shadows: int, seed: int) -> NDArray[np.bool_]:
    """Random training sets, two disjoint ones from each permutation of the units, (S, U).

    So a given unit is in one set of each pair at most.

    Args:
        units: U.
        size: Units of a set; at most half of them all.
        shadows: S.
        seed: Draws the permutations.
    """
    size = min(size, units // 2)
    generator = np.random.default_rng(seed)
    chosen = np.zeros((shadows, units), dtype=np.bool_)
    for first in range(0, shadows, 2):
        order = generator.permutation(units)
        for number in range(first, min(first + 2, shadows)):
            start = (number - first) * size
            chosen[number, order[start : start + size]] = True
    return chosen


def offline_scores(
    observed: NDArray[np.float64], shadows: NDArray[np.float64], inside: NDArray[np.bool_]
) -> Losses:
    """(μ_out - φ) / σ_out of each unit, (U,): smaller for likelier members.

    Φ of its negative is the offline score of the paper (eq. 4): the probability that a model
    without the unit has a smaller confidence than the attacked one.

    Args:
        observed: φ, the attacked model's confidence in each unit, (U,).
        shadows: Those of the shadow models, (S, U).
        inside: Whether a shadow model was trained on the unit, (S, U); for each unit one was not.

    Raises:
        ValueError: if all shadow models were trained on a unit.
    """
    outside = ~inside
    counts = outside.sum(axis=0)
    if not counts.all():
        raise ValueError("a unit is in the training sets of all shadow models")
    mean = (shadows * outside).sum(axis=0) / counts  # (U,)
    squares = np.square(shadows - mean) * outside  # (S, U)
    if len(shadows) < FEW:
        spare = max(1, int(outside.sum()) - len(counts))
        variance = np.full(len(counts), squares.sum() / spare)
    else:
        variance = squares.sum(axis=0) / np.maximum(1, counts - 1)
    scores: Losses = (mean - observed) / np.sqrt(np.maximum(variance, 1e-24))
    return scores
