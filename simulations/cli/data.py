"""The commands `fed-mediffusion data`: what a data set holds, before anything is trained on it."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.arguments import ConfigName, Overrides

data = typer.Typer(help="Prepare a data set, check it, and show it.")


@data.command(epilog="Example: fed-mediffusion data prepare data=isic2019 data.root=PATH")
def prepare(overrides: Overrides = None, config_name: ConfigName = "config") -> None:
    """Decode all images once and write each site's manifest. Prints the manifests' folder."""
    from simulations.cli.data_commands import prepare_data

    print(prepare_data(config_name, overrides or []))


@data.command(
    epilog="Example: fed-mediffusion data check data=folder data.root=PATH data.table=labels.csv"
)
def check(overrides: Overrides = None, config_name: ConfigName = "config") -> None:
    """Check a data set. The last line is ready or not ready."""
    from simulations.cli.data_commands import check_data

    raise typer.Exit(check_data(config_name, overrides or []))


@data.command(
    epilog="Example: fed-mediffusion data card data=isic2019 data.root=PATH --output card.html"
)
def card(
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option(help="HTML page to write.")] = Path("data-card.html"),
    config_name: ConfigName = "config",
) -> None:
    """Show what the sites hold on one page: counts, labels, duplicates, overlaps, images."""
    from simulations.cli.data_commands import show_data

    print(show_data(config_name, overrides or [], output))
