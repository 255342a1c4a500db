"""FedIRM: sites without labels match the relations of classes at others (arXiv 2106.08600)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simulations.baselines.pixel_classifier import normalised
from simulations.baselines.semi_supervised.mean_teacher import MeanTeacher
from simulations.baselines.semi_supervised.objective import Loss
from simulations.baselines.semi_supervised.server import Server, StateDict
from simulations.baselines.semi_supervised.settings import FedIRMSettings
from simulations.baselines.task import BaselineTask


class FedIRM(MeanTeacher):
    """A mean teacher, and the distance of relation matrices of reliable images."""

    def __init__(self, task: BaselineTask, settings: FedIRMSettings, num_classes: int) -> None:
        """Takes the training's task and the number of exclusive classes."""
        super().__init__(task, settings)
        self._irm = settings
        self._sums = torch.zeros(num_classes, num_classes)
        self._counts = torch.zeros(num_classes)
        self.relations = torch.full((num_classes, num_classes), torch.nan)
        """Of the labelled sites, (C, C); the server sets them."""

    def begin_round(self, round_number: int) -> None:
        """Forgets the logits of the round before."""
        super().begin_round(round_number)
        self._sums.zero_()
        self._counts.zero_()

    def observe(self, logits: Tensor, targets: Tensor) -> None:
        """Adds the logits of a batch to the sums of their classes."""
        labels = targets.nan_to_num()
        self._sums += class_sums(logits, labels)
        self._counts += labels.sum(dim=0)

    @property
    def own_relations(self) -> Tensor:
        """Of the site's labelled images of this round, (C, C); nan for a class without one."""
        means = self._sums / self._counts[:, None]
        return F.softmax(means / self._irm.temperature, dim=1)

    def prepare(
        self, network: nn.Module, images: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Loss]:
        """The mean teacher's views; its loss and that of relations have the same weight."""
        views, consistency = super().prepare(network, images, generator)
        certain = self._entropies(network, views) <= self._irm.max_entropy

        def loss(logits: Tensor) -> Tensor:
            reliable = logits[certain]
            labels = F.one_hot(reliable.argmax(dim=1), logits.shape[1]).float()
            relations = relation_matrix(reliable, labels, self._irm.temperature)
            return consistency(logits) + self.weight * relation_loss(relations, self.relations)

        return views, loss

    @torch.no_grad()
    def _entropies(self, network: nn.Module, views: Tensor) -> Tensor:
        """Of the mean probabilities over several passes with dropout, (B,)."""
        passes = dropout_logits(network, normalised(views), self._irm.passes)
        probabilities = passes.float().softmax(dim=2).mean(dim=0)
        entropies: Tensor = torch.special.entr(probabilities).sum(dim=1)
        return entropies


class RelationServer(Server):
    """Averages the relation matrices of labelled sites, and sends them to all sites."""

    def __init__(self, objectives: Sequence[FedIRM]) -> None:
        """Takes the objective of each site."""
        super().__init__(len(objectives))
        self._objectives = objectives

    def finish(self, weights: StateDict, round_number: int) -> StateDict:
        """Rows of classes that no site saw in this round stay as they were."""
        mean = torch.stack([one.own_relations for one in self._objectives]).nanmean(dim=0)
        before = self._objectives[0].relations
        relations = torch.where(mean.isnan(), before, mean)
        for objective in self._objectives:
            objective.relations = relations
        return weights


class DropoutLinear(nn.Linear):
    """A last layer that drops features in training."""

    def __init__(self, layer: nn.Linear, rate: float) -> None:
        """Takes over the parameters of a layer."""
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self._rate = rate

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, F) to logits (B, C)."""
        return super().forward(F.dropout(features, self._rate, self.training))


def add_dropout(network: nn.Module, rate: float) -> None:
    """Lets the last layer of a ResNet, `network.fc`, drop features in training."""
    layer = network.get_submodule("fc")
    assert isinstance(layer, nn.Linear)
    network.set_submodule("fc", DropoutLinear(layer, rate))


def dropout_logits(network: nn.Module, images: Tensor, passes: int) -> Tensor:
    """Logits of several passes through the last layer, `network.fc`, (passes, B, C).

    Without dropout before it, its input is the same in each pass and is computed once.
    """
    features: list[Tensor] = []
    layer = network.get_submodule("fc")
    hook = layer.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    network(images)
    hook.remove()
    return torch.stack([layer(features[0]) for _ in range(passes)])


def class_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the logits (B, C) of each class's images, (C, C); labels (B, C) are one-hot.

    No matrix product, since autocast would round its sums.
    """
    return (labels[:, :, None] * logits[:, None, :]).sum(dim=0)


def relation_matrix(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Softmax of each class's mean logits, (C, C); nan for a class without an image.

    Args:
        logits: (B, C).
        labels: One-hot, (B, C).
        temperature: τ.
    """
    means = class_sums(logits, labels) / labels.sum(dim=0)[:, None]
    return F.softmax(means / temperature, dim=1)


def relation_loss(ours: Tensor, theirs: Tensor) -> Tensor:
    """The mean of Σ_c KL(M_c ‖ M'_c) and Σ_c KL(M'_c ‖ M_c), over the number of classes, a scalar.

    Args:
        ours: (C, C), with the gradient; nan rows do not count.
        theirs: (C, C); nan rows do not count.
    """
    known = ~(ours.isnan() | theirs.isnan()).any(dim=1)
    first, second = (rows[known].clamp_min(1e-8) for rows in (ours, theirs))
    return ((first - second) * (first.log() - second.log())).sum() / (2 * len(ours))
