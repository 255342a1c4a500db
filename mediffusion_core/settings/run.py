"""All settings of a run, and one hash over those that server and sites share."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mediffusion_core.settings.base import StrictModel
from mediffusion_core.settings.data import DataSettings
from mediffusion_core.settings.evaluation import EvaluationSettings
from mediffusion_core.settings.federation import FederationSettings
from mediffusion_core.settings.model import DiffusionSettings, ModelSettings
from mediffusion_core.settings.privacy import PrivacySettings
from mediffusion_core.settings.privacy_conflicts import refuse_conflicts
from mediffusion_core.settings.robustness import refuse_void_robustness
from mediffusion_core.settings.training import TrainingSettings

SITE_LOCAL: dict[str, bool | set[str]] = {
    "run": True,
    "device": True,
    "data": {"root", "store", "table", "columns"},
    "evaluation": {"inception_weights", "model", "against"},
    "federation": {"round_timeout", "grace_period", "min_sites", "max_images"},
    "privacy": {"public_model", "ledger", "ledger_tips", "max_epsilon"},
}
"""Settings outside the hash: places, devices, waiting times and limits. Server and sites may differ
in them."""


TrackerName = Literal["tensorboard", "mlflow", "wandb"]


class RunSettings(StrictModel):
    """The place of a run on each machine, the checkpoints kept there, and the server's trackers."""

    folder: Path | None = None
    """Folder to which the run is written. None: `runs/<time>`."""
    keep_last: Annotated[int, Field(ge=1, le=100)] = 2
    """The newest checkpoints that are kept, 1 to 100; those of selected rounds are kept as well."""
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """Trackers that the server sends figures and pictures of test images to; none with `[]`."""


class Settings(StrictModel):
    """All settings of a run."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of splits, weights, batches and noise, 0 to 2³¹ - 1; not of private noise."""
    task: Literal["training", "evaluation", "statistics"] = "training"
    """Whether the run trains a model, or trains nothing and evaluates a model at the sites or asks
    them for statistics of their images."""
    device: str = "auto"
    """Where a site computes: `auto`, `cpu`, `cuda` or `cuda:N`."""
    run: RunSettings = RunSettings()
    """The place of the run."""
    data: DataSettings
    """Images, splits and labels."""
    model: ModelSettings
    """The networks."""
    diffusion: DiffusionSettings = DiffusionSettings()
    """The noise process."""
    training: TrainingSettings = TrainingSettings()
    """A site's training in a round of each stage."""
    federation: FederationSettings = FederationSettings()
    """Sites, rounds and aggregation."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """The server's evaluations."""
    privacy: PrivacySettings = PrivacySettings()
    """Differential privacy."""

    @model_validator(mode="after")
    def _guarantees_hold(self) -> Self:
        refuse_conflicts(self)
        refuse_void_robustness(self)
        return self

    @model_validator(mode="after")
    def _trains_something(self) -> Self:
        head_alone = self.privacy.enabled and self.privacy.trained == "head"
        if head_alone and not self.training.joint.classification_weight:
            raise ValueError(
                "privacy.trained=head trains nothing with training.joint.classification_weight=0; "
                "it must be above 0"
            )
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
                f"most {values} are allowed, the values of a patch"
            )
        frozen = self.privacy.enabled and self.privacy.autoencoder == "frozen"
        if frozen and not self.model.autoencoder.linear_start:
            raise ValueError(
                "privacy.autoencoder=frozen needs model.autoencoder.linear_start=true: without it "
                "the first weights are random"
            )
        phantom_sites = len(self.data.phantom.patients_per_site)
        if self.data.source == "phantom" and self.federation.num_sites != phantom_sites:
            raise ValueError(
                f"federation.num_sites is {self.federation.num_sites} but "
                f"data.phantom.patients_per_site lists {phantom_sites} sites"
            )
        return self

    @model_validator(mode="after")
    def _can_validate(self) -> Self:
        if self.privacy.validation_noise is None:
            return self
        if not self.privacy.enabled:
            raise ValueError("privacy.validation_noise has no effect without privacy.enabled")
        if self.federation.client_level.enabled or self.federation.num_malicious_sites:
            raise ValueError(
                "privacy.validation_noise allows neither federation.client_level nor "
                "federation.num_malicious_sites: noised sums cannot be capped by patients"
            )
        return self

    @model_validator(mode="after")
    def _can_evaluate(self) -> Self:
        evaluation = self.evaluation
        if self.task != "evaluation":
            if evaluation.model is not None or evaluation.against is not None:
                raise ValueError(
                    "evaluation.model and evaluation.against need task=evaluation, which trains "
                    "nothing"
                )
            return self
        if evaluation.model is None or not evaluation.digests:
            raise ValueError(
                "task=evaluation needs evaluation.model and evaluation.digests, which "
                "fed-mediffusion evaluate sets"
            )
        if self.privacy.enabled:
            raise ValueError(
                "task=evaluation sends exact counts, so it allows privacy.enabled=false alone"
            )
        if self.data.labels_at == "server":
            raise ValueError("task=evaluation needs data.labels_at=sites")
        return self

    @model_validator(mode="after")
    def _adds_up_counts(self) -> Self:
        federation = self.federation
        defended = federation.client_level.enabled or federation.num_malicious_sites
        if self.task != "training" and defended:
            raise ValueError(
                f"task={self.task} allows neither federation.client_level nor "
                "federation.num_malicious_sites: all sites' counts are added up"
            )
        return self

    @model_validator(mode="after")
    def _can_be_aligned(self) -> Self:
        if not self.training.joint.alignment.enabled:
            return self
        if self.federation.num_malicious_sites:
            raise ValueError(
                "federation.num_malicious_sites tolerates no false sums over features; allowed: "
                "both weights of training.joint.alignment 0"
            )
        if self.model.head.latent_statistics:
            raise ValueError(
                "model.head.latent_statistics=true pools no maps that could be aligned; allowed: "
                "both weights of training.joint.alignment 0"
            )
        if self.data.scanner_shift:
            raise ValueError(
                "data.scanner_shift changes images at their own size alone, which is not what the "
                "encoder sees; allowed: both weights of training.joint.alignment 0"
            )
        return self

    @model_validator(mode="after")
    def _comparison_fits_the_labels(self) -> Self:
        if self.federation.in_one_place and self.data.labels_at == "server":
            raise ValueError(
                "data.labels_at=server allows neither federation.pool_sites nor "
                "federation.only_site"
            )
        if self.federation.pool_sites and self.data.partition == "one_finding":
            raise ValueError(
                "federation.pool_sites joins the labels that data.partition=one_finding divides "
                "among sites; choose one of the two"
            )
        return self

    @property
    def num_participants(self) -> int:
        """How many train: the sites, and with `data.labels_at=server` the server."""
        if self.federation.in_one_place:
            return 1
        sites = self.federation.num_sites - (self.federation.left_out_site is not None)
        return sites + (self.data.labels_at == "server")

    @property
    def min_sites(self) -> int:
        """How many must take part: `federation.min_sites`, or more than half."""
        least = self.federation.min_sites or self.num_participants // 2 + 1
        if self.privacy.secure_aggregation.enabled:
            least = max(least, self.counted_sites)
        return min(least, self.num_participants)

    @property
    def counted_sites(self) -> int:
        """N - t with secure aggregation: the sites that each sum needs, whose noise gives ε."""
        return self.num_participants - self.privacy.secure_aggregation.tolerated_sites

    @property
    def sites_validate(self) -> bool:
        """Whether sites send sums over their validation patients."""
        if self.federation.client_level.enabled:
            return False
        return not self.privacy.enabled or self.privacy.validation_noise is not None

    @property
    def autoencoder_rounds(self) -> int:
        """Rounds of the autoencoder stage; 0 where the autoencoder is not trained."""
        fixed = self.privacy.enabled and self.privacy.autoencoder != "trained"
        return 0 if fixed else self.federation.autoencoder_rounds

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
