"""Evidence for each mark, site and class, from one model and the test images of a run."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.counterfactuals.target import Target
from mediffusion_core.data import marks
from mediffusion_core.evaluation.counterfactual_panel import Counterfactuals, make_counterfactuals
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.settings import CounterfactualSettings, MarkKind
from simulations.studies.shortcut.decision import Evidence, Sample
from simulations.studies.shortcut.interventions import Effects, concentration, mark_effects


@dataclass(frozen=True)
class SiteImages:
    """n test images with site, and patient or lesion, of each."""

    images: Tensor
    """(n, C, H, W) in [0, 1]."""
    sites: tuple[str, ...]
    groups: tuple[str, ...]

    def at(self, site: str) -> Tensor:
        """Which images are of a site, (n,)."""
        return torch.tensor([one == site for one in self.sites])


@dataclass(frozen=True)
class Removals:
    """Counterfactuals without a class that the model assigns to their images; m of n images."""

    positions: Tensor
    """Positions of the images, (m,)."""
    classes: Tensor
    """The class that each is to lose, (m,)."""
    made: Counterfactuals


@dataclass(frozen=True)
class Measured:
    """All measurements of one model."""

    evidence: list[Evidence]
    effects: dict[MarkKind, Effects]
    removals: Removals


def measure(
    model: TrainedModel, given: SiteImages, guidance: CounterfactualSettings, per_class: int
) -> Measured:
    """Measures one model.

    Args:
        model: The model.
        given: The images.
        guidance: Of the counterfactuals.
        per_class: Counterfactuals of each class at each site, at most.

    Raises:
        UserError: if the model assigns no class to any image.
    """

    def log_odds(images: Tensor) -> Tensor:
        return model.classify(images).logit(eps=1e-6)

    before = log_odds(given.images)
    effects = {kind: mark_effects(given.images, kind, log_odds, before) for kind in marks.KINDS}
    removals = _remove_classes(model, given, before, guidance, per_class)
    return Measured(collect(given, effects, removals, model.classes), effects, removals)


def collect(
    given: SiteImages,
    effects: dict[MarkKind, Effects],
    removals: Removals,
    classes: Sequence[str],
) -> list[Evidence]:
    """The samples of every site, kind of mark and class."""
    chosen = [given.sites[at] for at in removals.positions.tolist()]
    owners = [given.groups[at] for at in removals.positions.tolist()]
    evidence = []
    for kind, effect in effects.items():
        places = concentration(removals.made.sources, removals.made.images, kind)
        for site in dict.fromkeys(given.sites):
            here = given.at(site)
            groups = [one for one, same in zip(given.groups, here.tolist(), strict=True) if same]
            made_here = torch.tensor([one == site for one in chosen], dtype=torch.bool)
            for index, label in enumerate(classes):
                lost = made_here & (removals.classes == index)
                evidence.append(
                    Evidence(
                        site,
                        kind,
                        label,
                        Sample(effect.pasted[here, index], groups),
                        Sample(effect.removed[here, index], groups),
                        Sample(places.where(lost, torch.nan), owners),
                    )
                )
    return evidence


def _remove_classes(
    model: TrainedModel,
    given: SiteImages,
    log_odds: Tensor,
    guidance: CounterfactualSettings,
    per_class: int,
) -> Removals:
    positions, classes = choose_assigned(
        log_odds, given.sites, per_class, derive_seed(model.settings.seed, "shortcut")
    )
    if not len(positions):
        raise UserError("the model assigns no class to any test image; train it for longer")
    target = removal(log_odds[positions], classes, model.multi_label)
    made = make_counterfactuals(model, given.images[positions], target, guidance)
    return Removals(positions, classes, made)


def removal(log_odds: Tensor, classes: Tensor, multi_label: bool) -> Target:
    """The target without a class (m,): absent, or with exclusive classes the next likeliest one.

    Args:
        log_odds: Of the images, (m, classes).
        classes: The class that each image is to lose, (m,).
        multi_label: Whether the classes are independent.
    """
    if multi_label:
        return Target(classes, torch.zeros_like(classes, dtype=torch.bool), True)
    others = log_odds.scatter(1, classes[:, None], -torch.inf)
    return Target(others.argmax(dim=1), torch.ones_like(classes, dtype=torch.bool), False)


def choose_assigned(
    log_odds: Tensor, sites: Sequence[str], per_class: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Up to `per_class` images of each site for each class that the model assigns to them.

    Args:
        log_odds: (n, classes); a class is assigned above 0.
        sites: Of each image.
        per_class: Images of a class at a site, at most.
        seed: Of the choice.

    Returns:
        Positions (m,) and classes (m,).
    """
    order = torch.randperm(len(sites), generator=torch.Generator().manual_seed(seed)).tolist()
    positions, classes = [], []
    for site in dict.fromkeys(sites):
        for index in range(log_odds.shape[1]):
            fit = [at for at in order if sites[at] == site and bool(log_odds[at, index] > 0)]
            positions += fit[:per_class]
            classes += [index] * len(fit[:per_class])
    return torch.tensor(positions, dtype=torch.long), torch.tensor(classes, dtype=torch.long)
