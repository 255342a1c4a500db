"""The command `fed-mediffusion watch`."""

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command(
    epilog="Examples:\n\n"
    "fed-mediffusion watch runs/latest\n\n"
    "fed-mediffusion watch runs/latest --text\n\n"
    "fed-mediffusion watch runs/latest --host 0.0.0.0 --port 8080"
)
def watch(
    run: Annotated[Path, typer.Argument(help="Folder of a run, for example runs/latest.")],
    text: Annotated[
        bool, typer.Option("--text", help="Show it in this terminal instead of a browser.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="Address to serve at; another than loopback opens it to others.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8765,
) -> None:
    """Show a run while it runs, or after: report, rounds, sites, time left and epsilon.

    It only reads. Ctrl-C ends it.
    """
    from rich.console import Console

    from deployment.watch.state import open_run
    from deployment.watch.terminal import watch_in_terminal

    folder = open_run(run)
    try:
        if text:
            watch_in_terminal(folder, Console(soft_wrap=False))
        else:
            _serve(folder, host, port)
    except KeyboardInterrupt:
        raise typer.Exit from None


def _serve(folder: Path, host: str, port: int) -> None:
    from deployment.watch.server import WatchServer

    with WatchServer(folder, host, port) as server:
        if not server.is_local:
            typer.echo("the page has no login and no encryption: others can read it", err=True)
        typer.echo(server.address)
        server.serve_forever()
