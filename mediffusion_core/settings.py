"""The settings of one run: what the composed configuration must look like.

Hydra composes a plain mapping; these models check it. They are frozen, refuse keys that they do
not know, and give one hash over everything that server and sites must agree on.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from mediffusion_core.errors import UserError
from mediffusion_core.privacy.refusals import refuse_what_shows_a_site, refuse_what_voids
from mediffusion_core.privacy.settings import PrivacySettings
from mediffusion_core.strict import Count, Fraction, Positive, StrictModel

SITE_LOCAL: dict[str, bool | set[str]] = {
    "run": True,
    "device": True,
    "data": {"root", "store", "table", "columns"},
    "evaluation": {"inception_weights"},
    "federation": {"round_timeout", "min_replies"},
    "privacy": {"public_model", "ledger", "ledger_heads", "max_epsilon"},
}
"""Settings outside the hash: where things lie, how long to wait and for whom; never what a site
computes."""


class RunSettings(StrictModel):
    """Where one run lives. Local to each machine, not part of the hash."""

    folder: Path | None = None


class PhantomSettings(StrictModel):
    """How many phantom patients each site holds (one image a patient)."""

    patients_per_site: tuple[Count, ...] = (1700, 1700, 900)


class ColumnSettings(StrictModel):
    """Which columns of a site's own table say what; `label` may be several columns of 0 and 1."""

    image: str = "image"
    label: str | Annotated[tuple[str, ...], Field(min_length=1)] = "label"
    patient: str | None = None
    site: str | None = None
    split: str | None = None


Uncertain = Literal["zeros", "ones", "ignore"]
"""What a finding that a report calls uncertain becomes: absent, present, or a missing label."""


class TableSettings(StrictModel):
    """How a site's own images and labels are read; what a run and a site file both say."""

    table: Path | None = None
    columns: ColumnSettings = ColumnSettings()
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    multi_label: bool = False
    separator: Annotated[str, Field(min_length=1)] = "|"
    uncertain: Uncertain = "ignore"
    uncertain_by_finding: dict[str, Uncertain] = Field(default_factory=dict)
    window: tuple[float, Positive] | None = None
    store: Path | None = None


class DataSettings(TableSettings):
    """Which images, how they are split, and who holds a label."""

    source: Literal["phantom", "isic2019", "medmnist", "chestxray14", "chexpert", "folder", "dicom"]
    root: Path | None = None
    image_size: Annotated[int, Field(ge=8, le=1024)]
    channels: Literal[1, 3]
    partition: Literal["natural", "uniform", "dirichlet", "quantity", "one_finding"] = "natural"
    partition_alpha: Positive = 0.5
    scanner_shift: Fraction = 0.0
    splits: Literal["dealt", "official"] = "dealt"
    labelled_fraction: Fraction = 1.0
    labelled_fraction_by_site: dict[str, Fraction] = Field(default_factory=dict)
    labelled_sites: Count | None = None
    labels_at: Literal["sites", "server"] = "sites"
    use_unlabelled: bool = True
    test_fraction: Annotated[float, Field(gt=0.0, lt=0.9)] = 0.15
    validation_fraction: Annotated[float, Field(gt=0.0, lt=0.9)] = 0.1
    augmentation: Literal["none", "radiograph", "dermoscopy", "dermoscopy_colour"] = "none"
    max_bad_fraction: Fraction = 0.01
    phantom: PhantomSettings = PhantomSettings()

    @model_validator(mode="after")
    def _leaves_training_images(self) -> Self:
        if self.test_fraction + self.validation_fraction >= 0.95:
            raise ValueError(
                "data.test_fraction and data.validation_fraction leave nothing to train on"
            )
        return self

    @model_validator(mode="after")
    def _labels_fit_the_partition(self) -> Self:
        if self.labels_at == "server" and self.partition == "one_finding":
            raise ValueError(
                "data.labels_at=server leaves no label at a site, data.partition=one_finding "
                "is about which labels a site knows; choose one of them"
            )
        return self


PASSAGE = 4
"""Channels by which one number passes an autoencoder with `linear_start`."""


class AutoencoderSettings(StrictModel):
    """Widths of diffusers' `AutoencoderKL`; each width after the first halves the resolution.

    Before the first convolution, patches of `patch_size` pixels a side become channels; `attention`
    says whether the middle blocks attend, `linear_start` whether the first weights are those of a
    cosine transform (`model.linear_start`).
    """

    channels: Annotated[tuple[Count, ...], Field(min_length=1)]
    layers_per_block: Count
    latent_channels: Count
    norm_groups: Count = 32
    patch_size: Count = 1
    attention: bool = True
    linear_start: bool = False

    @model_validator(mode="after")
    def _numbers_can_pass(self) -> Self:
        if not self.linear_start:
            return self
        if len(self.channels) > 1:
            raise ValueError(
                "model.autoencoder.linear_start needs a network of one level; "
                "patch_size can take the place of others"
            )
        if self.channels[0] % (PASSAGE * self.norm_groups):
            raise ValueError(
                f"model.autoencoder.norm_groups {self.norm_groups}: with linear_start "
                f"{self.channels[0]} channels make groups of {PASSAGE} or a multiple of that"
            )
        most = self.channels[0] // PASSAGE
        if self.latent_channels > most:
            raise ValueError(
                f"model.autoencoder.latent_channels {self.latent_channels}: with linear_start "
                f"{self.channels[0]} channels carry {most}"
            )
        return self

    @property
    def downsampling(self) -> int:
        """Pixels of the image per pixel of the latent, along one side."""
        return int(self.patch_size * 2 ** (len(self.channels) - 1))


class UNetSettings(StrictModel):
    """Widths of diffusers' `UNet2DModel`, one level each; attention where `attention` says so."""

    channels: Annotated[tuple[Count, ...], Field(min_length=1)]
    attention: tuple[bool, ...]
    layers_per_block: Count
    attention_head_width: Count = 32
    norm_groups: Count = 32

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        if len(self.attention) != len(self.channels):
            raise ValueError("model.unet.attention needs one entry for each of model.unet.channels")
        # The middle block, as wide as the last level, always attends.
        attending = [w for w, on in zip(self.channels, self.attention, strict=True) if on]
        for width in [*attending, self.channels[-1]]:
            if width % self.attention_head_width:
                raise ValueError(
                    f"model.unet.channels: width {width} is not a multiple of "
                    f"model.unet.attention_head_width {self.attention_head_width}"
                )
        return self


class HeadSettings(StrictModel):
    """The classifier on the pooled maps of the UNet's encoder."""

    pooling: Literal["mean", "attention"] = "mean"
    hidden: Count = 1024
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.3


class ModelSettings(StrictModel):
    """The two networks that are trained: autoencoder, and joint UNet with its head."""

    name: str
    autoencoder: AutoencoderSettings
    unet: UNetSettings
    head: HeadSettings = HeadSettings()

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        for name, part in (("autoencoder", self.autoencoder), ("unet", self.unet)):
            for width in part.channels:
                if width % part.norm_groups:
                    raise ValueError(
                        f"model.{name}.channels: width {width} is not a multiple of "
                        f"model.{name}.norm_groups {part.norm_groups}"
                    )
        return self


Prediction = Literal["epsilon", "velocity", "sample"]
"""The noise ε, the velocity v or the clean latent z_0."""


class DiffusionSettings(StrictModel):
    """The noise process: β rises from start to end, linear in its square root.

    `prediction` is what the network learns to predict. From the velocity the clean latent follows
    without a division by √ᾱ_t, so a briefly trained network already gets large shapes right.
    """

    timesteps: Annotated[int, Field(ge=2)] = 1000
    beta_start: Positive = 0.0015
    beta_end: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.0195
    prediction: Prediction = "velocity"

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(
                f"diffusion.beta_start {self.beta_start} is larger than "
                f"diffusion.beta_end {self.beta_end}"
            )
        return self


class AutoencoderTraining(StrictModel):
    """One site's work in a round of the autoencoder stage."""

    local_epochs: Positive
    batch_size: Count
    learning_rate: Positive
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    proximal_weight: Annotated[float, Field(ge=0.0)] = 0.0
    kl_weight: Annotated[float, Field(ge=0.0)] = 1e-6
    edge_weight: Annotated[float, Field(ge=0.0)] = 0.5


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

    local_epochs: Positive
    batch_size: Count
    labelled_batch_size: Count
    learning_rate: Positive
    head_learning_rate: Positive
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 4
    diffusion_weight: Annotated[float, Field(ge=0.0)] = 1.0
    classification_weight: Annotated[float, Field(ge=0.0)]
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
    autoencoder: AutoencoderTraining
    joint: JointTraining


class ServerOptimizer(StrictModel):
    """How the server steps from a component's weights towards the mean of the sites' weights."""

    method: Literal["fedavg", "fedavgm", "fedadam", "fedyogi"] = "fedavg"
    learning_rate: Positive = 1.0
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    adaptivity: Positive = 1e-3


class ServerSettings(StrictModel):
    """The server's step for each component. Adam's moments of the sites are always averaged."""

    autoencoder: ServerOptimizer = ServerOptimizer()
    unet: ServerOptimizer = ServerOptimizer()
    head: ServerOptimizer = ServerOptimizer()


Compression = Literal["none", "bf16", "int8"]
"""How weights travel in rounds of training: whole, in half of the bytes, or in a quarter."""


class ClientLevelSettings(StrictModel):
    """The server's noise, which hides a whole site from whoever sees the global weights.

    With `noise_multiplier` σ (None is without) each round's mean gets noise of standard deviation
    σ C / m, C the `max_update_norm` that a site's change is cut to and m the sites of a round.
    """

    noise_multiplier: Positive | None = None
    max_update_norm: Positive = 1.0
    target_delta: Annotated[float, Field(gt=0.0, lt=0.1)] = 0.01

    @property
    def enabled(self) -> bool:
        """Whether means are noised."""
        return self.noise_multiplier is not None


class FederationSettings(StrictModel):
    """Who takes part and for how long. `num_rounds` counts the rounds of the joint stage.

    `participation` is the share of the sites, drawn anew for each round of training. A round ends
    without the sites that are silent once `min_replies` have answered; by default it needs all of
    those asked. What a federation is held against has the same splits and labels: `pool_sites`
    trains on all images in one place, `only_site` at one site alone. `compression` holds for rounds
    of training.
    """

    num_sites: Count
    pool_sites: bool = False
    only_site: str | None = None
    num_rounds: Count
    autoencoder_rounds: Count
    participation: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    server: ServerSettings = ServerSettings()
    local_normalisation: bool = False
    client_level: ClientLevelSettings = ClientLevelSettings()
    compression: Compression = "none"
    cpus_per_site: Positive = 1.0
    ema_decay: Fraction = 0.6
    round_timeout: Positive = 3600.0
    min_replies: Count | None = None

    @property
    def in_one_place(self) -> bool:
        """Whether there is a single participant, and nothing is federated."""
        return self.pool_sites or self.only_site is not None

    @model_validator(mode="after")
    def _replies_can_come(self) -> Self:
        if self.min_replies is not None and self.min_replies > self.num_sites:
            raise ValueError(
                f"federation.min_replies {self.min_replies} is more than "
                f"federation.num_sites {self.num_sites}"
            )
        return self

    @model_validator(mode="after")
    def _one_comparison(self) -> Self:
        if self.pool_sites and self.only_site is not None:
            raise ValueError(
                f"federation.pool_sites trains on all sites' images, federation.only_site="
                f"{self.only_site} on one site's; choose one of them"
            )
        return self


Solver = Literal["ddim", "dpmsolver++"]
"""How a guided step is taken: to first order, or to second with the step before."""


class CounterfactualSettings(StrictModel):
    """Guided counterfactuals: how far the image is noised and how hard the head pulls.

    `start` is a fraction of the noise process and `scale` how hard the head pulls. The noise level
    is reached by `inversion` of the source, where the search reaches both in `attempts` steps, or
    else by drawn noise, another in each attempt from `noise_seed` on. The search leaves an image
    where its target has `confidence` and the others have moved by no more than `tolerance`. What
    is less salient than `mask_threshold` of the largest is kept, the other findings are held with
    weight `hold`, and `closeness` moves towards the source at every step; `solver` takes the steps.
    """

    panel: Count = 8
    count: Count = 48
    start: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    steps: Count = 10
    scale: Positive = 2.0
    closeness: Annotated[float, Field(ge=0.0)] = 0.0
    attempts: Count = 8
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.95
    tolerance: Fraction = 0.03
    mask_threshold: Fraction = 0.5
    hold: Annotated[float, Field(ge=0.0)] = 1.0
    inversion: bool = False
    noise_seed: Annotated[int, Field(ge=0)] = 0
    solver: Solver = "ddim"


class EvaluationSettings(StrictModel):
    """What the server judges, and how often (in joint rounds; the last round always).

    `noise_levels` are fractions of the noise process at which the classifier looks at a latent, its
    logits being averaged; 0 is the clean latent.
    """

    every: Count = 4
    num_samples: Annotated[int, Field(ge=16)] = 200
    sampling_steps: Count = 20
    extractor: Literal["efficientnet-lite0", "inception"] = "efficientnet-lite0"
    inception_weights: Path | None = None
    num_thresholds: Annotated[int, Field(ge=10)] = 4001
    num_bootstraps: Annotated[int, Field(ge=2)] = 100
    noise_levels: Annotated[tuple[Fraction, ...], Field(min_length=1)] = (0.0,)
    counterfactual: CounterfactualSettings = CounterfactualSettings()


class Settings(StrictModel):
    """Everything one run is told."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: str = "auto"
    run: RunSettings = RunSettings()
    data: DataSettings
    model: ModelSettings
    diffusion: DiffusionSettings = DiffusionSettings()
    training: TrainingSettings
    federation: FederationSettings
    evaluation: EvaluationSettings = EvaluationSettings()
    privacy: PrivacySettings = PrivacySettings()

    @model_validator(mode="after")
    def _keeps_its_promise(self) -> Self:
        if self.privacy.enabled:
            refuse_what_voids(self)
        if self.federation.client_level.enabled:
            refuse_what_shows_a_site(self)
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        factor = self.model.autoencoder.downsampling
        coarsest = factor * 2 ** (len(self.model.unet.channels) - 1)
        if self.data.image_size % coarsest:
            raise ValueError(
                f"data.image_size {self.data.image_size} is not a multiple of {coarsest}, "
                f"which model={self.model.name} needs"
            )
        values = self.data.channels * self.model.autoencoder.patch_size**2
        if self.model.autoencoder.linear_start and self.latent_shape[0] > values:
            raise ValueError(
                f"model.autoencoder.latent_channels {self.latent_shape[0]}: with linear_start at "
                f"most {values}, the values of a patch"
            )
        phantom_sites = len(self.data.phantom.patients_per_site)
        if self.data.source == "phantom" and self.federation.num_sites != phantom_sites:
            raise ValueError(
                f"federation.num_sites is {self.federation.num_sites} but "
                f"data.phantom.patients_per_site lists {phantom_sites} sites"
            )
        return self

    @model_validator(mode="after")
    def _comparison_fits_the_labels(self) -> Self:
        if self.federation.in_one_place and self.data.labels_at == "server":
            raise ValueError("data.labels_at=server needs a federation of all sites")
        if self.federation.pool_sites and self.data.partition == "one_finding":
            raise ValueError(
                "federation.pool_sites joins labels that data.partition=one_finding keeps apart"
            )
        return self

    @property
    def num_participants(self) -> int:
        """Who trains: the sites, and where only the server holds labels the server's own part."""
        if self.federation.in_one_place:
            return 1
        return self.federation.num_sites + (self.data.labels_at == "server")

    @property
    def participants_a_round(self) -> int:
        """How many of those who train are asked in a round of training."""
        return max(1, round(self.federation.participation * self.num_participants))

    @property
    def autoencoder_rounds(self) -> int:
        """Rounds of the autoencoder stage; none where the autoencoder is a public one."""
        public = self.privacy.enabled and self.privacy.autoencoder == "public"
        return 0 if public else self.federation.autoencoder_rounds

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape of one latent, (channels, height, width)."""
        side = self.data.image_size // self.model.autoencoder.downsampling
        return (self.model.autoencoder.latent_channels, side, side)

    def shared(self) -> dict[str, Any]:
        """The settings that server and sites must agree on, as plain JSON values."""
        return self.model_dump(mode="json", exclude=SITE_LOCAL)

    def fingerprint(self) -> str:
        """SHA-256 over the shared settings, 16 hexadecimal digits."""
        text = json.dumps(self.shared(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def validate(composed: Mapping[str, Any]) -> Settings:
    """Checks a composed configuration.

    Raises:
        UserError: naming the first key that is wrong, its value, and what is allowed.
    """
    try:
        return Settings.model_validate(composed)
    except ValidationError as error:
        raise UserError(_one_line(error, composed)) from None


def _one_line(error: ValidationError, composed: Mapping[str, Any]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown setting {key}{did_you_mean(key, known_keys(composed, key))}"
    message = first["msg"].removeprefix("Value error, ")
    if not key or first["type"] == "value_error":
        return message
    if first["type"] == "missing":
        return f"setting {key} is missing"
    message = message[0].lower() + message[1:]
    return f"setting {key}={first['input']!r}: {message}"


def known_keys(composed: Mapping[str, Any], unknown: str = "", prefix: str = "") -> list[str]:
    """Dotted names of all leaves of a composed configuration, except the unknown one."""
    names: list[str] = []
    for key, value in composed.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            names += known_keys(value, unknown, f"{name}.")
        elif name != unknown:
            names.append(name)
    return names


def did_you_mean(given: str, allowed: list[str]) -> str:
    """A hint such as `, did you mean data.image_size?`, or nothing where no name is near."""
    near = difflib.get_close_matches(given, allowed, n=1, cutoff=0.6)
    return f", did you mean {near[0]}?" if near else ""
