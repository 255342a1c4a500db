"""The site policy: a site's limits on runs, in its site file."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from mediffusion_core.settings.allowed_metrics import ALLOWED_METRICS
from mediffusion_core.settings.base import Count, Positive, StrictModel
from mediffusion_core.settings.run import Settings
from mediffusion_core.settings.validation import did_you_mean, setting_names


class Bounds(StrictModel):
    """The smallest and the largest number that a setting may have."""

    min: float | None = None
    """Smallest number. None: no limit."""
    max: float | None = None
    """Largest number. None: no limit."""

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("bounds need min or max")
        return self


class SitePolicy(StrictModel):
    """The site's limits. The site refuses a run that asks for more."""

    require_privacy: bool = True
    """Whether runs without differential privacy are refused."""
    max_epsilon: Positive | None = None
    """Largest ε of a patient over all private runs, above 0. None: no limit."""
    target_delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    """The δ of that ε, above 0 and below 1."""
    min_noise_multiplier: Positive | None = None
    """Smallest noise multiplier of a step or of noisy statistics in a private run, above 0
    (arXiv 1607.00133). None: no limit."""
    shared_noise: bool = False
    """Whether the site takes part in private runs with `privacy.secure_aggregation`. Its own noise
    is then a share: ε holds for sums over the sites, if few enough sites collude with the server.
    """
    allowed_metrics: frozenset[str] = ALLOWED_METRICS
    """Metrics that may leave the site."""
    allowed_settings: Mapping[str, Bounds | tuple[JsonValue, ...]] = {}
    """By a setting's name, its allowed values or the bounds `{min = ..., max = ...}`. Settings that
    are not named are free."""
    approval: Literal["none", "required"] = "none"
    """Whether the site's engineer approves each run before it starts."""
    min_patients: Count = 10
    """Smallest number of patients whose counts or sums may leave in an evaluation of a model and in
    statistics, at least 1."""
    keep_latents: Literal["run"] | Annotated[int, Field(ge=1, le=3650)] = "run"
    """How long encoded images stay after their last use: until the run ends, or days from 1 to
    3650."""
    device: Literal["auto", "cpu"] | Annotated[str, Field(pattern=r"^cuda(:\d+)?$")] = "auto"
    """Where the site computes: `auto`, `cpu`, `cuda` or `cuda:N`."""

    @field_validator("allowed_metrics")
    @classmethod
    def _known(cls, metrics: frozenset[str]) -> frozenset[str]:
        for metric in sorted(metrics - ALLOWED_METRICS):
            hint = did_you_mean(metric, sorted(ALLOWED_METRICS))
            raise ValueError(f"{metric} is not a metric that a site may send{hint}")
        return metrics

    @field_validator("allowed_settings")
    @classmethod
    def _are_settings(cls, allowed: Mapping[str, object]) -> Mapping[str, object]:
        known = setting_names(Settings)
        for name in allowed:
            if name not in known:
                raise ValueError(f"{name} is no setting of a run{did_you_mean(name, known)}")
        return allowed
