"""Statistics of sites add up to those of all images, and a unit changes them by a known bound."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mediffusion_core.data.attributes import AGE, SEX
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.evaluation.site_statistics import (
    BINS,
    SUPPRESSED,
    DescribedImages,
    exact_statistics,
    moments,
    noised,
    sensitivity,
    unit_sums,
)
from mediffusion_core.evaluation.subgroups import SUBGROUPS

CLASSES, CHANNELS, SIDE = 3, 2, 6


@pytest.fixture(scope="module")
def described() -> DescribedImages:
    """90 images of 40 patients, with labels of any state, sexes and ages."""
    random = np.random.default_rng(3)
    count = 90
    pixels = random.integers(0, 256, (count, SIDE, SIDE, CHANNELS), dtype=np.uint8)
    targets = torch.from_numpy(random.choice([0.0, 1.0, np.nan], (count, CLASSES))).float()
    numbers = np.concatenate([np.arange(40), random.integers(0, 40, count - 40)])
    attributes = {
        SEX: np.array(["female", "male"])[numbers % 2],
        AGE: np.array(["18-39", "40-59", ""])[numbers % 3],
    }
    images = ImageSet(pixels, np.arange(count), targets)
    return DescribedImages(images, tuple(f"p{one}" for one in numbers), attributes)


def of_sites(described: DescribedImages) -> list[DescribedImages]:
    """The same images at three sites; no patient is at two."""
    site = torch.tensor([int(name[1:]) % 3 for name in described.patients])
    return [described.subset((site == one).nonzero().flatten()) for one in range(3)]


def test_the_sum_over_sites_is_that_of_the_pooled_images(described: DescribedImages) -> None:
    pooled = exact_statistics(described, 1)
    sites = [exact_statistics(one, 1) for one in of_sites(described)]
    for name, expected in pooled.items():
        # An absent subgroup reads as a suppressed one.
        total = sum(torch.where(one[name] == SUPPRESSED, 0, one[name]) for one in sites)
        assert torch.equal(total, expected.clamp(min=0)), name


def test_counts_are_those_of_the_images(described: DescribedImages) -> None:
    found, targets = exact_statistics(described, 1), described.images.targets
    known = int((~targets.isnan()).any(dim=1).sum())
    assert found["labelled"].tolist() == [known, len(targets) - known]
    for number, counts in enumerate(found["labels"].tolist()):
        own = targets[:, number]
        expected = [int((own == 1).sum()), int((own == 0).sum()), int(own.isnan().sum())]
        assert counts == expected
    by_name = dict(zip([name for _, name in SUBGROUPS], found["subgroups"].tolist(), strict=True))
    assert by_name["female"] == int((described.attributes[SEX] == "female").sum())
    assert by_name["80 and over"] == SUPPRESSED


def test_the_histogram_has_every_pixel_and_gives_mean_and_deviation(
    described: DescribedImages,
) -> None:
    histogram = exact_statistics(described, 1)["histogram"]
    pixels = described.images.pixels[described.images.rows]
    for channel in range(CHANNELS):
        levels = pixels[..., channel].ravel()
        expected = np.bincount(levels // 8, minlength=BINS)
        assert histogram[channel].tolist() == expected.tolist()
        mean, deviation = moments(histogram[channel])
        # Each intensity lies in a bin of width 1/32.
        assert mean == pytest.approx(levels.mean() / 255, abs=1 / 64)
        assert deviation == pytest.approx(levels.std() / 255, abs=1 / 64)


def test_a_bin_with_pixels_of_few_patients_is_suppressed() -> None:
    pixels = np.zeros((30, 2, 2, 1), dtype=np.uint8)
    pixels[:, 0] = 128
    pixels[:3, 1, 1] = 255
    images = ImageSet(pixels, np.arange(30), torch.zeros(30, 1))
    patients = tuple(map(str, range(30)))
    histogram = exact_statistics(DescribedImages(images, patients, {}), 10)["histogram"][0]
    assert histogram[BINS - 1] == SUPPRESSED
    # The zeros would give it back: the number of pixels is known.
    assert int((histogram > 0).sum()) == 1


def test_one_unit_changes_the_sums_by_at_most_the_sensitivity(described: DescribedImages) -> None:
    """Also a unit of many images, all positive and of one intensity."""
    count = len(described.patients)
    extreme = ImageSet(
        np.concatenate([described.images.pixels, np.zeros((50, SIDE, SIDE, CHANNELS), np.uint8)]),
        np.arange(count + 50),
        torch.cat([described.images.targets, torch.ones(50, CLASSES)]),
    )
    whole = DescribedImages(
        extreme,
        (*described.patients, *["new"] * 50),
        {
            SEX: np.concatenate([described.attributes[SEX], ["male"] * 50]),
            AGE: np.concatenate([described.attributes[AGE], ["18-39"] * 50]),
        },
    )
    bound = sensitivity(CLASSES, CHANNELS)
    assert norm_of_change(whole, "new") == pytest.approx(bound)
    for patient in sorted(set(described.patients))[:10]:
        assert 0 < norm_of_change(whole, patient) <= bound + 1e-9


def norm_of_change(described: DescribedImages, patient: str) -> float:
    kept = torch.tensor([name != patient for name in described.patients]).nonzero().flatten()
    without = described.subset(kept)
    sums = [unit_sums(one, one.patients) for one in (described, without)]
    return float(flat(sums[0]).sub(flat(sums[1])).norm())


def flat(sums: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in sums.values()])


def test_without_images_the_sums_are_noise_of_the_same_shapes(described: DescribedImages) -> None:
    nothing = described.subset(torch.zeros(0, dtype=torch.long))
    found = noised(unit_sums(nothing, ()), 2.0)
    whole = noised(unit_sums(described, described.patients), 2.0)
    assert {name: value.shape for name, value in found.items()} == {
        name: value.shape for name, value in whole.items()
    }
    deviation = float(flat(found).std())
    assert deviation == pytest.approx(2 * sensitivity(CLASSES, CHANNELS), rel=0.5)


def test_units_of_single_images_count_each(described: DescribedImages) -> None:
    rows = [str(row) for row in described.images.rows]
    exact = exact_statistics(described, 1)
    found = unit_sums(described, rows)
    assert found["labels"].tolist() == exact["labels"].double().tolist()
    pixels = SIDE * SIDE
    assert torch.allclose(found["histogram"], exact["histogram"].double() / pixels)


def test_moments_of_empty_bins_or_of_noise_are_unknown() -> None:
    assert np.isnan(moments(torch.zeros(BINS))).all()
    assert np.isnan(moments(torch.ones(BINS), noise=10.0)).all()
