"""Counterfactuals guided by an external classifier of pixels, with the model's own denoiser."""

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
    detail: Tensor,
) -> Tensor:
    """Latents (B, c, h, w) of counterfactuals that the external classifier guides and selects.

    Args:
        model: The trained model; its head is not used.
        external: The guiding classifier.
        latents: Of the sources, (B, c, h, w).
        target: The target of each image.
        guidance: Our settings of guidance; mask and the head's limit on noise do not apply.
        detail: Of the sources, (B, C, H, W), as `TrainedModel.detail` gives it.
    """
    network = external.network.to(model.device).eval()

    def classify(clean: Tensor) -> Tensor:
        logits: Tensor = network(normalised(model.codec.decode(clean)))
        return logits / external.temperature

    def guided(part: Tensor, targets: Target, positions: Tensor) -> Tensor:
        def evaluate(clean: Tensor, rows: Tensor) -> Tensor:
            images = model.render(clean, detail[positions[rows.cpu()]]).to(model.device)
            return external.logits(images) / external.temperature

        return externally_guided_latents(model.guided, part, targets, classify, guidance, evaluate)

    return model.by_batch(latents, target, guided)
