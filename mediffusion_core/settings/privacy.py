"""What a run promises about privacy, and how its private steps are made."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mediffusion_core.settings.base import Count, Positive, StrictModel

SEEDS = ("seed", "noise_seed", "sampling_seed")


class PrivacySettings(StrictModel):
    """DP-SGD in both stages (arXiv 1607.00133), for one unit more or less at a site.

    `noise_multiplier` is σ, the noise's standard deviation over `max_grad_norm`; with
    `target_epsilon` each site finds the least σ that keeps all rounds of the run within it.
    `batch_size` is the expected number of units a step, `physical_batch_size` how many go through
    the network at once. `release_noise` is the noise multiplier of counts and of latent sums.
    `ledger`, `ledger_heads` and `max_epsilon` are the simulated sites' own: where they keep what
    their units have spent, one folder a site, the second place for its head, one file a site, and
    how much these may spend over all runs.
    """

    former_names: ClassVar[dict[str, str]] = {"mode": "grad_sample_mode"}

    enabled: bool = False
    noise_multiplier: Positive | None = None
    target_epsilon: Positive | None = None
    target_delta: Annotated[float, Field(gt=0.0, lt=0.1)] = 1e-5
    unit: Literal["image", "patient"] = "patient"
    batch_size: Count = 128
    physical_batch_size: Count = 16
    max_grad_norm: Positive = 1.0
    clipping: Literal["flat", "per_layer"] = "flat"
    grad_sample_mode: Literal["hooks", "ghost"] = "hooks"
    noise_multiplicity: Count = 1
    release_noise: Positive = 8.0
    autoencoder: Literal["trained", "frozen", "public"] = "trained"
    trained: Literal["all", "adapters", "attention", "head"] = "all"
    adapter_rank: Count = 8
    public_model: Path | None = None
    ledger: Path | None = None
    ledger_heads: Path | None = None
    max_epsilon: Positive | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_no_seed(cls, given: Any) -> Any:
        for name in SEEDS:
            if isinstance(given, dict) and name in given:
                raise ValueError(
                    f"privacy.{name}: private noise has no seed, since whoever knows it can "
                    "subtract the noise; it comes from each site's operating system"
                )
        return given

    @model_validator(mode="after")
    def _has_one_amount_of_noise(self) -> Self:
        given = [self.noise_multiplier is not None, self.target_epsilon is not None]
        if self.enabled and sum(given) != 1:
            raise ValueError(
                "privacy.enabled needs exactly one of privacy.noise_multiplier and "
                "privacy.target_epsilon"
            )
        return self

    @model_validator(mode="after")
    def _ghost_clipping_can(self) -> Self:
        if self.grad_sample_mode != "ghost":
            return self
        if self.clipping == "per_layer":
            raise ValueError(
                "privacy.grad_sample_mode=ghost holds no gradient of a unit that could be clipped "
                "by layers; privacy.clipping=per_layer needs privacy.grad_sample_mode=hooks"
            )
        if self.noise_multiplicity > 1:
            raise ValueError(
                "privacy.grad_sample_mode=ghost clips each row alone; privacy.noise_multiplicity="
                f"{self.noise_multiplicity} needs privacy.grad_sample_mode=hooks"
            )
        return self

    @model_validator(mode="after")
    def _has_what_is_not_trained(self) -> Self:
        if self.autoencoder == "frozen" and self.public_model is not None:
            raise ValueError(
                "privacy.autoencoder=frozen keeps the first weights; that of privacy.public_model "
                "is kept with public"
            )
        return self
