"""Pseudo-labels: confident predictions of a teacher, taken as labels.

Labels are as in a `LatentSet`: (B, C) in {0, 1}, NaN where there is none.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

PseudoLabels = Callable[[Tensor], Tensor]
"""From probabilities (B, C) of a teacher to labels (B, C)."""

MOMENTUM = 0.99
"""Of adaptive thresholds in each step. With the paper's 0.999 they would hardly change in the few
dozen steps of a round."""


def class_labels(probabilities: Tensor, thresholds: Tensor) -> Tensor:
    """One-hot the likeliest of exclusive classes, where it reaches its threshold.

    1(max q ≥ τ(argmax q)) of arXiv 2001.07685, eq. 4, with a threshold for each class.

    Args:
        probabilities: q (B, C).
        thresholds: τ (C,).
    """
    confidence, likeliest = probabilities.max(dim=1)
    labels = F.one_hot(likeliest, probabilities.shape[1]).float()
    labels[confidence < thresholds[likeliest]] = torch.nan
    return labels


def finding_labels(probabilities: Tensor, present: Tensor, absent: Tensor) -> Tensor:
    """Each finding is present from one threshold up, and else absent from another one down.

    Args:
        probabilities: (B, C).
        present: (C,); at or above it a finding is taken for present.
        absent: (C,); at or below it, and below the other, for absent.
    """
    labels = torch.full_like(probabilities, torch.nan)
    labels[probabilities <= absent] = 0.0
    labels[probabilities >= present] = 1.0
    return labels


def prevalence_thresholds(probabilities: Tensor, prevalence: Tensor) -> Tensor:
    """For each finding the quantile above which as many images lie as have it, (C,).

    Class-distribution-aware thresholds (arXiv 2305.02795): the pseudo-labels of a finding are as
    often positive as the labels are.

    Args:
        probabilities: Of a sample of images, (n, C).
        prevalence: π (C,) among labelled images.
    """
    columns = zip(probabilities.T, prevalence.tolist(), strict=True)
    return torch.stack([column.quantile(1 - share) for column, share in columns])


class SelfAdaptive:
    """Thresholds that follow the teacher's mean confidence, over all classes and in each.

    τ(c) = p̃(c) / max p̃ · τ, where τ is a moving mean of max q and p̃ one of q (arXiv 2205.07246,
    section 4.1, thresholds alone). A class that the teacher seldom predicts has a lower threshold.
    """

    def __init__(self, sample: Tensor) -> None:
        """Starts from the probabilities of a sample of images, (n, C)."""
        self._confidence = sample.amax(dim=1).mean()
        self._shares = sample.mean(dim=0)

    @property
    def thresholds(self) -> Tensor:
        """τ (C,)."""
        return self._shares / self._shares.max() * self._confidence

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Moves the thresholds by a batch (B, C), and labels it."""
        self._confidence = self._confidence.lerp(probabilities.amax(dim=1).mean(), 1 - MOMENTUM)
        self._shares = self._shares.lerp(probabilities.mean(dim=0), 1 - MOMENTUM)
        return class_labels(probabilities, self.thresholds)


def fixed_labels(threshold: float, multi_label: bool) -> PseudoLabels:
    """A class from its threshold up; a finding present from it up, absent from 1 - it down."""
    level = torch.tensor(threshold)
    if multi_label:
        return partial(finding_labels, present=level, absent=1 - level)
    return lambda probabilities: class_labels(probabilities, level.expand(probabilities.shape[1]))


def adaptive_labels(sample: Tensor, prevalence: Tensor | None) -> PseudoLabels:
    """Adaptive labels: of findings by prevalence, of exclusive classes by confidence.

    Args:
        sample: A teacher's probabilities of a sample of images, (n, C).
        prevalence: π (C,) of findings; None for exclusive classes.
    """
    if prevalence is None:
        return SelfAdaptive(sample)
    thresholds = prevalence_thresholds(sample, prevalence)
    return partial(finding_labels, present=thresholds, absent=thresholds)
