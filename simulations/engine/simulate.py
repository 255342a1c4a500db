"""`fed-mediffusion simulate`: composes settings, prepares images, launches the run, reports."""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from rich.console import Console

from configs import compose, flatten, quoted
from mediffusion_core.common.device import resolve_device
from mediffusion_core.common.errors import UserError
from mediffusion_core.evaluation.features import build_extractor
from mediffusion_core.privacy.ledger.site_ledger import simulated_ledger
from mediffusion_core.run_io.checkpoints import newest_checkpoint, resumable_checkpoints
from mediffusion_core.run_io.provenance import COMMIT_VARIABLE, current_commit
from mediffusion_core.run_io.run_folder import RunFolder, write_json
from mediffusion_core.run_io.set_back import set_back
from mediffusion_core.settings import Settings
from server.tracking.tracking import refuse_missing
from simulations.engine.app_bundle import ROOT, assemble_app
from simulations.engine.launcher import Launch, launch
from simulations.engine.preparation import prepare_images
from simulations.engine.progress import LiveView
from simulations.engine.ray_cluster import RayCluster, find_cluster
from simulations.engine.summary_table import summary_table

LAUNCH = "launch.json"
EXIT_CODES = {"completed": 0, "failed": 1, "stopped": 130}


def simulate(
    config_name: str, overrides: Sequence[str], resume: Path | None, at: str | None = None
) -> int:
    """Runs one federation and returns the exit status.

    Args:
        config_name: Name of a file in `configs/`, without `.yaml`.
        overrides: Changes of its settings.
        resume: Folder of a run to continue, with its own settings.
        at: An earlier round to continue from, as `set_back` takes it.

    Raises:
        UserError: for a mistake in the settings or the data, or a run whose checkpoints are all
            damaged, before a process is started.
    """
    console = Console(soft_wrap=True)
    if resume is not None:
        if overrides:
            raise UserError("--resume continues a run as it is; it takes no settings to change")
        config_name, overrides = read_launch(resume.resolve())
    elif at is not None:
        raise UserError(f"--at {at} needs --resume RUN, the run that continues from there")
    settings = compose(config_name, overrides)
    check(settings)
    cluster = _cluster(settings, console)
    prepare_images(settings, console)
    # After the images, so that a mistake in the data leaves no folder.
    folder = (settings.run.folder or _new_folder()).resolve()
    if resume is None:
        overrides = [*_without_folder(overrides), *_absolute_paths(settings, folder)]
    with RunFolder(folder).launched():
        # Another process may have used the folder while the images were prepared.
        RunFolder(folder).refuse_others(settings)
        if settings.privacy.enabled:
            simulated_ledger(folder, settings.privacy)  # refuses those of single sites
        if at is not None:
            aside = set_back(RunFolder(folder), at, settings)
            console.print(f"later results are set aside in {aside}", markup=False, highlight=False)
        # The server does so again, and its log says the same.
        kept = resumable_checkpoints(RunFolder(folder).checkpoints, settings)
        newest_checkpoint(kept, partial(console.print, markup=False))
        written = {"config_name": config_name, "overrides": list(overrides)}
        write_json(folder / LAUNCH, written)
        return _launch(settings, config_name, overrides, folder, cluster, console)


def check(settings: Settings) -> None:
    """Finds mistakes that the run itself would find late, some after a whole stage.

    Raises:
        UserError: with the mistake.
    """
    resolve_device(settings.device)
    refuse_missing(settings.run.trackers)
    if settings.run.folder is not None:
        RunFolder(settings.run.folder).refuse_others(settings)
    build_extractor(settings.evaluation.extractor, settings.evaluation.inception_weights)


def _cluster(settings: Settings, console: Console) -> RayCluster | None:
    """The Ray cluster that the environment names; None for a Ray of the run's own."""
    data = settings.data
    given = (data.root, data.store, settings.privacy.public_model)
    cluster = find_cluster(
        settings.run.folder or Path("runs") / "new",
        [path.expanduser().resolve() for path in given if path and path.expanduser().exists()],
        settings.num_participants,
        settings.federation.cpus_per_site,
    )
    if cluster is not None:
        console.print(
            f"Ray cluster at {cluster.address}: {len(cluster.cpus)} nodes, {sum(cluster.cpus)} "
            f"CPUs, {min(cluster.actors, settings.num_participants)} sites at once",
            highlight=False,
        )
    return cluster


def _launch(
    settings: Settings,
    config_name: str,
    overrides: Sequence[str],
    folder: Path,
    cluster: RayCluster | None,
    console: Console,
) -> int:
    os.environ.setdefault(COMMIT_VARIABLE, current_commit() or "unknown")
    plan = Launch(
        assemble=partial(assemble_app, ROOT),
        run_config={"config-name": config_name, "overrides": flatten(overrides)},
        num_sites=settings.num_participants,
        cpus_per_site=settings.federation.cpus_per_site,
        run_folder=folder,
        log_file=folder / "flwr.log",
        cluster=cluster,
    )
    with LiveView(folder, console) as view:
        outcome = launch(plan, view.refresh)
    if outcome.status == "completed":
        console.print(summary_table(settings, folder))
        console.print(f"memory of all processes here at most: {outcome.peak_memory / 1e9:.1f} GB")
        console.print(f"report: {folder / 'report.html'}", highlight=False)
    else:
        hint = f"continue with: fed-mediffusion simulate --resume {folder}"
        for line in _site_errors(folder, outcome.detail):
            console.print(line, style="red", markup=False)
        console.print(hint, highlight=False)
    print(folder, flush=True)
    if outcome.status != "completed":  # the last line that a user sees
        why = f"run {outcome.status}: {outcome.detail}; log: {plan.log_file}"
        errors = Console(stderr=True, soft_wrap=True, highlight=False)
        errors.print(why, style="red", markup=False)
    return EXIT_CODES[outcome.status]


def _site_errors(folder: Path, detail: str) -> list[str]:
    """Lines of the sites' logs about the error whose id is in the detail.

    Only the id of an error leaves a site; a simulated site's log is on the user's disk.
    """
    identity = re.search(r"\bid ([0-9a-f]{8})\b", detail)
    if identity is None:
        return []
    logs = sorted(folder.glob("sites/*/site.log"))
    lines = [(log, line) for log in logs for line in log.read_text().splitlines()]
    return [f"{log.parent.name}: {line}" for log, line in lines if f" {identity[1]} " in line]


def _new_folder() -> Path:
    """Creates a new folder under `runs/`, named by the time."""
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    while True:
        folder = runs / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        try:
            folder.mkdir()
        except FileExistsError:
            time.sleep(1)
        else:
            return folder


def _absolute_paths(settings: Settings, folder: Path) -> list[str]:
    """Overrides with absolute paths, since the run has another working folder."""
    values: Mapping[str, Path | None] = {
        "data.root": settings.data.root,
        "data.store": settings.data.store,
        "evaluation.inception_weights": settings.evaluation.inception_weights,
        "privacy.public_model": settings.privacy.public_model,
        "privacy.ledger": settings.privacy.ledger,
        "privacy.ledger_tips": settings.privacy.ledger_tips,
    }
    given = {key: value.expanduser().resolve() for key, value in values.items() if value}
    given["run.folder"] = folder
    return [f"{key}={quoted(path)}" for key, path in given.items()]


def _without_folder(overrides: Sequence[str]) -> list[str]:
    """The overrides without the run folder, which may have been moved."""
    return [one for one in overrides if not one.startswith("run.folder=")]


def read_launch(folder: Path) -> tuple[str, list[str]]:
    """Configuration name and overrides of the run in a folder.

    Raises:
        UserError: if the run was not started by `simulate`.
    """
    try:
        written = json.loads((folder / LAUNCH).read_text())
        overrides = _without_folder([str(one) for one in written["overrides"]])
        return str(written["config_name"]), [*overrides, f"run.folder={quoted(folder)}"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{folder} holds no run of simulate (no readable {LAUNCH})") from None
