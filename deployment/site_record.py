"""A record of a site on its own disk, in a JSON file that processes change in turn."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from deployment.signing import BundleRefusedError
from mediffusion_core.common.files import write_durably

Content = TypeVar("Content")


@dataclass(frozen=True)
class SiteRecord(Generic[Content]):
    """A record's file, the form of its content, and its name in errors."""

    path: Path
    form: TypeAdapter[Content]
    name: str

    def read(self, empty: Content) -> Content:
        """The content, or `empty` without a file.

        Raises:
            OSError: if the file can't be read.
            BundleRefusedError: if the file has another form.
        """
        try:
            return self.form.validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return empty
        except ValidationError:
            raise BundleRefusedError(f"the site's record of {self.name} is damaged") from None

    def change(self, empty: Content, changed: Callable[[Content], Content]) -> None:
        """Replaces the content by `changed` of it.

        Raises:
            BundleRefusedError: if the file can't be used, and as `changed`.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"):
                before = self.read(empty)
                after = changed(before)
                if after != before:
                    write_durably(self.path, self.form.dump_json(after))
        except OSError as error:
            raise BundleRefusedError(
                f"the site's record of {self.name} can't be used: {error.strerror}"
            ) from None
