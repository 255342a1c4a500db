"""Pairs of counterfactuals of one image, ours and that of external guidance, in drawn order."""

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
    """What was made of n images."""

    sources: Tensor
    """The model's reconstructions, (n, C, H, W) in [0, 1]: guidance changes nothing else."""
    made: dict[str, Tensor]
    """By method, (n, C, H, W)."""


def make_pairs(
    model: TrainedModel, external: PixelClassifier, images: Tensor, target: Target
) -> Pairs:
    """Makes both counterfactuals of each image, by the same guidance.

    Ours has its mask besides, and pulls only at noise that its head knows.

    Args:
        model: The trained model.
        external: The classifier that guides the other ones.
        images: (n, C, H, W) in [0, 1].
        target: What each should become.
    """
    guidance = model.settings.evaluation.counterfactual
    ours = make_counterfactuals(model, images, target, guidance)
    made = external_latents(model, external, model.encode(images), target, guidance)
    return Pairs(ours.sources, {OURS: ours.images, EXTERNAL: model.decode(made)})


@dataclass(frozen=True)
class Item:
    """One question on the page: a pair of the study, in the order in which it is shown."""

    pair: int
    left: str
    """The method whose image stands left."""

    @property
    def right(self) -> str:
        """The other one."""
        return METHODS[1 - METHODS.index(self.left)]


def draw_items(pairs: int, repeats: int, seed: int) -> list[Item]:
    """The pairs in drawn order, each method left in half of them, then some with sides swapped.

    Args:
        pairs: How many pairs there are.
        repeats: How many are shown twice, to see whether a reader decides alike; at most all.
        seed: Of order and sides.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(pairs, generator=generator).tolist()
    sides = torch.randperm(pairs, generator=generator).tolist()
    items = [Item(pair, METHODS[side % 2]) for pair, side in zip(order, sides, strict=True)]
    return [*items, *(Item(item.pair, item.right) for item in items[:repeats])]


def asked_for(panel: Panel) -> list[str]:
    """What each image was to become, as a reader is asked."""
    return [f"Asked for: {name}" for name in panel.names]
