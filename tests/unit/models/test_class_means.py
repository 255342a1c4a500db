"""The classifier by class means: sums over sites, closed forms, and calibration."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mediffusion_core.models.class_means import ClassMeans, ClassSums
from mediffusion_core.models.whitening import FeatureSums, Whitening

WIDTH, CLASSES = 12, 3


def drawn(images: int, seed: int = 0, apart: float = 2.0) -> tuple[Tensor, Tensor]:
    """Features (n, D) of normal classes with unit variance, and one-hot targets (n, C)."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, CLASSES, (images,), generator=generator)
    features = torch.randn(images, WIDTH, generator=generator)
    features[torch.arange(images), classes] += apart
    return features, torch.nn.functional.one_hot(classes, CLASSES).float()


def unlabelled(targets: Tensor, kept: int) -> Tensor:
    """The targets with those of all but the first images removed."""
    known = targets.clone()
    known[kept:] = torch.nan
    return known


def classifier(
    features: Tensor, targets: Tensor, multi_label: bool = False
) -> tuple[Whitening, ClassMeans]:
    sums = FeatureSums.of(features, [str(number) for number in range(len(features))])
    whitening = Whitening.of(sums, WIDTH, 0.1)
    classes = ClassSums.of(features, targets)
    return whitening, ClassMeans.of(classes, sums, whitening, multi_label)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 5))
def test_the_sums_of_sites_are_those_of_all_images(sizes: list[int], seed: int) -> None:
    parts = [drawn(size, seed + number) for number, size in enumerate(sizes)]
    parts = [(features, unlabelled(targets, len(targets) // 2)) for features, targets in parts]
    pooled = ClassSums.pooled([ClassSums.of(*part) for part in parts])
    together = ClassSums.of(*(torch.cat(both) for both in zip(*parts, strict=True)))
    came = ClassSums.of_arrays(together.arrays())
    for name in ("known", "positives", "known_sums", "positive_sums"):
        torch.testing.assert_close(getattr(pooled, name), getattr(together, name))
        torch.testing.assert_close(
            getattr(came, name), getattr(together, name), rtol=1e-5, atol=1e-5
        )


def test_with_all_labels_it_is_the_optimal_classifier_of_normal_classes() -> None:
    """Whose logits are those of Bayes' rule, since the classes have a common unit variance."""
    features, targets = drawn(20_000)
    whitening, means = classifier(features, targets)
    # The principal directions make the variance of all images 1; within classes it is 1 anyway
    # where the classes do not differ, so that few directions are scaled.
    logits = means(whitening(features)).log_softmax(1)
    optimal = (features[:, :CLASSES] * 2.0).log_softmax(1)
    right = (logits.argmax(1) == targets.argmax(1)).float().mean()
    best = (optimal.argmax(1) == targets.argmax(1)).float().mean()
    assert float(right) == pytest.approx(float(best), abs=0.005)


@pytest.mark.parametrize("multi_label", [False, True])
def test_probabilities_from_few_labels_are_calibrated(multi_label: bool) -> None:
    """Over many draws of 60 labelled images in 12 directions of noise; no label of others."""
    losses, unshrunk = [], []
    for seed in range(12):
        features, targets = drawn(1500, seed)
        whitening, means = classifier(features, unlabelled(targets, 60), multi_label)
        logits = means(whitening(features))[60:]
        losses.append(cross_entropy(logits, targets[60:], multi_label))
        unshrunk.append(
            min(
                cross_entropy(f * logits, targets[60:], multi_label)
                for f in np.geomspace(0.2, 5, 21)
            )
        )
    assert np.mean(losses) < 1.1 * np.mean(unshrunk), "no other temperature is much better"
    prior = np.log(CLASSES) if not multi_label else -(np.log(1 / 3) + 2 * np.log(2 / 3)) / 3
    assert np.mean(losses) < 0.8 * prior


@pytest.mark.parametrize("multi_label", [False, True])
def test_labels_may_be_those_of_one_site_that_differs(multi_label: bool) -> None:
    """Whose scanner shifts all features: the labelled images' mean is not that of all."""
    losses, scaled = [], []
    for seed in range(6):
        features, targets = drawn(1200, seed)
        features[:300, 4:] += 1.5
        whitening, means = classifier(features, unlabelled(targets, 60), multi_label)
        logits = means(whitening(features))[60:300]
        losses.append(cross_entropy(logits, targets[60:300], multi_label))
        scaled.append(
            min(
                cross_entropy(factor * logits, targets[60:300], multi_label)
                for factor in np.geomspace(0.05, 5, 31)
            )
        )
    assert np.mean(losses) < 1.15 * np.mean(scaled)


def cross_entropy(logits: Tensor, targets: Tensor, multi_label: bool) -> float:
    if multi_label:
        return float(torch.nn.functional.binary_cross_entropy_with_logits(logits, targets))
    return float(torch.nn.functional.cross_entropy(logits, targets))


@pytest.mark.parametrize("multi_label", [False, True])
def test_classes_that_do_not_differ_have_their_prevalence(multi_label: bool) -> None:
    features, targets = drawn(3000, apart=0.0)
    whitening, means = classifier(features, unlabelled(targets, 30), multi_label)
    logits = means(whitening(features))
    probabilities = logits.sigmoid() if multi_label else logits.softmax(1)
    # Chance leaves some distance between the means of ten images.
    assert float((probabilities - 1 / 3).abs().mean()) < 0.15


@pytest.mark.parametrize("multi_label", [False, True])
def test_classes_without_labels_give_finite_logits(multi_label: bool) -> None:
    features, targets = drawn(50)
    for known in (targets * torch.nan, torch.where(targets[:, :1] == 1, targets, torch.nan)):
        whitening, means = classifier(features, known, multi_label)
        logits = means(whitening(features))
        assert logits.isfinite().all()
    assert float(logits[:, 0].mean()) > float(logits[:, 1:].mean())
