"""Whether counterfactuals keep the subgroups of their sources."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.compose import compose
from mediffusion_core.data.image_set import as_batch
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
)
from simulations.studies.guidance.kept_subgroups import SubgroupProbe, accuracies, subgroup_probes


@pytest.fixture(scope="module")
def dataset(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> FederatedDataset:
    store = f"data.store={tmp_path_factory.mktemp('store')}"
    more = ("data.phantom.patients_per_site=[240,240,240]", "data.test_fraction=0.3")
    return open_federated_dataset(compose("config", (*tiny, store, "data.scanner_shift=1", *more)))


def moments(images: Tensor) -> Tensor:
    """Mean, deviation and extremes of images (N, C, H, W), as (N, 4)."""
    flat = images.flatten(1)
    return torch.stack([flat.mean(1), flat.std(1), flat.amin(1), flat.amax(1)], dim=1)


def test_sites_with_other_scanners_are_told_apart(dataset: FederatedDataset) -> None:
    probes = subgroup_probes(dataset, moments, seed=0)
    # The phantoms' sex and age are drawn at random and no pixel shows them.
    found = accuracies(probes, dataset, moments)
    assert [name for name, probe in probes.items() if probe.reads(found[name])] == ["site"]
    assert probes["site"].subgroups == ("site-0", "site-1", "site-2")
    # The mean of the sites' own shares, on the test patients' images.
    images = dataset.test()
    right = probes["site"].right(moments(images.take(torch.arange(len(images)))), images.rows)
    sites = np.array(dataset.site_of_test())
    own = [float(right[torch.from_numpy(sites == site)].double().mean()) for site in set(sites)]
    assert found["site"] == pytest.approx(sum(own) / 3)


def test_an_image_of_another_site_is_not_kept(dataset: FederatedDataset) -> None:
    probe: SubgroupProbe = subgroup_probes(dataset, moments, seed=0)["site"]
    rows = dataset.test_rows
    sources = moments(dataset.test().take(torch.arange(len(rows))))
    right = probe.right(sources, rows)
    same = probe.kept(sources, sources, rows)
    assert bool((same[right] == 1).all()) and bool(same[~right].isnan().all())
    sites = np.array(dataset.site_of_test())
    first, other = (
        torch.from_numpy(sites == site).logical_and(right).nonzero()[0, 0]
        for site in ("site-0", "site-1")
    )
    changed = sources.clone()
    changed[first] = sources[other]
    assert probe.kept(sources, changed, rows)[first] == 0


def test_sex_is_an_attribute_and_unknown_sex_is_none(dataset: FederatedDataset) -> None:
    count = len(dataset.store.images)
    bright = moments(as_batch(dataset.store.images[np.arange(count)]))[:, 0]
    sex = np.where(bright > bright.median(), "female", "male")
    unknown = np.arange(count) % 7 == 0
    sex[unknown] = ""
    known = replace(dataset, pixels=dataset.store.images, attributes={"sex": sex})
    probes = subgroup_probes(known, moments, seed=0)
    assert probes["sex"].subgroups == ("female", "male")
    assert accuracies(probes, known, moments)["sex"] > 0.9
    features = torch.zeros(count, 4)
    features[:, 0] = bright
    rows = np.arange(count)
    assert bool(
        probes["sex"].kept(features, features, rows)[torch.from_numpy(unknown)].isnan().all()
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_subgroup_of_few_images_is_left_out(dataset: FederatedDataset, split: str) -> None:
    rows = np.concatenate([getattr(centre, split) for centre in dataset.centres])
    age = np.full(len(dataset.store.images), "40-59")
    age[rows[:10]] = "0-17"
    others = np.setdiff1d(np.arange(len(age)), rows)
    age[others[: len(others) // 2]] = "0-17"
    assert "age" not in subgroup_probes(replace(dataset, attributes={"age": age}), moments, seed=0)


def test_a_subgroup_is_not_read_from_the_finding(dataset: FederatedDataset) -> None:
    """Where sex goes with a label in training, the chosen images have each label as often."""
    sick = dataset.store.labels[:, 0] == 1
    generator = np.random.default_rng(0)
    sex = np.where(sick ^ (generator.random(len(sick)) < 0.2), "female", "male")
    chosen = []

    def watched(images: Tensor) -> Tensor:
        chosen.append(images)
        return moments(images)

    probes = subgroup_probes(replace(dataset, attributes={"sex": sex}), watched, seed=0)
    assert set(probes) == {"site", "sex"}
    pixels = as_batch(dataset.pixels[np.arange(len(sick))])
    rows = [int((pixels == image).flatten(1).all(dim=1).nonzero()[0, 0]) for image in chosen[1]]
    labels = dataset.store.labels[rows]
    women = sex[rows] == "female"
    assert women.sum() == (~women).sum() >= 30
    assert sorted(map(tuple, labels[women])) == sorted(map(tuple, labels[~women]))
