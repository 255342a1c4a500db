"""The federation file: server and sites of a federation, written by the coordinator."""

from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from deployment.signers import Role
from mediffusion_core.common.errors import UserError
from mediffusion_core.settings.base import StrictModel
from mediffusion_core.settings.site_file import NAME

Name = Annotated[str, Field(pattern=f"^{NAME}$")]


class ServerAddress(StrictModel):
    """Address of the server for the sites."""

    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?$")]
    """A domain name or an IP address."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000


class TrustedSigner(StrictModel):
    """A person whom the sites trust beside the coordinator, with a key of their own."""

    name: Name
    role: Role
    key: Path
    """File of the public key, beside the federation file."""


class FederationFile(StrictModel):
    """Name, server and sites of a federation."""

    name: Name
    server: ServerAddress
    sites: Annotated[tuple[Name, ...], Field(min_length=1)]
    certificate_days: Annotated[int, Field(ge=1, le=825)] = 365
    signers: tuple[TrustedSigner, ...] = ()
    """Trusted signers beside the coordinator whose key `provision` makes."""
    make_site_keys: bool = False
    """Whether the coordinator makes the sites' private keys, for trials; else each site makes its
    own."""

    @model_validator(mode="after")
    def _sites_differ(self) -> Self:
        if len({site.lower() for site in self.sites}) < len(self.sites):
            raise ValueError("two sites have one name")
        if "server" in self.sites:
            raise ValueError("no site may be called server")
        if len({signer.name for signer in self.signers}) < len(self.signers):
            raise ValueError("two signers have one name")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a federation file in YAML.

        Raises:
            UserError: if the file can't be read, or an entry is wrong.
        """
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise UserError(f"federation file {path}: {reason}") from None
        try:
            given = cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            where = f"{key}: " if key else ""
            raise UserError(f"federation file {path}: {where}{message}") from None
        signers = tuple(
            one.model_copy(update={"key": path.parent / one.key}) for one in given.signers
        )
        return given.model_copy(update={"signers": signers})
