"""What an app bundle says of itself: its names and the defaults of its run configuration."""

import hashlib
import re
import zipfile
from dataclasses import dataclass

from flwr.common.config import (
    flatten_dict,
    fuse_dicts,
    get_fab_config,
    get_metadata_from_config,
)

from deployment.signing import Settings

_PART = r"[A-Za-z0-9_+!-]+(\.[A-Za-z0-9_+!-]+)*"
APP_ID, VERSION = re.compile(f"{_PART}/{_PART}"), re.compile(_PART)
"""Flower makes a folder's name of them, so that no part may have a `/` or a `..`."""


@dataclass(frozen=True)
class AppBundle:
    """A bundle's own words, as far as they matter before it is unpacked."""

    digest: str
    app_id: str
    version: str
    defaults: Settings

    @classmethod
    def read(cls, content: bytes) -> "AppBundle":
        """Reads the bundle's pyproject.toml and nothing else of it.

        Raises:
            ValueError: if it is no bundle, or its names are not fit for a folder's name.
        """
        try:
            config = get_fab_config(content)
            app_id, version = get_metadata_from_config(config)
            defaults = flatten_dict(config["tool"]["flwr"]["app"].get("config", {}))
        except (KeyError, TypeError, AttributeError, RuntimeError, zipfile.BadZipFile) as error:
            raise ValueError(f"no app bundle: {error}") from None
        for pattern, name in ((APP_ID, app_id), (VERSION, version)):
            if not isinstance(name, str) or not pattern.fullmatch(name):
                raise ValueError(f"{name!r} can't be a part of a folder's name")
        return cls(hashlib.sha256(content).hexdigest(), app_id, version, defaults)

    def run_config(self, overrides: Settings) -> Settings:
        """The configuration that the app is given.

        Raises:
            ValueError: if the bundle has no such key.
        """
        return dict(fuse_dicts(dict(self.defaults), dict(overrides)))
