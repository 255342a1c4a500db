"""One cell of the study: a method, a share of labels and a seed; kept by the hash of its settings.

`python -m simulations.studies.labels.cells FOLDER` runs the cell that stands in a folder, in one
thread, and leaves its figures beside it. What is there already is not run again, and a run of the
federation that was cut short goes on from its last checkpoint.
"""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.compose import compose, quoted
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
)
from mediffusion_core.evaluation.evaluator import Evaluator
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.run_io.run_folder import write_json
from mediffusion_core.settings import Settings
from simulations.baselines.federated_run import RivalRun, refuse_what_rivals_ignore
from simulations.baselines.settings import RivalSettings
from simulations.engine.in_process import run_in_process
from simulations.studies.labels.methods import Method, Trial

DESCRIPTION, FIGURES, PREDICTIONS = "cell.json", "figures.json", "predictions.safetensors"
FEW_COUNTERFACTUALS = tuple(
    f"evaluation.counterfactual.{one}"
    for one in ("count=1", "num_candidates=1", "relax_mask=false")
)
"""The study compares none of their figures."""
KEPT = (
    "auc_macro",
    "auc_macro_interval",
    "auc_per_class",
    "auc_per_site",
    "auc_pooled",
    "calibration",
    "fid",
    "fid_floor",
    "psnr",
    "selected_round",
    "parameters",
    "seconds",
    "seed",
    "commit",
)


@dataclass(frozen=True)
class Cell:
    """A method at a share of labels and a seed."""

    method: str
    fraction: float
    seed: int
    site: str | None
    """Where each site trains alone, which of them."""
    overrides: tuple[str, ...]
    rival: RivalSettings | None

    @cached_property
    def settings(self) -> Settings:
        """The settings of its run."""
        return compose("config", self.overrides)

    @cached_property
    def settings_hash(self) -> str:
        """Of all settings that its figures depend on, and of where the images are.

        Beside the hash of a run, which knows no paths: two folders of images are two studies.
        """
        settings = self.settings
        shared = settings.shared()
        where = [settings.data.root, settings.data.table]
        used: dict[str, Any] = {
            "images": [str(path.resolve()) for path in where if path is not None],
            "columns": settings.data.columns.model_dump(mode="json"),
        }
        if self.rival is None:
            return _digest({**used, "settings": settings.fingerprint()})
        federation = ("num_sites", "pool_sites", "only_site", "weighting")
        used |= {
            "seed": shared["seed"],
            "data": shared["data"],
            "federation": {name: shared["federation"][name] for name in federation},
            "precision": shared["training"]["precision"],
            "num_bootstraps": shared["evaluation"]["num_bootstraps"],
            "rival": self.rival.model_dump(mode="json"),
        }
        return _digest(used)

    def folder(self, study: Path) -> Path:
        """Where it is kept in a study's folder."""
        return study / "cells" / self.settings_hash

    def figures(self, study: Path) -> dict[str, Any] | None:
        """Its figures, None where it has not been run."""
        try:
            figures: dict[str, Any] = json.loads((self.folder(study) / FIGURES).read_text())
        except (OSError, ValueError):
            return None
        return figures

    def predictions(self, study: Path) -> dict[str, Tensor]:
        """Test `logits` (N, classes), `targets` (N, classes) and `groups` (N,) of a cell."""
        return load_file(self.folder(study) / PREDICTIONS)

    def describe(self, study: Path) -> None:
        """Writes what `run_cell` needs into its folder."""
        folder = self.folder(study)
        folder.mkdir(parents=True, exist_ok=True)
        rival = None if self.rival is None else self.rival.model_dump(mode="json")
        write_json(
            folder / DESCRIPTION,
            {
                "method": self.method,
                "fraction": self.fraction,
                "seed": self.seed,
                "site": self.site,
                "overrides": list(self.overrides),
                "rival": rival,
            },
        )


def _digest(used: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:16]


def cells_of(
    method: Method, trial: Trial, base: Sequence[str], fraction: float, seed: int
) -> Iterator[Cell]:
    """The cells of one method at a share of labels and a seed: one, or one a site.

    Args:
        method: already scaled to its budget.
        trial: what is changed of its settings.
        base: overrides of all methods, which name the data.
        fraction: share of the training images that keep their label.
        seed: of the run: splits, weights and all that is drawn.

    Raises:
        UserError: if a rival is to be held against a federation of another kind than its own.
    """
    rounds = [
        f"federation.autoencoder_rounds={method.rounds[0]}",
        f"federation.num_rounds={method.rounds[1]}",
        f"evaluation.every={method.rounds[1]}",
        *FEW_COUNTERFACTUALS,
    ]
    dealt = (*base, f"data.labelled_fraction={fraction:g}", f"seed={seed}", *method.overrides)
    own = [*dealt]
    rival = method.rival
    if rival is None:
        own += [*rounds, *trial]
    else:
        rival = rival.model_copy(update=_parsed(trial))
    if method.without_unlabelled and fraction < 1:
        own += _without_unlabelled(own, fraction)
    for site in _site_names(dealt) if method.each_site else (None,):
        alone = () if site is None else (f"federation.only_site={site}",)
        cell = Cell(method.name, fraction, seed, site, (*own, *alone), rival)
        if rival is not None:
            # Before a kept cell is shown, whose hash knows nothing of what it ignores.
            refuse_what_rivals_ignore(cell.settings)
        yield cell


@lru_cache
def _site_names(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """Dealing takes seconds, and a plan asks for the same cells more than once."""
    return tuple(
        shard.site for shard in open_federated_dataset(compose("config", overrides)).centres
    )


def _parsed(trial: Trial) -> dict[str, Any]:
    pairs = (one.partition("=") for one in trial)
    return {name: json.loads(value) for name, _, value in pairs}


def _without_unlabelled(overrides: Sequence[str], fraction: float) -> list[str]:
    """Fewer images get more passes, so that the steps stay about equal.

    A site's labelled share is the wish rounded to whole patients, so a few steps are more or less.
    """
    training = compose("config", overrides).training
    return [
        "data.use_unlabelled=false",
        f"training.autoencoder.local_epochs={training.autoencoder.local_epochs / fraction:g}",
        f"training.joint.local_epochs={training.joint.local_epochs / fraction:g}",
    ]


def run_cell(folder: Path) -> None:
    """Runs the cell described in a folder; its figures and predictions stand there afterwards."""
    torch.set_num_threads(1)
    described = json.loads((folder / DESCRIPTION).read_text())
    overrides = [*described["overrides"], f"run.folder={quoted((folder / 'run').resolve())}"]
    settings = compose("config", overrides)
    hospitals = open_federated_dataset(settings)
    if described["rival"] is None:
        figures, logits = _joint(overrides, settings, hospitals)
    else:
        run = RivalRun(settings, RivalSettings.model_validate(described["rival"]), hospitals)
        figures, logits = run.execute(lambda done, total: print(f"{done}/{total}", flush=True))
    figures["multi_label"] = hospitals.store.multi_label
    _keep_predictions(folder, hospitals, logits)
    # Last, since a cell that has figures counts as run.
    write_json(folder / FIGURES, figures)


def _joint(
    overrides: Sequence[str], settings: Settings, hospitals: FederatedDataset
) -> tuple[dict[str, Any], Tensor]:
    folder = run_in_process("config", overrides)
    summary = json.loads((folder.path / "summary.json").read_text())
    figures = {name: summary.get(name) for name in KEPT}
    figures["parameters"] = sum(summary["parameters"].values())
    model = TrainedModel.load(folder.model, torch.device("cpu"))
    if not settings.training.joint.classification_weight:
        # A head that nobody trained; its numbers say nothing.
        figures |= {"auc_macro": None, "auc_pooled": None}
    return figures, Evaluator.of_hospitals(settings, hospitals).logits(model)


def _keep_predictions(folder: Path, hospitals: FederatedDataset, logits: Tensor) -> None:
    """Logits with the labels, and patients or lesions as numbers: names stay in the store."""
    groups = np.unique(hospitals.groups(hospitals.test_rows), return_inverse=True)[1]
    arrays = {
        "logits": logits.float().contiguous(),
        "targets": hospitals.test().targets.contiguous(),
        "groups": torch.from_numpy(groups.astype(np.int64)),
    }
    temporary = folder / f".{PREDICTIONS}"
    save_file(arrays, temporary)
    temporary.replace(folder / PREDICTIONS)


def main() -> None:
    """Entry point of the process of one cell; a user's mistake is one line."""
    try:
        run_cell(Path(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
