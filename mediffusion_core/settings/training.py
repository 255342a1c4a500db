"""What a site does in a round of each stage."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from mediffusion_core.settings.base import Count, Fraction, Positive, StrictModel


class AutoencoderTraining(StrictModel):
    """One site's work in a round of the autoencoder stage."""

    local_epochs: Positive = 0.55
    batch_size: Count = 4
    learning_rate: Positive = 1.5e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    proximal_weight: Annotated[float, Field(ge=0.0)] = 0.0
    kl_weight: Annotated[float, Field(ge=0.0)] = 4e-3
    edge_weight: Annotated[float, Field(ge=0.0)] = 4.0


class ConsistencySettings(StrictModel):
    """FixMatch's loss on unlabelled images (arXiv 2001.07685), relative to that on labelled ones.

    `threshold` is the fixed one; adaptive ones follow the teacher's confidence or, of findings that
    are not exclusive, their prevalence. The teacher is the server's average of the global weights,
    or the network that is trained itself.
    """

    weight: Annotated[float, Field(ge=0.0)] = 0.0
    batch_size: Count = 16
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95
    thresholds: Literal["fixed", "adaptive"] = "fixed"
    teacher: Literal["ema", "student"] = "ema"
    unlabelled_views: Count = 2


class JointTraining(StrictModel):
    """One site's work in a round of the joint stage."""

    local_epochs: Positive = 0.9
    batch_size: Count = 16
    labelled_batch_size: Count = 16
    learning_rate: Positive = 1.2e-3
    head_learning_rate: Positive = 1.2e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 4
    diffusion_weight: Annotated[float, Field(ge=0.0)] = 1.0
    classification_weight: Annotated[float, Field(ge=0.0)] = 1.0
    classification_warmup: Fraction = 0.0
    logit_adjustment: Annotated[float, Field(ge=0.0)] = 0.0
    class_balance: Literal["none", "sqrt", "full"] = "none"
    consistency: ConsistencySettings = ConsistencySettings()
    proximal_weight: Annotated[float, Field(ge=0.0)] = 0.0
    control_variates: bool = False
    min_snr_gamma: Positive | None = None
    noised_fraction: Fraction = 0.25
    noised_max_timestep: Fraction = 0.4
    augmented_views: Count = 5
    max_grad_norm: Positive = 1.0

    @property
    def trains_both_halves(self) -> bool:
        """Whether the network learns to denoise and to classify, as counterfactuals need."""
        return self.diffusion_weight > 0 and self.classification_weight > 0

    @property
    def needs_label_counts(self) -> bool:
        """Whether sites must know how often each class occurs at all of them."""
        adaptive = self.consistency.weight and self.consistency.thresholds == "adaptive"
        return bool(self.logit_adjustment or adaptive)

    @property
    def needs_average(self) -> bool:
        """Whether sites must have the server's average of the global weights, as a teacher."""
        return bool(self.consistency.weight) and self.consistency.teacher == "ema"

    def noised_levels(self, timesteps: int) -> int:
        """How many of the noise levels, from 0 on, the classifier's noised rows are drawn from."""
        return max(1, round(self.noised_max_timestep * timesteps))

    def classified_until(self, timesteps: int) -> int:
        """The noisiest timestep on which the classifier is trained; 0 if on no noise."""
        return self.noised_levels(timesteps) - 1 if self.noised_fraction else 0

    @model_validator(mode="after")
    def _has_a_loss(self) -> Self:
        if not self.diffusion_weight and not self.classification_weight:
            raise ValueError(
                "training.joint.diffusion_weight and training.joint.classification_weight "
                "are both 0: nothing would be trained"
            )
        if self.consistency.weight and not self.classification_weight:
            raise ValueError(
                "training.joint.consistency.weight is relative to "
                "training.joint.classification_weight, which is 0"
            )
        return self


class TrainingSettings(StrictModel):
    """Both stages of local training."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    autoencoder: AutoencoderTraining = AutoencoderTraining()
    joint: JointTraining = JointTraining()
