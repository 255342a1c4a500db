"""The command `fed-mediffusion statistics`."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.arguments import ConfigName, Overrides, RunConfig

commands = typer.Typer()


@commands.command(
    epilog="Examples:\n\n"
    "fed-mediffusion statistics\n\n"
    "fed-mediffusion statistics data=isic2019 data.root=PATH\n\n"
    "fed-mediffusion statistics data=phantom privacy=dp privacy.release_noise=4\n\n"
    "fed-mediffusion statistics data=folder data.classes=[Effusion] --run-config"
)
def statistics(
    overrides: Overrides = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; by default statistics/TIME.")
    ] = None,
    run_config: RunConfig = False,
    config_name: ConfigName = "config",
) -> None:
    """Count images, labels and intensities at all simulated sites, and train nothing.

    It writes a page that shows the sites side by side. The last line printed is the written folder.
    """
    from simulations.engine import statistics as engine

    if run_config:
        print(engine.run_config(overrides or [], config_name))
        return
    print(engine.statistics(overrides or [], config_name, output))
