"""The site file: what a hospital allows, written by the hospital, read on its own disk."""

import stat
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, field_validator

from mediffusion_core.common.errors import UserError
from mediffusion_core.settings import DataSettings, TableSettings, did_you_mean
from mediffusion_core.settings.allowed_metrics import ALLOWED_METRICS
from mediffusion_core.settings.base import StrictModel


class SiteData(TableSettings):
    """Where the site's images are, and which columns of its table say what."""

    source: str
    root: Path

    @field_validator("root", "store")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return _refuse_relative(path)


class SitePolicy(StrictModel):
    """What the site agrees to at most; a run that asks for more is refused by the site.

    `max_epsilon`, at `target_delta`, bounds what a patient has spent over all runs,
    `min_noise_multiplier` what a single step or release adds (both of DP-SGD, arXiv 1607.00133). A
    metric that is not listed stays here.
    """

    max_epsilon: Annotated[float, Field(gt=0.0)] | None = None
    target_delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    min_noise_multiplier: Annotated[float, Field(gt=0.0)] | None = None
    allowed_metrics: frozenset[str] = ALLOWED_METRICS
    device: Literal["auto", "cpu"] | Annotated[str, Field(pattern=r"^cuda(:\d+)?$")] = "auto"

    @field_validator("allowed_metrics")
    @classmethod
    def _known(cls, metrics: frozenset[str]) -> frozenset[str]:
        for metric in sorted(metrics - ALLOWED_METRICS):
            hint = did_you_mean(metric, sorted(ALLOWED_METRICS))
            raise ValueError(f"{metric}: no metric that leaves a site{hint}")
        return metrics


class SiteLedger(StrictModel):
    """Where the privacy ledger stands, and in which second place its head is kept.

    By default the user's data folder, and the folder of prepared stores.
    """

    folder: Path | None = None
    head: Path | None = None

    @field_validator("folder", "head")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return _refuse_relative(path)


class SiteFile(StrictModel):
    """One hospital: its name, its data, its policy, its ledger."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
    data: SiteData
    policy: SitePolicy = SitePolicy()
    ledger: SiteLedger = SiteLedger()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a site file in TOML.

        Raises:
            UserError: missing file, a file that others may write, no TOML, or a key that is
                unknown, missing or out of range: one line that names it.
        """
        try:
            mode = path.stat().st_mode
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"site file {path}: {reason}") from None
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UserError(f"site file {path}: others may write it; run chmod go-w on it")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise UserError(f"site file {path}: {_one_line(error)}") from None

    def data_settings(self, image_size: int, channels: Literal[1, 3]) -> DataSettings:
        """The data settings of a run at this site.

        Raises:
            UserError: if they do not fit together.
        """
        try:
            return DataSettings(**self.data.model_dump(), image_size=image_size, channels=channels)
        except ValidationError as error:
            raise UserError(f"site {self.name}: data.{_one_line(error)}") from None


def _refuse_relative(path: Path | None) -> Path | None:
    if path is not None and not path.is_absolute():
        raise ValueError(f"{path} is not absolute: a service starts in a folder of its own")
    return path


def _one_line(error: ValidationError) -> str:
    first: Any = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}{did_you_mean(key, _keys(SiteFile))}"
    if first["type"] == "missing":
        return f"{key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}={first['input']!r}: {message[0].lower()}{message[1:]}"


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += _keys(inner, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name}")
    return found
