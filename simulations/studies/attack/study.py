"""`fed-mediffusion study attack`: membership inference on the model of a run.

Members are the training images of all sites. Non-members are the images of the public test set,
which has a patient-wise share of every site's images. The attacker has the model and the images.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from configs import compose
from mediffusion_core.common.device import resolve_device
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.data.partitioning.dealing_record import require_recorded_dealing
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
)
from mediffusion_core.evaluation.membership_inference import (
    FALSE_POSITIVE_RATE,
    Losses,
    OnBatch,
    attack,
    by_unit,
    classification_losses,
    diffusion_losses,
    largest_tpr,
)
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.privacy.accounting.accountant import largest_true_positive_rate
from mediffusion_core.privacy.ledger.site_ledger import simulated_ledger
from mediffusion_core.run_io.run_folder import write_json
from mediffusion_core.settings import Settings
from mediffusion_core.settings.privacy import PrivacySettings
from simulations.engine.simulate import read_launch
from simulations.studies.promises import plans, read_summary

ATTACK = "attack.json"


def study_attack(run: Path, output: Path, device: str) -> Path:
    """Attacks the selected model of a run and writes the figures.

    Args:
        run: Folder of a finished run.
        output: JSON file to write.
        device: As `resolve_device` takes it.

    Returns:
        The written file.

    Raises:
        UserError: if the run was not started by `simulate`, or has no model, data or test set.
    """
    settings = compose(*read_launch(run.resolve()))
    model = TrainedModel.load(run / "model", resolve_device(device))
    if _partitioning(model.settings) != _partitioning(settings):
        raise UserError(f"{run}: the model was trained on another partition of the images")
    dataset = open_federated_dataset(settings)
    if dataset.unit_hash:
        for client in dataset.clients:
            require_recorded_dealing(run / "sites" / client.site, dataset.unit_hash)
    if not len(dataset.test_rows):
        raise UserError(f"{run} has no test set, and so no images that are not members")
    console = Console(soft_wrap=True)
    losses = _Losses(model, dataset, settings, console)
    attacks = {}
    if settings.training.joint.diffusion_weight:
        attacks["diffusion loss"] = losses.attack("diffusion")
    if settings.training.joint.classification_weight:
        attacks["classification loss"] = losses.attack("classification")
    ceiling = privacy_ceiling(run.resolve(), settings.privacy)
    if ceiling:
        ceiling["largest_tpr"] = _largest_tpr(run, settings, ceiling)
    figures = {
        "unit": settings.privacy.unit,
        "false_positive_rate": FALSE_POSITIVE_RATE,
        "attacks": attacks,
        **ceiling,
    }
    write_json(output, figures)
    console.print(_table(attacks, ceiling))
    return output


def _partitioning(settings: Settings) -> tuple[object, ...]:
    """The settings that decide the training images; others may have new defaults since the run."""
    federation = settings.federation
    parts = federation.num_sites, federation.pool_sites, federation.only_site
    return settings.seed, settings.shared()["data"], *parts, federation.left_out_site


class _Losses:
    """Losses of members and non-members at each site, one for each privacy unit."""

    def __init__(
        self, model: TrainedModel, dataset: FederatedDataset, settings: Settings, console: Console
    ) -> None:
        self._model, self._dataset, self._settings = model, dataset, settings
        self._console = console
        test, test_sites = dataset.test(), np.array(dataset.site_of_test())
        names = [partition.site for partition in dataset.clients]
        self._members = {name: dataset.train(index) for index, name in enumerate(names)}
        self._nonmembers = {
            name: test.subset(torch.from_numpy(np.flatnonzero(test_sites == name)))
            for name in names
        }

    def attack(self, kind: str) -> dict[str, Any]:
        """The figures of the attack on all units, and on those of each site."""
        members = self._of(self._members, kind, f"{kind} loss of members")
        nonmembers = self._of(self._nonmembers, kind, f"{kind} loss of non-members")
        seed = derive_seed(self._settings.seed, "attack", kind)
        overall = attack(_joined(members), _joined(nonmembers), seed)
        sites = {
            site: asdict(attack(members[site], nonmembers[site], seed))
            for site in members
            if len(members[site]) and len(nonmembers[site])
        }
        return {**asdict(overall), "sites": sites}

    def _of(self, images: Mapping[str, ImageSet], kind: str, title: str) -> dict[str, Losses]:
        if kind == "classification":  # the loss of an image without a label is not defined
            images = {site: one.subset(one.labelled) for site, one in images.items()}
        with Progress(console=self._console, transient=True) as progress:
            task = progress.add_task(title, total=sum(len(one) for one in images.values()))
            return {
                site: self._by_unit(one, kind, lambda count: progress.advance(task, count))
                for site, one in images.items()
            }

    def _by_unit(self, images: ImageSet, kind: str, on_batch: OnBatch) -> Losses:
        if kind == "diffusion":
            seed = derive_seed(self._settings.seed, "attack", "noise")
            losses = diffusion_losses(self._model, images, seed, on_batch)
        else:
            losses = classification_losses(self._model, images, on_batch)
        rows = images.rows
        by_image = self._settings.privacy.unit == "image"
        units: Sequence[str] = (
            [str(row) for row in rows] if by_image else self._dataset.groups(rows)
        )
        return by_unit(losses, units)


def _joined(losses: Mapping[str, Losses]) -> Losses:
    return np.concatenate(list(losses.values()))


def privacy_ceiling(run: Path, privacy: PrivacySettings) -> dict[str, Any]:
    """ε of a run, and the largest true positive rate under it; empty without DP.

    It is the largest planned ε of a site, or that of the run in the ledger if it is larger, as when
    rounds were repeated.

    Raises:
        LedgerError: if a ledger exists and fails its verification.
    """
    try:
        promised = json.loads((run / "summary.json").read_text())["privacy"]
    except (OSError, ValueError, KeyError):
        return {}
    delta = promised["target_delta"]
    planned = (one["epsilon"] for one in promised["sites"].values())
    epsilon = max([*planned, _spent(run, privacy, delta)])
    return {"epsilon": epsilon, "delta": delta, "largest_tpr": largest_tpr(epsilon, delta)}


def _largest_tpr(run: Path, settings: Settings, ceiling: Mapping[str, Any]) -> float:
    """The largest true positive rate under the planned steps; under ε alone if more was spent."""
    summary = read_summary(run)
    found = plans(run, summary, settings)
    planned = max(float(one["epsilon"]) for one in summary["privacy"]["sites"].values())
    if ceiling["epsilon"] > planned * (1 + 1e-6):
        return float(ceiling["largest_tpr"])
    return max(
        largest_true_positive_rate(plan.charges(), FALSE_POSITIVE_RATE) for plan in found.values()
    )


def _spent(run: Path, privacy: PrivacySettings, delta: float) -> float:
    """ε of one run in the ledger of the simulation; 0 if there is no ledger."""
    places = simulated_ledger(run, privacy)
    if not places.folder.is_dir():
        return 0.0
    spent = places.open(begin=False).worst_by(delta, lambda entry: entry.run.split("/")[0])
    return spent.get(run.name, 0.0)


def _table(attacks: Mapping[str, Mapping[str, Any]], ceiling: Mapping[str, Any]) -> Table:
    bound = f"; ε = {ceiling['epsilon']:.3g} allows {ceiling['largest_tpr']:.1%}" if ceiling else ""
    table = Table(title=f"membership inference{bound}", title_justify="left")
    for column in ("attack", "members", "non-members", "AUC (95 %)", "TPR at 1 % FPR (95 %)"):
        table.add_column(column, justify="left" if column == "attack" else "right")
    for name, one in attacks.items():
        low, high = one["auc_interval"]
        least, most = one["tpr_interval"]
        table.add_row(
            name,
            str(one["members"]),
            str(one["strangers"]),
            f"{one['auc']:.3f} ({low:.3f} to {high:.3f})",
            f"{one['tpr']:.1%} ({least:.1%} to {most:.1%})",
        )
    return table
