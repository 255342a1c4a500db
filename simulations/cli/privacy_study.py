"""The command `fed-mediffusion study privacy`."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.arguments import Overrides

commands = typer.Typer()


@commands.command(
    epilog="Examples:\n\n"
    "fed-mediffusion study privacy\n\n"
    "fed-mediffusion study privacy --epsilons 2,8,infinity --seeds 1\n\n"
    "fed-mediffusion study privacy experiment=isic2019_private data.root=/data/isic2019 --jobs 4"
)
def privacy(
    overrides: Overrides = None,
    epsilons: Annotated[
        str,
        typer.Option(help="Values of ε, separated by commas; `infinity` is without noise."),
    ] = "1,2,4,8,infinity",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    canaries: Annotated[
        int, typer.Option(min=20, help="Canaries of each audit; more can prove a larger ε.")
    ] = 1000,
    jobs: Annotated[int, typer.Option(min=1, help="Parallel cells, one thread each.")] = 2,
    folder: Annotated[Path, typer.Option(help="Folder of the cells and the page.")] = Path(
        "runs/study-privacy"
    ),
) -> None:
    """Measure utility and leakage of private runs against ε, on one page.

    Trains the same network at each ε and seed, attacks each run and audits its ε: small phantoms by
    default, or the private run that the overrides name. Prints how long it takes. Finished cells
    are not run again, and the page is written after each. Fails if an audited lower bound is above
    its promised ε. The last line printed is the page.
    """
    from simulations.studies.privacy.plan import make_plan
    from simulations.studies.privacy.study import study_privacy

    print(study_privacy(make_plan(overrides or [], epsilons, seeds, canaries), folder, jobs))
