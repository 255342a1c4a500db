"""`fed-mediffusion study attack`: membership inference on a run.

Members are the training images of all sites. Non-members are the images of the public test set,
which has a patient-wise share of every site's images. The adversary has the images of both, and by
attack the model, its predictions, or a site's reply of one round.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from configs import compose
from mediffusion_core.common.device import resolve_device
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.partitioning.dealing_record import require_recorded_dealing
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.evaluation.membership_inference import (
    FALSE_POSITIVE_RATE,
    STRICT_FALSE_POSITIVE_RATE,
    largest_tpr,
)
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.privacy.accounting.accountant import largest_true_positive_rate
from mediffusion_core.privacy.ledger.site_ledger import simulated_ledger
from mediffusion_core.run_io.run_folder import write_json
from mediffusion_core.settings import Settings
from mediffusion_core.settings.privacy import PrivacySettings
from simulations.engine.simulate import read_launch
from simulations.studies.attack.candidates import Candidates
from simulations.studies.attack.chart import save_roc
from simulations.studies.attack.model_losses import model_attacks
from simulations.studies.attack.predictions import prediction_attacks
from simulations.studies.attack.reconstruction import noise_of_one_step, reconstruct
from simulations.studies.attack.shadows import shadow_attack
from simulations.studies.attack.update import update_attacks
from simulations.studies.promises import plans, read_summary

ATTACK, ROC, RECONSTRUCTION = "attack.json", "roc.png", "reconstruction.png"


def study_attack(run: Path, output: Path, device: str, shadows: int = 0) -> Path:
    """Attacks a run's model and one of its rounds, and writes figures and pictures.

    Args:
        run: Folder of a finished run.
        output: JSON file to write; pictures stand beside it.
        device: As `resolve_device` takes it.
        shadows: Number of shadow models of the likelihood-ratio attack; 0 leaves it out.

    Returns:
        The written file.

    Raises:
        UserError: if the run was not started by `simulate`, or has no model, data or test set, or
            a package of the accounting is not installed.
    """
    settings = compose(*read_launch(run.resolve()))
    noise = noise_of_one_step(settings.privacy)  # first: its package may be missing
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
    candidates = Candidates.of(dataset, settings.privacy.unit)
    attacks = model_attacks(model, candidates, settings, console)
    if settings.training.joint.classification_weight:
        attacks |= prediction_attacks(model, candidates, console)
        if shadows:
            attacks |= shadow_attack(run, model, candidates, settings, shadows, console)
    if not settings.privacy.secure_aggregation.enabled:  # the server has no site's reply
        attacks |= update_attacks(run, model, candidates, settings, console)
    rebuilt = reconstruct(
        model, dataset, settings, noise, output.with_name(RECONSTRUCTION), console
    )
    ceiling = privacy_ceiling(run.resolve(), settings.privacy)
    if ceiling:
        ceiling["largest_tpr"] = _largest_tpr(run, settings, ceiling)
    seed = derive_seed(settings.seed, "attack")
    found = {name: one.figures(seed) for name, one in attacks.items()}
    rates = {
        "false_positive_rate": FALSE_POSITIVE_RATE,
        "strict_false_positive_rate": STRICT_FALSE_POSITIVE_RATE,
    }
    figures = {"unit": settings.privacy.unit, **rates, "attacks": found, **ceiling}
    figures["reconstruction"] = rebuilt
    write_json(output, figures)
    save_roc(attacks, ceiling, output.with_name(ROC))
    console.print(_table(found, ceiling))
    console.print(_reconstructed(rebuilt), highlight=False)
    return output


def _partitioning(settings: Settings) -> tuple[object, ...]:
    """The settings that decide the training images; others may have new defaults since the run."""
    federation = settings.federation
    parts = federation.num_sites, federation.pool_sites, federation.only_site
    return settings.seed, settings.shared()["data"], *parts, federation.left_out_site


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
    columns = ("AUC (95 %)", "TPR at 1 % FPR (95 %)", "at 0.1 % (95 %)")
    for column in ("attack", "members", "non-members", *columns):
        table.add_column(column, justify="left" if column == "attack" else "right")
    for name, one in attacks.items():
        low, high = one["auc_interval"]
        table.add_row(
            name,
            str(one["members"]),
            str(one["strangers"]),
            f"{one['auc']:.3f} ({low:.3f} to {high:.3f})",
            _share(one["tpr"], one["tpr_interval"]),
            _share(one["strict_tpr"], one["strict_tpr_interval"]),
        )
    return table


def _share(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def _reconstructed(figures: Mapping[str, Any]) -> str:
    kinds = ("without_privacy", "with_privacy", "mean_image")
    psnr, ssim = (
        [sum(figures[kind][name]) / figures["images"] for kind in kinds]
        for name in ("psnr", "ssim")
    )
    return (
        f"reconstruction of {figures['images']} images from one step: {psnr[0]:.1f} dB and SSIM "
        f"{ssim[0]:.2f} without DP, {psnr[1]:.1f} dB and {ssim[1]:.2f} with ε = "
        f"{figures['epsilon']:g}; the mean image has {psnr[2]:.1f} dB and {ssim[2]:.2f}"
    )
