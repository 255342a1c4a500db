"""Figures over the noised sums of several sites, and sums that no site can have."""

import pytest
import torch
from torch import Tensor

from configs.compose import compose
from mediffusion_core.evaluation.noised_validation import ValidationSums
from mediffusion_core.messaging.protocol import COUNTS
from mediffusion_core.settings import Settings
from server.evaluation_bounds import refuse_noised_validation
from server.messages import RefusedReplyError, Reply
from server.noised_validation import NoisedValidationSums
from server.pooled import PooledValidation

CLASSES = ("a", "b", "c", "d")


@pytest.fixture
def settings(tiny: tuple[str, ...]) -> Settings:
    return compose("config", (*tiny, "privacy=dp", "privacy.validation_noise=0.5"))


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(500, 4, generator=generator) * 2
    chosen = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)
    return logits, torch.zeros(500, 4).scatter_(1, chosen, 1.0)


def pooled(
    settings: Settings, *sites: ValidationSums, known: tuple[str, ...] | None = None
) -> PooledValidation:
    sums = NoisedValidationSums(CLASSES, False, settings, 1, known)
    for number, one in enumerate(sites):
        sums.take(Reply(f"site-{number}", {COUNTS: one.arrays()}))
    return sums.pooled()


def test_the_figures_are_those_of_the_sum_over_the_sites(settings: Settings) -> None:
    parts = [drawn(seed) for seed in range(3)]
    together = ValidationSums.of(*(torch.cat(one) for one in zip(*parts, strict=True)), False)
    found = pooled(settings, *(ValidationSums.of(*part, False) for part in parts))
    exact = together.areas(together.deviations(1e-9, False))
    assert found.figures["auc_pooled"] == pytest.approx(float(exact.mean()))
    assert set(found.figures["auc_pooled_per_site"]) == {"site-0", "site-1", "site-2"}
    low, high = found.figures["auc_pooled_interval"]
    assert low < found.figures["auc_pooled"] < high
    assert found.temperature == pytest.approx(1.0, rel=0.1)


def test_more_sites_have_more_noise(settings: Settings) -> None:
    """Four sites of a quarter of the units have twice the noise of one, and a wider interval."""
    whole = ValidationSums.of(*drawn(0), False)
    quarter = ValidationSums(whole.histogram / 4, whole.gains / 4)
    known = CLASSES
    widths = []
    for sites in ((whole,), (quarter,) * 4):
        low, high = pooled(settings, *sites, known=known).figures["auc_pooled_interval"]
        widths.append(high - low)
    assert widths[1] > 1.05 * widths[0]


def test_all_models_of_a_run_are_compared_on_the_same_classes(settings: Settings) -> None:
    few = ValidationSums.of(*(one[:60] for one in drawn(0)), False)
    own = pooled(settings, few).figures["auc_pooled_per_class"]
    given = pooled(settings, few, known=("a", "b")).figures["auc_pooled_per_class"]
    assert {name for name, auc in given.items() if auc == auc} == {"a", "b"}
    assert {name for name, auc in own.items() if auc == auc} != {"a", "b"}


def test_without_a_reply_there_is_no_figure(settings: Settings) -> None:
    found = pooled(settings)
    assert found.figures["auc_pooled"] != found.figures["auc_pooled"] and found.temperature == 1


@pytest.mark.parametrize("name", ["histogram", "gains"])
@pytest.mark.parametrize("sign", [1, -1])
def test_hostile_reply_of_impossible_noised_sums_is_refused(
    settings: Settings, name: str, sign: int
) -> None:
    sums = ValidationSums.of(*drawn(0), False).noised(0.5, False).arrays()
    refuse_noised_validation(sums, settings)
    sums[name][..., 0] = sign * 1e12
    with pytest.raises(RefusedReplyError, match=f"noised {name}"):
        refuse_noised_validation(sums, settings)
