"""The command `fed-mediffusion`: one file of this folder for each of its commands."""

import typer

from deployment import watch_cli
from deployment.audit_cli import audit
from deployment.commands import add_commands
from deployment.entry import run as run_app
from deployment.site_cli import site
from simulations.cli import (
    evaluate,
    export,
    model,
    results,
    settings,
    simulate,
    sizing,
    statistics,
    sweep,
)
from simulations.cli.data import data
from simulations.cli.study import study

app = typer.Typer(
    name="fed-mediffusion",
    help="Federated training of one diffusion model that classifies, generates and explains.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
deployment_commands = typer.Typer()
add_commands(deployment_commands)

# Without a name the commands stand at the top level, in this order.
for commands in (
    simulate.commands,
    sweep.commands,
    watch_cli.commands,
    settings.commands,
    model.commands,
    export.commands,
    evaluate.commands,
    statistics.commands,
    results.commands,
    deployment_commands,
    sizing.commands,
):
    app.add_typer(commands)
app.add_typer(data, name="data")
app.add_typer(site, name="site")
app.add_typer(audit, name="audit")
app.add_typer(study, name="study")


def main() -> None:
    """Entry point of `fed-mediffusion`."""
    run_app(app)


if __name__ == "__main__":
    main()
