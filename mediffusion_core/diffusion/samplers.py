"""The sampling loop, and the rules by which it steps from one noise level to the next.

DDIM and DDPM are not diffusers' schedulers: its DDIM steps by ⌊T / n⌋ timesteps, not to the
timestep that is visited next, and never upwards; its DDPM draws other noise for each image.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TypeVar

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from mediffusion_core.common.timesteps import descending_timesteps
from mediffusion_core.diffusion.process import CLEAN, DiffusionProcess
from mediffusion_core.settings import Solver

L = TypeVar("L")
"""A noise level: a timestep or `CLEAN`, or a timestep of one of diffusers' schedulers."""

Predict = Callable[[Tensor, L], Tensor]
"""z_t (B, c, h, w) and t to what the step takes: ε̂, with or without guidance."""

Step = Callable[[Tensor, Tensor, L, L], Tensor]
"""z_t (B, c, h, w), ε̂, t and the next level s, to z_s."""


def denoise(predict: Predict[L], step: Step[L], latents: Tensor, levels: Sequence[L]) -> Tensor:
    """Latents (B, c, h, w) at the last of the levels, from those at the first one."""
    for reached in trajectory(predict, step, latents, levels):
        latents = reached
    return latents


def trajectory(
    predict: Predict[L], step: Step[L], latents: Tensor, levels: Sequence[L]
) -> Iterator[Tensor]:
    """The sampling loop: yields latents (B, c, h, w) at each of the levels but the first.

    Args:
        predict: The denoiser.
        step: The sampler's rule.
        latents: (B, c, h, w) at the first level.
        levels: In the order in which they are visited.
    """
    for now, after in pairwise(levels):
        latents = step(latents, predict(latents, now), now, after)
        yield latents


def sampling_levels(total: int, steps: int) -> list[int]:
    """The levels of `steps` denoising steps: from the noisiest of T timesteps to `CLEAN`."""
    return [*descending_timesteps(total - 1, steps), CLEAN]


def solver(name: Solver, process: DiffusionProcess, timesteps: Sequence[int]) -> Step[int]:
    """The step rule of a deterministic solver, for one pass over the timesteps to `CLEAN`.

    Args:
        name: Which solver. The second-order one remembers the step before.
        process: The noise process.
        timesteps: Descending, at least one.
    """
    return partial(ddim_step, process) if name == "ddim" else _dpm_solver(process, timesteps)


def ddim_step(
    process: DiffusionProcess, latents: Tensor, noise_pred: Tensor, now: int, after: int
) -> Tensor:
    """z_s = √ᾱ_s ẑ_0 + √(1 - ᾱ_s) ε̂, deterministic (arXiv 2010.02502, eq. 12 with σ = 0).

    With s > t it inverts: it leads from the clean latent up (section 4.3 there).
    """
    clean = process.predict_clean(latents, noise_pred, now)
    return process.add_noise(clean, noise_pred, after)


def ddpm_step(
    process: DiffusionProcess,
    noise: Callable[[], Tensor],
    latents: Tensor,
    noise_pred: Tensor,
    now: int,
    after: int,
) -> Tensor:
    """A draw of z_s, s < t, from the posterior given z_t and ẑ_0, with variance β̃.

    z_s = √ᾱ_s β / (1 - ᾱ_t) ẑ_0 + √α (1 - ᾱ_s) / (1 - ᾱ_t) z_t + √β̃ n, with α = ᾱ_t / ᾱ_s and
    β = 1 - α (arXiv 2006.11239, eq. 7, there s = t - 1); at s = `CLEAN` it is ẑ_0.

    Args:
        process: The noise process.
        noise: Draws n (B, c, h, w), standard normal.
        latents: z_t (B, c, h, w).
        noise_pred: ε̂ (B, c, h, w).
        now: t.
        after: s.
    """
    alpha_bar, previous = process.alpha_bar(now), process.alpha_bar(after)
    alpha = alpha_bar / previous
    clean = process.predict_clean(latents, noise_pred, now)
    mean = (previous.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - previous) * latents) / (
        1 - alpha_bar
    )
    variance = (1 - previous) / (1 - alpha_bar) * (1 - alpha)
    return mean + variance.sqrt() * noise()


def _dpm_solver(process: DiffusionProcess, timesteps: Sequence[int]) -> Step[int]:
    """DPM-Solver++(2M) of diffusers (arXiv 2211.01095, algorithm 2).

    The last step is of first order: at zero noise the second-order step is undefined.
    """
    alphas = torch.cat([process.alphas_cumprod.new_ones(1), process.alphas_cumprod]).double()
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=len(process),
        trained_betas=(1 - alphas[1:] / alphas[:-1]).cpu().numpy(),
        prediction_type="epsilon",
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(timesteps=list(timesteps), device=process.alphas_cumprod.device)

    def step(latents: Tensor, noise_pred: Tensor, now: int, after: int) -> Tensor:
        stepped: Tensor = scheduler.step(noise_pred, now, latents)[0]
        return stepped

    return step
