"""Validation with noise: a unit's share of the sums, and the figures that they give."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mediffusion_core.evaluation.calibration import TEMPERATURES, temperature_losses
from mediffusion_core.evaluation.classification import class_scores, exact_auc
from mediffusion_core.evaluation.noised_validation import GAIN_BOUND, ValidationSums


def drawn(
    images: int, multi_label: bool = False, seed: int = 0, sharp: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of 4 classes with labels drawn by them; logits are then multiplied by `sharp`."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 4, generator=generator) * 1.5
    if multi_label:
        targets = (torch.rand(images, 4, generator=generator) < logits.sigmoid()).float()
    else:
        chosen = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)
        targets = torch.zeros(images, 4).scatter_(1, chosen, 1.0)
    return sharp * logits, targets


LOGITS = st.sampled_from([0.0, -3.0, 2.5, 40.0, -1e30, float("inf"), -float("inf"), float("nan")])
TARGETS = st.sampled_from([0.0, 1.0, float("nan")])


@given(
    st.lists(LOGITS, min_size=4, max_size=4),
    st.lists(TARGETS, min_size=4, max_size=4),
    st.booleans(),
)
def test_a_unit_moves_the_sums_by_at_most_one_noise_multiplier(
    logits: list[float], targets: list[float], multi_label: bool
) -> None:
    """In deviations of the noise at σ = 1, whatever its logits and labels: sensitivity 1 / σ."""
    given_logits, given_targets = drawn(5, multi_label)
    own = (torch.tensor([logits]), torch.tensor([targets]))
    without = ValidationSums.of(given_logits, given_targets, multi_label)
    with_it = ValidationSums.of(
        torch.cat([given_logits, own[0]]), torch.cat([given_targets, own[1]]), multi_label
    )
    deviation = without.deviations(1.0, multi_label)
    moved = torch.cat(
        [
            ((with_it.histogram - without.histogram) / deviation.histogram).flatten(),
            (with_it.gains - without.gains) / deviation.gains,
        ]
    )
    assert moved.isfinite().all()
    assert float(moved.norm()) <= 1 + 1e-9


def test_the_bound_is_reached() -> None:
    """So that there is no more noise than the guarantee needs."""
    logits = torch.tensor([[-30.0, 30.0, 0.0, 0.0]])
    sums = ValidationSums.of(logits, torch.tensor([[1.0, 0.0, 0.0, 0.0]]), False)
    deviation = sums.deviations(1.0, False)
    moved = (sums.histogram / deviation.histogram).norm() ** 2
    moved += (sums.gains / deviation.gains).norm() ** 2
    assert float(moved) == pytest.approx(1.0)
    assert float(sums.gains.norm()) == pytest.approx(GAIN_BOUND)


@pytest.mark.parametrize("multi_label", [False, True])
def test_without_noise_the_areas_are_those_of_the_scores(multi_label: bool) -> None:
    logits, targets = drawn(2000, multi_label)
    sums = ValidationSums.of(logits, targets, multi_label)
    areas = sums.areas(sums.deviations(1e-9, multi_label))
    expected = exact_auc(class_scores(logits, multi_label), targets)
    torch.testing.assert_close(areas, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("sharp", [0.7, 1.0, 2.5])
def test_the_temperature_is_about_as_good_as_that_of_the_exact_losses(
    sharp: float, multi_label: bool
) -> None:
    """Within what clipping of single losses and a coarse grid change: 1 % of the loss."""
    logits, targets = drawn(3000, multi_label, sharp=sharp)
    losses = temperature_losses(logits, targets, multi_label)
    sums = ValidationSums.of(logits, targets, multi_label)
    deviations = sums.deviations(1.0, multi_label)
    found = sums.noised(1.0, multi_label).temperature(deviations)
    at_found = losses[(TEMPERATURES / found).log().abs().argmin()]
    assert float(at_found / losses.min()) < 1.01
    if sharp != 1:
        at_one = losses[TEMPERATURES.log().abs().argmin()]
        assert float(at_one / losses.min()) > 1.015, "without it the loss is higher"


def test_the_noise_is_of_the_stated_deviation() -> None:
    empty = ValidationSums.empty(4)
    deviation = empty.deviations(2.0, False)
    several = [empty.noised(2.0, False) for _ in range(2000)]
    for name, expected in deviation.arrays().items():
        values = torch.stack([one.arrays()[name] for one in several]) / expected
        assert float(values.std()) == pytest.approx(1.0, rel=0.05)
        assert abs(float(values.mean())) < 0.05


@pytest.mark.parametrize("images", [150, 1500])
def test_the_interval_holds_the_area_without_noise(images: int) -> None:
    """Of the noised sums of the same patients; with few of them the noise is most of the spread."""
    logits, targets = drawn(images)
    sums = ValidationSums.of(logits, targets, False)
    deviations, known = sums.deviations(1.0, False), torch.ones(4, dtype=torch.bool)
    exact = float(sums.areas(deviations, known).mean())
    held, widths = 0, []
    for seed in range(200):
        noised = sums.noised(1.0, False)
        draws = noised.draws(deviations, noised.areas(deviations, known), 200, seed).mean(dim=1)
        low, high = float(draws.quantile(0.025)), float(draws.quantile(0.975))
        held += low <= exact <= high
        widths.append(high - low)
    assert held >= 176  # 190 are expected, with a deviation of 3
    assert float(torch.tensor(widths).median()) < (0.5 if images == 150 else 0.1)


def test_a_class_that_may_be_noise_has_no_area() -> None:
    logits, targets = drawn(400)
    targets[targets[:, 2] == 1] = torch.nan
    sums = ValidationSums.of(logits, targets, False)
    deviations = sums.deviations(1.0, False)
    several = torch.stack([sums.noised(1.0, False).areas(deviations) for _ in range(100)])
    without = several.isnan().sum(dim=0)
    assert without[2] >= 95 and int(without[[0, 1, 3]].max()) <= 12
    assert ValidationSums.empty(4).areas(deviations).isnan().all()


def test_noise_alone_gives_no_temperature() -> None:
    empty = ValidationSums.empty(4)
    deviations = empty.deviations(1.0, False)
    found = [empty.noised(1.0, False).temperature(deviations) for _ in range(300)]
    assert found.count(1.0) >= 270
