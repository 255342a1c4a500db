"""Runs without training: at simulated sites, with their progress, or for deployed ones."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from configs import compose, flatten
from mediffusion_core.common.errors import UserError
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.settings import Settings
from server.messages import SiteError
from server.reply_contract import ReplyContract
from server.server_app import serve
from simulations.engine.in_process import SitesHere


def serve_here(
    config_name: str,
    overrides: Sequence[str],
    settings: Settings,
    kind: str,
    answers: int,
    console: Console,
) -> None:
    """Serves a run at simulated sites, asked one after the other in this process.

    Args:
        config_name: Name of a file in `configs/`, without `.yaml`.
        overrides: Of the run.
        settings: Composed from them, with a run.folder.
        kind: Of message; its answers advance the progress.
        answers: Number of answers to such messages in the whole run.
        console: Shows the progress.

    Raises:
        UserError: for a mistake in data or models, or if too few sites answer.
    """
    assert settings.run.folder is not None
    folder = RunFolder(settings.run.folder)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("sites", total=answers)

        def answered(to: str) -> None:
            if to == kind:
                progress.advance(task)

        def connect(contract: ReplyContract) -> SitesHere:
            return SitesHere(config_name, overrides, settings, contract, answered)

        try:
            serve(connect, settings, folder)
        except SiteError as error:
            raise UserError(f"{error}; sites: {folder.path / 'sites'}") from None


def by_time(parent: Path) -> Path:
    """A folder in another one, named by the time."""
    return parent / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def flower_configuration(config_name: str, overrides: Sequence[str]) -> str:
    """The run configuration of deployed sites, for `sign` and `flwr run`.

    Raises:
        UserError: for a mistake in settings, or a text that Flower's configuration can't hold.
    """
    compose(config_name, overrides)
    text = flatten(overrides)
    if '"' in text or "\\" in text:
        raise UserError("--run-config: names of classes and folders may hold no quotation marks")
    chosen = "" if config_name == "config" else f'config-name="{config_name}" '
    return f'{chosen}overrides="{text}"'
