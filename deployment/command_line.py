"""The command `fed-mediffusion-site`: the commands of a site, without simulations."""

import typer

from deployment.audit_cli import audit
from deployment.commands import add_preflight
from deployment.entry import run
from deployment.site_cli import ledger, site

app = typer.Typer(
    name="fed-mediffusion-site",
    help="Commands of a site.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.registered_commands += site.registered_commands
app.add_typer(ledger, name="ledger")
app.add_typer(audit, name="audit")
add_preflight(app)


def main() -> None:
    """Entry point of `fed-mediffusion-site`."""
    run(app)


if __name__ == "__main__":
    main()
