"""The command `fed-mediffusion sizing`."""

from typing import Annotated

import typer

from mediffusion_core.common.errors import UserError


def sizing(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings of the run, as for simulate.")
    ] = None,
    sites: Annotated[str, typer.Option(help="Numbers of sites, with commas.")] = "3,30,300",
    classes: Annotated[int, typer.Option(min=1, help="Classes or findings.")] = 5,
    megabits: Annotated[float, typer.Option(min=0.1, help="Mbit/s of each line.")] = 100.0,
) -> None:
    """Say how many bytes a round moves, and what the server holds, from the settings alone."""
    from configs.compose import compose
    from simulations.engine.sizing import print_sizing

    numbers = sites.split(",")
    if not all(number.strip().isdigit() for number in numbers):
        raise UserError(f"--sites {sites} is not of the form 3,30,300")
    print_sizing(compose("config", overrides or []), classes, [*map(int, numbers)], megabits)
