"""The command `fed-mediffusion sizing`."""

from typing import Annotated

import typer

from simulations.cli.arguments import Overrides

commands = typer.Typer()


@commands.command(epilog="Example: fed-mediffusion sizing model=small --sites 3,30,300")
def sizing(
    overrides: Overrides = None,
    sites: Annotated[str, typer.Option(help="Numbers of sites, separated by commas.")] = "3,30,300",
    classes: Annotated[int, typer.Option(min=1, help="Number of classes or findings.")] = 5,
    megabits: Annotated[
        float, typer.Option(min=0.1, help="Bandwidth of each connection in Mbit/s.")
    ] = 100.0,
) -> None:
    """Print the bytes that a round transfers and the server's memory, from the settings alone."""
    from configs import compose
    from simulations.engine.sizing import parse_site_counts, print_sizing

    counts = parse_site_counts(sites)
    print_sizing(compose("config", overrides or []), classes, counts, megabits)
