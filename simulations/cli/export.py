"""The command `fed-mediffusion export`."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.arguments import Run

commands = typer.Typer()


@commands.command(epilog="Example: fed-mediffusion export runs/latest exported")
def export(
    run: Run,
    output: Annotated[Path, typer.Argument(help="Folder to write, which must not exist.")],
) -> None:
    """Write the model as a diffusers pipeline with a model card, for use without Flower."""
    from mediffusion_core.run_io.export import export_run

    print(export_run(run, output))
