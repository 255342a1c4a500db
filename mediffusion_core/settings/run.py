"""Everything one run is told, and one hash over it."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from mediffusion_core.settings.base import StrictModel
from mediffusion_core.settings.compatibility import refuse_what_shows_a_site, refuse_what_voids
from mediffusion_core.settings.data import DataSettings
from mediffusion_core.settings.evaluation import EvaluationSettings
from mediffusion_core.settings.federation import FederationSettings
from mediffusion_core.settings.model import DiffusionSettings, ModelSettings
from mediffusion_core.settings.privacy import PrivacySettings
from mediffusion_core.settings.training import TrainingSettings

SITE_LOCAL: dict[str, bool | set[str]] = {
    "run": True,
    "device": True,
    "data": {"root", "store", "table", "columns"},
    "evaluation": {"inception_weights"},
    "federation": {"round_timeout", "grace_period", "min_sites", "max_images"},
    "privacy": {"public_model", "ledger", "ledger_heads", "max_epsilon"},
}
"""Settings outside the hash: where things lie, how long to wait and for whom; never what a site
computes."""


class RunSettings(StrictModel):
    """Where one run lives. Local to each machine, not part of the hash."""

    folder: Path | None = None


class Settings(StrictModel):
    """Everything one run is told."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: str = "auto"
    run: RunSettings = RunSettings()
    data: DataSettings
    model: ModelSettings
    diffusion: DiffusionSettings = DiffusionSettings()
    training: TrainingSettings = TrainingSettings()
    federation: FederationSettings = FederationSettings()
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
    def _trains_something(self) -> Self:
        head_alone = self.privacy.enabled and self.privacy.trained == "head"
        if head_alone and not self.training.joint.classification_weight:
            raise ValueError(
                "privacy.trained=head with training.joint.classification_weight=0: nothing would "
                "be trained"
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
                f"most {values}, the values of a patch"
            )
        frozen = self.privacy.enabled and self.privacy.autoencoder == "frozen"
        if frozen and not self.model.autoencoder.linear_start:
            raise ValueError(
                "privacy.autoencoder=frozen keeps the first weights, which are of use only with "
                "model.autoencoder.linear_start=true"
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
    def min_sites(self) -> int:
        """How many must take part: `federation.min_sites`, or more than half."""
        least = self.federation.min_sites or self.num_participants // 2 + 1
        return min(least, self.num_participants)

    @property
    def autoencoder_rounds(self) -> int:
        """Rounds of the autoencoder stage; none where no patient may move the autoencoder."""
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
