"""A sweep sorts by figures of validation patients alone."""

import pytest

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from simulations.sweeps.objective import check_objective, has_objective, objective_of


@pytest.mark.parametrize(
    "name", ["auc_macro", "auc_per_class.MEL", "fid", "psnr", "counterfactual.flip_rate", "kid"]
)
def test_a_figure_of_the_test_set_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(UserError, match=r"is a figure of the test set: .* too good; allowed: auc_"):
        check_objective(name)


@pytest.mark.parametrize(
    "name", ["auc", "auc_pooled.MEL", "auc_pooled_per_class", "auc_pooled_interval", "seconds", ""]
)
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"allowed are auc_pooled and auc_pooled_per_class\.CLASS"):
        check_objective(name)


def test_a_class_must_be_one_of_the_images() -> None:
    check_objective("auc_pooled", ["NV", "MEL"])
    check_objective("auc_pooled_per_class.MEL", ["NV", "MEL"])
    with pytest.raises(UserError, match="no such class; allowed: NV, MEL"):
        check_objective("auc_pooled_per_class.BCC", ["NV", "MEL"])


def test_a_figure_that_was_not_measured_is_none() -> None:
    summary = {"auc_pooled": 0.7, "auc_pooled_per_class": {"NV": 0.6, "MEL": None}}
    assert objective_of(summary, "auc_pooled") == 0.7
    assert objective_of(summary, "auc_pooled_per_class.NV") == 0.6
    assert objective_of(summary, "auc_pooled_per_class.MEL") is None
    assert objective_of({}, "auc_pooled") is None


def test_some_runs_have_no_figures_of_validation_patients(tiny: tuple[str, ...]) -> None:
    assert has_objective(compose("config", tiny))
    for override in ("training.joint.classification_weight=0", "privacy=dp"):
        assert not has_objective(compose("config", [*tiny, override]))
