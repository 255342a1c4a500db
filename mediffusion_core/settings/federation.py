"""The federation: its sites, its rounds, and how the server aggregates."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mediffusion_core.settings.base import Count, Fraction, NonNegative, Positive, StrictModel

Aggregation = Literal["mean", "median", "trimmed_mean", "krum", "multi_krum"]
"""Aggregate of the sites' weights: their weighted mean, the median or trimmed mean of each value
(arXiv 1803.01498), or the weights of one or several sites that Krum selects (arXiv 1703.02757)."""


class ServerOptimizer(StrictModel):
    """Aggregation of one component, and the server's optimizer (arXiv 1909.06335, 2003.00295).

    The optimizer's gradient is the difference of the component's weights and the aggregate of the
    sites' weights.
    """

    former_names: ClassVar[dict[str, str]] = {"adaptivity": "tau"}

    aggregation: Aggregation = "mean"
    """Aggregate of the sites' weights: their weighted mean, the median or trimmed mean of each
    value (arXiv 1803.01498), or the weights of the sites that Krum or Multi-Krum selects
    (arXiv 1703.02757). All but the mean need `federation.num_malicious_sites`."""
    method: Literal["fedavg", "fedavgm", "fedadam", "fedyogi"] = "fedavg"
    """The algorithm. The fields below hold for those that use them."""
    learning_rate: Positive = 1.0
    """The server's learning rate η, above 0."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Decay of the first moment, 0 to below 1."""
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """Decay of the second moment, 0 to below 1."""
    tau: Positive = 1e-3
    """Adaptivity τ, above 0: added to the root of the second moment."""


class ServerSettings(StrictModel):
    """How the server aggregates each component. Adam's moments are aggregated as their weights."""

    autoencoder: ServerOptimizer = ServerOptimizer()
    """Of the autoencoder."""
    unet: ServerOptimizer = ServerOptimizer()
    """Of the UNet."""
    head: ServerOptimizer = ServerOptimizer()
    """Of the classifier."""


Weighting = Literal["rounds", "steps"]
"""Whether a site's images weight its change of a round (FedAvg) or of a step (FedNova)."""

Compression = Literal["none", "bf16", "int8"]
"""How weights travel in rounds of training: in 4, 2 or about 1 bytes a value."""


class ClientLevelSettings(StrictModel):
    """Client-level differential privacy: the server's noise hides a whole site.

    The mean of m sites' changes gets noise of standard deviation σ C / m (arXiv 1710.06963). It
    protects a site from all who receive the global weights, not from the server.
    """

    noise_multiplier: Positive | None = None
    """Noise multiplier σ, above 0. None: no client-level privacy."""
    max_update_norm: Positive = 1.0
    """Largest norm C of a site's change in a round, above 0; longer changes are clipped."""
    target_delta: Annotated[float, Field(gt=0.0, lt=0.1)] = 0.01
    """The δ of the reported ε, above 0 and at most 1/(10 n) for n sites."""

    @property
    def enabled(self) -> bool:
        """Whether means are noised."""
        return self.noise_multiplier is not None


class FederationSettings(StrictModel):
    """The federation: its sites, its rounds, and how the server aggregates.

    Two comparisons have the same splits and labels: `pool_sites` trains on all images in one place,
    `only_site` on those of one site. `left_out_site` trains on those of all sites but one.
    """

    former_names: ClassVar[dict[str, str]] = {
        "min_replies": "min_sites",
        "participation": "fraction_train",
    }

    num_sites: Count = 3
    """Number of sites, at least 1."""
    pool_sites: bool = False
    """Whether the images of all sites train in one place, as if nothing were federated."""
    only_site: str | None = None
    """Name of the only site that trains. None: all sites."""
    left_out_site: str | None = None
    """Name of a site that does not train. Its share of the public test set stays there, so that
    `auc_per_site` has the AUC at a site that no training reached. None: all sites train."""
    num_rounds: Count = 16
    """Rounds of the joint stage, at least 1."""
    autoencoder_rounds: Count = 6
    """Rounds of the autoencoder stage, at least 1."""
    fraction_train: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the sites that train in a round, above 0 to 1; drawn anew for each round."""
    weighting: Weighting = "rounds"
    """Whether a site's images weight its change of a round (FedAvg, arXiv 1602.05629) or of a step
    (FedNova, arXiv 2007.07481)."""
    server: ServerSettings = ServerSettings()
    """Aggregation and the server's optimizers."""
    num_malicious_sites: Annotated[int, Field(ge=0)] = 0
    """Number f of sites that may be malicious, at least 0. From 1 on f sites together have less
    than half of the weight in means and in validation counts, and the latent scale, the
    temperature and the classes' prevalence are medians over the sites."""
    norm_bound: Annotated[float, Field(gt=1.0)] | None = None
    """Largest norm of a site's change of a component in a round, as a multiple of the median over
    the sites, above 1. The reply of a site beyond it does not count. None: no bound."""
    agreement_bound: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Least agreement of a site in a round, as a share of the median over the sites, 0 to below 1.
    A site's agreement is the f-th largest cosine of its change of a component with other sites'
    changes. The reply of a site below it does not count. None: no bound."""
    local_normalisation: bool = False
    """Whether each site keeps its own normalisation layers in the joint stage (FedBN,
    arXiv 2102.07623)."""
    client_level: ClientLevelSettings = ClientLevelSettings()
    """Client-level differential privacy."""
    compression: Compression = "none"
    """How weights travel in rounds of training: in 4, 2 or about 1 bytes a value."""
    cpus_per_site: Positive = 0.5
    """CPU cores of a simulated site, above 0. Below 1, more sites train at once than there are
    cores, so that no core waits for the largest site."""
    ema_decay: Fraction = 0.6
    """Decay of the moving average of the global weights, a round, 0 to 1."""
    round_timeout: Positive = 3600.0
    """Seconds that a site has for its reply, above 0."""
    grace_period: NonNegative = 60.0
    """Seconds in which an absent site may come back once `min_sites` have answered, at least 0."""
    min_sites: Count | None = None
    """Sites that must answer in each round. None: more than half. A site that fails or answers too
    late is left out of the round."""
    max_images: Count = 1_000_000
    """Largest number of images of a site, at least 1. The census of a larger site is refused."""

    @property
    def in_one_place(self) -> bool:
        """Whether there is a single participant, and nothing is federated."""
        return self.pool_sites or self.only_site is not None

    def asked_of(self, sites: int) -> int:
        """How many of so many sites train in a round; at least one."""
        return max(1, round(self.fraction_train * sites))

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
                "federation.pool_sites trains on the images of all sites, federation.only_site="
                f"{self.only_site} on those of one; choose one of the two"
            )
        if self.only_site is not None and self.left_out_site is not None:
            raise ValueError(
                f"federation.only_site={self.only_site} leaves out all other sites, "
                f"federation.left_out_site={self.left_out_site} one; choose one of the two"
            )
        if self.left_out_site is not None and self.num_sites < 2:
            raise ValueError(
                f"federation.left_out_site={self.left_out_site} leaves no site that trains; "
                "federation.num_sites must be at least 2"
            )
        return self
