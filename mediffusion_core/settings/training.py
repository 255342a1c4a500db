"""A site's training in a round of each stage."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mediffusion_core.settings.base import Count, Fraction, NonNegative, Positive, StrictModel

Steps = Annotated[int, Field(ge=0)]
PublicEncoderName = Literal["efficientnet-lite1", "efficientnet-lite2", "image-statistics"]


class AutoencoderTraining(StrictModel):
    """A site's training in a round of the autoencoder stage."""

    former_fields: ClassVar[dict[str, Any]] = {"proximal_weight": 0.0}

    local_epochs: Positive = 0.55
    """Passes over a site's images in a round, above 0; a fraction is a part of a pass."""
    batch_size: Count = 4
    """Images a step, at least 1."""
    learning_rate: Positive = 1.5e-3
    """Largest learning rate of AdamW, above 0."""
    warmup_steps: Steps = 5
    """Steps over which the learning rate rises, at least 0."""
    kl_weight: NonNegative = 4e-3
    """Weight of the KL divergence of the latents, at least 0."""
    edge_weight: NonNegative = 4.0
    """Weight of the error of edges beside that of pixels, at least 0."""


class ConsistencySettings(StrictModel):
    """Consistency training on unlabelled images, with pseudo-labels (FixMatch, arXiv 2001.07685).

    The teacher is the server's moving average of the global weights.
    """

    former_fields: ClassVar[dict[str, Any]] = {"teacher": "ema", "unlabelled_views": 2}

    weight: NonNegative = 0.0
    """Weight of the loss relative to `classification_weight`, at least 0. 0: no such loss."""
    batch_size: Count = 16
    """Unlabelled images a step, at least 1."""
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95
    """Smallest confidence of a pseudo-label, above 0 and below 1."""
    thresholds: Literal["fixed", "adaptive"] = "fixed"
    """Whether thresholds follow the teacher's confidence (arXiv 2205.07246) or, for findings, the
    prevalence (arXiv 2305.02795)."""


class AlignmentSettings(StrictModel):
    """Alignment of the joint network's features with those of a public encoder, for every image.

    The encoder is frozen and sees each image at its own resolution (REPA, arXiv 2410.06940). Its
    features are reduced to the directions that tell patients apart (`models.whitening`).
    """

    weight: NonNegative = 0.0
    """Weight of the loss, at least 0. 0: no such loss."""
    distillation_weight: NonNegative = 0.0
    """Weight of the cross-entropy with a linear classifier of the aligned directions, relative to
    `classification_weight`, at least 0. 0: no such loss (`models.class_means`)."""
    encoder: PublicEncoderName = "efficientnet-lite1"
    """The public encoder: efficientnet-lite1, efficientnet-lite2, or image-statistics, which needs
    no network."""
    image_size: Annotated[int, Field(ge=32)] = 128
    """Side in pixels of the images that the encoder sees, at least 32."""
    directions: Count = 128
    """Directions of the encoder's features that are aligned with, at least 1."""
    shrinkage: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """How far the scatter of repeated images is drawn towards a sphere, above 0 to 1. 1: repeated
    images are not used."""
    batch_size: Count = 16
    """Images a step, at least 1."""

    @property
    def enabled(self) -> bool:
        """Whether a public encoder is used."""
        return self.weight > 0 or self.distillation_weight > 0


class JointTraining(StrictModel):
    """A site's training in a round of the joint stage."""

    former_fields: ClassVar[dict[str, Any]] = {
        "classification_warmup": 0.0,
        "class_balance": "none",
        "min_snr_gamma": None,
    }

    local_epochs: Positive = 0.9
    """Passes over a site's images in a round, above 0; a fraction is a part of a pass."""
    batch_size: Count = 8
    """Images a step for the diffusion loss, at least 1."""
    labelled_batch_size: Count = 8
    """Labelled images a step for the classification loss, at least 1."""
    learning_rate: Positive = 1.2e-3
    """Largest learning rate of the UNet, above 0."""
    head_learning_rate: Positive = 1.2e-3
    """Largest learning rate of the classifier, above 0."""
    weight_decay: NonNegative = 0.01
    """Weight decay of AdamW, at least 0."""
    warmup_steps: Steps = 4
    """Steps over which the learning rates rise, at least 0."""
    diffusion_weight: NonNegative = 1.0
    """Weight w of the diffusion loss, at least 0. 0: the decoder half is not trained."""
    classification_weight: NonNegative = 1.0
    """Weight λ of the classification loss, at least 0."""
    logit_adjustment: NonNegative = 0.0
    """Strength τ of the correction for rare classes (arXiv 2007.07314), at least 0."""
    consistency: ConsistencySettings = ConsistencySettings()
    """Consistency training on unlabelled images."""
    alignment: AlignmentSettings = AlignmentSettings()
    """Alignment with a public encoder."""
    proximal_weight: NonNegative = 0.0
    """Weight μ of the distance to the global weights (FedProx, arXiv 1812.06127), at least 0."""
    control_variates: bool = False
    """Whether gradients are corrected for the drift of sites (SCAFFOLD, arXiv 1910.06378)."""
    noised_fraction: Fraction = 0.25
    """Share of the classifier's rows that are noised, 0 to 1."""
    noised_max_timestep: Fraction = 0.4
    """Highest noise level of those rows as a share of the timesteps, 0 to 1. Guidance works up to
    this level; a higher one costs AUC."""
    augmented_views: Count = 5
    """Random views of each labelled image that are encoded and kept, at least 1."""
    max_grad_norm: Positive = 1.0
    """Largest norm of a gradient, above 0; longer gradients are clipped."""

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
        return bool(self.consistency.weight)

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
        if self.alignment.distillation_weight and not self.classification_weight:
            raise ValueError(
                "training.joint.alignment.distillation_weight is relative to "
                "training.joint.classification_weight, which is 0"
            )
        return self


class TrainingSettings(StrictModel):
    """A site's training in both stages."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the forward pass. auto: bfloat16 where the hardware gains by it."""
    autoencoder: AutoencoderTraining = AutoencoderTraining()
    """The autoencoder stage."""
    joint: JointTraining = JointTraining()
    """The joint stage."""
