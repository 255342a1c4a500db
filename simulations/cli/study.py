"""The commands `fed-mediffusion study`: experiments of several runs, or on a finished one."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli.arguments import Device, Overrides, Run
from simulations.engine.processes import interrupted_by_signals

Changes = Annotated[
    list[str] | None,
    typer.Argument(help="Changes of evaluation.counterfactual, for example guidance_scale=3."),
]
Between = Annotated[
    str,
    typer.Option(
        help="Two classes that exclude each other, as NV,MEL; the most frequent ones by default."
    ),
]

study = typer.Typer(help="Experiments of several runs; what is done is not run again.")


@study.callback()
def studies(context: typer.Context) -> None:
    """Experiments of several runs; what is done is not run again."""
    context.with_resource(interrupted_by_signals())


@study.command(epilog="Example: fed-mediffusion study unlabelled --seeds 3")
def unlabelled(
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    folder: Annotated[Path, typer.Option(help="Where the runs and the table go.")] = Path(
        "runs/study-unlabelled"
    ),
) -> None:
    """Compare the same labels with and without the unlabelled images, seed by seed."""
    from simulations.studies.unlabelled.study import study_unlabelled

    print(study_unlabelled(overrides or [], seeds, folder))


@study.command(
    epilog="Example: fed-mediffusion study labels data.root=/data/isic2019 --methods joint,resnet"
)
def labels(
    overrides: Overrides = None,
    methods: Annotated[
        str | None, typer.Option(help="Which methods, with commas; all by default.")
    ] = None,
    fractions: Annotated[
        str | None,
        typer.Option(
            help="Labelled shares for all chosen methods, as 0.05,0.2. By default every method "
            "at 0.2, and joint and labels-alone also at 0.02, 0.05, 0.1 and 1."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    minutes: Annotated[
        float, typer.Option(min=0.01, help="Minutes of one core that a joint run may take.")
    ] = 10.0,
    tune: Annotated[
        bool, typer.Option(help="Run each method's trials first; validation patients choose.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Runs side by side, one thread each.")] = 2,
    folder: Annotated[Path, typer.Option(help="Where cells and results go.")] = Path(
        "runs/study-labels"
    ),
) -> None:
    """Compare methods at shares of labels. What has been run is kept and not made again."""
    from simulations.studies.labels.plan import make_plan
    from simulations.studies.labels.study import study_labels

    plan = make_plan(overrides or [], methods, fractions, seeds, minutes, tune)
    print(study_labels(plan, folder, workers))


@study.command("attack", epilog="Example: fed-mediffusion study attack runs/latest")
def attack(
    run: Run,
    output: Annotated[
        Path | None, typer.Option(help="JSON file to write; attack.json in the run by default.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Try to tell from a run's model who was trained on, and hold that against its ε."""
    from simulations.studies.attack.study import ATTACK, study_attack

    print(study_attack(run, output or run / ATTACK, device))


@study.command(epilog="Example: fed-mediffusion study generation runs/latest --ddpm")
def generation(
    run: Run,
    count: Annotated[
        int, typer.Option(min=20, help="Images a set; at most half of the test images.")
    ] = 300,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps.")] = 20,
    scale: Annotated[
        float, typer.Option(min=0.0, help="How hard class-guided samples are pulled.")
    ] = 40.0,
    ddpm: Annotated[
        bool, typer.Option(help="Draw by all steps of DDPM, too; takes minutes.")
    ] = False,
    half_samples: Annotated[
        int, typer.Option(min=10, help="Half-samples drawn for the intervals.")
    ] = 100,
    training_images: Annotated[
        int | None,
        typer.Option(min=10, help="Look for copies among so many training images; all by default."),
    ] = None,
    usefulness: Annotated[
        int,
        typer.Option(min=0, help="Train a ResNet-18 on drawn images for so many steps; 0: not."),
    ] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; generation in the run by default.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Hold samples, class-guided ones too, against real images, and look for copies.

    The last line printed is the page of results.
    """
    from simulations.studies.generation.study import Options, study_generation

    options = Options(count, steps, scale, ddpm, half_samples, training_images, usefulness)
    print(study_generation(run, options, output or run / "generation", device))


@study.command(
    "reader-export", epilog="Example: fed-mediffusion study reader-export runs/latest readers"
)
def reader_export(
    run: Run,
    output: Annotated[Path, typer.Argument(help="Folder to write, which must not exist.")],
    pairs: Annotated[int, typer.Option(min=1, help="Test images, each with a pair.")] = 20,
    repeats: Annotated[
        int, typer.Option(min=0, help="Pairs shown again with their sides swapped.")
    ] = 4,
    resnet_steps: Annotated[
        int, typer.Option(min=1, help="Training of the classifier that guides the other ones.")
    ] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Of images, order and sides.")] = 0,
    device: Device = "auto",
) -> None:
    """Write a page of blinded pairs for readers: our counterfactuals and external guidance's.

    The page goes to the readers, key.json does not. The last line printed is the page.
    """
    from simulations.studies.reader.export import export_reader_study

    print(export_reader_study(run, output, pairs, repeats, resnet_steps, seed, device))


@study.command(
    "reader-score", epilog="Example: fed-mediffusion study reader-score readers answers-*.json"
)
def reader_score(
    folder: Annotated[Path, typer.Argument(help="Folder that reader-export wrote.")],
    answers: Annotated[list[Path], typer.Argument(help="Files that the readers sent back.")],
) -> None:
    """Score readers' answers. The last line printed is the page of scores."""
    from simulations.studies.reader.score import score_answers

    print(score_answers(folder, answers))


@study.command(
    epilog="Examples:\n\n"
    "fed-mediffusion study guidance runs/latest\n\n"
    "fed-mediffusion study guidance runs/latest mask_threshold=0.4 num_candidates=1 --images 4"
)
def guidance(
    run: Run,
    overrides: Changes = None,
    scales: Annotated[str, typer.Option(help="Scales of the grid, with commas.")] = "0.5,1,2",
    starts: Annotated[
        str, typer.Option(help="Noise levels of the grid, as fractions of T.")
    ] = "0.3,0.5",
    steps: Annotated[str, typer.Option(help="Numbers of steps of the grid.")] = "5,10",
    reference: Annotated[
        str,
        typer.Option(
            help="Scale:start of the published procedure; validation images choose one of them."
        ),
    ] = "50:0.2,200:0.2,500:0.2,200:0.5,500:0.5",
    grid_images: Annotated[
        int, typer.Option(min=1, help="Validation images a wish, for the grid.")
    ] = 4,
    images: Annotated[int, typer.Option(min=1, help="Test images a wish.")] = 10,
    ours: Annotated[
        bool, typer.Option("--ours", help="Ours alone: no grid, no part left out, no reference.")
    ] = False,
    between: Between = "",
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; guidance in the run by default.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Hold guidance at many settings, and the published procedure, against each other.

    The grid runs on validation patients, the comparison on test patients. The independent
    classifier that judges beside the model is trained once and kept in the run. The last line
    printed is the page of results.
    """
    from simulations.studies.guidance.options import parse_options
    from simulations.studies.guidance.study import study_guidance

    options = parse_options(
        scales,
        starts,
        steps,
        reference,
        grid_images,
        images,
        overrides or [],
        ours_alone=ours,
        between=between,
    )
    print(study_guidance(run, options, output or run / "guidance", device))


@study.command(epilog="Example: fed-mediffusion study explanations runs/latest --images 20")
def explanations(
    run: Run,
    overrides: Changes = None,
    images: Annotated[int, typer.Option(min=1, help="Test images a finding.")] = 10,
    between: Between = "",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write; study-explanations in the run by default."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Hold counterfactuals against Grad-CAM, integrated gradients, SHAP and external guidance.

    On the same test images: deletion, insertion, place and agreement of the maps. The last line
    printed is the page of results.
    """
    from simulations.studies.explanations.study import study_explanations
    from simulations.studies.guidance.options import class_names

    folder = output or run / "study-explanations"
    print(study_explanations(run, images, overrides or [], folder, device, class_names(between)))
