"""The command `fed-mediffusion`."""

from pathlib import Path
from typing import Annotated

import typer

from deployment.commands import add_commands
from deployment.entry import run as run_app
from deployment.site_cli import site
from simulations.cli.arguments import ConfigName, Device, Overrides, Run
from simulations.cli.data import data
from simulations.cli.sizing import sizing
from simulations.cli.study import study

app = typer.Typer(
    name="fed-mediffusion",
    help="Federated training of one diffusion model that classifies, generates and explains.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.command(
    epilog="Examples:\n\n"
    "fed-mediffusion simulate\n\n"
    "fed-mediffusion simulate experiment=isic2019_4centres data.root=PATH\n\n"
    "fed-mediffusion simulate --resume runs/latest"
)
def simulate(
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the run in this folder where it stopped.")
    ] = None,
    config_name: ConfigName = "config",
) -> None:
    """Train across simulated hospitals, by `flwr run`. The last line printed is the run folder."""
    from simulations.engine.simulate import simulate as run

    raise typer.Exit(run(config_name, overrides or [], resume))


@app.command(epilog="Example: fed-mediffusion settings experiment=isic2019_4centres")
def settings(
    overrides: Overrides = None,
    config_name: ConfigName = "config",
) -> None:
    """Print all settings as a run would have them, without running anything."""
    import yaml

    from configs import compose

    composed = compose(config_name, overrides or [])
    print(yaml.safe_dump(composed.model_dump(mode="json"), sort_keys=False), end="")


@app.command(epilog="Example: fed-mediffusion predict runs/latest ~/images --output out.csv")
def predict(
    run: Run,
    folder: Annotated[Path, typer.Argument(help="Folder of images.")],
    output: Annotated[
        Path | None, typer.Option(help="CSV to write; predictions.csv in the run by default.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Classify every image in a folder. The last line printed is the CSV."""
    from simulations.cli.inference import predict_folder

    print(predict_folder(run, folder, output or run / "predictions.csv", device))


@app.command(epilog="Example: fed-mediffusion sample runs/latest --count 64 --seed 1")
def sample(
    run: Run,
    count: Annotated[int, typer.Option(min=1, help="How many images.")] = 32,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same images.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; samples in the run by default.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Draw new images from the model. The last line printed is their folder."""
    from simulations.cli.inference import draw_samples

    print(draw_samples(run, output or run / "samples", count, steps, seed, device))


@app.command(
    epilog="Examples:\n\n"
    "fed-mediffusion explain runs/latest --image chest.png --target Effusion\n\n"
    "fed-mediffusion explain runs/latest --image mole.jpg --target MEL"
)
def explain(
    run: Run,
    image: Annotated[Path, typer.Option(help="The image to explain.")],
    target: Annotated[
        list[str],
        typer.Option(
            help="A class. Exclusive classes: what the image should become. Findings: it is "
            "removed where the model sees it, added where it does not, and the others are held; "
            "give the option again to change several."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; explanations in the run by default.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Show what would have to change for the model to decide otherwise."""
    from simulations.cli.inference import explain_image

    print(explain_image(run, image, target, output or run / "explanations", device))


@app.command(epilog="Example: fed-mediffusion export runs/latest exported")
def export(
    run: Run,
    output: Annotated[Path, typer.Argument(help="Folder to write, which must not exist.")],
) -> None:
    """Write the model as a diffusers pipeline with a model card, for use without Flower."""
    from mediffusion_core.run_io.export import export_run

    print(export_run(run, output))


@app.command(
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

    Tables for which nothing is named stay as they are. Prints the documents written.
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


app.add_typer(data, name="data")
app.add_typer(site, name="site")
app.add_typer(study, name="study")
add_commands(app)
app.command(epilog="Example: fed-mediffusion sizing model=small --sites 3,30,300")(sizing)


def main() -> None:
    """Entry point of `fed-mediffusion`."""
    run_app(app)


if __name__ == "__main__":
    main()
