"""Consistency on unlabelled images: a teacher's confident predictions label a stronger view."""

import torch
from torch import Tensor

from mediffusion_core.inference.classify import classify_latents
from mediffusion_core.models import JointUNet, class_probabilities
from mediffusion_core.settings import ConsistencySettings
from mediffusion_core.training.batches import Shuffled
from mediffusion_core.training.label_counts import LabelCounts
from mediffusion_core.training.latent_set import LatentSet
from mediffusion_core.training.loss import adjusted
from mediffusion_core.training.semi_supervised.pseudo_labels import (
    PseudoLabels,
    adaptive_labels,
    fixed_labels,
)

SAMPLE = 256
"""Unlabelled images that the teacher classifies before a round, to set adaptive thresholds."""


class Consistency:
    """Batches of strong views with pseudo-labels, through one round (FixMatch, arXiv 2001.07685).

    The teacher classifies the clean latent, turned where a turned image is as likely, in evaluation
    mode. It keeps no state from round to round, so a resumed run needs the weights alone.
    """

    def __init__(
        self,
        data: LatentSet,
        settings: ConsistencySettings,
        teacher: JointUNet,
        label_counts: LabelCounts | None,
        logit_shift: Tensor | None,
        generator: torch.Generator,
    ) -> None:
        """Takes what a round trains on; adaptive thresholds are set here.

        Args:
            data: At least one of its images is unlabelled.
            settings: Thresholds, and how many images a batch.
            teacher: Gives the pseudo-labels; may be the network that is trained.
            label_counts: Of all sites, where thresholds follow the findings' prevalence.
            logit_shift: τ · log π (C,), where logits are adjusted.
            generator: Draws images, turns, views and squares.
        """
        self._data = data
        self._size = settings.batch_size
        self._teacher = teacher
        self._shift = logit_shift
        self._generator = generator
        self._batches = Shuffled(torch.arange(len(data.unlabelled)), generator)
        self._labels = self._pseudo_labels(settings, label_counts)

    def next(self) -> tuple[Tensor, Tensor]:
        """Strong views (B_u, c, h, w) float32 and their pseudo-labels (B_u, C), NaN for none."""
        chosen = self._batches.next(self._size)
        labels = self._labels(self._probabilities(chosen))
        return self._data.strong_views(chosen, self._generator), labels

    def _probabilities(self, chosen: Tensor) -> Tensor:
        weak = self._data.weak_views(chosen, self._generator)
        training = self._teacher.training
        self._teacher.eval()
        logits = classify_latents(self._teacher, weak, orientation_free=False).float()
        self._teacher.train(training)
        return class_probabilities(adjusted(logits, self._shift), self._data.multi_label)

    def _pseudo_labels(
        self, settings: ConsistencySettings, label_counts: LabelCounts | None
    ) -> PseudoLabels:
        multi_label = self._data.multi_label
        if settings.thresholds == "fixed":
            return fixed_labels(settings.threshold, multi_label)
        order = torch.randperm(len(self._data.unlabelled), generator=self._generator)
        sample = self._probabilities(order[:SAMPLE])
        if not multi_label:
            return adaptive_labels(sample, None)
        if label_counts is None:
            raise ValueError("adaptive thresholds of findings need the label counts of all sites")
        return adaptive_labels(sample, label_counts.prevalence(multi_label))
