"""A site's private run: its steps, its noise, and its noisy statistics.

The plan follows from the settings and the site's noised counts alone. It therefore reveals no more
than those counts.
"""

import math
from dataclasses import dataclass, replace

from mediffusion_core.common.errors import UserError
from mediffusion_core.privacy.accounting.accountant import Charge
from mediffusion_core.privacy.accounting.filters import (
    Filter,
    GaussianFilter,
    RenyiFilter,
    noise_multiplier_for,
)
from mediffusion_core.privacy.dp_sgd.noise import Mechanism
from mediffusion_core.settings import Settings
from mediffusion_core.settings.privacy import PrivacySettings
from mediffusion_core.training.schedule import local_steps

AUTOENCODER, JOINT = "autoencoder", "joint"


@dataclass(frozen=True)
class Plan:
    """A site's private rounds for `units` units, its noised count."""

    privacy: PrivacySettings
    units: int
    stages: tuple[tuple[str, float, int], ...]
    """Each stage's name, epochs per round, and rounds."""
    noise_multiplier: float
    """σ of every step; with secure aggregation that of the sum over the sites."""
    latent_sums: bool
    """Whether the site sends noisy sums over its latents, for the latent scale."""

    @classmethod
    def of(cls, settings: Settings, units: int, noise_multiplier: float | None = None) -> "Plan":
        """The plan of a run.

        Args:
            settings: Of the run.
            units: The site's noised count.
            noise_multiplier: σ of every step. By default the settings' σ, or the smallest one
                within the run's ε; the search takes seconds.

        Raises:
            UserError: if δ is larger than 1 / (10 n), which protects a single unit too little, or
                if no σ keeps the run within its ε.
        """
        privacy, training = settings.privacy, settings.training
        units = max(1, units)
        refuse_large_delta(privacy, units)
        whole = privacy.secure_aggregation.enabled  # one step of all units in each round
        stages = (
            (AUTOENCODER, training.autoencoder.local_epochs, settings.autoencoder_rounds),
            (JOINT, 1.0 if whole else training.joint.local_epochs, settings.federation.num_rounds),
        )
        known = noise_multiplier or privacy.noise_multiplier
        # A public autoencoder brings its latent scale. Client-level privacy sends no statistics.
        summed = privacy.autoencoder != "public" and not settings.federation.client_level.enabled
        plan = cls(privacy, units, stages, known or math.nan, summed)
        return plan if known else replace(plan, noise_multiplier=_least_noise(plan))

    @property
    def sample_rate(self) -> float:
        """q, the probability that a unit is in a step."""
        if self.privacy.secure_aggregation.enabled:
            return 1.0
        return min(1.0, self.privacy.batch_size / self.units)

    @property
    def expected_units(self) -> float:
        """B, the expected number of units per step and divisor of the sum."""
        return self.sample_rate * self.units

    @property
    def statistics_charge(self) -> Charge:
        """The charge of the counts, and of the latent sums."""
        return Charge(1.0, self.privacy.release_noise, 1)

    def steps(self, stage: str, round_number: int) -> int:
        """Steps of a round of a stage."""
        epochs = {name: passes for name, passes, _ in self.stages}[stage]
        return local_steps(self.units, epochs, self.expected_units, round_number)

    def step_charge(self, steps: int) -> Charge:
        """The charge of some steps, at least one."""
        return Charge(self.sample_rate, self.noise_multiplier, steps)

    def noisy_statistics(self) -> list[Charge]:
        """The charges of all noisy statistics: the counts, and the latent sums if sent."""
        return [self.statistics_charge] * (2 if self.latent_sums else 1)

    def charges(self) -> list[Charge]:
        """All charges of the run for a unit of this site, if no round is repeated."""
        steps = sum(
            self.steps(stage, number)
            for stage, _, rounds in self.stages
            for number in range(1, rounds + 1)
        )
        training = [self.step_charge(steps)] if steps else []
        return [*self.noisy_statistics(), *training]

    def mechanism(self) -> Mechanism:
        """The mechanism of every step."""
        return Mechanism(
            self.sample_rate,
            self.noise_multiplier,
            self.privacy.max_grad_norm,
            self.expected_units,
            self.privacy.physical_batch_size,
        )


def refuse_large_delta(privacy: PrivacySettings, units: int) -> None:
    """Checks that δ protects a single unit enough.

    Raises:
        UserError: if δ is larger than 1 / (10 n) for n units, at least 1.
    """
    units = max(1, units)
    if privacy.target_delta > 1 / (10 * units):
        raise UserError(
            f"privacy.target_delta={privacy.target_delta:g} is too large for a site of about "
            f"{units} units; allowed is at most 1/(10 n) = {1 / (10 * units):.1e}"
        )


def statistics_charge(privacy: PrivacySettings) -> Charge:
    """The charge of a site's statistics before a run.

    Raises:
        UserError: if it exceeds the run's ε.
    """
    charge, budget = Charge(1.0, privacy.release_noise, 1), run_budget(privacy)
    if budget is not None and not budget.admits([charge]):
        raise UserError(
            f"privacy.target_epsilon={budget.epsilon:g} can't be had with "
            f"privacy.release_noise={privacy.release_noise:g}: statistics alone exceed it; raise "
            "either"
        )
    return charge


def validation_charges(settings: Settings) -> list[Charge]:
    """The charges of a run for a validation unit, if no evaluation is repeated."""
    noise, every = settings.privacy.validation_noise, settings.evaluation.every
    if noise is None:
        return []
    return [Charge(1.0, noise, -(-settings.federation.num_rounds // every))]


def refuse_dear_validation(settings: Settings) -> None:
    """Checks that the run's evaluations keep its ε for a validation unit.

    Raises:
        UserError: if they do not.
    """
    privacy, budget = settings.privacy, run_budget(settings.privacy)
    charges = validation_charges(settings)
    if charges and budget is not None and not budget.admits(charges):
        raise UserError(
            f"privacy.validation_noise={privacy.validation_noise:g}: {charges[0].steps} "
            f"evaluations exceed privacy.target_epsilon={budget.epsilon:g} for a validation unit; "
            "raise privacy.validation_noise or evaluation.every"
        )


def run_budget(privacy: PrivacySettings) -> Filter | None:
    """The budget of a run for each unit; None where the settings give σ and no ε.

    With secure aggregation each step is of all units, so that the exact composition is a filter.
    """
    if privacy.target_epsilon is None:
        return None
    kind = GaussianFilter if privacy.secure_aggregation.enabled else RenyiFilter
    return kind(privacy.target_epsilon, privacy.target_delta)


def _least_noise(plan: Plan) -> float:
    budget = run_budget(plan.privacy)
    assert budget is not None
    if not budget.admits(plan.noisy_statistics()):
        raise UserError(
            f"privacy.target_epsilon={budget.epsilon:g} can't be had with "
            f"privacy.release_noise={plan.privacy.release_noise:g}: counts and latent sums alone "
            "exceed it; raise either"
        )
    return noise_multiplier_for(
        budget, lambda noise: replace(plan, noise_multiplier=noise).charges()
    )
