"""A fixed panel of test images, their counterfactuals, and figures over them."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mediffusion_core.counterfactuals.editable import EditableRegion
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.evaluation.similarity import mean_absolute
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.settings import CounterfactualSettings


@dataclass(frozen=True)
class Panel:
    """Test images and a target for each; chosen by label and seed, independently of any model."""

    positions: Tensor
    """Positions in the test set, (n,)."""
    target: Target
    names: tuple[str, ...]
    """Each target as text: `remove Effusion`, `NV → MEL`."""


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

    Multi-label: for every class in turn an image that has it, to remove it; then for every class an
    image without it, to add it. Exclusive: between two classes, in both directions in turn. No
    image is chosen twice.

    Args:
        targets: (N, C) in {0, 1}, NaN where missing.
        classes: Names of the C classes.
        multi_label: Whether the classes are independent.
        count: Images at most.
        seed: Chooses among the images that fit.
        additions: Whether findings are also added; if not, they are only removed.
        between: The two exclusive classes; the most frequent ones by default.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(targets), generator=generator)
    if multi_label:
        requests = _multi_label_requests(classes, additions)
    else:
        requests = _exclusive_requests(between or _most_frequent(targets))
    pools = {one: order[targets[order, one.source] == one.label].tolist() for one in requests}
    chosen: dict[int, _Request] = {}  # by position
    while len(chosen) < count and any(pools.values()):
        for request in requests:
            pools[request] = [row for row in pools[request] if row not in chosen]
            if pools[request] and len(chosen) < count:
                chosen[pools[request][0]] = request
    target = Target(
        torch.tensor([one.target for one in chosen.values()], dtype=torch.long),
        torch.tensor([not (multi_label and one.label) for one in chosen.values()]).bool(),
        multi_label,
    )
    names = tuple(_name(one, classes, multi_label) for one in chosen.values())
    return Panel(torch.tensor(list(chosen), dtype=torch.long), target, names)


class _Request(NamedTuple):
    """A change of class `target` for images in which class `source` has the label `label`."""

    source: int
    label: int
    target: int


def _multi_label_requests(classes: tuple[str, ...], additions: bool) -> list[_Request]:
    removals = [_Request(index, 1, index) for index in range(len(classes))]
    added = [_Request(index, 0, index) for index in range(len(classes)) if additions]
    return removals + added


def _exclusive_requests(between: tuple[int, int]) -> list[_Request]:
    first, second = between
    return [_Request(second, 1, first), _Request(first, 1, second)]


def _name(request: _Request, classes: tuple[str, ...], multi_label: bool) -> str:
    if multi_label:
        return f"{'remove' if request.label else 'add'} {classes[request.target]}"
    return f"{classes[request.source]} → {classes[request.target]}"


def _most_frequent(targets: Tensor) -> tuple[int, int]:
    first, second, *_ = targets.nan_to_num().sum(dim=0).argsort(descending=True).tolist()
    return first, second


@dataclass(frozen=True)
class Counterfactuals:
    """Counterfactuals of n images, with the model's classification before and after."""

    sources: Tensor
    """The images, (n, C, H, W); counterfactuals differ from them by guidance."""
    images: Tensor
    """The counterfactuals, (n, C, H, W)."""
    before: Tensor
    """Probabilities of the sources, encoded again from their pixels, (n, classes)."""
    after: Tensor
    """Probabilities of the counterfactuals, encoded again from their pixels, (n, classes)."""
    eligible: Tensor
    """(n,): the source was not already classified as the target."""
    flipped: Tensor
    """(n,): the counterfactual is classified as the target."""
    note: str = ""
    """A sentence if a mask kept a target's probability below the confidence that was asked for."""

    def outcome(self, row: int) -> bool | None:
        """Whether one image flipped; None where its source was already classified as the target."""
        return bool(self.flipped[row]) if bool(self.eligible[row]) else None

    def figures(self, target: Target) -> dict[str, float]:
        """Flip rate, closeness and side effects over the panel.

        `flip_rate`: share of the eligible images that reach their target. `l1`: mean absolute
        change of a pixel, images in [0, 1]. `off_target`: mean absolute change of the other
        classes' probabilities. `target_change`: mean rise of the target's confidence.
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


@dataclass(frozen=True)
class CounterfactualRow:
    """One counterfactual, as a row of the panel shows it.

    Attributes:
        source: The image, (C, H, W) in [0, 1].
        counterfactual: The image with another finding, (C, H, W) in [0, 1].
        target: The target as text, for example `remove Effusion` or `NV → MEL`.
        classes: Names of the K classes.
        before: Probabilities of the source, (K,).
        after: Probabilities of the counterfactual, (K,).
        flipped: Whether the counterfactual reached the target; None where the source was already
            classified as the target.
        truth: The same patient without the finding, (C, H, W), where it is known (phantoms).
        editable: The pixels that a user let change, (H, W), where there was a mask.
    """

    source: NDArray[Any]
    counterfactual: NDArray[Any]
    target: str
    classes: tuple[str, ...]
    before: NDArray[Any]
    after: NDArray[Any]
    flipped: bool | None
    truth: NDArray[Any] | None = None
    editable: NDArray[np.bool_] | None = None


def off_target(before: Tensor, after: Tensor, target: Target) -> Tensor:
    """Mean |p_after - p_before| of the classes outside the target, (n,); nan if there are none.

    Args:
        before: Probabilities of the sources, (n, classes).
        after: Probabilities of the counterfactuals, (n, classes).
        target: The targets.
    """
    others = ~target.named(before.shape[1])
    return ((after - before).abs() * others).sum(dim=1) / others.sum(dim=1)


def target_change(before: Tensor, after: Tensor, target: Target) -> Tensor:
    """Rise of the target's confidence, (n,); with several classes, of the least confident one."""
    return target.confidence(after) - target.confidence(before)


def make_counterfactuals(
    model: TrainedModel,
    images: Tensor,
    target: Target,
    settings: CounterfactualSettings,
    editable: Tensor | None = None,
) -> Counterfactuals:
    """Makes one counterfactual per image and classifies source and counterfactual.

    A counterfactual has the detail of its image, so they differ by guidance alone. Pixels that may
    not change are equal in both, bit for bit.

    Args:
        model: The trained model.
        images: (n, C, H, W) in [0, 1].
        target: The target of each.
        settings: Guidance.
        editable: Pixels that may change, booleans (n, 1, H, W); all if None.
    """
    images = images.cpu()
    latents = model.encode(images)
    detail = model.detail(images, latents)
    region = None if editable is None else EditableRegion(images, editable)
    changed = model.render(model.explain(latents, target, settings, detail, region), detail)
    if region is None:
        return compare(model, images, changed, target)
    made = compare(model, images, region.compose(changed, torch.arange(len(images))), target)
    return replace(made, note=_shortfall(target.confidence(made.after), settings.confidence))


def _shortfall(reached: Tensor, asked: float) -> str:
    """A sentence on the images whose target has less than the confidence; empty if none has."""
    short, least = int((reached < asked).sum()), float(reached.min())
    if not short:
        return ""
    if len(reached) == 1:
        return f"Within the mask the target's probability reaches {least:.3f}, not {asked:g}."
    return (
        f"Within the mask the target's probability does not reach {asked:g} in {short} of "
        f"{len(reached)} images; the lowest is {least:.3f}."
    )


def compare(
    model: TrainedModel, sources: Tensor, images: Tensor, target: Target
) -> Counterfactuals:
    """Classifies sources and counterfactuals.

    Args:
        model: The trained model.
        sources: (n, C, H, W) in [0, 1].
        images: The counterfactuals, (n, C, H, W) in [0, 1].
        target: The target of each.
    """
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
