"""One false site decides neither the latent scale, nor the validation, nor the prevalence."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from configs.compose import compose
from mediffusion_core.evaluation.calibration import temperature_losses
from mediffusion_core.evaluation.classification import (
    bootstrap_counts,
    class_scores,
    exact_auc,
    logit_thresholds,
    threshold_counts,
)
from mediffusion_core.messaging.protocol import COUNTS
from mediffusion_core.settings import Settings
from server.label_counts import label_counts
from server.latent_scale import latent_scale
from server.messages import Reply
from server.pooled import CappedValidationSums, PooledValidation, ValidationSums

CLASSES = ("a", "b")


@pytest.fixture(scope="module", params=[0, 1], ids=["pooled", "robust"])
def settings(request: pytest.FixtureRequest) -> Settings:
    return compose("config", [f"federation.num_malicious_sites={request.param}"])


def latents(site: int, number: int = 40) -> Tensor:
    drawn = torch.randn(number, 3, 4, 4, generator=torch.Generator().manual_seed(site))
    return drawn * torch.tensor([0.5, 1.0, 2.0])[:, None, None] + 0.1 * site


def sums(values: Tensor, factor: float = 1.0) -> dict[str, Tensor]:
    total = values.double().sum(dim=(0, 2, 3))
    squares = factor * values.double().square().sum(dim=(0, 2, 3))
    count = float(values.numel() // values.shape[1])
    return {"total": total, "squares": squares, "count": torch.tensor([count])}


def scale(settings: Settings, sites: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    replies = [Reply(f"site-{n}", {COUNTS: one}) for n, one in enumerate(sites)]
    found = latent_scale(replies, settings)
    return found["mean"], found["std"]


def test_equal_sites_have_the_scale_of_all_latents(settings: Settings) -> None:
    values = latents(0)
    mean, std = scale(settings, [sums(values)] * 3)
    torch.testing.assert_close(mean, values.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, values.std(dim=(0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)


def test_unlike_sites_have_nearly_the_pooled_scale(settings: Settings) -> None:
    values = [latents(site) for site in range(4)]
    mean, std = scale(settings, [sums(one) for one in values])
    pooled = torch.cat(values)
    torch.testing.assert_close(mean, pooled.mean(dim=(0, 2, 3)), rtol=0.2, atol=0.05)
    torch.testing.assert_close(std, pooled.std(dim=(0, 2, 3), correction=0), rtol=0.1, atol=0)


def test_a_false_site_moves_the_pooled_scale_alone(settings: Settings) -> None:
    honest = [sums(latents(site)) for site in range(3)]
    false = sums(100 * latents(9, number=4000), factor=100.0)
    _, without = scale(settings, honest)
    _, std = scale(settings, [*honest, false])
    robust = bool(settings.federation.num_malicious_sites)
    assert bool((std < 1.3 * without).all()) == robust == bool((std < 10 * without).all())


PATIENTS = st.lists(st.integers(2, 60), min_size=3, max_size=5)


def validated(site: int, patients: int, opposite: bool = False, copies: int = 1) -> Reply:
    """Of a site whose scores tell the findings apart to some degree."""
    generator = torch.Generator().manual_seed(site)
    targets = (torch.rand(patients, 2, generator=generator) < 0.3).float()
    logits = torch.randn(patients, 2, generator=generator) + (-4 if opposite else 2) * targets
    scores = class_scores(logits, multi_label=True)
    groups = [str(number) for number in range(patients)]
    thresholds = logit_thresholds(101)
    found = {
        "counts": threshold_counts(scores, targets, thresholds),
        "bootstraps": bootstrap_counts(scores, targets, groups, thresholds, 3, site),
        "temperature_losses": temperature_losses(logits, targets, multi_label=True),
    }
    return Reply(f"site-{site}", {COUNTS: {name: copies * one for name, one in found.items()}})


def plain(replies: list[Reply]) -> PooledValidation:
    taken = ValidationSums(CLASSES)
    for reply in replies:
        taken.take(reply)
    return taken.pooled()


def robust(replies: list[Reply], folder: Path) -> PooledValidation:
    taken = CappedValidationSums(CLASSES, 1, folder / "replies")
    for reply in replies:
        taken.take(reply)
    found = taken.pooled()
    assert not (folder / "replies").exists()
    return found


def test_sites_of_alike_size_are_pooled_as_they_are(tmp_path: Path) -> None:
    """Four sites with the same patients: none has more than a third."""
    replies = [Reply(f"site-{number}", validated(0, 50).components) for number in (2, 0, 3, 1)]
    one, other = plain(replies), robust(replies, tmp_path)
    assert other.figures["auc_pooled"] == pytest.approx(one.figures["auc_pooled"])
    assert other.figures["auc_pooled_per_site"] == one.figures["auc_pooled_per_site"]
    assert list(other.figures["auc_pooled_per_site"]) == [f"site-{n}" for n in range(4)]
    assert other.temperature == pytest.approx(one.temperature)
    torch.testing.assert_close(other.draws, one.draws)


@given(PATIENTS, st.permutations(range(5)))
def test_the_order_of_the_replies_changes_nothing(sizes: list[int], order: list[int]) -> None:
    replies = [validated(site, patients) for site, patients in enumerate(sizes)]
    other = plain([replies[index] for index in order if index < len(replies)])
    found = plain(replies)
    assert found.temperature == other.temperature
    assert torch.equal(found.draws.nan_to_num(), other.draws.nan_to_num())


def test_a_false_site_with_a_thousand_times_the_patients_is_one_of_four(tmp_path: Path) -> None:
    honest = [validated(site, 60) for site in range(3)]
    false = validated(9, 60, opposite=True, copies=1000)
    without, spoilt = plain(honest), plain([*honest, false])
    capped = robust([*honest, false], tmp_path)
    assert without.figures["auc_pooled"] > 0.85
    assert spoilt.figures["auc_pooled"] < 0.1
    assert spoilt.temperature == 8.0
    # A third of the weight at most, and half a point of rank for each of its pairs with others.
    assert capped.figures["auc_pooled"] > 0.5
    assert capped.temperature < 1.5 * without.temperature


def test_a_finding_that_one_site_alone_has_counts_with_it(tmp_path: Path) -> None:
    replies = [validated(site, 40) for site in range(3)]
    for reply in replies[1:]:
        for name in ("counts", "bootstraps"):
            reply.components[COUNTS][name][..., 0, :, 1, :] = 0
    found = robust(replies, tmp_path).figures["auc_pooled_per_class"]
    assert 0.5 < found["a"] <= 1 and 0.5 < found["b"] <= 1


def test_without_replies_there_are_no_figures(tmp_path: Path) -> None:
    assert robust([], tmp_path).temperature == plain([]).temperature == 1.0


def test_capped_counts_give_the_auc_of_weighted_patients(tmp_path: Path) -> None:
    """One patient more or less of a site of many changes little: its weight is a third."""
    small = [validated(site, 30) for site in range(3)]
    large = validated(7, 3000)
    found = robust([*small, large], tmp_path).figures["auc_pooled"]
    assert found == pytest.approx(plain(small).figures["auc_pooled"], abs=0.1)
    assert exact_auc(torch.zeros(2, 1), torch.tensor([[0.0], [1.0]])).tolist() == [0.5]


def test_a_prevalence_is_the_median_of_the_sites() -> None:
    census = [
        {"per_class": [10, 0], "known_per_class": [100, 50]},
        {"per_class": [20, 30], "known_per_class": [100, 0]},
        {"per_class": [10**6, 10**6], "known_per_class": [10**6, 10**6]},
    ]
    whole = label_counts(census, malicious=0)
    assert whole.positive.tolist() == [10**6 + 30, 10**6 + 30]
    found = label_counts(census, malicious=1)
    assert (found.positive / found.known).tolist() == pytest.approx([0.2, 0.5])
    assert torch.equal(found.known, whole.known)
