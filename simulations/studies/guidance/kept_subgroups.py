"""Whether a counterfactual still shows the subgroup of its source: its site, sex or age.

A counterfactual should change the finding alone. For each attribute a logistic regression reads the
subgroup from features that are not trained. It is fitted on training images, and its accuracy is
measured on images of test patients. Nothing is said of an attribute that it hardly reads.
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
FEWEST, MOST = 20, 200
"""Images of a subgroup to fit on: with fewer it is left out, and more are not used."""
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
        return predicted == indices(self.subgroups, self.of_row[rows])

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
        """The share of right predictions, as mean over the subgroups that the rows have."""
        right, true = self.right(features, rows), self.of_row[rows]
        shares = [right[torch.from_numpy(true == one)].double() for one in self.subgroups]
        return float(torch.stack([share.mean() for share in shares if len(share)]).mean())


def subgroup_probes(
    dataset: FederatedDataset, extractor: Extractor, seed: int
) -> dict[str, SubgroupProbe]:
    """The regressions by attribute, of those that two or more subgroups with enough images have."""
    train = np.concatenate([centre.train for centre in dataset.centres])
    order = np.random.default_rng(seed).permutation(train)
    probes = {}
    for name, of_row in _attributes(dataset):
        chosen = dict(_chosen(of_row, order))
        if len(chosen) >= 2:
            rows = np.concatenate([*chosen.values()])
            features = extractor(_images(dataset, rows))  # (N, D)
            probes[name] = _fitted(tuple(chosen), features, of_row, rows)
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


def indices(subgroups: Sequence[str], names: NDArray[np.str_]) -> Tensor:
    """The index of each name among the subgroups, (n,); -1 for others."""
    index_of = {name: index for index, name in enumerate(subgroups)}
    return torch.tensor([index_of.get(str(name), -1) for name in names], dtype=torch.long)


def _attributes(dataset: FederatedDataset) -> Iterator[tuple[str, NDArray[np.str_]]]:
    """Each attribute that the images have, with the subgroup of each of the store's images."""
    site_of = {int(row): centre.site for centre in dataset.centres for row in centre.rows}
    rows = range(len(dataset.store.images))
    yield SITE, np.array([site_of.get(row, UNKNOWN) for row in rows], dtype=np.str_)
    yield from dataset.attributes.items()


def _chosen(
    of_row: NDArray[np.str_], order: NDArray[np.int64]
) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Each subgroup with enough images, and the rows to fit on."""
    for subgroup in sorted({*of_row[order].tolist()} - {UNKNOWN}):
        rows = order[of_row[order] == subgroup][:MOST]
        if len(rows) >= FEWEST:
            yield subgroup, rows


def _fitted(
    subgroups: tuple[str, ...],
    features: Tensor,
    of_row: NDArray[np.str_],
    rows: NDArray[np.int64],
) -> SubgroupProbe:
    """Fitted on features (N, D) of the images at rows (N,)."""
    mean, deviation = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    scaled = (features - mean) / deviation
    true = one_hot(indices(subgroups, of_row[rows]), len(subgroups)).float()  # (N, subgroups)
    classifier = LinearClassifier.fitted(scaled, true, multi_label=False, penalty=PENALTY)
    return SubgroupProbe(subgroups, mean, deviation, classifier, of_row)


def _images(dataset: FederatedDataset, rows: NDArray[np.int64]) -> Tensor:
    """Images (n, C, H, W) at rows (n,)."""
    return as_batch(dataset.pixels[rows])
