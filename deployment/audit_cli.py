"""The commands `fed-mediffusion audit ...`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mediffusion_core.common.errors import AuditError, UserError

audit = typer.Typer(help="The audit log of a server or a site.")

Files = Annotated[
    list[Path] | None,
    typer.Argument(help="Files of the log, oldest first; by default $FED_MEDIFFUSION_AUDIT."),
]


@audit.callback()
def logs() -> None:
    """The audit log of a server or a site.

    A log that fails verification causes one line on stderr and exit status 1.
    """


@audit.command(epilog="Example: fed-mediffusion audit verify audit.jsonl --against 12:8c1f...")
def verify(
    files: Files = None,
    against: Annotated[
        str | None, typer.Option(help="COUNT:DIGEST of a tip that was kept elsewhere.")
    ] = None,
) -> None:
    """Verify the log: its chain, its tip, and a tip kept elsewhere."""
    from deployment.audit_commands import verify_audit

    try:
        print(verify_audit(_given(files), against))
    except AuditError as error:
        _refuse(error)


@audit.command(epilog="Example: fed-mediffusion audit show audit.jsonl --run 123")
def show(
    files: Files = None,
    run: Annotated[str | None, typer.Option(help="Flower's id of a run.")] = None,
) -> None:
    """Show the entries: who asked for what, on which data, when, and with which outcome."""
    from deployment.audit_commands import show_audit

    try:
        for line in show_audit(_given(files), run):
            print(line)
    except AuditError as error:
        _refuse(error)


def _given(files: list[Path] | None) -> list[Path]:
    from mediffusion_core.common.audit_log import AUDIT

    if files:
        return files
    if not os.environ.get(AUDIT):
        raise UserError(f"give the files of the log, or set {AUDIT}")
    return [Path(os.environ[AUDIT])]


def _refuse(error: AuditError) -> None:
    print(f"fed-mediffusion: {error}", file=sys.stderr)
    raise typer.Exit(1) from None
