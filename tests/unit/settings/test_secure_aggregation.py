"""Secure aggregation in the settings: its plan, its thresholds, and refused settings."""

import pytest

from configs.compose import change, compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.privacy.accounting.accountant import Charge, epsilon
from mediffusion_core.privacy.accounting.plan import JOINT, Plan
from mediffusion_core.settings import Settings

ENABLED = "privacy.secure_aggregation.enabled=true"
TOLERATED = "privacy.secure_aggregation.tolerated_sites"


@pytest.fixture(scope="module")
def shared() -> Settings:
    return compose("config", ["experiment=isic2019_private", "data.root=/images"])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("privacy.enabled=false", "the sites share the noise of private steps"),
        ("privacy.trained=all", "sums of the classifier's gradients alone"),
        ("privacy.autoencoder=trained", "send single sites' weights"),
        ("federation.num_malicious_sites=1", "compare the changes of single sites"),
        ("federation.norm_bound=2", "compare the changes of single sites"),
        ("federation.weighting=steps", "a sum has no weights"),
        ("federation.compression=int8", "cannot be compressed"),
        ("federation.local_normalisation=true", "only the classifier is trained"),
        ("federation.fraction_train=0.5", "planned for all sites in each round"),
        ("training.joint.proximal_weight=0.1", "no distance to themselves"),
        ("training.joint.control_variates=true", "mean gradients without noise"),
        ("data.labels_at=server", "the server would be one of the sites"),
        ("federation.left_out_site=rosendahl", "tolerated among more than 3 t"),
        (f"{TOLERATED}=2", "tolerated among more than 3 t"),
        ("federation.pool_sites=true", "tolerated among more than 3 t"),
    ],
)
def test_a_setting_that_reads_single_sites_is_refused(
    shared: Settings, given: str, reason: str
) -> None:
    with pytest.raises(UserError, match=reason) as refused:
        change(shared, [given])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("given", [f"{TOLERATED}=0", "federation.num_sites=3"])
def test_a_site_that_reads_the_sums_is_one_of_the_tolerated(shared: Settings, given: str) -> None:
    with pytest.raises(UserError):
        change(shared, [given])


def test_noise_that_would_not_fit_whole_numbers_is_refused(shared: Settings) -> None:
    with pytest.raises(UserError, match=r"noise_multiplier=1e\+14 is too large .* at most 1e\+06"):
        change(shared, ["privacy.target_epsilon=null", "privacy.noise_multiplier=1e14"])


@pytest.mark.parametrize(("least", "expected"), [("1", 3), ("4", 4), ("null", 3)])
def test_a_run_needs_as_many_sites_as_the_noise(
    shared: Settings, least: str, expected: int
) -> None:
    assert shared.counted_sites == 3
    assert change(shared, [f"federation.min_sites={least}"]).min_sites == expected


@pytest.mark.parametrize("units", [1, 200, 9000])
def test_each_round_is_one_step_of_all_units(shared: Settings, units: int) -> None:
    small = change(shared, ["privacy.batch_size=16", "privacy.target_delta=1e-6"])
    plan = Plan.of(small, units, noise_multiplier=5.0)
    assert plan.sample_rate == 1.0 and plan.expected_units == units
    assert [plan.steps(JOINT, number) for number in range(1, 51)] == [1] * 50
    assert plan.charges() == [Charge(1.0, 8.0, 1)] * 2 + [Charge(1.0, 5.0, 50)]


def test_all_sites_have_the_same_noise_within_the_runs_epsilon(shared: Settings) -> None:
    few, many = Plan.of(shared, 200), Plan.of(shared, 3000)
    assert few.noise_multiplier == many.noise_multiplier
    assert 7.9 < epsilon(few.charges(), 1e-5) <= 8.0
