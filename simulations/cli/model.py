"""The commands that use the model of a finished run: predict, sample, explain."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.arguments import Device

Model = Annotated[
    Path,
    typer.Argument(
        metavar="RUN",
        help="Folder of a finished run, for example runs/latest, or of an exported pipeline.",
    ),
]

commands = typer.Typer()


@commands.command(epilog="Example: fed-mediffusion predict runs/latest ~/images --output out.csv")
def predict(
    run: Model,
    folder: Annotated[Path, typer.Argument(help="Folder of images.")],
    output: Annotated[
        Path | None, typer.Option(help="CSV to write; predictions.csv in the run by default.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Classify every image in a folder. The last line printed is the CSV."""
    from simulations.cli.inference import predict_folder

    print(predict_folder(run, folder, output or run / "predictions.csv", device))


@commands.command(epilog="Example: fed-mediffusion sample runs/latest --count 64 --seed 1")
def sample(
    run: Model,
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 32,
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


@commands.command(
    epilog="Examples:\n\n"
    "fed-mediffusion explain runs/latest --image chest.png --target Effusion\n\n"
    "fed-mediffusion explain runs/latest --image mole.jpg --target MEL\n\n"
    "fed-mediffusion explain exported --image chest.png --target Effusion "
    "--edit lung.png --keep heart.png"
)
def explain(
    run: Model,
    image: Annotated[Path, typer.Option(help="The image to explain.")],
    target: Annotated[
        list[str],
        typer.Option(
            help="Target class. With exclusive classes, the class that the image should get. With "
            "findings, the finding to remove where the model predicts it and to add where it does "
            "not, while the other findings are kept; repeat the option to change several."
        ),
    ],
    edit: Annotated[
        Path | None,
        typer.Option(
            help="A mask: the image may change where it is white, and nowhere else. A PNG of the "
            "image's size, or of another size of the same aspect."
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="A mask: the image must not change where it is white, in --edit too."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; explanations in the run by default.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Write a counterfactual: a small change of the image that changes the model's decision."""
    from simulations.cli.inference import explain_image

    folder = output or run / "explanations"
    print(explain_image(run, image, target, folder, device, edit, keep))
