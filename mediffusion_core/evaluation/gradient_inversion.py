"""Images from a gradient: the adversary is the server, after a round of one step.

The joint network is trained on latents, so latents are reconstructed, and the autoencoder decodes
them. As in Geiping et al. (arXiv 2003.14053, eq. 4) the dummy's gradient is to have the direction
of the observed one, under a prior of small total variation of the decoded image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mediffusion_core.diffusion.process import DiffusionProcess
from mediffusion_core.models import DECODER_HALF, JointUNet
from mediffusion_core.models.unet import NONE
from mediffusion_core.training.denoising import Denoising

SCALE = 1000.0
"""Of the objective."""


@dataclass(frozen=True)
class Step:
    """A step's noise process, and its random numbers."""

    process: DiffusionProcess
    timesteps: Tensor
    """(B,)."""
    noise: Tensor
    """(B, c, h, w)."""


@dataclass(frozen=True)
class Inversion:
    """How dummies are optimised, by L-BFGS: the objective is smooth."""

    steps: int
    """Evaluations of the objective."""
    variation_weight: float = 1e-3
    """Weight of the total variation."""
    seed: int = 0
    """Draws the first dummies."""


def decoder_parameters(model: JointUNet) -> dict[str, nn.Parameter]:
    """The parameters of the decoder half, by their names in the UNet.

    The diffusion loss alone reaches them, whatever labels a site has.
    """
    named = model.unet.named_parameters()
    return {name: one for name, one in named if name.partition(".")[0] in DECODER_HALF}


def denoising_gradient(
    model: JointUNet, latents: Tensor, step: Step, graph: bool = False
) -> Tensor:
    """The gradient of the mean diffusion loss in `decoder_parameters`, (P,).

    Args:
        model: At the weights before the step.
        latents: z_0 (B, c, h, w).
        step: The step.
        graph: Whether the gradient can be differentiated in turn.
    """
    # Fused attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        batch = Denoising.of(step.process, latents, step.timesteps, step.noise)
        encoded = model.encode(batch.inputs, batch.timesteps)
        output, _ = model.outputs(encoded, classify=NONE)
        assert output is not None
        parameters = list(decoder_parameters(model).values())
        # PyTorch 2.13 has a segmentation fault in a GroupNorm whose parameters need a gradient
        # and whose input needs none, so the gradient of the encoder's maps is computed too.
        wanted = [*parameters, *encoded.maps]
        gradients = torch.autograd.grad(batch.losses(output).mean(), wanted, create_graph=graph)
    return torch.cat([one.flatten() for one in gradients[: len(parameters)]])


def private_gradient(
    gradient: Tensor, max_grad_norm: float, noise_multiplier: float, generator: torch.Generator
) -> Tensor:
    """clip(g) + N(0, σ² C² I) of the gradient g of a step's only unit, (P,) (arXiv 1607.00133)."""
    clipped = gradient * min(1.0, max_grad_norm / float(gradient.norm()))
    noise = torch.randn(gradient.shape, generator=generator).to(gradient.device)
    return clipped + noise_multiplier * max_grad_norm * noise


def invert(
    model: JointUNet,
    observed: Tensor,
    step: Step,
    decode: Callable[[Tensor], Tensor],
    how: Inversion,
    on_step: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Latents (B, c, h, w) whose gradient has the direction of the observed one.

    Args:
        model: At the weights before the step, in evaluation mode.
        observed: The gradient in `decoder_parameters`, (P,).
        step: The step.
        decode: Scaled latents (B, c, h, w) to images, differentiable.
        how: Number of steps, and prior.
        on_step: Told 1 after each step.

    Returns:
        The dummies at the smallest objective.
    """
    generator = torch.Generator().manual_seed(how.seed)
    start = torch.randn(step.noise.shape, generator=generator)
    dummies = start.to(step.noise.device).requires_grad_()
    best, least = dummies.detach().clone(), float("inf")
    optimizer = torch.optim.LBFGS(
        [dummies],
        max_iter=how.steps,
        max_eval=how.steps,
        history_size=50,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> float:
        nonlocal best, least
        gradient = denoising_gradient(model, dummies, step, graph=True)
        distance = 1 - torch.cosine_similarity(gradient, observed, dim=0)
        value = distance + how.variation_weight * total_variation(decode(dummies))
        # Scaled, so that the first step is not too small.
        [dummies.grad] = torch.autograd.grad(SCALE * value, [dummies])
        if value.item() < least:
            best, least = dummies.detach().clone(), value.item()
        on_step(1)
        return SCALE * value.item()

    optimizer.step(objective)
    return best


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels of images (B, C, H, W), a scalar."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    return down + (images[..., 1:] - images[..., :-1]).abs().mean()
