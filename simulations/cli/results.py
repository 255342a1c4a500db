"""The command `fed-mediffusion results`."""

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer()


@commands.command(
    epilog="Examples: fed-mediffusion results runs/latest --study runs/study-unlabelled"
    "\n\nfed-mediffusion results --counterfactuals runs/latest/guidance"
)
def results(
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders of completed runs.")] = None,
    project: Annotated[
        Path, typer.Option(help="Folder with README.md and docs/results, which are written.")
    ] = Path("."),
    study_folder: Annotated[
        Path | None, typer.Option("--study", help="Folder of a study of unlabelled images.")
    ] = None,
    labels: Annotated[list[Path] | None, typer.Option(help="Folders of studies of labels.")] = None,
    counterfactuals: Annotated[
        list[Path] | None, typer.Option(help="Folders of studies of guidance.")
    ] = None,
    explanations: Annotated[
        list[Path] | None, typer.Option(help="Folders of studies of explanations.")
    ] = None,
    samples: Annotated[
        list[Path] | None, typer.Option(help="Folders of studies of generation.")
    ] = None,
) -> None:
    """Write tables of the figures of runs and studies into docs/results and README.md.

    A table for which no folder is given stays as it is. Prints the documents written.
    """
    from simulations.results.document import Sources, write_results

    sources = Sources(
        runs or (),
        study_folder,
        labels or (),
        counterfactuals or (),
        explanations or (),
        samples or (),
    )
    for document in write_results(sources, project):
        print(document)
