"""The Flower app that ``flwr run`` is handed, assembled from the packages beside this one."""

import atexit
import shutil
import tempfile
import tomllib
from pathlib import Path

from simulations.engine.temporary import temporary_root

APP_PACKAGES = ("client", "configs", "mediffusion_core", "server")


def app_folder() -> Path:
    """Assemble the Flower app from the packages beside this one; removed at exit.

    The same for a checkout and an installed wheel. A checkout is not handed to ``flwr run``
    itself because Flower walks every file below it, virtual environment included, before it
    applies ``.gitignore``. The ``pyproject.toml`` is the repository's, or the copy that the
    wheel carries in this package.

    Raises:
        FileNotFoundError: if neither describes a Flower app.
    """
    folder = Path(tempfile.mkdtemp(prefix="fedmed-app-", dir=temporary_root()))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    assemble_app(Path(__file__).resolve().parents[2], folder)
    return folder


def assemble_app(root: Path, folder: Path) -> None:
    """Copies the app's description and packages from `root` into an empty folder.

    Raises:
        FileNotFoundError: if nothing at `root` describes a Flower app.
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
    # Some distributions leave a pyproject.toml of theirs in site-packages.
    if not path.is_file():
        return False
    return "app" in tomllib.loads(path.read_text()).get("tool", {}).get("flwr", {})
