"""The sets of images that are compared with real ones, equally many in each."""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, ImagePipelineOutput
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mediffusion_core.counterfactuals.class_guidance import sample_labelled_latents
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.run_io.pipeline import JointDiffusionPipeline

BATCH = 64


@dataclass(frozen=True)
class SampleSet:
    """Images with a name, and the labels that were requested, if any."""

    key: str
    """Part of the names of files."""
    name: str
    images: Tensor
    """(n, C, H, W) in [0, 1]."""
    labels: Tensor | None = None
    """(n, classes), NaN where no label was requested."""


def drawn(model: TrainedModel, count: int, steps: int, seed: int) -> SampleSet:
    """Samples without class guidance."""
    return SampleSet("samples", f"samples, {steps} steps", model.sample(count, steps, seed))


def drawn_by_ddpm(model: TrainedModel, count: int, seed: int) -> SampleSet:
    """Samples of the stochastic sampler with all its steps (arXiv 2006.11239, algorithm 2)."""
    pipeline = JointDiffusionPipeline.of(model)
    pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=None)  # shown in a terminal alone
    generator = torch.Generator().manual_seed(seed)
    steps = model.settings.diffusion.timesteps
    output = pipeline(count, steps, generator, output_type="pt")
    assert isinstance(output, ImagePipelineOutput)  # a tuple if return_dict is false
    images = torch.as_tensor(output.images)
    return SampleSet("ddpm", f"samples, DDPM, {steps} steps", images)


def drawn_with_labels(
    model: TrainedModel, labels: Tensor, steps: int, scale: float, seed: int, console: Console
) -> SampleSet:
    """Class-guided samples for labels (n, classes); shows the progress."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(labels), *model.settings.latent_shape, generator=generator)
    batches = list(zip(noise.split(BATCH), labels.split(BATCH), strict=True))
    text = f"drawing {len(labels)} class-guided samples"
    latents = [
        sample_labelled_latents(
            model.guided,
            part.to(model.device),
            requested.to(model.device),
            multi_label=model.multi_label,
            steps=steps,
            scale=scale,
        )
        for part, requested in track(batches, text, console=console, transient=True)
    ]
    images = model.decode(torch.cat(latents))
    return SampleSet("guided", f"class-guided, {steps} steps, scale {scale:g}", images, labels)


def reconstructed(model: TrainedModel, images: Tensor) -> SampleSet:
    """Real images through the autoencoder, a bound on the quality of samples."""
    return SampleSet("reconstructed", "real, autoencoded", model.decode(model.encode(images)))
