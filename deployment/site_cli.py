"""The commands `fed-mediffusion site ...`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mediffusion_core.common.errors import LedgerError

site = typer.Typer(help="Commands of a site.")
ledger = typer.Typer(help="The site's privacy ledger, over all runs.")
site.add_typer(ledger, name="ledger")

Where = Annotated[Path, typer.Argument(help="The site file, or the folder of a ledger.")]
Delta = Annotated[
    float | None,
    typer.Option(min=1e-300, max=0.999, help="δ of ε; by default that of the site file."),
]


@site.callback()
def sites() -> None:
    """Commands of a site."""


@site.command("check", epilog="Example: fed-mediffusion site check /etc/fed-mediffusion/site.toml")
def check_site_file(
    file: Annotated[Path, typer.Argument(help="The site file, in TOML.")],
    image_size: Annotated[int, typer.Option(min=8, help="Side of prepared images.")] = 64,
    colour: Annotated[bool, typer.Option(help="Check for runs with colour images.")] = False,
) -> None:
    """Check a site: file, policy, device, data, disk. The last line is ready or not ready."""
    from deployment.site_commands import check_site

    raise typer.Exit(check_site(file, image_size, 3 if colour else 1))


@site.command(epilog="Example: fed-mediffusion site request st-anna --folder kit")
def request(
    name: Annotated[str, typer.Argument(help="Name of the site in the federation.")],
    folder: Annotated[Path, typer.Option(help="Folder of the new files.")] = Path(),
) -> None:
    """Make the site's private key, node.key, and its signing request for the coordinator."""
    from deployment.site_request import make_request

    file, made = make_request(name, folder)
    print(f"key {made.fingerprint}; tell it the coordinator by telephone, and send the file")
    print(file)


@site.command(
    epilog="Examples:\n\n"
    "fed-mediffusion site approve 3f2a... --days 30\n\n"
    "fed-mediffusion site approve app.fab --withdraw"
)
def approve(
    run: Annotated[
        str, typer.Argument(help="Hash of a run, or an app bundle: its file or its SHA-256.")
    ],
    days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="End of the approval; by default none.")
    ] = None,
    withdraw: Annotated[bool, typer.Option(help="Withdraw the approval.")] = False,
) -> None:
    """Approve a run, or all runs of a bundle, where policy.approval is required."""
    from deployment.approval_commands import approve_run, withdraw_approval

    print(withdraw_approval(run) if withdraw else approve_run(run, days))


@site.command(epilog="Example: fed-mediffusion site pending")
def pending() -> None:
    """Show the runs that wait for approval, with their settings."""
    from deployment.approval_commands import pending_runs

    print("\n".join(pending_runs()) or "no run waits for approval")


@site.command(epilog="Example: fed-mediffusion site approvals")
def approvals() -> None:
    """Show the approved runs and bundles."""
    from deployment.approval_commands import approved_runs

    print("\n".join(approved_runs()) or "no run is approved")


@site.command(epilog="Example: fed-mediffusion site messages docs/privacy/messages.md")
def messages(
    document: Annotated[
        Path | None, typer.Argument(help="Markdown file with `messages` marks.")
    ] = None,
) -> None:
    """Print the content of each message of a site, or write it into a document."""
    from deployment.message_tables import message_tables, write_message_tables

    print(write_message_tables(document) if document else message_tables())


@ledger.callback()
def ledgers() -> None:
    """The site's privacy ledger, over all runs.

    A ledger that fails verification causes one line on stderr and exit status 1.
    """


@ledger.command(epilog="Example: fed-mediffusion site ledger show /etc/fed-mediffusion/site.toml")
def show(path: Where, delta: Delta = None) -> None:
    """Show the charges by run and stage, and the largest ε of a patient over all runs."""
    from deployment.ledger_commands import show_ledger

    with _trusted():
        show_ledger(path, delta)


@ledger.command(
    epilog="Examples:\n\n"
    "fed-mediffusion site ledger verify site.toml\n\n"
    "fed-mediffusion site ledger verify site.toml --against 12:8c1f... --restore-tip"
)
def verify(
    path: Where,
    against: Annotated[
        str | None, typer.Option(help="COUNT:DIGEST as the server or an export has it.")
    ] = None,
    restore_tip: Annotated[
        bool, typer.Option(help="Write a lost ledger tip again; needs --against.")
    ] = False,
) -> None:
    """Verify the ledger: its chain, its tip, and a tip kept elsewhere."""
    from deployment.ledger_commands import verify_ledger

    with _trusted():
        print(verify_ledger(path, against, restore_tip))


@ledger.command(epilog="Example: fed-mediffusion site ledger export site.toml --output ledger.json")
def export(
    path: Where,
    output: Annotated[Path, typer.Option(help="File to write, .json or .csv.")] = Path(
        "ledger.json"
    ),
    delta: Delta = None,
) -> None:
    """Write all entries, without names of patients. The last line of output is the file."""
    from deployment.ledger_commands import export_ledger

    with _trusted():
        print(export_ledger(path, delta, output))


@contextmanager
def _trusted() -> Iterator[None]:
    try:
        yield
    except LedgerError as error:
        print(f"fed-mediffusion: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
