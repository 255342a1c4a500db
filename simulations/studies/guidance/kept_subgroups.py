"""Whether a counterfactual still shows the subgroup of its source: its site, sex or age.

A counterfactual should change the finding alone. For each attribute a logistic regression reads the
subgroup from features that are not trained. It is fitted on training images, and its accuracy is
measured on images of test patients. Each combination of labels is equally frequent in all subgroups
of the training images: otherwise the regression would read the subgroup from the finding, which a
counterfactual has to change. An attribute that it hardly reads has no figure.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from mediffusion_core.data.attributes import AGE, SEX, UNKNOWN
from mediffusion_core.data.image_set import as_batch
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from simulations.baselines.linear_classifier import LinearClassifier

SITE = "site"
KEPT = (SITE, SEX, AGE)
"""The attributes."""
FEWEST, MOST = 30, 200
"""Training images of a subgroup: with fewer it is left out, and more are not used."""
FEWEST_TESTED = 20
"""Test images of a subgroup: with fewer it is left out."""
PENALTY = 0.03

Extractor = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SubgroupProbe:
    """A logistic regression that reads the subgroup of an attribute from features (N, D)."""

    subgroups: tuple[str, ...]
    mean: Tensor
    """(D,), of the features that it was fitted on."""
    deviation: Tensor
    """(D,)."""
    classifier: LinearClassifier
    of_row: NDArray[np.str_]
    """The true subgroup of each of the store's images; empty where it is unknown."""

    def reads(self, accuracy: float) -> bool:
        """Whether a balanced accuracy is nearer to 1 than to that of guessing."""
        return accuracy > (1 + 1 / len(self.subgroups)) / 2

    def right(self, features: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Whether the predicted subgroup of each image is the true one of a row, booleans (n,).

        Args:
            features: Of the images, (n, D).
            rows: Of the store, (n,).
        """
        predicted = self.classifier((features - self.mean) / self.deviation).argmax(dim=1)
        return predicted == _indices(self.subgroups, self.of_row[rows])

    def kept(self, sources: Tensor, changed: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """1 where the predicted subgroup of a counterfactual is its source's true one, else 0.

        Args:
            sources: Features of the sources, (n, D).
            changed: Features of the counterfactuals, (n, D).
            rows: The sources' rows in the store, (n,).

        Returns:
            (n,), nan where the prediction for the source itself is wrong or its subgroup unknown.
        """
        return torch.where(self.right(sources, rows), self.right(changed, rows).double(), torch.nan)

    def balanced_accuracy(self, features: Tensor, rows: NDArray[np.int64]) -> float:
        """The share of right predictions, as mean over the subgroups, which the rows must have."""
        right, true = self.right(features, rows), self.of_row[rows]
        shares = [right[torch.from_numpy(true == one)].double().mean() for one in self.subgroups]
        return float(torch.stack(shares).mean())


def subgroup_probes(
    dataset: FederatedDataset, extractor: Extractor, seed: int
) -> dict[str, SubgroupProbe]:
    """The regressions by attribute, of those that two or more subgroups with enough images have."""
    train = np.concatenate([centre.train for centre in dataset.centres])
    order = np.random.default_rng(seed).permutation(train)
    probes = {}
    for name, of_row in _attributes(dataset):
        subgroups = _large_enough(of_row[train], of_row[dataset.test_rows])
        if len(subgroups) < 2:
            continue
        rows = _balanced(order, of_row[order], subgroups, dataset.store.labels[order])
        if len(rows) >= FEWEST * len(subgroups):
            features = extractor(_images(dataset, rows))  # (N, D)
            probes[name] = _fitted(subgroups, features, of_row, rows)
    return probes


def accuracies(
    probes: Mapping[str, SubgroupProbe], dataset: FederatedDataset, extractor: Extractor
) -> dict[str, float]:
    """The balanced accuracy of each regression on the images of the test patients."""
    rows = dataset.test_rows
    features = extractor(_images(dataset, rows))
    return {name: probe.balanced_accuracy(features, rows) for name, probe in probes.items()}


def kept_figure(attribute: str) -> str:
    """Name of the figure of an attribute."""
    return f"{attribute}_kept"


def _indices(subgroups: Sequence[str], names: NDArray[np.str_]) -> Tensor:
    """The index of each name among the subgroups, (n,); -1 for others."""
    index_of = {name: index for index, name in enumerate(subgroups)}
    return torch.tensor([index_of.get(str(name), -1) for name in names], dtype=torch.long)


def _attributes(dataset: FederatedDataset) -> Iterator[tuple[str, NDArray[np.str_]]]:
    """Each attribute that the images have, with the subgroup of each of the store's images."""
    site_of = {int(row): centre.site for centre in dataset.centres for row in centre.rows}
    rows = range(len(dataset.store.images))
    yield SITE, np.array([site_of.get(row, UNKNOWN) for row in rows], dtype=np.str_)
    yield from dataset.attributes.items()


def _large_enough(train: NDArray[np.str_], test: NDArray[np.str_]) -> tuple[str, ...]:
    """The subgroups with enough images of each split, from the subgroup of each image."""
    return tuple(
        one
        for one in sorted({*train.tolist()} - {UNKNOWN})
        if (train == one).sum() >= FEWEST and (test == one).sum() >= FEWEST_TESTED
    )


def _balanced(
    order: NDArray[np.int64],
    of_row: NDArray[np.str_],
    subgroups: Sequence[str],
    labels: NDArray[np.float32],
) -> NDArray[np.int64]:
    """As many rows of each subgroup with each combination of labels, up to `MOST` of a subgroup.

    Args:
        order: Rows of training images in random order, (n,).
        of_row: Subgroup of each of them.
        subgroups: Those to choose.
        labels: Of each of them, (n, classes), nan where missing.
    """
    combinations = np.unique(np.nan_to_num(labels, nan=-1), axis=0, return_inverse=True)[1]
    chosen: dict[str, list[NDArray[np.int64]]] = {one: [] for one in subgroups}
    for combination in range(int(combinations.max()) + 1):
        having = {one: order[(of_row == one) & (combinations == combination)] for one in subgroups}
        fewest = min(map(len, having.values()), default=0)
        for one, rows in having.items():
            chosen[one].append(rows[:fewest])
    # In the random order again, so that the cut leaves no combination out.
    mixed = (order[np.isin(order, np.concatenate(rows))] for rows in chosen.values())
    return np.concatenate([rows[:MOST] for rows in mixed])


def _fitted(
    subgroups: tuple[str, ...],
    features: Tensor,
    of_row: NDArray[np.str_],
    rows: NDArray[np.int64],
) -> SubgroupProbe:
    """Fitted on features (N, D) of the images at rows (N,)."""
    mean, deviation = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    scaled = (features - mean) / deviation
    true = one_hot(_indices(subgroups, of_row[rows]), len(subgroups)).float()  # (N, subgroups)
    classifier = LinearClassifier.fitted(scaled, true, multi_label=False, penalty=PENALTY)
    return SubgroupProbe(subgroups, mean, deviation, classifier, of_row)


def _images(dataset: FederatedDataset, rows: NDArray[np.int64]) -> Tensor:
    """Images (n, C, H, W) at rows (n,)."""
    return as_batch(dataset.pixels[rows])
