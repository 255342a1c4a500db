"""Attribution maps, with which counterfactuals are compared: Grad-CAM, gradients and SHAP.

Each map explains the model's score of one class: its logit, or with exclusive classes its logit
against all others. The model classifies one view of the image, as guidance does. captum computes
the maps; it is in the extra `explanations` and takes seconds to import.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mediffusion_core.evaluation.classification import class_scores
from mediffusion_core.inference.joint_model import TrainedModel

ROWS = 128
"""Images per forward and backward pass."""
CELLS = 7
"""Smallest side, in cells, of the maps that Grad-CAM reads."""


class ImageClassifier(nn.Module):
    """Maps images (B, C, H, W) in [0, 1] to scores (B, classes), differentiable in the pixels."""

    def __init__(self, model: TrainedModel) -> None:
        """Shares the model's networks."""
        super().__init__()
        self.codec, self.joint, self.multi_label = model.codec, model.joint, model.multi_label

    def forward(self, images: Tensor) -> Tensor:
        """Scores of the clean latents, from one view of each image."""
        return class_scores(self.joint.classify(self.codec.encode(images)), self.multi_label)


def grad_cam(model: TrainedModel, images: Tensor, index: Tensor) -> Tensor:
    """Grad-CAM, (B, H, W), not negative.

    ReLU Σ_k α_k A_k, where α_k is the mean gradient of the score with respect to map k (arXiv
    1610.02391, equations 1 and 2), enlarged to the image. The head reads maps of every level of the
    encoder; the deepest may have two cells a side. The maps are those of the last residual
    block of the deepest level with at least 7 x 7 cells, the size that the paper's networks have.

    Args:
        model: The trained model.
        images: (B, C, H, W) in [0, 1].
        index: The class to explain in each image, (B,).
    """
    from captum.attr import LayerGradCam

    classifier = ImageClassifier(model)
    inputs = images.detach().clone().to(model.device).requires_grad_(True)
    found: list[Tensor] = []
    for block in model.joint.unet.down_blocks:
        layer = LayerGradCam(classifier, block.resnets[-1])
        maps = layer.attribute(inputs, index.to(model.device)).detach().cpu()  # (B, 1, h, w)
        if not found or min(maps.shape[2:]) >= CELLS:
            found = [maps]
    return F.interpolate(found[0], size=images.shape[2:], mode="bilinear")[:, 0].relu()


def integrated_gradients(
    model: TrainedModel, images: Tensor, index: Tensor, baseline: Tensor, steps: int = 32
) -> Tensor:
    """Integrated gradients, summed over channels, (B, H, W), signed.

    (x - x') ∫ ∂f(x' + a (x - x'))/∂x da for a in [0, 1] (arXiv 1703.01365, equation 1), by
    Gauss-Legendre quadrature. The values of an image add up to f(x) - f(x').

    Args:
        model: The trained model.
        images: x (B, C, H, W) in [0, 1].
        index: The class to explain in each image, (B,).
        baseline: x' (C, H, W), an uninformative image.
        steps: Points of the quadrature.
    """
    from captum.attr import IntegratedGradients

    found: Tensor = IntegratedGradients(ImageClassifier(model)).attribute(
        images.to(model.device),
        baseline.to(model.device).expand_as(images),
        index.to(model.device),
        n_steps=steps,
        internal_batch_size=ROWS,
    )
    return found.detach().sum(dim=1).float().cpu()


def expected_gradients(
    model: TrainedModel,
    images: Tensor,
    index: Tensor,
    baselines: Tensor,
    seed: int,
    samples: int = 64,
) -> Tensor:
    """SHAP values by expected gradients, summed over channels, (B, H, W), signed.

    The mean of (x - x') ∂f(x' + a (x - x'))/∂x over images x' of the data and a from 0 to 1 (arXiv
    1906.10670, equation 3), which approximates SHAP's additive explanations (arXiv 1705.07874) for
    differentiable models. Every image gets the same draws, so its map does not depend on the other
    images.

    Args:
        model: The trained model.
        images: x (B, C, H, W) in [0, 1].
        index: The class to explain in each image, (B,).
        baselines: Images (M, C, H, W) from which x' is drawn.
        seed: Of the draws.
        samples: Draws per image.
    """
    from captum.attr import GradientShap

    shap = GradientShap(ImageClassifier(model))
    baselines = baselines.to(model.device)
    maps = []
    for image, at in zip(images.to(model.device).split(1), index.tolist(), strict=True):
        with _global_seed(seed):
            found = shap.attribute(image, baselines, n_samples=samples, target=at)
        maps.append(found.detach().sum(dim=1).float().cpu())
    return torch.cat(maps)


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seeds the global generators, from which captum draws, and restores them afterwards."""
    before = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            np.random.set_state(before)
