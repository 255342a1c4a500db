"""The units that an attack is asked about: members and non-members of each site."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.evaluation.membership_inference import Losses, attack

LossesOf = Callable[[ImageSet], Losses]
"""One row for each unit of some images."""


@dataclass(frozen=True)
class Candidates:
    """Images of units that a site has trained on (members) and of test units of the same site."""

    unit: str
    dataset: FederatedDataset
    members: Mapping[str, ImageSet]
    strangers: Mapping[str, ImageSet]

    @classmethod
    def of(cls, dataset: FederatedDataset, unit: str) -> "Candidates":
        """All training images of the sites, and the public test set by site.

        Args:
            dataset: The images of a run.
            unit: `privacy.unit`.
        """
        test, sites = dataset.test(), np.array(dataset.site_of_test())
        names = [client.site for client in dataset.clients]
        strangers = {
            name: test.subset(torch.from_numpy(np.flatnonzero(sites == name))) for name in names
        }
        members = {name: dataset.train(index) for index, name in enumerate(names)}
        return cls(unit, dataset, members, strangers)

    def labelled(self) -> "Candidates":
        """The images with a label alone: the loss of another one is not defined."""
        members, strangers = (
            {site: images.subset(images.labelled) for site, images in part.items()}
            for part in (self.members, self.strangers)
        )
        return Candidates(self.unit, self.dataset, members, strangers)

    def units(self, images: ImageSet) -> Sequence[str]:
        """The privacy unit of each image (n,)."""
        if self.unit == "image":
            return [str(row) for row in images.rows]
        return self.dataset.groups(images.rows)

    def scored(self, adversary: str, losses: LossesOf) -> "Scored":
        """Members and non-members by the losses of a model or a message.

        Args:
            adversary: The party that makes the attack, and its knowledge.
            losses: Of a site's images, one row for each unit.
        """
        members, strangers = (
            {site: losses(images) for site, images in part.items()}
            for part in (self.members, self.strangers)
        )
        return Scored(adversary, members, strangers)

    def __len__(self) -> int:
        """How many images."""
        parts = (self.members, self.strangers)
        return sum(len(images) for part in parts for images in part.values())


@dataclass(frozen=True)
class Scored:
    """One number for each unit of each site, smaller for members if the attack works."""

    adversary: str
    """The party that makes the attack, and its knowledge."""
    members: Mapping[str, Losses]
    strangers: Mapping[str, Losses]
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further figures for `attack.json`."""

    def joined(self) -> tuple[Losses, Losses]:
        """Members and non-members of all sites."""
        return _joined(self.members), _joined(self.strangers)

    def columns(self, names: Sequence[str]) -> "dict[str, Scored]":
        """Each column of several numbers for each unit as an attack of its own."""
        found = {}
        for column, name in enumerate(names):
            members, strangers = (
                {site: scores[:, column] for site, scores in part.items()}
                for part in (self.members, self.strangers)
            )
            found[name] = Scored(self.adversary, members, strangers, self.details)
        return found

    def figures(self, seed: int) -> dict[str, Any]:
        """The figures of the attack on all units, and on those of each site."""
        sites = {
            site: asdict(attack(self.members[site], self.strangers[site], seed))
            for site in self.members
            if len(self.members[site]) and len(self.strangers[site])
        }
        overall = asdict(attack(*self.joined(), seed))
        return {**overall, "adversary": self.adversary, **self.details, "sites": sites}


def _joined(losses: Mapping[str, Losses]) -> Losses:
    return np.concatenate(list(losses.values()))
