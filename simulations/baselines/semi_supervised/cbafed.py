"""CBAFed: fixed pseudo-labels above class-balanced thresholds (Li et al., CVPR 2023)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mediffusion_core.data.augmentation import augment
from mediffusion_core.diffusion.losses import classification_loss
from mediffusion_core.training.semi_supervised.pseudo_labels import class_labels
from server.strategy.aggregation import weighted_mean
from simulations.baselines.pixel_classifier import normalised
from simulations.baselines.semi_supervised.objective import Loss, Objective, frozen
from simulations.baselines.semi_supervised.server import Server, StateDict, Update
from simulations.baselines.semi_supervised.settings import CBAFedSettings
from simulations.baselines.task import BaselineTask


class CBAFed(Objective):
    """Cross-entropy with the labels that the global weights give at the beginning of a round."""

    def __init__(self, task: BaselineTask, settings: CBAFedSettings, shares: Tensor) -> None:
        """Takes the training's task and the share of each class among the labels, (C,)."""
        super().__init__(task, settings.warm_up)
        self._settings = settings
        self._first: nn.Module | None = None
        self.shares = shares
        """Of the classes among labels and pseudo-labels, (C,); the server sets them."""
        self.counts = torch.zeros_like(shares)
        """Pseudo-labels of each class in this round, (C,)."""
        self.seen = 0
        """Unlabelled images in this round."""

    def begin_round(self, round_number: int) -> None:
        """Forgets the weights and the pseudo-labels of the round before."""
        super().begin_round(round_number)
        self.counts.zero_()
        self.seen = 0
        self._first = None

    def prepare(
        self, network: nn.Module, images: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Loss]:
        """Random views; the loss is the mean over those with a pseudo-label."""
        if self._first is None:
            self._first = frozen(network)
        with torch.no_grad():
            probabilities = self._first(normalised(images)).float().softmax(dim=1)
        labels = balanced_labels(probabilities, self.shares, self._settings)
        found = labels.nansum(dim=0)
        self.counts += found
        self.seen += len(images)

        def loss(logits: Tensor) -> Tensor:
            each = classification_loss(logits, labels, multi_label=False)
            return self._settings.weight * each.sum() / found.sum().clamp_min(1)

        return augment(images, self._task.augmentation, generator), loss


class BalancedServer(Server):
    """Weights by (pseudo-)labels, balances the thresholds, and averages with earlier weights."""

    def __init__(
        self,
        settings: CBAFedSettings,
        objectives: Sequence[CBAFed],
        label_counts: Sequence[Tensor],
        num_unlabelled: Sequence[int],
    ) -> None:
        """Takes each site's objective, labels of each class, (C,), and its unlabelled images."""
        super().__init__(len(objectives))
        self._settings = settings
        self._objectives = objectives
        self._label_counts = label_counts
        self._num_unlabelled = num_unlabelled
        self._earlier: StateDict | None = None

    def weights(self, updates: Sequence[Update]) -> list[float]:
        """Images with a pseudo-label, and labelled ones many times."""
        if not any(objective.active for objective in self._objectives):
            return super().weights(updates)
        weights = []
        for update in updates:
            found = float(self._objectives[update.site].counts.sum())
            labels = float(self._label_counts[update.site].sum())
            factor = self._settings.labelled_weight if labels else 1.0
            weights.append(factor * update.weight if labels else min(found, update.weight))
        return weights

    def finish(self, weights: StateDict, round_number: int) -> StateDict:
        """Averages with the weights of some rounds before, and sends the shares of classes."""
        counts = torch.stack(list(self._label_counts)).sum(dim=0)
        # Labels are counted in all images of a site, pseudo-labels in those of a round.
        for objective, images in zip(self._objectives, self._num_unlabelled, strict=True):
            counts = counts + objective.counts * images / max(1, objective.seen)
        for objective in self._objectives:
            objective.shares = counts / counts.sum()
        if not self._objectives[0].active:
            return weights
        if self._earlier is None:
            self._earlier = weights
        elif round_number % self._settings.residual_every == 0:
            weights = self._earlier = weighted_mean([self._earlier, weights], [1.0, 1.0])
        return weights


def balanced_thresholds(shares: Tensor, settings: CBAFedSettings) -> Tensor:
    """Threshold of each class, (C,): its share plus a base, less the shares' deviation."""
    thresholds = shares + settings.base_threshold - shares.std()
    return thresholds.clamp_max(settings.max_threshold)


def balanced_labels(probabilities: Tensor, shares: Tensor, settings: CBAFedSettings) -> Tensor:
    """One-hot labels (B, C), nan for none: the likeliest class, or else a rare second one.

    Args:
        probabilities: Of the global weights, (B, C).
        shares: Of the classes, (C,).
        settings: Thresholds.
    """
    labels = class_labels(probabilities, balanced_thresholds(shares, settings))
    second = probabilities.topk(2, dim=1).indices[:, 1]  # (B,)
    rare = labels.isnan().any(dim=1) & (shares[second] < settings.rare_share)
    labels[rare] = F.one_hot(second[rare], len(shares)).float()
    return labels
