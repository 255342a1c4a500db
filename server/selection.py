"""Which of a run's models is kept: chosen on the sites' validation patients, never on a test set.

With few patients of a rare class the pooled AUC goes up and down by more than a model gains in
some rounds, so that its highest value often belongs to a half-trained model by chance. Hence the
rule of one standard error (Breiman et al. 1984, section 3.4.3), turned towards training: the
newest model that is not worse than the best one by more than the standard error of their
difference.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Evaluated:
    """A model evaluated on the sites' patients."""

    number: int
    """The joint round after which it was evaluated."""
    auc: float
    """Pooled macro AUC; nan where no site has labelled validation patients."""
    draws: list[float]
    """The pooled macro AUC in each bootstrap; all models are evaluated on the same patients."""


@dataclass(frozen=True)
class Selection:
    """Which round's model is kept, and the one with the highest AUC so far."""

    kept: int
    highest: Evaluated


def select(selection: Selection | None, latest: Evaluated) -> Selection:
    """The selection after the latest model has been evaluated.

    Where nothing can be preferred, for want of labelled validation patients, it is the latest.
    """
    if selection is None or not latest.auc < selection.highest.auc:  # also where one is nan
        return Selection(latest.number, latest)
    worse_by = selection.highest.auc - latest.auc
    if worse_by > _standard_error(latest.draws, selection.highest.draws):
        return selection
    return Selection(latest.number, selection.highest)


def _standard_error(draws: list[float], others: list[float]) -> float:
    """Of the difference of two figures, from bootstraps of the same patients; 0 if there are none.

    A bootstrap that left a class out has no figure.
    """
    differences = torch.tensor(draws, dtype=torch.float64) - torch.tensor(others)
    finite = differences[differences.isfinite()]
    return float(finite.std()) if len(finite) > 1 else 0.0
