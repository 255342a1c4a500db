"""The command `fed-mediffusion simulate`."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.arguments import ConfigName, Overrides

commands = typer.Typer()


@commands.command(
    epilog="Examples:\n\n"
    "fed-mediffusion simulate\n\n"
    "fed-mediffusion simulate experiment=isic2019_4centres data.root=PATH\n\n"
    "fed-mediffusion simulate --resume runs/latest\n\n"
    "fed-mediffusion simulate --resume runs/latest --at 8"
)
def simulate(
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the run in this folder where it stopped.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="ROUND",
            help="With --resume: continue from this kept round of the joint stage, or from "
            "autoencoder-N; later results are set aside.",
        ),
    ] = None,
    config_name: ConfigName = "config",
) -> None:
    """Train across simulated sites with `flwr run`, on the Ray cluster RAY_ADDRESS if that is set.

    The last line printed is the run folder.
    """
    from simulations.engine.simulate import simulate as run

    raise typer.Exit(run(config_name, overrides or [], resume, at))
