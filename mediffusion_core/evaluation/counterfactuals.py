"""Judging counterfactuals: a fixed panel of test images, and figures over it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.artifacts.trained import TrainedModel
from mediffusion_core.diffusion.target import Target
from mediffusion_core.evaluation.similarity import mean_absolute
from mediffusion_core.settings import CounterfactualSettings


@dataclass(frozen=True)
class Panel:
    """Test images and what each is asked to become; chosen by label and seed, not by a model."""

    positions: Tensor
    """Positions in the test set, (n,)."""
    target: Target
    names: tuple[str, ...]
    """What is asked for: `remove Effusion`, `NV → MEL`."""


def choose_panel(
    targets: Tensor,
    classes: tuple[str, ...],
    multi_label: bool,
    count: int,
    seed: int,
    *,
    additions: bool = True,
    between: tuple[int, int] | None = None,
) -> Panel:
    """Chooses a panel of up to `count` images from a test set's labels.

    Multi-label: every class in turn, removed from an image that has it, then added to one that
    has not. Exclusive: between two classes, by default the most frequent ones, both ways in turn.
    No image is asked for twice.

    Args:
        targets: (N, C) in {0, 1}, NaN where missing.
        classes: Names of the C classes.
        multi_label: Whether the classes are independent.
        count: How many images at most.
        seed: Chooses among the images that fit.
        additions: Whether findings are also added; without, every image has what is asked about.
        between: The two exclusive classes.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(targets), generator=generator)
    if multi_label:
        wishes = _multi_label_wishes(classes, additions)
    else:
        wishes = _exclusive_wishes(between or _most_frequent(targets))
    pools = {wish: order[targets[order, wish[0]] == wish[1]].tolist() for wish in wishes}
    chosen: list[tuple[int, int, bool, str]] = []
    used: set[int] = set()
    while len(chosen) < count and any(pools.values()):
        for wish in wishes:
            pools[wish] = [row for row in pools[wish] if row not in used]
            if pools[wish] and len(chosen) < count:
                held, value, index = wish
                name = (
                    f"{'remove' if value else 'add'} {classes[index]}"
                    if multi_label
                    else f"{classes[held]} → {classes[index]}"
                )
                present = not value if multi_label else True
                chosen.append((pools[wish][0], index, present, name))
                used.add(pools[wish][0])
    target = Target(
        torch.tensor([index for _, index, _, _ in chosen], dtype=torch.long),
        torch.tensor([present for _, _, present, _ in chosen], dtype=torch.bool),
        multi_label,
    )
    positions = torch.tensor([position for position, *_ in chosen], dtype=torch.long)
    return Panel(positions, target, tuple(name for *_, name in chosen))


Wish = tuple[int, int, int]
"""An image whose label at the first index has the given value shall change at the last index."""


def _multi_label_wishes(classes: tuple[str, ...], additions: bool) -> list[Wish]:
    removed = [(index, 1, index) for index in range(len(classes))]
    added = [(index, 0, index) for index in range(len(classes)) if additions]
    return removed + added


def _exclusive_wishes(between: tuple[int, int]) -> list[Wish]:
    first, second = between
    return [(second, 1, first), (first, 1, second)]


def _most_frequent(targets: Tensor) -> tuple[int, int]:
    first, second, *_ = targets.nan_to_num().sum(dim=0).argsort(descending=True).tolist()
    return first, second


@dataclass(frozen=True)
class Counterfactuals:
    """What a model made of a panel; n images."""

    sources: Tensor
    """The model's reconstructions of the images, (n, C, H, W): guidance changes nothing else."""
    images: Tensor
    """The counterfactuals, (n, C, H, W)."""
    before: Tensor
    """Probabilities of the sources, encoded anew from their pixels, (n, classes)."""
    after: Tensor
    """Probabilities of the counterfactuals, encoded anew from their pixels, (n, classes)."""
    eligible: Tensor
    """(n,): the source was not already classified as the target."""
    flipped: Tensor
    """(n,): the counterfactual is classified as the target."""

    def outcome(self, row: int) -> bool | None:
        """Whether one image flipped; None where its source was classified so from the start."""
        return bool(self.flipped[row]) if bool(self.eligible[row]) else None

    def figures(self, target: Target) -> dict[str, float]:
        """Flip rate, closeness and side effects over the panel.

        `flip_rate`: share of the eligible images that reach their target. `l1`: mean absolute
        change of a pixel, images in [0, 1]. `off_target`: mean absolute change of the other
        classes' probabilities. `target_change`: mean change of the target's probability in the
        wanted direction.
        """
        eligible = int(self.eligible.sum())
        flips = int((self.flipped & self.eligible).sum())
        return {
            "flip_rate": flips / eligible if eligible else float("nan"),
            "eligible": eligible,
            "count": len(self.images),
            "l1": float(mean_absolute(self.images, self.sources).mean()),
            "off_target": float(off_target(self.before, self.after, target).nanmean()),
            "target_change": float(target_change(self.before, self.after, target).mean()),
        }


def off_target(before: Tensor, after: Tensor, target: Target) -> Tensor:
    """Mean |p_after - p_before| of the classes that were not asked for, (n,); nan without any.

    Args:
        before: Probabilities of the sources, (n, classes).
        after: Probabilities of the counterfactuals, (n, classes).
        target: What was asked for.
    """
    others = ~target.named(before.shape[1])
    return ((after - before).abs() * others).sum(dim=1) / others.sum(dim=1)


def target_change(before: Tensor, after: Tensor, target: Target) -> Tensor:
    """By how much the probability of what was asked for has risen, (n,); of several, the least."""
    return target.confidence(after) - target.confidence(before)


def make_counterfactuals(
    model: TrainedModel, images: Tensor, target: Target, settings: CounterfactualSettings
) -> Counterfactuals:
    """Makes one counterfactual an image and lets the model classify source and counterfactual.

    Both have been through the autoencoder once, so their difference is guidance's alone.

    Args:
        model: The trained model.
        images: (n, C, H, W) in [0, 1].
        target: What each should become.
        settings: Guidance.
    """
    latents = model.encode(images)
    return compare(model, latents, model.explain(latents, target, settings), target)


def compare(model: TrainedModel, latents: Tensor, made: Tensor, target: Target) -> Counterfactuals:
    """Decodes sources and counterfactuals, both (n, c, h, w), and lets the model classify both."""
    sources, images = model.decode(latents), model.decode(made)
    before = model.logits(model.encode(sources))
    after = model.logits(model.encode(images))
    return Counterfactuals(
        sources=sources,
        images=images,
        before=model.probabilities(before),
        after=model.probabilities(after),
        eligible=~target.reached(before),
        flipped=target.reached(after),
    )
