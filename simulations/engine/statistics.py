"""`fed-mediffusion statistics`: statistics of simulated sites, or a run for deployed ones."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from configs import compose, quoted
from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging import protocol
from mediffusion_core.reporting.statistics import read_statistics, statistics_table
from simulations.engine.preparation import prepare_images
from simulations.engine.without_training import by_time, flower_configuration, serve_here

TASK = "task=statistics"


def statistics(overrides: Sequence[str], config_name: str, output: Path | None) -> Path:
    """Asks the simulated sites of the settings for statistics, one after the other.

    Args:
        overrides: As `simulate` takes them.
        config_name: Name of a file in `configs/`, without `.yaml`.
        output: Folder to write; by default one below `statistics`, named by the time.

    Returns:
        The written folder, with the page in `statistics.html`.

    Raises:
        UserError: for a mistake in settings or data, or if too few sites answer.
    """
    console = Console(soft_wrap=True)
    errors = Console(stderr=True, soft_wrap=True)
    folder = (output or by_time(Path("statistics"))).resolve()
    whole = [*overrides, TASK, f"run.folder={quoted(folder)}"]
    settings = compose(config_name, whole)
    prepare_images(settings, errors)
    answers = settings.num_participants
    serve_here(config_name, whole, settings, protocol.STATISTICS, answers, errors)
    console.print(statistics_table(read_statistics(folder)), markup=False)
    return folder


def run_config(overrides: Sequence[str], config_name: str) -> str:
    """The run configuration of statistics at deployed sites, for `sign` and `flwr run`.

    Args:
        overrides: Of the run.
        config_name: Name of a file in `configs/`, without `.yaml`.

    Raises:
        UserError: for a mistake in settings, if they name no classes, or for a text that Flower's
            configuration can't hold.
    """
    whole = [*overrides, TASK]
    if compose(config_name, whole).data.classes is None:
        raise UserError("--run-config needs data.classes, for example data.classes=[Effusion]")
    return flower_configuration(config_name, whole)
