"""Guided counterfactuals and the baselines, with a model in closed form."""

import math
from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from helpers.gaussian import ALPHAS, PROCESS, GaussianData
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.timesteps import descending_timesteps
from mediffusion_core.counterfactuals.baselines.external import externally_guided_latents
from mediffusion_core.counterfactuals.baselines.mediffusion import mediffusion_latents
from mediffusion_core.counterfactuals.compose import counterfactual_latents, guided_latents
from mediffusion_core.counterfactuals.guided_denoising import Guidance, guidance_gradient
from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.counterfactuals.inversion import (
    change_mask,
    inverted_latents,
    noised_latents,
    predict_source,
)
from mediffusion_core.counterfactuals.search import most_candidates, search_counterfactuals
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.diffusion.process import CLEAN, DiffusionProcess
from mediffusion_core.diffusion.samplers import denoise, solver
from mediffusion_core.settings import CounterfactualSettings, Solver

PLAIN = {
    "strength": 0.4,
    "num_inference_steps": 20,
    "guidance_scale": 2.0,
    "proximity_weight": 0.0,
    "num_candidates": 1,
    "confidence": 0.95,
    "tolerance": 1.0,
    "mask_threshold": 0.0,
    "inversion": True,
}
"""One candidate in which everything may change."""


def known(
    model: GaussianData | None = None, head_until: int = 999, temperature: float = 1.0
) -> GuidedModel:
    return GuidedModel(model or GaussianData(0.0, 1.0), PROCESS, head_until, temperature)


def findings(present: list[bool], index: list[int] | None = None) -> Target:
    return Target(torch.tensor(index or [0] * len(present)), torch.tensor(present), True)


def sources(count: int = 4) -> Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(3))


def opposite(latents: Tensor) -> Target:
    """The first finding removed where it is seen, and added where it is not."""
    before = GaussianData(0.0, 1.0).classify(latents)
    return findings([bool(logit < 0) for logit in before[:, 0]])


def guided(latents: Tensor, target: Target, **changes: object) -> Tensor:
    settings = CounterfactualSettings.model_validate({**PLAIN, **changes})
    return counterfactual_latents(known(), latents, target, settings)


def slow_binary(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


def test_a_finding_is_reached_on_its_own_side_of_one_half() -> None:
    logits = torch.tensor([[0.1, -9.0], [0.1, -9.0], [-0.1, 9.0], [-0.1, 9.0]])
    target = findings([True, False, True, False])
    assert target.reached(logits).tolist() == [True, False, False, True]
    p = 1 / (1 + math.exp(-0.1))
    found = target.confidence(target.probabilities(logits)).tolist()
    assert found == pytest.approx([p, 1 - p, 1 - p, p])


def test_several_findings_are_reached_together_or_not_at_all() -> None:
    logits = torch.tensor([[2.0, -1.0, 5.0], [2.0, 1.0, 5.0]])
    target = Target(torch.tensor([[0, 1]] * 2), torch.tensor([[True, False]] * 2), True)
    assert target.reached(logits).tolist() == [True, False]
    assert target.named(3).tolist() == [[True, True, False]] * 2
    least = target.confidence(target.probabilities(logits)).tolist()
    assert least == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])
    slow = slow_binary(2.0, 1.0) + slow_binary(-1.0, 0.0)
    assert target.loss(logits, None).tolist()[0] == pytest.approx(slow, rel=1e-5)


def test_an_exclusive_class_is_reached_where_it_is_the_largest() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0]])
    target = Target(torch.tensor([1, 0]), torch.tensor([True, True]), False)
    assert target.reached(logits).tolist() == [True, False]
    total = sum(math.exp(x) for x in (1.0, 2.0, 0.0))
    assert target.confidence(target.probabilities(logits)).tolist() == pytest.approx(
        [math.exp(2.0) / total, math.exp(1.0) / total]
    )


def test_the_targets_loss_preserves_the_other_findings() -> None:
    logits, source = torch.tensor([[0.3, -1.2, 2.0]]), torch.tensor([[1.0, 0.5, -0.5]])
    preserved = [slow_binary(x, 1 / (1 + math.exp(-y))) for x, y in ((0.3, 1.0), (2.0, -0.5))]
    target = findings([False], [1])
    slow = slow_binary(-1.2, 0.0) + 0.5 * sum(preserved)
    assert target.loss(logits, source, preserve_weight=0.5).tolist() == pytest.approx(
        [slow], rel=1e-5
    )
    exclusive = Target(torch.tensor([2]), torch.tensor([True]), False)
    total = sum(math.exp(x) for x in logits[0].tolist())
    assert exclusive.loss(logits, source).tolist() == pytest.approx([math.log(total) - 2.0])


def test_without_guidance_the_source_comes_back() -> None:
    latents = sources()
    made = guided(latents, opposite(latents), guidance_scale=1e-9, num_inference_steps=40)
    assert float((made - latents).square().mean().sqrt()) < 0.05


@pytest.mark.parametrize(("name", "error"), [("ddim", 0.06), ("dpmsolver++", 0.01)])
def test_a_solver_of_second_order_has_a_smaller_error(name: Solver, error: float) -> None:
    """For data with N(0, 1/4) a latent divided by its standard deviation stays the same."""
    timesteps = descending_timesteps(600, 8)
    model = known(GaussianData(0.0, 0.5))
    spread = (0.25 * ALPHAS + 1 - ALPHAS).sqrt()
    step = solver(name, PROCESS, timesteps)
    reached = denoise(model.noise_pred, step, sources() * spread[600], timesteps)
    ratio = reached / sources() / spread[timesteps[-1]]
    assert 0.5 * error < float((ratio - 1).abs().mean()) < error


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++"])
def test_the_last_step_is_the_clean_estimate(name: Solver) -> None:
    latents = sources()
    step = solver(name, PROCESS, [600, 300])
    current = step(latents, torch.zeros_like(latents), 600, 300)
    torch.testing.assert_close(current, latents * (ALPHAS[300] / ALPHAS[600]).sqrt())
    made = step(current, torch.ones_like(latents), 300, CLEAN)
    clean = (current - (1 - ALPHAS[300]).sqrt()) / ALPHAS[300].sqrt()
    torch.testing.assert_close(made, clean, rtol=1e-4, atol=1e-5)


def test_full_closeness_is_the_source_itself() -> None:
    latents = sources()
    made = guided(latents, opposite(latents), guidance_scale=50.0, proximity_weight=1.0)
    torch.testing.assert_close(made, latents, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("inversion", [True, False])
def test_guidance_reaches_findings_both_ways_and_leaves_others(
    inversion: bool, solver: str
) -> None:
    latents = sources()
    head = GaussianData(0.0, 1.0)
    before, target = head.classify(latents), opposite(latents)
    assert not target.reached(before).any()
    made = guided(latents, target, inversion=inversion, mask_threshold=0.5, solver=solver)
    after = head.classify(made)
    assert target.reached(after).all()
    assert float((after - before)[:, 1].abs().max()) < 0.5 * float(
        (after - before)[:, 0].abs().min()
    )


def test_two_findings_change_at_once() -> None:
    latents = sources()
    head = GaussianData(0.0, 1.0)
    present = head.classify(latents) < 0
    target = Target(torch.tensor([[0, 1]] * 4), present, True)
    assert target.reached(head.classify(guided(latents, target, guidance_scale=4.0))).all()


def test_guidance_reaches_an_exclusive_class() -> None:
    latents = sources()
    head = GaussianData(0.0, 1.0)
    wanted = 1 - head.classify(latents).argmax(dim=1)
    target = Target(wanted, torch.ones(4, dtype=torch.bool), False)
    assert target.reached(head.classify(guided(latents, target))).all()


def test_an_image_that_already_has_the_target_is_not_guided() -> None:
    latents = sources(2)
    latents[:, :, :4] += 2.0
    sure = findings([True, True])
    assert (GaussianData(0.0, 1.0).classify(latents)[:, 0] > 10).all()
    torch.testing.assert_close(guided(latents, sure), guided(latents, sure, guidance_scale=1e-9))


def test_closeness_keeps_the_image_nearer() -> None:
    latents = sources()
    target = opposite(latents)
    far = (guided(latents, target) - latents).abs().mean()
    near = (guided(latents, target, proximity_weight=0.3) - latents).abs().mean()
    assert near < 0.8 * far


@pytest.mark.parametrize("inversion", [True, False])
def test_outside_the_mask_the_source_comes_back_exactly(inversion: bool) -> None:
    """The head reads the first finding from the upper half alone."""
    latents = sources()
    made = guided(latents, opposite(latents), mask_threshold=0.5, inversion=inversion)
    assert torch.equal(made[:, :, 6:], latents[:, :, 6:])
    assert (made[:, :, :4] != latents[:, :, :4]).any()


@given(st.floats(0.02, 1.0), st.integers(0, 99))
def test_a_mask_covers_the_salient_cells_and_a_soft_margin(threshold: float, seed: int) -> None:
    saliency = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    mask = change_mask(saliency, threshold)
    assert mask.shape == saliency.shape and bool(((mask >= 0) & (mask <= 1)).all())
    assert (mask.amax(dim=(2, 3)) > 0.2).all()
    wider = change_mask(saliency, threshold / 2)
    assert (wider >= mask).all()
    assert torch.equal(change_mask(saliency, 0.0), torch.ones_like(saliency))


def test_a_mask_has_the_size_of_the_finding() -> None:
    small, large = torch.full((2, 1, 1, 16, 16), 0.1)
    small[0, 0, 5, 5] = 1.0
    large[0, 0, 2:9, 2:9] = 1.0
    masks = change_mask(torch.cat([small, large]), 0.5)
    assert (masks > 0).sum(dim=(1, 2, 3)).tolist() == [21, 81]


def test_source_latents_are_the_source_at_each_level() -> None:
    """The mean of the data stays its mean; a drawn noise is the same for every image."""
    timesteps = descending_timesteps(400, 5)
    latents = sources()
    noised = noised_latents(PROCESS, latents, timesteps, seed=1)
    assert list(noised) == [*timesteps, CLEAN] and noised[CLEAN] is latents
    for at in timesteps:
        noisy = noised[at]
        noise = (noisy - ALPHAS[at].sqrt() * latents) / (1 - ALPHAS[at]).sqrt()
        torch.testing.assert_close(noise, noise[:1].expand_as(noise), rtol=1e-3, atol=1e-3)
    inverted = inverted_latents(known(), latents, timesteps)
    assert list(inverted) == [*timesteps, CLEAN] and inverted[CLEAN] is latents
    # Of unit data the exact way up changes nothing; few steps scale it down, all places alike.
    for inner in inverted.values():
        ratio = inner / latents
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=1e-3)
        assert 0.85 < float(ratio.mean()) < 1.0001
    predicted = predict_source(known(), inverted, findings([True] * 4))
    assert {now: len(one) for now, one in predicted.logits.items()} == dict.fromkeys(timesteps, 4)
    assert (predicted.saliency[:, :, :4] > 0).all() and (predicted.saliency[:, :, 4:] == 0).all()


def test_the_search_keeps_the_weakest_guidance_that_is_enough() -> None:
    latents = sources()
    latents[0] *= 0.1  # near the border: weak guidance flips it
    latents[1, :, :4] += 1.5 * torch.sign(latents[1, :, :4].mean())  # far from it
    target = opposite(latents)
    confidence = 0.8
    changes = {"guidance_scale": 6.0, "confidence": confidence}
    found = guided(latents, target, num_candidates=6, **changes)
    outright = guided(latents, target, num_candidates=1, **changes)
    sure = target.confidence(target.probabilities(GaussianData(0.0, 1.0).classify(found)))
    assert (sure[[0, 2, 3]] >= confidence).all()
    assert (found - latents).abs().mean() < 0.9 * (outright - latents).abs().mean()


def test_an_image_that_has_flipped_is_not_tried_again() -> None:
    latents = sources()
    target = opposite(latents)
    settings = CounterfactualSettings.model_validate(
        {**PLAIN, "num_candidates": 5, "guidance_scale": 20.0}
    )
    model = GaussianData(0.0, 1.0)
    counterfactual_latents(
        known(model), latents, target, settings, classify=lambda z, _: 99.0 * _sign(target, z)
    )
    first = model.seen
    again = GaussianData(0.0, 1.0)
    once = settings.model_copy(update={"strength": 0.4 / 5, "guidance_scale": 20.0 / 5})
    guided_latents(known(again), latents, target, once)
    assert first == again.seen


def _sign(target: Target, latents: Tensor) -> Tensor:
    wanted = torch.where(target.present, 1.0, -1.0)
    return torch.stack([wanted, wanted], dim=1)[: len(latents)]


def test_the_nearest_candidate_is_kept_of_an_image_that_never_flips() -> None:
    latents = sources(1)
    target = opposite(latents)
    sure = iter([0.1, 0.3, 0.4, 0.2])  # of the source, and of three candidates
    classified: list[Tensor] = []

    def classify(made: Tensor, rows: Tensor) -> Tensor:
        classified.append(made)
        p = next(sure)
        logit = math.log(p / (1 - p)) * (1 if bool(target.present[0]) else -1)
        return torch.full((1, 2), logit)

    settings = CounterfactualSettings.model_validate({**PLAIN, "num_candidates": 3})
    found = counterfactual_latents(known(), latents, target, settings, classify)
    assert torch.equal(found, classified[2])


def seen_as(*rows: tuple[float, float]) -> Callable[[Tensor, Tensor], Tensor]:
    """Says the probabilities of two findings in turn, of the source first."""
    told = iter(rows)
    return lambda *_: torch.tensor([next(told)]).logit()


@pytest.mark.parametrize(
    ("told", "kept"),
    [
        ([(0.9, 0.5), (0.2, 0.5), (0.04, 0.9), (0.04, 0.6), (0.01, 0.7)], 3),  # the others least
        ([(0.9, 0.5), (0.2, 0.5), (0.04, 0.51), (0.0, 0.5), (0.0, 0.5)], 2),  # good enough: stop
        ([(0.9, 0.5), (0.2, 0.5), (0.1, 0.9), (0.3, 0.5), (0.4, 0.5)], 2),  # none is sure: nearest
    ],
)
def test_each_candidate_draws_its_noise_and_the_best_is_kept(
    told: list[tuple[float, float]], kept: int
) -> None:
    latents, target = sources(1), findings([False])
    changes = {"inversion": False, "num_candidates": 4, "tolerance": 0.02, "noise_seed": 5}
    settings = CounterfactualSettings.model_validate({**PLAIN, **changes})
    found = counterfactual_latents(known(), latents, target, settings, seen_as(*told))
    once = settings.model_copy(update={"noise_seed": 5 + kept - 1})
    assert torch.equal(found, guided_latents(known(), latents, target, once))


def test_a_flipped_candidate_is_kept_before_a_more_confident_one() -> None:
    told = iter([(0.1, 0.8, 0.1), (0.40, 0.31, 0.29), (0.45, 0.54, 0.01)])
    made = iter([torch.full((1, 2, 8, 8), 1.0), torch.full((1, 2, 8, 8), 2.0)])
    target = Target(torch.tensor([0]), torch.tensor([True]), False)
    settings = CounterfactualSettings.model_validate(
        {**PLAIN, "inversion": False, "num_candidates": 2}
    )
    found = search_counterfactuals(
        sources(1),
        target,
        settings,
        lambda *_: torch.tensor([next(told)]).log(),
        lambda *_: next(made),
    )
    assert (found == 1.0).all()


@pytest.mark.parametrize("relaxed", [True, False])
def test_the_mask_is_relaxed_for_images_that_no_candidate_has_flipped(relaxed: bool) -> None:
    """Half of its threshold, then no mask, each with another draw; the others get none."""
    latents = sources(2)
    target = findings([False, False])
    changes = {"inversion": False, "num_candidates": 2, "mask_threshold": 0.4, "noise_seed": 5}
    settings = CounterfactualSettings.model_validate({**PLAIN, **changes, "relax_mask": relaxed})
    tried: list[tuple[list[int], int, float]] = []

    def candidate(rows: Tensor, _: Target, at: CounterfactualSettings) -> Tensor:
        tried.append((rows.tolist(), at.noise_seed, at.mask_threshold))
        flips = torch.tensor([row == 0 or at.mask_threshold == 0.0 for row in rows.tolist()])
        return torch.where(flips, -1.0, 1.0).reshape(-1, 1, 1, 1).expand(-1, *latents.shape[1:])

    asked: list[list[int]] = []

    def classify(made: Tensor, rows: Tensor) -> Tensor:
        asked.append(rows.tolist())
        return made[:, :, 0, 0]

    found = search_counterfactuals(torch.ones_like(latents), target, settings, classify, candidate)
    assert asked == [[0, 1], *(rows for rows, _, _ in tried)]
    more = [([1], 7, 0.2), ([1], 8, 0.0)] if relaxed else []
    assert tried == [([0, 1], 5, 0.4), ([0, 1], 6, 0.4), *more]
    assert (found < 0).flatten(1).all(dim=1).tolist() == [True, relaxed]
    assert most_candidates(settings) == len(tried)


@pytest.mark.parametrize(("inversion", "attempts"), [(False, 4), (True, 2)])
def test_an_external_classifier_draws_as_often_and_repeats_no_inversion(
    inversion: bool, attempts: int
) -> None:
    latents, target = sources(1), findings([False])
    changes = {
        "inversion": inversion,
        "num_candidates": 2,
        "mask_threshold": 0.4,
        "num_inference_steps": 2,
    }
    settings = CounterfactualSettings.model_validate({**PLAIN, **changes, "relax_mask": True})
    classified: list[Tensor] = []

    def never(clean: Tensor, rows: Tensor) -> Tensor:
        classified.append(clean)
        return torch.full((1, 2), 3.0)

    classifier = GaussianData(0.0, 1.0).classify
    externally_guided_latents(known(), latents, target, classifier, settings, never)
    assert len(classified) == 1 + attempts  # the source first
    assert all(not torch.equal(one, two) for one, two in combinations(classified, 2))


@given(st.permutations(range(4)))
@hypothesis_settings(max_examples=5, deadline=None)
def test_an_images_counterfactual_does_not_depend_on_its_company(order: list[int]) -> None:
    latents, target = sources(), findings([True, False, True, False], [0, 0, 1, 1])
    few = {"num_inference_steps": 5, "num_candidates": 2, "mask_threshold": 0.5}
    together = guided(latents, target, **few)
    moved = target.rows(torch.tensor(order))
    torch.testing.assert_close(guided(latents[order], moved, **few), together[order])
    alone = findings([False], [1])
    torch.testing.assert_close(guided(latents[3:], alone, **few), together[3:])


class Noting(GaussianData):
    """Its head notes the timesteps at which it is called."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)
        self.timesteps: set[int] = set()

    def classify(self, latents: Tensor, timesteps: Tensor | None = None) -> Tensor:
        if timesteps is not None:
            self.timesteps |= set(timesteps.tolist())
        return super().classify(latents, timesteps)


@pytest.mark.parametrize("inversion", [True, False])
def test_the_head_is_not_called_at_noise_on_which_it_was_not_trained(inversion: bool) -> None:
    latents, model = sources(), Noting()
    target = opposite(latents)
    changes = {"inversion": inversion, "mask_threshold": 0.5, "num_inference_steps": 8}
    settings = CounterfactualSettings.model_validate({**PLAIN, **changes})
    guided_latents(known(model, head_until=250), latents, target, settings)
    assert model.timesteps == {t for t in descending_timesteps(399, 8) if t <= 250}
    assert len(model.timesteps) == 5
    with pytest.raises(UserError, match=r"trained on noise up to t = 30, and .* starts at 50"):
        guided_latents(known(model, head_until=30), latents, target, settings)


def test_a_head_trained_on_clean_latents_guides_at_all_levels() -> None:
    latents = sources()
    target, head = opposite(latents), GaussianData(0.0, 1.0)
    settings = CounterfactualSettings.model_validate(PLAIN)
    made = guided_latents(known(head_until=0), latents, target, settings)
    assert target.reached(head.classify(made)).all()
    everywhere = guided_latents(known(), latents, target, settings)
    assert torch.equal(made, everywhere)


def test_guidance_goes_beyond_the_confidence_asked_for() -> None:
    """Half way to 1: a target that is only just reached does not survive the decoder."""
    settings = CounterfactualSettings.model_validate({**PLAIN, "confidence": 0.9})
    latents, everywhere = torch.ones(3, 2, 4, 4), torch.ones(1, 1, 4, 4)
    logits = torch.tensor([0.5, 0.93, 0.96]).logit()

    class Fixed:
        """Its logits of the first finding are given, with a gradient of ones."""

        process = PROCESS

        def noise_pred(self, latents: Tensor, timestep: int) -> Tensor:
            return torch.zeros_like(latents)

        def noise_pred_and_logits(self, latents: Tensor, timestep: int) -> tuple[Tensor, Tensor]:
            change = latents.mean(dim=(1, 2, 3)) - 1.0
            return torch.zeros_like(latents), torch.stack([logits + change, logits], dim=1)

    guidance = Guidance(findings([True] * 3), {5: torch.zeros(3, 2)}, everywhere, settings)
    _, gradient = guidance_gradient(Fixed(), latents, 5, guidance)
    assert gradient.square().mean(dim=(1, 2, 3)).sqrt().tolist() == pytest.approx([1.0, 1.0, 0.0])


def test_an_overconfident_head_guides_by_its_calibrated_confidence() -> None:
    """By the uncalibrated confidence, guidance would end too early."""
    latents = sources()
    target, head = opposite(latents), GaussianData(0.0, 1.0)
    changes = {"guidance_scale": 4.0, "confidence": 0.9, "num_candidates": 4}
    settings = CounterfactualSettings.model_validate({**PLAIN, **changes})
    made = [counterfactual_latents(known(temperature=t), latents, target, settings) for t in (1, 4)]
    sure = [target.confidence(target.probabilities(head.classify(one) / 4)) for one in made]
    assert (sure[0] < 0.9).all() and (sure[1] >= 0.9).all()


def published(latents: Tensor, target: Target, scale: float, seed: int = 0) -> Tensor:
    return mediffusion_latents(
        known(), latents, target, strength=0.1, guidance_scale=scale, seed=seed
    )


def test_the_published_procedure_flips_and_redraws_the_image() -> None:
    latents = sources()
    target, head = opposite(latents), GaussianData(0.0, 1.0)
    made = published(latents, target, scale=200.0)
    assert target.reached(head.classify(made)).all()
    assert torch.equal(made, published(latents, target, scale=200.0))
    assert not torch.equal(made, published(latents, target, scale=200.0, seed=1))
    # Without guidance the noise alone has changed it, all over.
    assert float((published(latents, target, scale=0.0) - latents).abs().mean()) > 0.1


def test_the_published_gradient_is_that_of_the_clean_estimate() -> None:
    """One step from t = 0, where everything is linear, by hand."""
    latents, target = sources(1).double(), findings([True])
    alphas = ALPHAS.double()
    model = GuidedModel(GaussianData(0.0, 1.0), DiffusionProcess(alphas, "epsilon"), 999)
    made = mediffusion_latents(model, latents, target, strength=0.0, guidance_scale=300.0, seed=0)
    noise = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    a = alphas[0]
    noisy = a.sqrt() * latents + (1 - a).sqrt() * noise
    clean = a.sqrt() * noisy  # of unit data: (z - (1 - ᾱ) z) / √ᾱ
    logit = 10 * clean[:, :, :4].mean()
    slope = torch.zeros_like(latents)
    slope[:, :, :4] = -(1 - logit.sigmoid()) * 10 * a.sqrt() / 64
    noise_pred = (1 - a).sqrt() * noisy + 300 * (1 - a).sqrt() * slope
    expected = (noisy - (1 - a).sqrt() * noise_pred) / a.sqrt()
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
