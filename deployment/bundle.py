"""Names of an app bundle, and defaults of its run configuration."""

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
"""Flower makes a folder's name of them, so no part may contain `/` or `..`."""


@dataclass(frozen=True)
class AppBundle:
    """Names and defaults of a bundle, read without unpacking it."""

    digest: str
    app_id: str
    version: str
    defaults: Settings

    @classmethod
    def read(cls, content: bytes) -> "AppBundle":
        """Reads the bundle's pyproject.toml only.

        Raises:
            ValueError: if the content is no bundle, or its names cannot be part of a folder's name.
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
        """The run's configuration: the bundle's defaults with overrides.

        Raises:
            ValueError: if an override has a key without a default.
        """
        return dict(fuse_dicts(dict(self.defaults), dict(overrides)))
