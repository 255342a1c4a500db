"""The command `fed-mediffusion sweep`."""

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command(
    epilog="Examples:\n\n"
    "fed-mediffusion sweep training.joint.learning_rate=3e-4,6e-4,1.2e-3 seed=1,2\n\n"
    "fed-mediffusion sweep experiment=isic2019_4centres data.root=PATH model=tiny,small\n\n"
    "fed-mediffusion sweep 'federation.num_rounds=range(10,40,10)' --workers 4\n\n"
    "fed-mediffusion sweep 'training.joint.learning_rate=tag(log,interval(1e-4,1e-2))' --trials 20"
)
def sweep(
    overrides: Annotated[
        list[str],
        typer.Argument(
            help="Settings, some with several values in the grammar of Hydra's multirun: a=1,2, "
            "choice(...), range(...), or with --trials interval(...)."
        ),
    ],
    trials: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Search with so many trials in total, by Optuna's TPE, instead of a grid; a=1,2, "
            "int(interval(1,9)) and tag(log,interval(1e-4,1e-2)) span the space.",
        ),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="Figure of the sites' validation patients that the results are sorted by, and "
            "that a search maximises: auc_pooled, or auc_pooled_per_class.CLASS."
        ),
    ] = "auc_pooled",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs at once, each in one process with federation.cpus_per_site threads; by "
            "default as many as cores and memory allow, and one on a GPU.",
        ),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Folder of the runs and the results.")] = Path(
        "runs/sweep"
    ),
) -> None:
    """Train with each combination of settings, or search, and compare the validation AUC.

    The same command again runs the missing ones: finished runs are kept by the hash of their
    settings, and interrupted ones resume from their checkpoint. Values of `seed` are repetitions.
    The last line printed is the table, sweep.csv.
    """
    from simulations.sweeps.sweep import sweep as run

    raise typer.Exit(run(overrides, trials, objective, workers, folder))
