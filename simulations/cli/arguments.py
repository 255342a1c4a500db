"""Arguments that several commands of `fed-mediffusion` have."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(help="Folder of a finished run, for example runs/latest.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings to change, for example data=isic2019 federation.num_rounds=3."),
]
ConfigName = Annotated[str, typer.Option(help="Configuration file to start from.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
RunConfig = Annotated[
    bool,
    typer.Option(
        "--run-config",
        help="Start nothing; print the run configuration for deployed sites, which `sign` and "
        "`flwr run` take.",
    ),
]
