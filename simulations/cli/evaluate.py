"""The command `fed-mediffusion evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.arguments import ConfigName, Overrides, RunConfig

commands = typer.Typer()


@commands.command(
    epilog="Examples:\n\n"
    "fed-mediffusion evaluate exported data=phantom\n\n"
    "fed-mediffusion evaluate exported data=isic2019 data.root=PATH evaluation.patients=all\n\n"
    "fed-mediffusion evaluate exported --against other data=phantom\n\n"
    "fed-mediffusion evaluate exported data=folder --run-config"
)
def evaluate(
    model: Annotated[
        Path,
        typer.Argument(help="Folder of an exported model, or of a finished run."),
    ],
    overrides: Overrides = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Folder of a second model with the same networks, to compare with."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; by default evaluations/TIME.")
    ] = None,
    run_config: RunConfig = False,
    at_server: Annotated[
        Path | None,
        typer.Option(help="With --run-config: folder of the model at the server."),
    ] = None,
    against_at_server: Annotated[
        Path | None,
        typer.Option(help="With --run-config: folder of the second model at the server."),
    ] = None,
    config_name: ConfigName = "config",
) -> None:
    """Evaluate a trained model on the patients of all simulated sites, and train nothing.

    The last line printed is the written folder.
    """
    from mediffusion_core.common.errors import UserError
    from simulations.engine import evaluate as engine

    given = {"evaluation.model": at_server, "evaluation.against": against_at_server}
    places = {name: place for name, place in given.items() if place is not None}
    if run_config:
        print(engine.run_config(model, against, overrides or [], config_name, places))
        return
    if places:
        raise UserError("--at-server and --against-at-server need --run-config")
    print(engine.evaluate(model, against, overrides or [], config_name, output))
