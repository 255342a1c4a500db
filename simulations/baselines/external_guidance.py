"""Counterfactuals that a classifier of pixels pulls, through the model's own denoiser."""

from torch import Tensor

from mediffusion_core.counterfactuals.baselines.external import externally_guided_latents
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.settings import CounterfactualSettings
from simulations.baselines.pixel_classifier import PixelClassifier, normalised


def external_latents(
    model: TrainedModel,
    external: PixelClassifier,
    latents: Tensor,
    target: Target,
    guidance: CounterfactualSettings,
) -> Tensor:
    """Latents (B, c, h, w) of counterfactuals that the external classifier pulls and judges.

    Args:
        model: The trained model, whose head is not asked.
        external: The classifier that pulls.
        latents: Of the sources, (B, c, h, w).
        target: What each should become.
        guidance: That of ours, but for the mask and for our head's limit to the noise it knows.
    """
    network = external.network.to(model.device).eval()

    def classifier(clean: Tensor) -> Tensor:
        logits: Tensor = network(normalised(model.codec.decode(clean)))
        return logits / external.temperature

    def look(clean: Tensor) -> Tensor:
        return external.logits(model.codec.decode(clean)) / external.temperature

    def made(part: Tensor, wish: Target) -> Tensor:
        return externally_guided_latents(model.guided, part, wish, classifier, guidance, look)

    return model.by_batch(latents, target, made)
