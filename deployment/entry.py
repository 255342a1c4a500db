"""Start of a command line, and report of its errors."""

import io
import sys
from typing import NoReturn

import typer
from rich.console import Console

from mediffusion_core.common.errors import UserError


def run(app: typer.Typer) -> None:
    """Runs a command line. A user's mistake causes one line on stderr and exit status 2.

    A file or folder that can't be read or written causes the same.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal cannot show must not end the command.
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        _refuse(f"{error.filename}: {reason}" if error.filename else reason)


def _refuse(reason: str) -> NoReturn:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"fed-mediffusion: {reason}", style="red", markup=False)
    sys.exit(2)
