"""A site's answers in a run that asks for statistics of its images and trains nothing."""

import torch
from torch import Tensor

from client.privacy_budget import charge
from client.site import Site
from mediffusion_core.common.errors import RefusedError
from mediffusion_core.evaluation.site_statistics import (
    UNITS,
    DescribedImages,
    Read,
    exact_statistics,
    noised,
    unit_sums,
)
from mediffusion_core.privacy.accounting.plan import refuse_large_delta, statistics_charge


def statistics_census(site: Site) -> dict[str, int | list[int]]:
    """How many images and patients there are; nothing in a private run, where these have noise.

    Raises:
        RefusedError: as `statistics`.
    """
    if site.settings.privacy.enabled:
        return {}
    described = _enough(site)
    return {"images": len(described.images), "patients": len(set(described.patients))}


def statistics(site: Site) -> dict[str, Tensor]:
    """Counts and histograms over all images of the site, in a private run sums with noise.

    Returns:
        The arrays of `evaluation.site_statistics.layout`. Without privacy also `unit` (1,), the
        position in `UNITS` of the unit that the data name.

    Raises:
        RefusedError: without privacy, for fewer patients than `policy.min_patients`.
        UserError: with it, if the settings promise too little to so few units.
    """
    progress = site.progress("statistics", 1)

    def report(done: int, total: int) -> None:
        progress(done, total, float("nan"))

    if site.settings.privacy.enabled:
        return _noised_statistics(site, report)
    sums = exact_statistics(_enough(site), site.policy.min_patients, report)
    return {**sums, "unit": torch.tensor([UNITS.index(site.dataset.names.unit)])}


def _noised_statistics(site: Site, report: Read) -> dict[str, Tensor]:
    """Sums with noise over the units that the ledger has charged for them."""
    privacy, described = site.settings.privacy, _described(site)
    charged = charge(site, statistics_charge(privacy), "statistics", 1, described.images)
    kept = [number for number, name in enumerate(described.patients) if name in charged]
    described = described.subset(torch.tensor(kept, dtype=torch.long))
    rows = [str(row) for row in described.images.rows]
    units = rows if privacy.unit == "image" else described.patients
    sums = noised(unit_sums(described, units, report), privacy.release_noise)
    refuse_large_delta(privacy, round(float(sums["labelled"].sum())))
    return sums


def _enough(site: Site) -> DescribedImages:
    """The site's images, if enough patients have them."""
    described = _described(site)
    least, there = site.policy.min_patients, len(set(described.patients))
    if there < least:
        raise RefusedError(f"{there} patients are fewer than policy.min_patients {least}")
    return described


def _described(site: Site) -> DescribedImages:
    """All images of the site, with the labels that the run leaves them."""
    dataset = site.dataset
    images = dataset.every_image(site.index)
    attributes = {name: given[images.rows] for name, given in dataset.attributes.items()}
    return DescribedImages(images, dataset.groups(images.rows), attributes)
