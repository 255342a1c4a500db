"""The server's side of the federation."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from configs.compose import compose, split
from mediffusion_core.common.device import resolve_device
from mediffusion_core.common.logs import configure_logs
from mediffusion_core.common.parent import end_with_parent
from mediffusion_core.data.ground_truth import patients_without
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.evaluation.evaluator import Evaluator
from mediffusion_core.messaging.site_keys import SITES
from mediffusion_core.reporting.evaluation_table import evaluation_table
from mediffusion_core.reporting.report import write_report
from mediffusion_core.reporting.statistics import write_statistics
from mediffusion_core.run_io.provenance import current_commit
from mediffusion_core.run_io.run_folder import RunFolder, run_path, write_json
from mediffusion_core.settings import Settings
from server.audit import RunAudit
from server.checkpoints import restore_state
from server.flower_sites import FlowerSites
from server.model_evaluation import ModelEvaluation, evaluated_models
from server.reply_contract import ReplyContract
from server.run import FederatedRun
from server.sites import Sites
from server.state import fresh_state
from server.statistics import SiteStatistics
from server.tracking.tracking import Tracking

app = ServerApp()

ERROR = "error.txt"
EVALUATION_TABLE = "evaluation.md"


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Runs the federation that the run's configuration describes."""
    configure_logs()
    end_with_parent()
    config = context.run_config
    settings = compose(str(config["config-name"]), split(str(config["overrides"])))
    # While the server evaluates, the sites wait, so it may use every core.
    torch.set_num_threads(os.cpu_count() or 1)
    folder = RunFolder(run_path(settings.run, context.run_id))
    keys = Path(os.environ[SITES]) if os.environ.get(SITES) else None
    audit = RunAudit(str(context.run_id), settings.fingerprint())
    with audit.started(folder.path.name):
        serve(lambda contract: FlowerSites(grid, settings, contract, audit, keys), settings, folder)


def serve(connect: Callable[[ReplyContract], Sites], settings: Settings, folder: RunFolder) -> None:
    """Runs the federation, or its remaining rounds, and ends with its summary and report.

    With `task=evaluation` it evaluates models instead, and ends with summary and table; with
    `task=statistics` it asks for statistics of the images, and ends with their page.

    Args:
        connect: Makes the sites of the run, given the contract that their replies must keep.
        settings: Of the run.
        folder: Of the run.

    Raises:
        UserError: if another process writes to the folder.
        Exception: whatever ended the run early; the summary then names it.
    """
    with folder.held():
        folder.create(settings)
        if settings.task == "training":  # `latest` is the latest run with a model
            folder.point_latest()
        execute = {"training": _run, "evaluation": _evaluate, "statistics": _describe}
        try:
            figures = execute[settings.task](connect, settings, folder)
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            (folder.path / ERROR).write_text(text + "\n", encoding="utf-8")
            folder.summarise({"status": "failed", "error": text, **_identity(settings)})
            raise
        folder.summarise({"status": "completed", **figures, **_identity(settings)})
        if settings.task == "training":
            write_report(folder.path)
        if settings.task == "evaluation":
            text = evaluation_table(figures)
            (folder.path / EVALUATION_TABLE).write_text(text, encoding="utf-8")


def _run(
    connect: Callable[[ReplyContract], Sites], settings: Settings, folder: RunFolder
) -> dict[str, Any]:
    tracking = Tracking(settings.run.trackers, folder)
    federation = settings.federation
    plan = {"autoencoder": settings.autoencoder_rounds, "joint": federation.num_rounds}
    write_json(folder.path / "plan.json", plan)
    restored = restore_state(folder, settings)
    dataset = open_federated_dataset(settings)
    store = dataset.store
    run = FederatedRun(
        settings,
        connect(ReplyContract(settings, len(store.classes))),
        Evaluator.of_dataset(settings, dataset, patients_without(settings, dataset)),
        folder,
        restored or fresh_state(settings, len(store.classes)),
        resolve_device(settings.device),
        tracking.follow,
    )
    with tracking:
        return run.execute()


def _evaluate(
    connect: Callable[[ReplyContract], Sites], settings: Settings, folder: RunFolder
) -> dict[str, Any]:
    """Evaluates models at the sites; the server needs no images."""
    models = evaluated_models(settings)
    classes = next(iter(models.values())).classes
    sites = connect(ReplyContract(settings, len(classes)))
    return ModelEvaluation(sites, models).execute(folder.record)


def _describe(
    connect: Callable[[ReplyContract], Sites], settings: Settings, folder: RunFolder
) -> dict[str, Any]:
    """Writes statistics of the sites' images; the server needs none if `data.classes` is set.

    Returns:
        For the summary, the sites that are described, and the replies that do not count.
    """
    classes = settings.data.classes or open_federated_dataset(settings).store.classes
    sites = connect(ReplyContract(settings, len(classes)))
    figures = SiteStatistics(sites, settings, classes).execute(folder.record)
    write_statistics(folder.path, figures)
    return {"sites": [*figures["sites"]], "set_aside": figures["set_aside"]}


def _identity(settings: Settings) -> dict[str, Any]:
    return {
        "settings_hash": settings.fingerprint(),
        "seed": settings.seed,
        "commit": current_commit(),
    }
