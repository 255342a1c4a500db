"""DDIM as a scheduler of diffusers, with the timesteps of our own sampler."""

from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from mediffusion_core.common.timesteps import descending_timesteps
from mediffusion_core.diffusion.process import ddim_step, noise_from
from mediffusion_core.settings import DiffusionSettings, Prediction

__all__ = ["EvenDDIMScheduler", "SchedulerMixin", "build_scheduler"]
# diffusers looks for the base class, which tells it how to load, beside the class.

PREDICTION_TYPES: dict[Prediction, str] = {
    "epsilon": "epsilon",
    "velocity": "v_prediction",
    "sample": "sample",
}
"""What diffusers calls what a network predicts."""


class EvenDDIMScheduler(DDIMScheduler):
    """Deterministic DDIM that steps from each timestep to the one that is visited next.

    diffusers' own steps by ⌊T / steps⌋, whatever the spacing of the timesteps, so that a latent's
    noise is not that of its timestep unless the steps divide T. Where they do, the two take the
    same steps but for a timestep's rounding. `DDIMScheduler.from_pretrained` and any other
    scheduler of diffusers can open what this one saves.
    """

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Spaces the timesteps evenly, from the noisiest down.

        Args:
            num_inference_steps: At least 1; more than there are timesteps are not taken.
            device: Where `timesteps` stands.
        """
        last = self.config.num_train_timesteps - 1
        visited = descending_timesteps(last, num_inference_steps)
        self.num_inference_steps = len(visited)
        self.timesteps = torch.tensor(visited, device=device)
        self._next = dict(zip(visited, [*visited[1:], None], strict=True))

    def step(
        self, model_output: Tensor, timestep: int, sample: Tensor, *, return_dict: bool = True
    ) -> DDIMSchedulerOutput | tuple[Tensor]:
        """z_s of z_t (arXiv 2010.02502, equation 12 with σ = 0), s being visited after t.

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
        names = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}
        prediction = names[self.config.prediction_type]
        after = self._next[int(timestep)]
        alpha_bar = self.alphas_cumprod[int(timestep)].to(sample.device)
        previous = self.final_alpha_cumprod if after is None else self.alphas_cumprod[after]
        previous = previous.to(sample.device)
        noise_pred = noise_from(model_output.float(), sample, alpha_bar, prediction)
        stepped = ddim_step(sample, noise_pred, alpha_bar, previous)
        return DDIMSchedulerOutput(prev_sample=stepped) if return_dict else (stepped,)


def build_scheduler(settings: DiffusionSettings) -> EvenDDIMScheduler:
    """The scheduler of a noise process."""
    scheduler: EvenDDIMScheduler = EvenDDIMScheduler(
        num_train_timesteps=settings.timesteps,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        beta_schedule="scaled_linear",
        prediction_type=PREDICTION_TYPES[settings.prediction],
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    return scheduler
