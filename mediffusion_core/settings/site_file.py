"""The site file: a site's data and limits, on the site's own disk."""

import stat
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError, field_validator

from mediffusion_core.common.errors import UserError
from mediffusion_core.settings import DataSettings, TableSettings, did_you_mean
from mediffusion_core.settings.base import StrictModel
from mediffusion_core.settings.site_policy import SitePolicy
from mediffusion_core.settings.validation import setting_names

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}"
"""Pattern of the names of sites and signers, in all files of a federation."""


class SiteData(TableSettings):
    """The site's images and labels."""

    source: str
    """The reader, as `data.source` of a run."""
    root: Path
    """Absolute path of the images."""

    @field_validator("root", "store")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return _refuse_relative(path)


class SiteLedger(StrictModel):
    """The places of the privacy ledger, as absolute paths."""

    former_names: ClassVar[dict[str, str]] = {"head": "tip"}

    folder: Path | None = None
    """Folder of the ledger. None: in the user's data folder."""
    tip: Path | None = None
    """Folder of the second copy of the ledger's tip. None: in the folder of prepared images."""

    @field_validator("folder", "tip")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return _refuse_relative(path)


class SiteFile(StrictModel):
    """Data, limits and ledger of one site."""

    name: Annotated[str, Field(pattern=f"^{NAME}$")]
    """Name of the site: letters, digits, `_`, `.` and `-`, at most 63."""
    data: SiteData
    """The site's images and labels."""
    policy: SitePolicy = SitePolicy()
    """The site's limits."""
    ledger: SiteLedger = SiteLedger()
    """The places of the privacy ledger."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a site file in TOML.

        Raises:
            UserError: if the file is missing, is writable by others or is no TOML, or if a key is
                unknown, missing or out of range; one line that names it.
        """
        try:
            mode = path.stat().st_mode
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"site file {path}: {reason}") from None
        if mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UserError(f"site file {path}: group or others may write it; run chmod go-w on it")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise UserError(f"site file {path}: {_one_line(error)}") from None

    def data_settings(self, image_size: int, channels: Literal[1, 3]) -> DataSettings:
        """The data settings of a run at this site.

        Raises:
            UserError: if they contradict each other.
        """
        try:
            return DataSettings(**self.data.model_dump(), image_size=image_size, channels=channels)
        except ValidationError as error:
            raise UserError(f"site {self.name}: data.{_one_line(error)}") from None


def _refuse_relative(path: Path | None) -> Path | None:
    if path is not None and not path.is_absolute():
        raise ValueError(f"{path} is not absolute; a relative path depends on the service's folder")
    return path


def _one_line(error: ValidationError) -> str:
    first: Any = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}{did_you_mean(key, setting_names(SiteFile))}"
    if first["type"] == "missing":
        return f"{key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}={first['input']!r}: {message[0].lower()}{message[1:]}"
