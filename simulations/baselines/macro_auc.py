"""The macro AUC of a classifier with its bootstrap over patients."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from mediffusion_core.evaluation.classification import (
    bootstrap_auc,
    class_scores,
    exact_auc,
    macro,
    macro_draws,
)


@dataclass(frozen=True)
class MacroAuc:
    """A macro AUC and its bootstrap."""

    value: float
    """Mean over the classes that have an AUC; nan if none has."""
    draws: Tensor
    """Macro AUC of each bootstrap, (B,) float64; nan where it lacks a class of the value."""


@dataclass(frozen=True)
class Bootstrap:
    """Resampling of patients; the same groups, number and seed draw the same patients."""

    groups: Sequence[str] | Tensor
    """Patient or lesion of each of the N images."""
    num_bootstraps: int
    seed: int


def bootstrapped_macro_auc(
    logits: Tensor, targets: Tensor, multi_label: bool, bootstrap: Bootstrap
) -> MacroAuc:
    """The exact macro AUC and that of each bootstrap.

    Args:
        logits: (N, C).
        targets: (N, C) of 0, 1, or nan where the label is missing.
        multi_label: Whether the classes are independent.
        bootstrap: Patients of the N images, and the draws.

    Raises:
        ValueError: as `class_scores` and `exact_auc`.
    """
    scores = class_scores(logits, multi_label)
    per_class = exact_auc(scores, targets)
    draws = bootstrap_auc(
        scores, targets, bootstrap.groups, bootstrap.num_bootstraps, bootstrap.seed
    )
    return MacroAuc(macro(per_class), macro_draws(per_class, draws))
