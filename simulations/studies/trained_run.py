"""A finished run with its images: what a study of its model needs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from configs.compose import compose
from mediffusion_core.common.device import resolve_device
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.run_io.provenance import current_commit
from mediffusion_core.settings import DataSettings, Settings
from simulations.engine.preparation import prepare_images
from simulations.engine.simulate import LAUNCH


@dataclass(frozen=True)
class TrainedRun:
    """A model and the images that it was trained and is judged on."""

    model: TrainedModel
    settings: Settings
    """The model's, with the place of the images."""
    hospitals: FederatedDataset

    def provenance(self, run: Path) -> dict[str, Any]:
        """What a study of the run in a folder says of where its figures come from."""
        return {
            "run": run.resolve().name,
            "data": self.settings.data.source,
            "seed": self.settings.seed,
            "commit": current_commit(),
            "settings_hash": self.model.settings.fingerprint(),
        }


def open_trained_run(run: Path, device: str, console: Console) -> TrainedRun:
    """Opens the model and the images of the run in a folder.

    Raises:
        UserError: if there is no run or no model, or its images are not where they were.
    """
    if not run.is_dir():
        raise UserError(f"run folder {run} does not exist")
    model = TrainedModel.load(run / "model", resolve_device(device))
    data = _with_places(run, model.settings.data)
    settings = model.settings.model_copy(update={"data": data})
    hospitals = prepare_images(settings, console)
    store = hospitals.store
    if (store.classes, store.multi_label) != (model.classes, model.multi_label):
        raise UserError(f"the images of {run} are not those that its model was trained on")
    return TrainedRun(model, settings, hospitals)


def _with_places(run: Path, data: DataSettings) -> DataSettings:
    """The data settings with the places of the images, which only the run's launch knows."""
    launch = run / LAUNCH
    if not launch.is_file():
        if data.source == "phantom":
            return data
        raise UserError(f"{run} has no {LAUNCH}, which says where its images lie")
    written = json.loads(launch.read_text(encoding="utf-8"))
    launched = compose(written["config_name"], written["overrides"]).data
    places = ("root", "store", "table", "columns")
    return data.model_copy(update={name: getattr(launched, name) for name in places})
