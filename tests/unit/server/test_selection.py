"""The model that a run keeps after each evaluation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.selection import Evaluated, Selection, select


def evaluated(number: int, auc: float, spread: float = 0.0, seed: int = 0) -> Evaluated:
    noise = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * spread
    return Evaluated(number, auc, (auc + noise).tolist())


def kept(*models: Evaluated) -> int:
    selection: Selection | None = None
    for model in models:
        selection = select(selection, model)
    assert selection is not None
    return selection.kept


def test_a_better_model_is_kept() -> None:
    assert kept(evaluated(1, 0.7), evaluated(2, 0.8), evaluated(3, 0.9)) == 3


def test_a_model_that_is_clearly_worse_is_not() -> None:
    """Both saw the same bootstraps, so that only their difference varies."""
    assert kept(evaluated(1, 0.9, 0.05), evaluated(2, 0.88, 0.05)) == 1


def test_a_newer_model_within_the_noise_of_the_best_is_kept() -> None:
    # The difference of two independent draws has a standard error of 0.01 √2.
    assert kept(evaluated(1, 0.90, 0.01, seed=1), evaluated(2, 0.89, 0.01, seed=2)) == 2
    assert kept(evaluated(1, 0.90, 0.01, seed=1), evaluated(2, 0.88, 0.01, seed=2)) == 1


def test_many_small_losses_do_not_add_up() -> None:
    """Each model is compared with the best so far, not with the previous one."""
    models = [evaluated(n, 0.9 - 0.008 * n, 0.01, seed=n) for n in range(6)]
    assert kept(*models) == 1


def test_with_no_labelled_patients_the_newest_is_kept() -> None:
    nothing = [Evaluated(n, math.nan, [math.nan] * 5) for n in range(3)]
    assert kept(*nothing) == 2
    assert kept(*nothing, evaluated(3, 0.6)) == 3


def test_bootstraps_that_left_a_class_out_are_passed_over() -> None:
    best = Evaluated(1, 0.9, [0.9, 0.91, math.nan, 0.89])
    assert kept(best, Evaluated(2, 0.899, [0.95, 0.85, 0.9, 0.9])) == 2
    assert kept(best, Evaluated(2, 0.899, [math.nan] * 3 + [0.9])) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10), st.floats(0, 0.2))
def test_the_kept_model_is_never_much_worse_than_the_best(aucs: list[float], spread: float) -> None:
    models = [evaluated(n, auc, spread, seed=n) for n, auc in enumerate(aucs)]
    assert aucs[kept(*models)] >= max(aucs) - 2 * spread - 1e-6


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_the_first_model_is_kept_until_another_comes(spread: float) -> None:
    assert kept(evaluated(4, 0.2, spread)) == 4
