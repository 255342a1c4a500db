"""Pairs of counterfactuals of one image, ours and external guidance's, in random order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.evaluation.counterfactual_panel import Panel, make_counterfactuals
from mediffusion_core.inference.joint_model import TrainedModel
from simulations.baselines.external_guidance import external_latents
from simulations.baselines.pixel_classifier import PixelClassifier

OURS, EXTERNAL = "ours", "external"
METHODS = (OURS, EXTERNAL)


@dataclass(frozen=True)
class Pairs:
    """Both counterfactuals of each of n images."""

    sources: Tensor
    """The images, (n, C, H, W) in [0, 1]."""
    made: dict[str, Tensor]
    """Counterfactuals by method, (n, C, H, W)."""


def make_pairs(
    model: TrainedModel, external: PixelClassifier, images: Tensor, target: Target
) -> Pairs:
    """Makes both counterfactuals of each image with the same settings of guidance.

    Ours also has a mask, and guides only at noise levels on which the head was trained.

    Args:
        model: The trained model.
        external: The classifier of external guidance.
        images: (n, C, H, W) in [0, 1].
        target: The target of each image.
    """
    guidance = model.settings.evaluation.counterfactual
    ours = make_counterfactuals(model, images, target, guidance)
    latents = model.encode(images)
    detail = model.detail(images, latents)
    made = external_latents(model, external, latents, target, guidance, detail)
    return Pairs(ours.sources, {OURS: ours.images, EXTERNAL: model.render(made, detail)})


@dataclass(frozen=True)
class Item:
    """One item of the page: a pair and the sides of its images."""

    pair: int
    left: str
    """The method of the left image."""

    @property
    def right(self) -> str:
        """The method of the right image."""
        return METHODS[1 - METHODS.index(self.left)]


def draw_items(pairs: int, repeats: int, seed: int) -> list[Item]:
    """The pairs in random order, each method left in half of them, then the repeated pairs.

    Args:
        pairs: Number of pairs.
        repeats: Pairs shown again with sides swapped, to measure a reader's consistency; at most
            all.
        seed: Seed of order and sides.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(pairs, generator=generator).tolist()
    sides = torch.randperm(pairs, generator=generator).tolist()
    items = [Item(pair, METHODS[side % 2]) for pair, side in zip(order, sides, strict=True)]
    return [*items, *(Item(item.pair, item.right) for item in items[:repeats])]


def target_texts(panel: Panel) -> list[str]:
    """The target of each image, as the page shows it."""
    return [f"Asked for: {name}" for name in panel.names]
