"""A finished run with its model and its images."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from configs.compose import compose
from mediffusion_core.common.device import resolve_device
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.image_set import ImageSet, joined
from mediffusion_core.data.partitioning.federated_dataset import FederatedDataset
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.run_io.provenance import current_commit
from mediffusion_core.settings import DataSettings, Settings
from simulations.engine.preparation import prepare_images
from simulations.engine.simulate import LAUNCH


@dataclass(frozen=True)
class TrainedRun:
    """A trained model and the images of its run."""

    folder: Path
    model: TrainedModel
    settings: Settings
    """The model's, with the place of the images."""
    dataset: FederatedDataset

    def provenance(self) -> dict[str, Any]:
        """Run, data, seed, commit and settings, which every study records."""
        return {
            "run": self.folder.resolve().name,
            "data": self.settings.data.source,
            "seed": self.settings.seed,
            "commit": current_commit(),
            "settings_hash": self.model.settings.fingerprint(),
        }

    def training_images(self) -> ImageSet:
        """The training images of all sites; withheld labels are nan."""
        return joined([self.dataset.train(site) for site in range(len(self.dataset.clients))])

    def validation_images(self) -> ImageSet:
        """The images of all sites' validation patients."""
        return joined([self.dataset.validation(site) for site in range(len(self.dataset.clients))])

    def require_counterfactuals(self) -> None:
        """Checks that the model can make counterfactuals.

        Raises:
            UserError: if the denoiser or the classifier was not trained.
        """
        if not self.settings.training.joint.trains_both_halves:
            raise UserError(
                f"the run {self.folder} trained one half of its network; counterfactuals need both"
            )


def open_trained_run(folder: Path, device: str, console: Console) -> TrainedRun:
    """Opens the model and the images of a finished run.

    Args:
        folder: Folder of the run.
        device: As `resolve_device` takes it.
        console: Shows the progress of preparing the images.

    Raises:
        UserError: if the folder has no model, or the images of the run are not found.
    """
    if not folder.is_dir():
        raise UserError(f"run folder {folder} does not exist")
    model = TrainedModel.load(folder / "model", resolve_device(device))
    data = _with_places(folder, model.settings.data)
    settings = model.settings.model_copy(update={"data": data})
    dataset = prepare_images(settings, console)
    store = dataset.store
    if (store.classes, store.multi_label) != (model.classes, model.multi_label):
        raise UserError(f"the images of {folder} are not those that its model was trained on")
    return TrainedRun(folder, model, settings, dataset)


def _with_places(folder: Path, data: DataSettings) -> DataSettings:
    """The data settings with the paths of the images, which only the launch file has."""
    launch = folder / LAUNCH
    if not launch.is_file():
        if data.source == "phantom":
            return data
        raise UserError(f"{folder} has no {LAUNCH}, which says where its images lie")
    written = json.loads(launch.read_text(encoding="utf-8"))
    launched = compose(written["config_name"], written["overrides"]).data
    places = ("root", "store", "table", "columns")
    return data.model_copy(update={name: getattr(launched, name) for name in places})
