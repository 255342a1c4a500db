"""The figures of counterfactuals against closed forms and slow references."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.evaluation.bootstrap import estimate_mean, estimate_ratio
from mediffusion_core.evaluation.counterfactual_metrics import GroundTruth, image_figures, summarise
from mediffusion_core.evaluation.counterfactual_panel import (
    Counterfactuals,
    off_target,
    target_change,
)
from mediffusion_core.evaluation.cout import latent_divergence, transition_images, transition_score
from mediffusion_core.evaluation.localisation import (
    change_per_pixel,
    dilated,
    energy_inside,
    overlap,
    pointing_game,
    squared_change,
)
from mediffusion_core.evaluation.similarity import (
    feature_similarity,
    mean_absolute,
    psnr,
    root_mean_square,
    structural_similarity,
)

NAN = float("nan")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def slow_similarity(first: Tensor, second: Tensor) -> float:
    """SSIM of two images (C, H, W), window by window."""
    places = torch.arange(-5, 6, dtype=torch.float64)
    weights = torch.exp(-(places[:, None] ** 2 + places**2) / (2 * 1.5**2))
    weights = weights / weights.sum()
    found = []
    for x, y in zip(
        first.unfold(1, 11, 1).unfold(2, 11, 1).reshape(-1, 11, 11).double(),
        second.unfold(1, 11, 1).unfold(2, 11, 1).reshape(-1, 11, 11).double(),
        strict=True,
    ):
        mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
        variances = (weights * (x - mean_x) ** 2).sum() + (weights * (y - mean_y) ** 2).sum()
        covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
        luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
        found.append(luminance * (2 * covariance + 9e-4) / (variances + 9e-4))
    return float(torch.stack(found).mean())


@pytest.mark.parametrize("shape", [(1, 11, 11), (1, 16, 20), (3, 12, 13)])
def test_structural_similarity_is_that_of_its_source(shape: tuple[int, int, int]) -> None:
    images = draw(2, *shape)
    others = (images + 0.2 * draw(2, *shape, seed=1)).clamp(0, 1)
    expected = [slow_similarity(x, y) for x, y in zip(images, others, strict=True)]
    assert structural_similarity(images, others).tolist() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(structural_similarity(images, images), torch.ones(2))


def test_psnr_is_per_image() -> None:
    reference = torch.full((3, 1, 4, 4), 0.5)
    images = reference + torch.tensor([0.1, 0.01, 0.0])[:, None, None, None]
    values = psnr(images, reference)
    # An even error of 0.1 is 20 dB below the peak of 1.
    assert values.tolist()[:2] == pytest.approx([20.0, 40.0], abs=1e-3)
    assert values[2].isinf()
    noisy, other = draw(3, 2, 5, 4), draw(3, 2, 5, 4, seed=1)
    expected = -10 * (noisy - other).square().mean(dim=(1, 2, 3)).log10()
    torch.testing.assert_close(psnr(noisy, other), expected)


def test_distances_of_pixels() -> None:
    first = torch.zeros(1, 1, 2, 2)
    second = torch.tensor([[[[0.0, 0.0], [0.3, -0.1]]]])
    assert mean_absolute(first, second).tolist() == pytest.approx([0.1])
    assert root_mean_square(first, second).tolist() == pytest.approx([math.sqrt(0.1 / 4)])


def one_change(row: int, column: int, size: float = 0.5) -> tuple[Tensor, Tensor]:
    first, second = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    second[0, 0, row, column] = size
    return first, second


def square(top: int, left: int, side: int) -> Tensor:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, top : top + side, left : left + side] = True
    return mask


def test_a_mask_is_widened_in_all_directions() -> None:
    assert torch.equal(dilated(square(3, 3, 1), 2), square(1, 1, 5))
    assert torch.equal(dilated(square(0, 0, 1), 2), square(0, 0, 3))


def test_energy_counts_within_the_margin_and_by_its_square() -> None:
    first, second = one_change(2, 2)
    second[0, 0, 0, 7] = -0.25
    energy = squared_change(first, second)
    mask = square(4, 4, 2)
    assert energy_inside(energy, mask, margin=2).tolist() == pytest.approx([0.25 / 0.3125])
    assert energy_inside(energy, mask, margin=1).tolist() == [0.0]
    assert pointing_game(energy, mask, margin=2).tolist() == [1.0]
    assert pointing_game(energy, mask, margin=1).tolist() == [0.0]


def test_overlap_is_of_as_many_pixels_as_the_mask_has() -> None:
    first = torch.zeros(1, 1, 8, 8)
    second = first.clone()
    second[0, 0, 2:4, 2:4] = torch.tensor([[0.4, 0.3], [0.2, 0.1]])
    energy = squared_change(first, second)
    assert overlap(energy, square(2, 2, 2)).tolist() == [1.0]
    assert overlap(energy, square(2, 2, 1)).tolist() == [1.0]
    assert overlap(energy, square(3, 3, 2)).tolist() == pytest.approx([1 / 7])
    assert overlap(energy, square(5, 5, 2)).tolist() == [0.0]


def test_an_image_without_a_mask_or_a_change_has_no_place() -> None:
    first, second = one_change(1, 1)
    nothing = torch.zeros(1, 8, 8, dtype=torch.bool)
    energy = squared_change(first, second)
    for figure in (energy_inside(energy, nothing), overlap(energy, nothing)):
        assert figure.isnan().all()
    assert pointing_game(energy, nothing).isnan().all()
    assert energy_inside(energy * 0, square(0, 0, 4)).isnan().all()


def test_change_of_a_pixel_inside_and_outside() -> None:
    first, second = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    second[:, 0, :4] = 0.4
    inside, outside = change_per_pixel(first, second, square(0, 0, 4))
    assert inside.tolist() == pytest.approx([0.2])
    assert outside.tolist() == pytest.approx([16 * 0.2 / 48])


def test_a_transition_starts_with_the_largest_change() -> None:
    sources = torch.zeros(1, 1, 2, 2)
    made = torch.tensor([[[[0.1, 0.4], [0.3, 0.2]]]])
    steps = transition_images(sources, made, steps=4)
    assert torch.equal(steps[0], sources) and torch.equal(steps[-1], made)
    assert torch.allclose(steps[1], torch.tensor([[[[0.0, 0.4], [0.0, 0.0]]]]))
    assert torch.allclose(steps[2], torch.tensor([[[[0.0, 0.4], [0.3, 0.0]]]]))


def test_the_transitions_score_is_one_if_the_first_pixels_are_enough() -> None:
    sources, made = torch.zeros(2, 1, 10, 10), draw(2, 1, 10, 10)

    def at_once(images: Tensor) -> Tensor:
        return torch.where(images.amax(dim=(1, 2, 3)) > 0, 1.0, -1.0)

    def in_proportion(images: Tensor) -> Tensor:
        return 2 * (images != 0).double().mean(dim=(1, 2, 3)) - 1

    assert transition_score(sources, made, at_once).tolist() == pytest.approx([0.9, 0.9])
    assert transition_score(sources, made, in_proportion).abs().max() < 0.01


@given(st.integers(0, 99))
def test_latent_divergence_against_loops(seed: int) -> None:
    sources, made = draw(2, 2, 1, 2, 2, seed=seed)
    own, other = draw(5, 1, 2, 2, seed=seed + 1), draw(4, 1, 2, 2, seed=seed + 2) * 2
    slow = []
    for source, changed in zip(sources, made, strict=True):
        far = float((changed - source).abs().sum())
        beyond = sum(float((one - source).abs().sum()) <= far for one in other) / 4
        within = sum(float((one - source).abs().sum()) >= far for one in own) / 5
        slow.append(math.log(math.exp(beyond) + math.exp(within)))
    assert latent_divergence(sources, made, own, other).tolist() == pytest.approx(slow)


def test_an_interval_is_over_patients_not_images() -> None:
    """Fifty images of one patient are one patient."""
    values = torch.cat([torch.zeros(50), torch.ones(50)])
    many = estimate_mean(values, [str(at) for at in range(100)], 400, seed=0)
    two = estimate_mean(values, ["a"] * 50 + ["b"] * 50, 400, seed=0)
    assert many.value == two.value == 0.5 and many.count == 100
    assert many.high - many.low < 0.25
    assert (two.low, two.high) == (0.0, 1.0)


def test_missing_figures_are_left_out_of_means() -> None:
    values = torch.tensor([1.0, NAN, 3.0])
    estimate = estimate_mean(values, ["a", "b", "c"], 50, seed=0)
    assert estimate.value == 2.0 and estimate.count == 2
    assert math.isnan(estimate_mean(torch.tensor([NAN]), ["a"], 50, seed=0).value)
    ratio = estimate_ratio(torch.tensor([1.0, 5.0]), torch.tensor([2.0, NAN]), ["a", "b"], 50, 0)
    assert (ratio.value, ratio.low, ratio.high, ratio.count) == (0.5, 0.5, 0.5, 1)


def test_off_target_leaves_out_the_target() -> None:
    before, after = torch.tensor([[0.9, 0.2, 0.4]]), torch.tensor([[0.1, 0.3, 0.4]])
    target = Target(torch.tensor([0]), torch.tensor([False]), True)
    assert off_target(before, after, target).tolist() == pytest.approx([0.05])
    assert target_change(before, after, target).tolist() == pytest.approx([0.8])
    both = Target(torch.tensor([[0, 1]]), torch.tensor([[False, True]]), True)
    assert off_target(before, after, both).tolist() == pytest.approx([0.0])
    assert target_change(before, after, both).tolist() == pytest.approx([0.3 - 0.1])


class Dark:
    """Sees the finding in a dark image."""

    def logits(self, images: Tensor) -> Tensor:
        return 10 * (0.5 - images.mean(dim=(1, 2, 3)))[:, None]


def test_independent_flips_count_where_both_classifiers_found_the_finding() -> None:
    sources = torch.tensor([0.2, 0.2, 0.8, 0.2]).reshape(4, 1, 1, 1).expand(4, 1, 16, 16)
    images = torch.tensor([0.8, 0.3, 0.9, 0.8]).reshape(4, 1, 1, 1).expand(4, 1, 16, 16)
    made = Counterfactuals(
        sources=sources,
        images=images,
        before=torch.full((4, 1), 0.9),
        after=torch.full((4, 1), 0.1),
        eligible=torch.tensor([True, True, True, False]),
        flipped=torch.ones(4, dtype=torch.bool),
    )
    target = Target(torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.bool), True)
    unknown = torch.full_like(sources, NAN)
    known = GroundTruth(torch.zeros(4, 16, 16, dtype=torch.bool), unknown, unknown)
    columns = image_figures(made, target, known, Dark())
    assert columns["independent_flipped"].nan_to_num(-1).tolist() == [1, 0, -1, -1]
    assert columns["flipped"].nan_to_num(-1).tolist() == [1, 1, 1, -1]
    alone = image_figures(made, target, known, None)
    assert alone["independent_flipped"].isnan().all()
    figures = summarise(columns, ["a", "b", "c", "d"], 50, seed=0)
    assert figures["flipped"].value == 1.0 and figures["flipped"].count == 3
    assert figures["independent_flipped"].value == 0.5
    assert figures["inside_outside"].count == figures["truth_l1"].count == 0
    assert figures["extent"].count == 0


def test_distances_to_the_truth_stand_beside_those_of_the_source() -> None:
    """The first finding is removed in full, the second one half; the third one is added."""
    sources = draw(3, 1, 16, 16) / 2
    removed, added = sources + 0.2, sources + 0.1
    truth, with_added = torch.full_like(sources, NAN), torch.full_like(sources, NAN)
    truth[:2], with_added[2] = removed[:2], added[2]
    images = torch.stack([removed[0], sources[1] + 0.1, sources[2] + 0.4])
    nothing = torch.zeros(3, 1)
    made = Counterfactuals(
        sources, images, nothing, nothing, nothing[:, 0].bool(), nothing[:, 0].bool()
    )
    target = Target(torch.zeros(3, dtype=torch.long), torch.tensor([False, False, True]), True)
    known = GroundTruth(torch.zeros(3, 16, 16, dtype=torch.bool), truth, with_added)
    columns = image_figures(made, target, known, None)
    nan = pytest.approx(NAN, nan_ok=True)
    assert columns["truth_l1"].tolist() == [pytest.approx(0), pytest.approx(0.1), nan]
    assert columns["truth_l1_source"].tolist() == [pytest.approx(0.2), pytest.approx(0.2), nan]
    assert columns["added_l1"].tolist() == [nan, nan, pytest.approx(0.3)]
    assert columns["added_l1_source"].tolist() == [nan, nan, pytest.approx(0.1)]
    assert columns["truth_ssim"].tolist() == [
        pytest.approx(1),
        pytest.approx(slow_similarity(images[1], removed[1]), abs=1e-5),
        nan,
    ]
    assert columns["truth_ssim_source"].isnan().tolist() == [False, False, True]
    assert columns["added_ssim"].isnan().tolist() == [True, True, False]
    assert float(columns["truth_ssim"][0]) > float(columns["truth_ssim_source"][0])


def test_similarity_of_features_is_their_cosine() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 2.0]])
    second = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = feature_similarity(first, second).tolist()
    assert found == pytest.approx([1, 0, math.sqrt(0.5)])


def test_the_classification_of_the_sources_undoes_the_change() -> None:
    probabilities = torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
    findings = Target(torch.tensor([0, 2]), torch.tensor([True, False]), True)
    assert findings.undone(probabilities).index.tolist() == [0, 2]
    assert findings.undone(probabilities).present.tolist() == [False, True]
    exclusive = Target(torch.tensor([0, 2]), torch.tensor([True, True]), False)
    assert exclusive.undone(probabilities).index.tolist() == [1, 0]
    assert exclusive.undone(probabilities).present.tolist() == [True, True]


def test_extent_compares_a_change_with_that_of_the_true_counterfactual() -> None:
    nan = torch.tensor([NAN])
    columns = {
        "l1": torch.tensor([0.1, 0.3, 9.0]),
        "truth_l1_source": torch.tensor([0.2, 0.2, NAN]),
        "inside": nan.expand(3),
        "outside": nan.expand(3),
    }
    extent = summarise(columns, ["a", "b", "c"], 20, seed=0)["extent"]
    assert (extent.value, extent.count) == (pytest.approx(1.0), 2)
