"""Differential privacy of a run."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mediffusion_core.settings.base import Count, Positive, StrictModel

SEEDS = ("seed", "noise_seed", "sampling_seed")
LARGEST_SHARED_NOISE = 1e6
"""Larger noise in steps of the grid would not fit 64 bits (`privacy.secure_aggregation.grid`)."""


class SecureAggregationSettings(StrictModel):
    """Secure aggregation: the server obtains sums over the sites alone (Bonawitz et al., CCS 2017).

    The sites share the noise: that of all sites together gives ε. Each round of the joint stage is
    one step of the server's optimizer, and every unit takes part in it.
    """

    enabled: bool = False
    """Whether sites mask their sums of gradients, and share the noise."""
    tolerated_sites: Count = 1
    """Number t of sites that may drop out of a round, collude with the server, or read the sums
    themselves, at least 1. It needs more than 3 t sites. The noise of all other sites together
    gives ε."""


class PrivacySettings(StrictModel):
    """Differential privacy in both stages, by DP-SGD (arXiv 1607.00133).

    The unit of privacy is a patient, a lesion or an image of one site. `ledger`, `ledger_tips` and
    `max_epsilon` hold for simulated sites; a real site sets them in its site file.
    """

    former_names: ClassVar[dict[str, str]] = {
        "mode": "grad_sample_mode",
        "ledger_heads": "ledger_tips",
    }

    enabled: bool = False
    """Whether sites train with differential privacy."""
    noise_multiplier: Positive | None = None
    """Noise multiplier σ, above 0: the noise's standard deviation over `max_grad_norm`. None: from
    `target_epsilon`."""
    target_epsilon: Positive | None = None
    """Largest ε of the planned rounds of a run, above 0; each site computes the smallest σ that its
    filter admits for it. None: from `noise_multiplier`."""
    target_delta: Annotated[float, Field(gt=0.0, lt=0.1)] = 1e-5
    """The δ of ε, above 0 and at most 1/(10 n) for n units at a site."""
    unit: Literal["image", "lesion", "patient"] = "patient"
    """Whose presence is hidden: a patient, a lesion or an image. The data must name it; data that
    name patients or lesions also allow `image`."""
    batch_size: Count = 128
    """Expected number of units a step, at least 1; each is drawn independently (Poisson). With
    `secure_aggregation.enabled` every unit is in each step instead."""
    physical_batch_size: Count = 16
    """Units that pass the network at once, at least 1; bounds the memory."""
    max_grad_norm: Positive = 1.0
    """Largest norm of a unit's gradient, above 0; longer gradients are clipped."""
    clipping: Literal["flat", "per_layer"] = "flat"
    """Whether a unit's whole gradient is clipped, or that of each layer."""
    grad_sample_mode: Literal["hooks", "ghost"] = "hooks"
    """Rows of a unit: hooks gives each loss rows of its own, ghost one row to both losses of the
    joint stage, which is faster."""
    noise_multiplicity: Count = 1
    """Rows of a unit in a step, averaged before they are clipped (arXiv 2210.09929), at least 1."""
    release_noise: Positive = 8.0
    """Noise multiplier of counts, of sums of latents and of statistics before a run, above 0."""
    validation_noise: Positive | None = None
    """Noise multiplier of the sums over validation units in each evaluation, above 0. They are in
    no training step. None: no such sums leave, and there is no AUC of the sites' own patients."""
    autoencoder: Literal["trained", "frozen", "public"] = "trained"
    """Whether the autoencoder is trained, keeps its first weights (which then need
    `model.autoencoder.linear_start`), or is that of `public_model`."""
    trained: Literal["all", "adapters", "attention", "head"] = "all"
    """Which weights of the joint network are trained beside the classifier: all, low-rank adapters,
    the attention blocks, or none (head)."""
    adapter_rank: Count = 8
    """Rank of the adapters (arXiv 2106.09685), at least 1."""
    public_model: Path | None = None
    """Folder of a model of public images, from which training starts."""
    ledger: Path | None = None
    """Folder of the simulated sites' privacy ledger. None: in the run's folder."""
    ledger_tips: Path | None = None
    """Folder of the second copy of the ledger's tip. None: beside the ledger."""
    secure_aggregation: SecureAggregationSettings = SecureAggregationSettings()
    """Sums over the sites that tell no site's own part, with noise that the sites share."""
    max_epsilon: Positive | None = None
    """Largest ε of a unit over all runs with the same ledger, above 0. A unit that has spent it is
    left out. None: no limit."""

    @model_validator(mode="before")
    @classmethod
    def _has_no_seed(cls, given: Any) -> Any:
        for name in SEEDS:
            if isinstance(given, dict) and name in given:
                raise ValueError(
                    f"privacy.{name}: private noise has no seed, since a seed allows to subtract "
                    "the noise; it comes from each site's operating system"
                )
        return given

    @model_validator(mode="after")
    def _has_one_noise(self) -> Self:
        given = [self.noise_multiplier is not None, self.target_epsilon is not None]
        if self.enabled and sum(given) != 1:
            raise ValueError(
                "privacy.enabled needs exactly one of privacy.noise_multiplier and "
                "privacy.target_epsilon"
            )
        return self

    @model_validator(mode="after")
    def _shared_noise_is_finite(self) -> Self:
        given = self.noise_multiplier
        if self.secure_aggregation.enabled and given is not None and given > LARGEST_SHARED_NOISE:
            raise ValueError(
                f"privacy.noise_multiplier={given:g} is too large for the whole numbers of "
                f"privacy.secure_aggregation; allowed is at most {LARGEST_SHARED_NOISE:g}"
            )
        return self

    @model_validator(mode="after")
    def _one_row_is_one(self) -> Self:
        if self.grad_sample_mode == "ghost" and self.noise_multiplicity > 1:
            raise ValueError(
                "privacy.grad_sample_mode=ghost has one row of a unit; privacy.noise_multiplicity="
                f"{self.noise_multiplicity} needs privacy.grad_sample_mode=hooks"
            )
        return self

    @model_validator(mode="after")
    def _frozen_autoencoder_is_not_public(self) -> Self:
        if self.autoencoder == "frozen" and self.public_model is not None:
            raise ValueError(
                "privacy.autoencoder=frozen ignores privacy.public_model; "
                "privacy.autoencoder=public keeps the autoencoder of that model"
            )
        return self
