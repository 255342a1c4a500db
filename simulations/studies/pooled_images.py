"""The images of all sites in one place."""

from mediffusion_core.data.image_set import ImageSet, joined
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset


def training_images(hospitals: FederatedDataset) -> ImageSet:
    """The training images of all sites, with the labels that these know."""
    return joined([hospitals.train(site) for site in range(len(hospitals.shards))])


def validation_images(hospitals: FederatedDataset) -> ImageSet:
    """The validation patients of all sites."""
    return joined([hospitals.validation(site) for site in range(len(hospitals.shards))])
