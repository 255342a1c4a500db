"""Settings of a private run, their cost, and refused settings."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.privacy.accounting.accountant import epsilon
from mediffusion_core.privacy.accounting.filters import RenyiFilter
from mediffusion_core.privacy.accounting.plan import AUTOENCODER, JOINT, Plan
from mediffusion_core.settings import Settings
from mediffusion_core.settings.privacy_conflicts import WITH_DP_SGD

DP = ("privacy=dp", "privacy.target_delta=1e-6")
GIVEN = ("privacy.target_epsilon=null", "privacy.noise_multiplier=1")


def test_a_run_is_not_private_unless_it_is_asked_to_be() -> None:
    assert not compose("config", []).privacy.enabled
    assert compose("config", ["privacy=dp"]).privacy.target_epsilon == 8.0


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("training.precision=bf16", "norm of a gradient is off by a percent"),
        ("training.joint.consistency.weight=1", "no pseudo-labels"),
        ("training.joint.logit_adjustment=1", "label counts without noise"),
        ("training.joint.control_variates=true", "mean gradients without noise"),
        ("model.head.pooling=attention", "cannot be clipped for each unit"),
        ("data.partition=dirichlet", "one patient changes where others go"),
        ("data.partition=quantity", "one patient changes where others go"),
        ("privacy.noise_multiplier=1", "exactly one of privacy.noise_multiplier"),
        ("privacy.target_epsilon=null", "exactly one of privacy.noise_multiplier"),
        ("+privacy.seed=3", "a seed allows to subtract the noise"),
        ("privacy.trained=attention", "needs privacy.public_model, the folder of a model"),
        (
            "privacy.autoencoder=frozen privacy.public_model=/public",
            "ignores privacy.public_model",
        ),
        ("privacy.autoencoder=public", "needs privacy.public_model, the folder of a model"),
    ],
)
def test_a_setting_that_voids_the_guarantee_is_refused(given: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        compose("config", [*DP, *given.split()])


def test_one_row_for_both_losses_refuses_several_rows() -> None:
    with pytest.raises(UserError, match=r"privacy\.grad_sample_mode=ghost has one row"):
        compose("config", [*DP, "privacy.grad_sample_mode=ghost", "privacy.noise_multiplicity=2"])


def test_adaptive_thresholds_are_refused() -> None:
    thresholds = ["consistency.weight=1", "consistency.thresholds=adaptive"]
    with pytest.raises(UserError, match="one image changes the gradients of others"):
        compose("config", [*DP, *(f"training.joint.{one}" for one in thresholds)])


def test_the_same_settings_are_allowed_without_privacy() -> None:
    plain = compose("config", ["training.joint.control_variates=true"])
    assert any(one.applies(plain) for one in WITH_DP_SGD)


def test_a_frozen_autoencoder_needs_a_linear_start() -> None:
    with pytest.raises(UserError, match=r"autoencoder=frozen .*linear_start=true"):
        compose("config", [*DP, "privacy.autoencoder=frozen"])


def test_a_head_alone_that_no_loss_reaches_is_refused() -> None:
    head = ["privacy.trained=head", "privacy.public_model=/public"]
    with pytest.raises(
        UserError, match=r"trained=head trains nothing with .*classification_weight=0"
    ):
        compose("config", [*DP, *head, "training.joint.classification_weight=0"])
    compose("config", [*DP, *head])
    compose("config", [*head, "training.joint.classification_weight=0"])


def test_a_head_alone_needs_something_to_read() -> None:
    head, moments = "privacy.trained=head", "model.head.latent_statistics=true"
    for wanting in ([head], [head, moments], [head, "training.joint.diffusion_weight=0"]):
        with pytest.raises(UserError, match=r"trained=head needs .* a classifier alone, model"):
            compose("config", [*DP, *wanting])
    compose("config", [*DP, head, moments, "training.joint.diffusion_weight=0"])


@cache
def composed(*overrides: str) -> Settings:
    return compose("config", [*DP, *overrides])


def plan_of(units: int, *overrides: str) -> Plan:
    return Plan.of(composed(*overrides), units)


@settings(max_examples=15)
@given(st.integers(1, 20_000), st.sampled_from([16, 128, 500]))
def test_the_cost_of_steps_equals_the_accountants(units: int, batch: int) -> None:
    plan = plan_of(units, f"privacy.batch_size={batch}", *GIVEN)
    assert 0 < plan.sample_rate <= 1
    assert plan.expected_units == pytest.approx(min(batch, units))
    steps = [plan.steps(JOINT, number) for number in range(1, 17)]
    passes = sum(steps) * plan.expected_units / units
    assert passes == pytest.approx(16 * 0.9, abs=plan.expected_units / units)
    (training,) = plan.charges()[2:]
    autoencoder = sum(plan.steps(AUTOENCODER, number) for number in range(1, 7))
    assert training.steps == sum(steps) + autoencoder


def test_the_least_noise_keeps_the_whole_run_within_its_epsilon() -> None:
    plan = plan_of(2000, "privacy.target_epsilon=3")
    budget = RenyiFilter(3.0, 1e-6)
    assert 0.995 < budget.share(plan.charges()) <= 1
    # The exact composition of these charges, which the reports show.
    assert 2.7 < epsilon(plan.charges(), 1e-6) < 2.8


def test_an_epsilon_that_the_counts_alone_exceed_is_refused() -> None:
    with pytest.raises(UserError, match=r"can't be had with privacy\.release_noise=8"):
        plan_of(500, "privacy.target_epsilon=0.2")


def test_delta_is_at_most_a_tenth_of_one_unit() -> None:
    plan_of(100_000, *GIVEN)
    with pytest.raises(UserError, match=r"at most 1/\(10 n\) = 5\.0e-07"):
        plan_of(200_000, *GIVEN)


def test_a_public_autoencoder_costs_nothing() -> None:
    public = ("privacy.public_model=/public", "privacy.autoencoder=public")
    whole, joint = plan_of(2000, *GIVEN), plan_of(2000, *GIVEN, *public)
    assert len(whole.charges()) == 3 and len(joint.charges()) == 2
    assert joint.charges()[1].steps == sum(joint.steps(JOINT, number) for number in range(1, 17))


def test_a_frozen_autoencoder_costs_the_sums_of_its_latents() -> None:
    linear = (
        "model.autoencoder.channels=[32]",
        "model.autoencoder.norm_groups=8",
        "model.autoencoder.linear_start=true",
    )
    frozen = plan_of(2000, *GIVEN, *linear, "privacy.autoencoder=frozen")
    training = sum(frozen.steps(JOINT, number) for number in range(1, 17))
    assert [charge.steps for charge in frozen.charges()] == [1, 1, training]


@settings(max_examples=15)
@given(st.integers(1, 20_000), st.sampled_from([16, 128]), st.sampled_from([0.5, 2.0]))
def test_steps_are_made_as_they_are_charged(units: int, batch: int, bound: float) -> None:
    given = (f"privacy.batch_size={batch}", f"privacy.max_grad_norm={bound}")
    plan = plan_of(units, *given, *GIVEN)
    charge, mechanism = plan.step_charge(3), plan.mechanism()
    assert mechanism.sample_rate == charge.sample_rate
    assert mechanism.noise_multiplier == charge.noise_multiplier
    assert mechanism.max_grad_norm == bound and charge.steps == 3


def test_a_hidden_site_tells_of_no_latents_and_pays_for_none() -> None:
    hidden = plan_of(2000, *GIVEN, "federation.client_level.noise_multiplier=1")
    assert len(hidden.charges()) == len(plan_of(2000, *GIVEN).charges()) - 1
