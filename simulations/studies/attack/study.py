"""`fed-mediffusion study attack`: can it be told from a run's model who was trained on?

The members are the training images of all sites, the strangers the public test set, which has a
patient-wise share of every site's images; whoever holds the model and both is the attacker.
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
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
)
from mediffusion_core.evaluation.membership_inference import (
    FALSE_POSITIVE_RATE,
    Losses,
    attack,
    by_unit,
    classification_losses,
    diffusion_losses,
    largest_tpr,
)
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.privacy.ledger.ledger import Ledger
from mediffusion_core.privacy.ledger.site_ledger import simulated_ledger
from mediffusion_core.run_io.run_folder import write_json
from mediffusion_core.settings import Settings
from mediffusion_core.settings.privacy import PrivacySettings
from simulations.engine.simulate import launched

ATTACK = "attack.json"


def study_attack(run: Path, output: Path, device: str) -> Path:
    """Attacks the selected model of a run and writes the figures.

    Raises:
        UserError: if the run was not started by `simulate`, or has no model, data or test set.
    """
    settings = compose(*launched(run.resolve()))
    model = TrainedModel.load(run / "model", resolve_device(device))
    if _dealt(model.settings) != _dealt(settings):
        raise UserError(
            f"{run}: the model was trained on images dealt in another way than the run's"
        )
    hospitals = open_federated_dataset(settings)
    if not len(hospitals.test_rows):
        raise UserError(f"{run} has no test set, and so nobody who was not trained on")
    console = Console(soft_wrap=True)
    losses = _Losses(model, hospitals, settings, console)
    attacks = {}
    if settings.training.joint.diffusion_weight:
        attacks["diffusion loss"] = losses.attacked("diffusion")
    if settings.training.joint.classification_weight:
        attacks["classification loss"] = losses.attacked("classification")
    ceiling = privacy_ceiling(run.resolve(), settings.privacy)
    figures = {
        "unit": settings.privacy.unit,
        "false_positive_rate": FALSE_POSITIVE_RATE,
        "attacks": attacks,
        **ceiling,
    }
    write_json(output, figures)
    console.print(_table(attacks, ceiling))
    return output


def _dealt(settings: Settings) -> tuple[object, ...]:
    """What decides who trains: all else may have got other defaults since the run."""
    federation = settings.federation
    parts = federation.num_sites, federation.pool_sites, federation.only_site
    return settings.seed, settings.shared()["data"], parts


class _Losses:
    """Losses by unit, member or not, of the sites' images."""

    def __init__(
        self, model: TrainedModel, hospitals: FederatedDataset, settings: Settings, console: Console
    ) -> None:
        self._model, self._hospitals, self._settings = model, hospitals, settings
        self._console = console
        test, sites = hospitals.test(), np.array(hospitals.site_of_test())
        names = [shard.site for shard in hospitals.shards]
        self._members = {name: hospitals.train(index) for index, name in enumerate(names)}
        chosen = {name: np.flatnonzero(sites == name) for name in names}
        self._strangers = {
            name: test.subset(torch.from_numpy(rows)) for name, rows in chosen.items()
        }

    def attacked(self, kind: str) -> dict[str, Any]:
        """The attack on all units together, and on each site's."""
        members = self._of(self._members, kind, f"{kind} loss of members")
        strangers = self._of(self._strangers, kind, f"{kind} loss of strangers")
        seed = derive_seed(self._settings.seed, "attack", kind)
        every = attack(_joined(members), _joined(strangers), seed)
        sites = {
            site: asdict(attack(members[site], strangers[site], seed))
            for site in members
            if len(members[site]) and len(strangers[site])
        }
        return {**asdict(every), "sites": sites}

    def _of(self, images: Mapping[str, ImageSet], kind: str, title: str) -> dict[str, Losses]:
        if kind == "classification":  # only who has a label can be told by it
            images = {site: one.subset(one.labelled) for site, one in images.items()}
        with Progress(console=self._console, transient=True) as progress:
            task = progress.add_task(title, total=sum(len(one) for one in images.values()))
            return {
                site: self._by_unit(one, kind, lambda count: progress.advance(task, count))
                for site, one in images.items()
            }

    def _by_unit(self, images: ImageSet, kind: str, on_batch: Any) -> Losses:
        if kind == "diffusion":
            seed = derive_seed(self._settings.seed, "attack", "noise")
            losses = diffusion_losses(self._model, images, seed, on_batch)
        else:
            losses = classification_losses(self._model, images, on_batch)
        rows = images.rows
        single = self._settings.privacy.unit == "image"
        units: Sequence[str] = [str(row) for row in rows] if single else self._groups(rows)
        return by_unit(losses, units)

    def _groups(self, rows: np.ndarray) -> tuple[str, ...]:
        return self._hospitals.groups(rows)


def _joined(losses: Mapping[str, Losses]) -> Losses:
    return np.concatenate(list(losses.values()))


def privacy_ceiling(run: Path, privacy: PrivacySettings) -> dict[str, Any]:
    """ε of a run, and the most that any attack may then find; empty without DP.

    Of each site it is what was planned or what its ledger has of this run, if that is more, as
    where rounds were made again.

    Raises:
        LedgerError: if a ledger is here and not to be trusted.
    """
    try:
        promised = json.loads((run / "summary.json").read_text())["privacy"]
    except (OSError, ValueError, KeyError):
        return {}
    delta = promised["target_delta"]
    epsilon = max(
        max(planned["epsilon"], _spent(run, privacy, site, delta))
        for site, planned in promised["sites"].items()
    )
    return {"epsilon": epsilon, "delta": delta, "largest_tpr": largest_tpr(epsilon, delta)}


def _spent(run: Path, privacy: PrivacySettings, site: str, delta: float) -> float:
    """ε that a site's ledger has of one run; 0 where there is none."""
    folder, head = simulated_ledger(run / "sites" / site, privacy)
    if not folder.is_dir():
        return 0.0
    ledger = Ledger.open(folder, head=head, begin=False)
    return ledger.worst_by(delta, lambda entry: entry.run).get(run.name, 0.0)


def _table(attacks: Mapping[str, Mapping[str, Any]], ceiling: Mapping[str, Any]) -> Table:
    bound = f"; ε = {ceiling['epsilon']:.3g} allows {ceiling['largest_tpr']:.1%}" if ceiling else ""
    table = Table(title=f"who was trained on?{bound}", title_justify="left")
    for column in ("by", "members", "strangers", "AUC (95 %)", "found at 1 % wrong (95 %)"):
        table.add_column(column, justify="left" if column == "by" else "right")
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
