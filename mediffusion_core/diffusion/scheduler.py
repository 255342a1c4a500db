"""DDIM as a scheduler of diffusers, with the timesteps of our own sampler."""

from itertools import pairwise
from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from mediffusion_core.diffusion.process import BETA_END, BETA_START, DiffusionProcess
from mediffusion_core.diffusion.samplers import ddim_step, sampling_levels
from mediffusion_core.settings import DiffusionSettings

__all__ = ["EvenDDIMScheduler", "SchedulerMixin", "build_scheduler"]
# diffusers looks for the base class, which tells it how to load, beside the class.


class EvenDDIMScheduler(DDIMScheduler):
    """Deterministic DDIM that steps from each timestep to the one that is visited next.

    diffusers' `DDIMScheduler` steps by ⌊T / steps⌋ whatever the spacing of the timesteps. Unless
    the number of steps divides T, a latent then has another noise level than its timestep says.
    `DDIMScheduler.from_pretrained` and any other scheduler of diffusers can open what this one
    saves.
    """

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Spaces the timesteps evenly, from the noisiest down.

        Args:
            num_inference_steps: At least 1; at most T steps are taken.
            device: Of `timesteps`.
        """
        levels = sampling_levels(self.config.num_train_timesteps, num_inference_steps)
        self.num_inference_steps = len(levels) - 1
        self.timesteps = torch.tensor(levels[:-1], device=device)
        self._next = dict(pairwise(levels))

    def step(
        self, model_output: Tensor, timestep: int, sample: Tensor, *, return_dict: bool = True
    ) -> DDIMSchedulerOutput | tuple[Tensor]:
        """z_s of z_t (arXiv 2010.02502, equation 12 with σ = 0), where s is visited after t.

        Args:
            model_output: What the network predicts, (B, c, h, w).
            timestep: t, one of `timesteps`.
            sample: z_t (B, c, h, w).
            return_dict: Whether to name the result.

        Raises:
            ValueError: before `set_timesteps`.
        """
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before step")
        alphas_cumprod = self.alphas_cumprod.to(sample.device)
        process = DiffusionProcess(alphas_cumprod, self.config.prediction_type)
        now = int(timestep)
        noise_pred = process.noise_pred(model_output.float(), sample, now)
        stepped = ddim_step(process, sample, noise_pred, now, self._next[now])
        return DDIMSchedulerOutput(prev_sample=stepped) if return_dict else (stepped,)


def build_scheduler(settings: DiffusionSettings) -> EvenDDIMScheduler:
    """The scheduler of a noise process."""
    scheduler: EvenDDIMScheduler = EvenDDIMScheduler(
        num_train_timesteps=settings.timesteps,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="scaled_linear",
        prediction_type=settings.prediction,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    return scheduler
