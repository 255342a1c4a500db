"""The Flower app for ``flwr run``, assembled from the packages beside this one."""

import shutil
import tomllib
from pathlib import Path

APP_PACKAGES = ("client", "configs", "mediffusion_core", "server")
ROOT = Path(__file__).resolve().parents[2]
"""The checkout, or the folder of installed packages."""


def assemble_app(root: Path, folder: Path) -> None:
    """Copies the app's ``pyproject.toml`` and packages from `root` into an empty folder.

    ``flwr run`` does not get a checkout itself, because Flower walks every file below it, virtual
    environment included, before it applies ``.gitignore``.

    The ``pyproject.toml`` is that of `root` in a repository, or the copy in the wheel's package
    ``simulations``.

    Raises:
        FileNotFoundError: if neither has a section ``[tool.flwr.app]``.
    """
    candidates = (root / "pyproject.toml", root / "simulations" / "pyproject.toml")
    description = next((path for path in candidates if _describes_app(path)), None)
    if description is None:
        raise FileNotFoundError(
            f"no pyproject.toml with [tool.flwr.app] at {root} or in simulations"
        )
    shutil.copy(description, folder / "pyproject.toml")
    for package in APP_PACKAGES:
        shutil.copytree(
            root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )


def _describes_app(path: Path) -> bool:
    # Other distributions may leave a pyproject.toml in site-packages.
    if not path.is_file():
        return False
    return "app" in tomllib.loads(path.read_text()).get("tool", {}).get("flwr", {})
