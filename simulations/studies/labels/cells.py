"""One cell of the study: a method, a labelled fraction and a seed; kept by its settings' hash.

`python -m simulations.studies.labels.cells FOLDER` runs the cell described in a folder, in one
thread, and writes its figures beside the description. An interrupted federated run resumes from its
last checkpoint.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.compose import compose, quoted
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import fingerprint
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
)
from mediffusion_core.evaluation.evaluator import Evaluator
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.run_io.run_folder import write_json
from mediffusion_core.settings import Settings
from simulations.baselines.federated_run import BaselineRun, refuse_unsupported
from simulations.baselines.linear_classifier import LinearRun
from simulations.baselines.settings import (
    Baseline,
    BaselineSettings,
    FineTunedSettings,
    LinearSettings,
)
from simulations.engine.cells import (
    DESCRIPTION,
    FIGURES,
    RUN,
    Cell,
    images_of,
    run_described,
    run_hash,
)
from simulations.engine.in_process import run_in_process
from simulations.studies.labels.methods import MAIN_FRACTION, Method, Trial
from simulations.studies.without_unlabelled import without_unlabelled

PREDICTIONS = "predictions.safetensors"
FEW_COUNTERFACTUALS = tuple(
    f"evaluation.counterfactual.{one}"
    for one in ("count=1", "num_candidates=1", "relax_mask=false")
)
"""The study compares no figures of counterfactuals."""
SUMMARY_FIGURES = (
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


READ_ORIGINALS = (FineTunedSettings, LinearSettings)
"""Baselines that read the originals at a size of their own."""


@dataclass(frozen=True)
class LabelsCell(Cell):
    """A method at a labelled fraction and a seed."""

    module: ClassVar[str] = "simulations.studies.labels.cells"

    method: str
    fraction: float
    seed: int
    site: str | None
    """The only site, where each site trains alone."""
    overrides: tuple[str, ...]
    baseline: Baseline | None

    @cached_property
    def settings(self) -> Settings:
        """The settings of its run."""
        return compose("config", self.overrides)

    @property
    def title(self) -> str:
        """Method, fraction and seed."""
        site = f" at {self.site}" if self.site else ""
        return f"{self.method}{site} {self.fraction:.0%} seed {self.seed}"

    @cached_property
    def settings_hash(self) -> str:
        """Hash of all settings that its figures depend on, with the paths of the images."""
        settings = self.settings
        if self.baseline is None:
            return run_hash(settings)
        used = images_of(settings)
        shared = settings.shared()
        federation = ("num_sites", "pool_sites", "only_site", "left_out_site", "weighting")
        used |= {
            "seed": shared["seed"],
            "data": shared["data"],
            "federation": {name: shared["federation"][name] for name in federation},
            "precision": shared["training"]["precision"],
            "num_bootstraps": shared["evaluation"]["num_bootstraps"],
            "rival": self.baseline.model_dump(mode="json"),
        }
        if isinstance(self.baseline, LinearSettings):
            used["alignment"] = shared["training"]["joint"]["alignment"]
        return fingerprint(**used)[:16]

    def predictions(self, study: Path) -> dict[str, Tensor]:
        """`logits` (N, classes), `targets` (N, classes) and `groups` (N,) of the test images."""
        return load_file(self.folder(study) / PREDICTIONS)

    def description(self) -> Mapping[str, Any]:
        """Its fields, with the baseline's settings."""
        baseline = None if self.baseline is None else self.baseline.model_dump(mode="json")
        return {
            "method": self.method,
            "fraction": self.fraction,
            "seed": self.seed,
            "site": self.site,
            "overrides": list(self.overrides),
            "rival": baseline,
        }

    def result(self, figures: Mapping[str, Any]) -> str:
        """The macro AUC on the test set."""
        auc = figures["auc_macro"]
        return "-" if auc is None else format(auc, ".3f")


def cells_of(
    method: Method, trial: Trial, base: Sequence[str], fraction: float, seed: int
) -> Iterator[LabelsCell]:
    """The cell of one method at a labelled fraction and a seed, or its cells, one for each site.

    Args:
        method: With the rounds of the plan.
        trial: Changes of its settings.
        base: Overrides of all methods, which name the data.
        fraction: Labelled fraction of the training images.
        seed: Of the run: splits, weights and all random draws.

    Raises:
        UserError: if a baseline does not have a setting of the federation.
    """
    rounds = [
        f"federation.autoencoder_rounds={method.rounds[0]}",
        f"federation.num_rounds={method.rounds[1]}",
        f"evaluation.every={method.rounds[1]}",
        *FEW_COUNTERFACTUALS,
    ]
    data = (*base, f"data.labelled_fraction={fraction:g}", f"seed={seed}", *method.overrides)
    overrides = [*data]
    baseline = method.baseline
    if baseline is None:
        overrides += [*rounds, *trial]
    else:
        baseline = baseline.model_copy(update=_parsed(trial))
    if isinstance(baseline, FineTunedSettings):  # as many steps with any number of labels
        baseline = baseline.repeated(MAIN_FRACTION / fraction)
    if method.without_unlabelled and fraction < 1:
        overrides += without_unlabelled(overrides, fraction)
    for site in _site_names(data) if method.each_site else (None,):
        only_site = () if site is None else (f"federation.only_site={site}",)
        cell = LabelsCell(method.name, fraction, seed, site, (*overrides, *only_site), baseline)
        if isinstance(baseline, READ_ORIGINALS) and cell.settings.data.scanner_shift:
            raise UserError(f"{method.name} needs data.scanner_shift=0: originals are not shifted")
        if baseline is not None:
            # Checked first: the hash of a finished cell lacks the settings that are refused.
            refuse_unsupported(cell.settings)
        yield cell


@lru_cache
def _site_names(overrides: tuple[str, ...]) -> tuple[str, ...]:
    # Kept, since partitioning takes seconds and a plan asks for the same cells more than once.
    dataset = open_federated_dataset(compose("config", overrides))
    return tuple(centre.site for centre in dataset.centres)


def _parsed(trial: Trial) -> dict[str, Any]:
    pairs = (one.partition("=") for one in trial)
    return {name: json.loads(value) for name, _, value in pairs}


def run_cell(folder: Path) -> None:
    """Runs the cell described in a folder and writes its figures and predictions there."""
    torch.set_num_threads(1)
    described = json.loads((folder / DESCRIPTION).read_text())
    overrides = [*described["overrides"], f"run.folder={quoted((folder / RUN).resolve())}"]
    settings = compose("config", overrides)
    dataset = open_federated_dataset(settings)
    if described["rival"] is None:
        figures, logits = _run_joint(overrides, settings, dataset)
    else:
        baseline = baseline_of(described["rival"])
        run = (
            LinearRun(settings, baseline, dataset)
            if isinstance(baseline, LinearSettings)
            else BaselineRun(settings, baseline, dataset)
        )
        figures, logits = run.execute(lambda done, total: print(f"{done}/{total}", flush=True))
    figures["multi_label"] = dataset.store.multi_label
    _save_predictions(folder, dataset, logits)
    # Last, since a cell with figures counts as finished.
    write_json(folder / FIGURES, figures)


def baseline_of(described: Mapping[str, Any]) -> Baseline:
    """The baseline that a cell's description has."""
    kind = (
        LinearSettings
        if "features" in described
        else FineTunedSettings
        if "pretrained" in described
        else BaselineSettings
    )
    return kind.model_validate(described)


def _run_joint(
    overrides: Sequence[str], settings: Settings, dataset: FederatedDataset
) -> tuple[dict[str, Any], Tensor]:
    folder = run_in_process("config", overrides)
    summary = json.loads((folder.path / "summary.json").read_text())
    figures = {name: summary.get(name) for name in SUMMARY_FIGURES}
    figures["parameters"] = sum(summary["parameters"].values())
    model = TrainedModel.load(folder.model, torch.device("cpu"))
    if not settings.training.joint.classification_weight:
        # The AUC of an untrained head means nothing.
        figures |= {"auc_macro": None, "auc_pooled": None}
    return figures, Evaluator.of_dataset(settings, dataset).logits(model)


def _save_predictions(folder: Path, dataset: FederatedDataset, logits: Tensor) -> None:
    """Logits and labels, with patients or lesions as numbers, since names stay in the store."""
    groups = np.unique(dataset.groups(dataset.test_rows), return_inverse=True)[1]
    arrays = {
        "logits": logits.float().contiguous(),
        "targets": dataset.test().targets.contiguous(),
        "groups": torch.from_numpy(groups.astype(np.int64)),
    }
    temporary = folder / f".{PREDICTIONS}"
    save_file(arrays, temporary)
    temporary.replace(folder / PREDICTIONS)


if __name__ == "__main__":
    run_described(run_cell)
