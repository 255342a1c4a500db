"""From one noise level to the next on a counterfactual's way back: DDIM, or DPM-Solver++."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from mediffusion_core.diffusion.process import ddim_step
from mediffusion_core.settings import Solver

Step = Callable[[int, Tensor, Tensor], Tensor]
"""Number of the step, z_t (B, c, h, w) and ε̂ of the same shape, to the latent at the next level."""


def solver_steps(solver: Solver, alphas_cumprod: Tensor, timesteps: Sequence[int]) -> Step:
    """The steps of one way from the first timestep over the others to the clean latent.

    A solver of second order remembers the step before, so each way has steps of its own, which are
    taken once and in their order.

    Args:
        solver: Which.
        alphas_cumprod: ᾱ (T,).
        timesteps: Descending, at least one.
    """
    return {"ddim": _ddim, "dpmsolver++": _dpm_solver}[solver](alphas_cumprod, timesteps)


def _ddim(alphas_cumprod: Tensor, timesteps: Sequence[int]) -> Step:
    """Deterministic DDIM (arXiv 2010.02502, equation 12 with σ = 0)."""
    levels = [*alphas_cumprod[list(timesteps)], alphas_cumprod.new_ones(())]
    ways = list(pairwise(levels))

    def step(number: int, latents: Tensor, noise_pred: Tensor) -> Tensor:
        return ddim_step(latents, noise_pred, *ways[number])

    return step


def _dpm_solver(alphas_cumprod: Tensor, timesteps: Sequence[int]) -> Step:
    """DPM-Solver++(2M) as diffusers has it (arXiv 2211.01095, algorithm 2).

    The last step is of first order: to second order the way to a noise of 0 is not defined.
    """
    alphas = torch.cat([alphas_cumprod.new_ones(1), alphas_cumprod]).double()
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=len(alphas_cumprod),
        trained_betas=(1 - alphas[1:] / alphas[:-1]).cpu().numpy(),
        prediction_type="epsilon",
        algorithm_type="dpmsolver++",
        solver_order=2,
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(timesteps=list(timesteps), device=alphas_cumprod.device)

    def step(number: int, latents: Tensor, noise_pred: Tensor) -> Tensor:
        stepped: Tensor = scheduler.step(noise_pred, scheduler.timesteps[number], latents)[0]
        return stepped

    return step
