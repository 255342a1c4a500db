"""Whitening of features: sums over sites, and directions that repeated images do not change."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mediffusion_core.models.whitening import FeatureSums, Whitening


def drawn(images: int, width: int, seed: int = 0) -> tuple[torch.Tensor, list[str]]:
    """Features of lesions of one to three images each, with large differences within a lesion."""
    generator = torch.Generator().manual_seed(seed)
    lesions = torch.randint(0, max(1, images // 2), (images,), generator=generator)
    own = torch.randn(images, width, generator=generator)
    features = 0.5 * own + torch.randn(images, width, generator=generator)[lesions]
    features[:, 0] = own[:, 0] * 3  # the light of a photograph
    return features, [f"lesion {number}" for number in lesions.tolist()]


def test_sums_equal_numpys() -> None:
    features, groups = drawn(40, 5)
    sums = FeatureSums.of(features, groups)
    x = features.double().numpy()
    np.testing.assert_allclose(sums.scatter, np.cov(x.T, bias=True) * 40, atol=1e-9)
    within = np.zeros((5, 5))
    for name in set(groups):
        own = x[[group == name for group in groups]]
        within += (own - own.mean(0)).T @ (own - own.mean(0))
    np.testing.assert_allclose(sums.within, within, atol=1e-9)
    assert (sums.count, sums.repeats) == (40, 40 - len(set(groups)))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(0, 5))
def test_the_sums_of_sites_are_those_of_all_images(sizes: list[int], seed: int) -> None:
    parts = [drawn(size, 4, seed + number) for number, size in enumerate(sizes)]
    named = [[f"{site} {one}" for one in groups] for site, (_, groups) in enumerate(parts)]
    everyone = [name for names in named for name in names]
    pooled = FeatureSums.pooled(
        [FeatureSums.of(part[0], names) for part, names in zip(parts, named, strict=True)]
    )
    together = FeatureSums.of(torch.cat([one for one, _ in parts]), everyone)
    assert (pooled.count, pooled.repeats) == (together.count, together.repeats)
    for name in ("mean", "scatter", "within"):
        torch.testing.assert_close(getattr(pooled, name), getattr(together, name))


def test_sums_travel_in_single_precision() -> None:
    sums = FeatureSums.of(*drawn(30, 4))
    came = FeatureSums.of_arrays(sums.arrays())
    torch.testing.assert_close(came.scatter, sums.scatter, rtol=1e-6, atol=1e-5)
    assert (came.count, came.repeats) == (sums.count, sums.repeats)


def test_whitened_features_have_the_same_scatter_within_lesions_in_all_directions() -> None:
    """By its definition, at a shrinkage that leaves the scatter as it is."""
    features, groups = drawn(400, 6)
    whitening = Whitening.of(FeatureSums.of(features, groups), 6, shrinkage=1e-9)
    again = FeatureSums.of(whitening(features), groups)
    within = again.within / again.repeats
    torch.testing.assert_close(
        within, within[0, 0] * torch.eye(6, dtype=torch.float64), rtol=1e-3, atol=1e-3
    )
    variance = again.scatter.diagonal() / again.count
    assert float(variance.mean()) == pytest.approx(1, rel=1e-3)
    assert float(again.mean.abs().max()) < 1e-4


def test_a_direction_that_changes_between_images_of_a_lesion_counts_less() -> None:
    features, groups = drawn(400, 6)
    sums = FeatureSums.of(features, groups)
    whitening, standard = Whitening.of(sums, 6, 0.1), Whitening.of(sums, 6, 1.0)
    light = torch.eye(6)[:1] * 3

    def moved(by: Whitening) -> float:
        return float((by(light) - by(torch.zeros(1, 6))).norm())

    assert moved(whitening) < 0.7 * moved(standard)


def test_without_repeated_images_it_is_the_whitening_of_principal_directions() -> None:
    features, _ = drawn(50, 4)
    groups = [str(number) for number in range(50)]
    whitened = Whitening.of(FeatureSums.of(features, groups), 3, 0.1)(features)
    assert whitened.shape == (50, 3)
    torch.testing.assert_close(
        torch.cov(whitened.T, correction=0), torch.eye(3), rtol=0.01, atol=0.01
    )


def test_a_constant_feature_and_a_site_without_images_do_no_harm() -> None:
    features, groups = drawn(20, 4)
    features[:, 1] = 7.0
    empty = FeatureSums.of(features[:0], [])
    sums = FeatureSums.pooled([empty, FeatureSums.of(features, groups)])
    whitened = Whitening.of(sums, 4, 0.1)(features)
    assert whitened.isfinite().all()
    assert Whitening.of(sums, 9, 0.1).directions.shape == (4, 4)


def test_copies_of_images_are_no_repeated_photographs() -> None:
    """Their scatter within lesions is 0, by which nothing can be divided."""
    features, _ = drawn(20, 4)
    twice = torch.cat([features, features])
    groups = [str(number % 20) for number in range(40)]
    assert Whitening.of(FeatureSums.of(twice, groups), 4, 0.1)(twice).isfinite().all()


@pytest.mark.parametrize("false", [-1.0, -1e9, 1e30])
def test_false_sums_give_finite_directions_or_an_error(false: float) -> None:
    sums = FeatureSums.of(*drawn(30, 4))
    for name in ("scatter", "within"):
        value = getattr(sums, name) * false
        try:
            directions = Whitening.of(replace(sums, **{name: value}), 4, 0.1).directions
        except (ValueError, RuntimeError):
            continue
        assert directions.isfinite().all()
