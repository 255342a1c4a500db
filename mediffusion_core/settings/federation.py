"""Who takes part in a run, for how long, and what the server makes of the replies."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mediffusion_core.settings.base import Count, Fraction, Positive, StrictModel


class ServerOptimizer(StrictModel):
    """How the server steps from a component's weights towards the mean of the sites' weights."""

    former_names: ClassVar[dict[str, str]] = {"adaptivity": "tau"}

    method: Literal["fedavg", "fedavgm", "fedadam", "fedyogi"] = "fedavg"
    learning_rate: Positive = 1.0
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    tau: Positive = 1e-3


class ServerSettings(StrictModel):
    """The server's step for each component. Adam's moments of the sites are always averaged."""

    autoencoder: ServerOptimizer = ServerOptimizer()
    unet: ServerOptimizer = ServerOptimizer()
    head: ServerOptimizer = ServerOptimizer()


Weighting = Literal["rounds", "steps"]
"""Whether a site's whole change of a round is weighted by its images, or the change of a step."""

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

    `fraction_train` is the share of the sites, drawn anew for each round of training. The run needs
    `min_sites` of them, by default more than half: a site that fails, stays silent for
    `round_timeout` seconds or sends a reply that breaks the contract is set aside for that round.
    A census of more than `max_images` images is refused.
    Once so many have answered, sites that are away have `grace_period` seconds to come back.
    `weighting` says what a site's images weigh. Two comparisons have the same splits and labels:
    `pool_sites` trains on all images in one place, `only_site` at one site alone. `compression`
    holds for rounds of training.
    """

    former_names: ClassVar[dict[str, str]] = {
        "min_replies": "min_sites",
        "participation": "fraction_train",
    }

    num_sites: Count = 3
    pool_sites: bool = False
    only_site: str | None = None
    num_rounds: Count = 16
    autoencoder_rounds: Count = 6
    fraction_train: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    weighting: Weighting = "rounds"
    server: ServerSettings = ServerSettings()
    local_normalisation: bool = False
    client_level: ClientLevelSettings = ClientLevelSettings()
    compression: Compression = "none"
    cpus_per_site: Positive = 0.5
    ema_decay: Fraction = 0.6
    round_timeout: Positive = 3600.0
    grace_period: Annotated[float, Field(ge=0.0)] = 60.0
    min_sites: Count | None = None
    max_images: Count = 1_000_000

    @property
    def in_one_place(self) -> bool:
        """Whether there is a single participant, and nothing is federated."""
        return self.pool_sites or self.only_site is not None

    @model_validator(mode="after")
    def _enough_can_come(self) -> Self:
        if self.min_sites is not None and self.min_sites > self.num_sites:
            raise ValueError(
                f"federation.min_sites {self.min_sites} is more than "
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
