"""Noise process, samplers and losses against closed forms and slow references."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler
from helpers.gaussian import ALPHAS, PROCESS, GaussianData
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mediffusion_core.common.timesteps import descending_timesteps
from mediffusion_core.counterfactuals.baselines.external import externally_guided_latents
from mediffusion_core.counterfactuals.class_guidance import sample_labelled_latents
from mediffusion_core.counterfactuals.guided_model import GuidedModel
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.diffusion.losses import (
    classification_loss,
    diffusion_loss,
    reconstruction_loss,
)
from mediffusion_core.diffusion.process import BETA_END, BETA_START, CLEAN, DiffusionProcess
from mediffusion_core.diffusion.samplers import ddim_step, ddpm_step, denoise, sampling_levels
from mediffusion_core.settings import CounterfactualSettings, DiffusionSettings, Prediction

SETTINGS = DiffusionSettings()
SCHEDULE = {
    "num_train_timesteps": SETTINGS.timesteps,
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "scaled_linear",
}
NAN = float("nan")


def doubled(prediction: Prediction) -> DiffusionProcess:
    return DiffusionProcess(ALPHAS.double(), prediction)


def sampled(model: GaussianData, noise: Tensor, steps: int) -> Tensor:
    denoiser = GuidedModel(model, PROCESS, 0)  # type: ignore[arg-type]
    levels = sampling_levels(len(PROCESS), steps)
    return denoise(denoiser.noise_pred, partial(ddim_step, PROCESS), noise, levels)


def test_the_schedule_is_diffusers_scaled_linear() -> None:
    expected = DDPMScheduler(**SCHEDULE).alphas_cumprod
    torch.testing.assert_close(ALPHAS, expected, rtol=1e-4, atol=1e-7)
    assert (ALPHAS.diff() < 0).all()


def test_noising_agrees_with_diffusers() -> None:
    latents, noise = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 1, 400, 998, 999])
    expected = DDPMScheduler(**SCHEDULE).add_noise(latents, noise, timesteps)
    torch.testing.assert_close(
        PROCESS.add_noise(latents, noise, timesteps), expected, rtol=1e-4, atol=1e-5
    )


@given(st.integers(0, SETTINGS.timesteps - 1), st.integers(0, 2**31 - 1))
def test_the_clean_latent_comes_back_from_its_noise(timestep: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    latents, noise = torch.randn(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    process = doubled("epsilon")
    noised = process.add_noise(latents, noise, timestep)
    torch.testing.assert_close(process.predict_clean(noised, noise, timestep), latents)
    torch.testing.assert_close(process.noise_between(noised, latents, timestep), noise)


@pytest.mark.parametrize(("now", "steps"), [(999, 1000), (500, 1000), (999, 10), (99, 10)])
def test_a_step_is_diffusers_ddim_step_without_noise(now: int, steps: int) -> None:
    scheduler = DDIMScheduler(
        **SCHEDULE, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(now)
    latents, noise_pred = torch.randn(2, 3, 4, 8, 8, generator=generator)
    expected = scheduler.step(noise_pred, now, latents, eta=0.0).prev_sample
    after = max(now - SETTINGS.timesteps // steps, CLEAN)
    torch.testing.assert_close(
        ddim_step(PROCESS, latents, noise_pred, now, after), expected, rtol=1e-3, atol=1e-4
    )


@given(st.integers(0, 999), st.integers(1, 1200))
def test_timesteps_descend_from_the_start(start: int, steps: int) -> None:
    timesteps = descending_timesteps(start, steps)
    assert timesteps[0] == start
    assert len(timesteps) <= steps
    assert all(now > after >= 0 for now, after in pairwise(timesteps))
    if 2 * steps <= start:
        assert len(timesteps) == steps
        gaps = [now - after for now, after in pairwise(timesteps)]
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.5, 0.5), (-1.0, 0.2)])
def test_sampling_finds_the_distribution_of_its_denoiser(mean: float, std: float) -> None:
    noise = torch.randn(200, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    samples = sampled(GaussianData(mean, std), noise, 999)
    assert float(samples.mean()) == pytest.approx(mean, abs=0.03)
    assert float(samples.std()) == pytest.approx(std, rel=0.04)


@pytest.mark.parametrize("t", [0, 1, 400, 999])
def test_an_ancestral_step_is_diffusers_ddpm_step(t: int) -> None:
    scheduler = DDPMScheduler(**SCHEDULE, clip_sample=False, variance_type="fixed_small")
    generator = torch.Generator().manual_seed(t)
    latents, noise_pred = torch.randn(2, 3, 4, 8, 8, generator=generator)
    drawn = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    again = torch.Generator().manual_seed(5)
    expected = scheduler.step(noise_pred, t, latents, generator=again).prev_sample
    found = ddpm_step(PROCESS, lambda: drawn, latents, noise_pred, t, t - 1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_few_steps_shrink_the_spread_but_not_beyond_reason() -> None:
    """Every sample keeps its place: the map from noise to latents stays linear and rising."""
    noise = torch.randn(200, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    many = sampled(GaussianData(1.5, 0.5), noise, 999)
    few = sampled(GaussianData(1.5, 0.5), noise, 20)
    assert float(torch.corrcoef(torch.stack([many.flatten(), few.flatten()]))[0, 1]) > 0.9999
    assert 0.6 < float(few.std() / many.std()) < 1.0


def test_labels_draw_latents_towards_them_and_nothing_else() -> None:
    """The head compares a latent's halves; a half without a label keeps its distribution."""
    noise = torch.randn(60, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    model = GaussianData(1.0, 0.5)
    free = sampled(model, noise, 50)

    def drawn(labels: Tensor, scale: float, head_until: int = 999) -> Tensor:
        return sample_labelled_latents(
            GuidedModel(model, PROCESS, head_until),
            noise,
            labels,
            multi_label=labels.isnan().any().item(),
            steps=50,
            scale=scale,
        )

    first = F.one_hot(torch.zeros(60, dtype=torch.long), 2).float()
    torch.testing.assert_close(drawn(first, 0.0), free)
    late = drawn(first, 5.0, head_until=100)  # no guidance at noise it was not trained on
    assert 0 < (late - free).abs().mean() < (drawn(first, 5.0) - free).abs().mean()
    logits = [model.classify(drawn(first, scale))[:, 0].mean() for scale in (0.0, 1.0, 5.0)]
    assert logits[0] < logits[1] < logits[2]
    only = drawn(torch.tensor([[1.0, NAN]]).expand(60, 2), 5.0)
    assert float((only - free)[:, :, :2].mean()) > 0.01
    torch.testing.assert_close(only[:, :, 2:], free[:, :, 2:])


def test_an_external_classifier_guides_through_the_denoiser() -> None:
    """Towards the target and no further; without guidance the source comes back."""
    model = GaussianData(0.0, 1.0)
    latents = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    target = Target(torch.zeros(6, dtype=torch.long), torch.ones(6, dtype=torch.bool), False)

    def made(scale: float, **changes: object) -> Tensor:
        plain = {
            "strength": 0.4,
            "num_inference_steps": 100,
            "guidance_scale": scale,
            "num_candidates": 1,
            "inversion": True,
        }
        settings = CounterfactualSettings.model_validate({**plain, **changes})
        return externally_guided_latents(
            GuidedModel(model, PROCESS, 0), latents, target, model.classify, settings
        )

    torch.testing.assert_close(made(1e-9), latents, rtol=0, atol=0.1)
    before, after = model.classify(latents), model.classify(made(2.0))
    there = target.reached(before)
    assert there.any() and not there.all()
    assert target.reached(after).all()
    moved = (made(2.0) - latents).square().mean(dim=(1, 2, 3)).sqrt()
    near = (made(2.0, proximity_weight=0.2) - latents).square().mean(dim=(1, 2, 3)).sqrt()
    sure = target.confidence(target.probabilities(before)) > 0.999
    assert sure.any()
    torch.testing.assert_close(made(2.0)[sure], made(1e-9)[sure])
    drawn = made(2.0, inversion=False, num_candidates=3)
    assert target.reached(model.classify(drawn)).all()
    assert not torch.equal(drawn, made(2.0, inversion=False, num_candidates=3, noise_seed=9))
    assert float(near[~there].mean()) < float(moved[~there].mean())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_noise_follows_from_each_prediction_type(prediction: Prediction) -> None:
    clean, noise = torch.randn(2, 5, 4, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    timesteps, process = torch.tensor([0, 10, 300, 700, 999]), doubled(prediction)
    noised = process.add_noise(clean, noise, timesteps)
    target = process.target(clean, noise, timesteps)
    torch.testing.assert_close(process.noise_pred(target, noised, timesteps), noise)


def test_each_prediction_type_has_its_target() -> None:
    clean, noise = torch.randn(2, 5, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 10, 300, 700, 999])
    assert DiffusionProcess(ALPHAS, "epsilon").target(clean, noise, timesteps) is noise
    assert DiffusionProcess(ALPHAS, "sample").target(clean, noise, timesteps) is clean
    scheduler = DDPMScheduler(**SCHEDULE)
    expected = scheduler.get_velocity(clean, noise, timesteps)
    found = DiffusionProcess(ALPHAS, "v_prediction").target(clean, noise, timesteps)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_diffusion_loss_is_the_mean_squared_error_of_each_sample() -> None:
    noise_pred, noise = torch.randn(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    slow = [
        sum((p - e) ** 2 for p, e in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))
        / 8
        for a, b in zip(noise_pred, noise, strict=True)
    ]
    assert diffusion_loss(noise_pred, noise).tolist() == pytest.approx(slow, rel=1e-5)


def slow_binary(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -(target * math.log(p) + (1 - target) * math.log(1 - p))


@given(
    st.lists(
        st.lists(
            st.tuples(st.floats(-8, 8), st.sampled_from([0.0, 1.0, NAN])), min_size=3, max_size=3
        ),
        min_size=1,
        max_size=4,
    )
)
def test_each_finding_has_its_own_loss_and_missing_ones_have_none(
    rows: list[list[tuple[float, float]]],
) -> None:
    logits = torch.tensor([[logit for logit, _ in row] for row in rows])
    targets = torch.tensor([[target for _, target in row] for row in rows])
    slow = [sum(slow_binary(x, y) for x, y in row if not math.isnan(y)) / 3 for row in rows]
    assert classification_loss(logits, targets, True).tolist() == pytest.approx(
        slow, rel=1e-3, abs=1e-5
    )


@given(
    st.lists(st.lists(st.floats(-8, 8), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(0, 2),
)
def test_exclusive_classes_share_one_softmax(rows: list[list[float]], chosen: int) -> None:
    logits = torch.tensor(rows)
    targets = nn.functional.one_hot(torch.full((len(rows),), chosen), 3).float()
    slow = [math.log(sum(math.exp(x - row[chosen]) for x in row)) for row in rows]
    assert classification_loss(logits, targets, False).tolist() == pytest.approx(
        slow, rel=1e-3, abs=1e-5
    )


@pytest.mark.parametrize("multi_label", [True, False])
def test_a_missing_label_neither_costs_nor_teaches(multi_label: bool) -> None:
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.tensor([[NAN, NAN, NAN], [0.0, 1.0, 0.0]])
    losses = classification_loss(logits, targets, multi_label)
    losses.sum().backward()
    assert logits.grad is not None
    assert losses[0] == 0 and losses[1] > 0
    assert (logits.grad[0] == 0).all() and (logits.grad[1] != 0).all()


def test_reconstruction_loss_against_loops() -> None:
    made, images = torch.rand(2, 2, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    slow = []
    for error in (made - images).tolist():
        pixels = [abs(value) for channel in error for line in channel for value in line]
        across = [
            abs(line[x + 1] - line[x]) for channel in error for line in channel for x in range(3)
        ]
        down = [
            abs(channel[y + 1][x] - channel[y][x])
            for channel in error
            for y in range(2)
            for x in range(4)
        ]
        means = [sum(values) / len(values) for values in (pixels, across, down)]
        slow.append(means[0] + 0.7 * (means[1] + means[2]))
    assert reconstruction_loss(made, images, 0.7).tolist() == pytest.approx(slow, rel=1e-4)
