"""The commands `fed-mediffusion study`: experiments of several runs or on a finished run."""

from pathlib import Path
from typing import Annotated

import typer

from simulations.cli import privacy_study
from simulations.cli.arguments import Device, Overrides, Run
from simulations.engine.processes import interrupted_by_signals

Changes = Annotated[
    list[str] | None,
    typer.Argument(help="Changes of evaluation.counterfactual, for example guidance_scale=3."),
]
Between = Annotated[
    str,
    typer.Option(
        help="Two exclusive classes, for example NV,MEL; the two most frequent by default."
    ),
]

study = typer.Typer(help="Experiments of several runs or on a finished run.")
study.add_typer(privacy_study.commands)


@study.callback()
def studies(context: typer.Context) -> None:
    """Experiments of several runs or on a finished run. Finished parts are not run again."""
    context.with_resource(interrupted_by_signals())


@study.command(epilog="Example: fed-mediffusion study unlabelled --seeds 3")
def unlabelled(
    overrides: Overrides = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    folder: Annotated[Path, typer.Option(help="Folder of the runs and the table.")] = Path(
        "runs/study-unlabelled"
    ),
) -> None:
    """Train with and without the unlabelled images, same labels and seeds, and compare the AUC."""
    from simulations.studies.unlabelled.study import study_unlabelled

    print(study_unlabelled(overrides or [], seeds, folder))


@study.command(
    epilog="Example: fed-mediffusion study labels data.root=/data/isic2019 --methods joint,resnet"
)
def labels(
    overrides: Overrides = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods, separated by commas; all by default.")
    ] = None,
    fractions: Annotated[
        str | None,
        typer.Option(
            help="Labelled fractions for all chosen methods, for example 0.05,0.2. By default "
            "every method at 0.2, and joint and labels-alone also at 0.02, 0.05, 0.1 and 1."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    minutes: Annotated[
        float, typer.Option(min=0.01, help="Minutes on one core for a joint run.")
    ] = 10.0,
    tune: Annotated[
        bool, typer.Option(help="Run each method's trials first; the validation AUC selects one.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Parallel runs, one thread each.")] = 2,
    folder: Annotated[Path, typer.Option(help="Folder of the cells and the results.")] = Path(
        "runs/study-labels"
    ),
) -> None:
    """Compare methods at several labelled fractions. Finished cells are not run again."""
    from simulations.studies.labels.plan import make_plan
    from simulations.studies.labels.study import study_labels

    plan = make_plan(overrides or [], methods, fractions, seeds, minutes, tune)
    print(study_labels(plan, folder, workers))


@study.command(
    epilog="Examples:\n\n"
    "fed-mediffusion study paper\n\n"
    "fed-mediffusion study paper --questions lambda,separate\n\n"
    "fed-mediffusion study paper experiment=isic2019_4centres data.root=/data/isic2019 --jobs 4"
)
def paper(
    overrides: Overrides = None,
    questions: Annotated[
        str | None,
        typer.Option(
            help="Questions, separated by commas: autoencoder, diffusion, all-labels, separate, "
            "lambda, labels, latents, guidance, scanners, explanations; all by default."
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Parallel cells, one thread each.")] = 2,
    folder: Annotated[Path, typer.Option(help="Folder of the cells and the page.")] = Path(
        "runs/study-paper"
    ),
) -> None:
    """Answer the questions of the paper (arXiv 2411.09434) on one page.

    Changes one thing at a time in a base run: small phantoms by default, or the run that the
    overrides name. Prints how long it takes. Finished cells are not run again, and the page is
    written after each. The last line printed is the page.
    """
    from simulations.studies.paper.plan import make_plan
    from simulations.studies.paper.study import study_paper

    print(study_paper(make_plan(overrides or [], questions), folder, jobs))


@study.command(
    "attack",
    epilog="Examples:\n\n"
    "fed-mediffusion study attack runs/latest\n\n"
    "fed-mediffusion study attack runs/latest --shadows 64",
)
def attack(
    run: Run,
    shadows: Annotated[
        int,
        typer.Option(
            min=0, help="Shadow models of the likelihood-ratio attack; 0 leaves the attack out."
        ),
    ] = 8,
    output: Annotated[
        Path | None, typer.Option(help="JSON file to write; attack.json in the run by default.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Attack a run's model, its predictions and one of its rounds, and compare with the bound of ε.

    Shadow models that were trained before are not trained again.
    """
    from simulations.studies.attack.study import ATTACK, study_attack

    print(study_attack(run, output or run / ATTACK, device, shadows))


@study.command("audit", epilog="Example: fed-mediffusion study audit runs/latest")
def audit(
    run: Run,
    canaries: Annotated[int, typer.Option(min=20, help="Each is in it with probability 1/2.")] = (
        1000
    ),
) -> None:
    """Measure a lower bound of ε on a run's private steps, without any patient's image."""
    from simulations.studies.audit.study import study_audit

    print(study_audit(run, canaries))


@study.command(epilog="Example: fed-mediffusion study generation runs/latest --ddpm")
def generation(
    run: Run,
    count: Annotated[
        int, typer.Option(min=20, help="Images per set; at most half of the test images.")
    ] = 300,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Denoising steps.")] = 20,
    scale: Annotated[
        float, typer.Option(min=0.0, help="Guidance scale of the class-guided samples.")
    ] = 40.0,
    ddpm: Annotated[
        bool, typer.Option(help="Also draw samples with all steps of DDPM; takes minutes.")
    ] = False,
    half_samples: Annotated[
        int, typer.Option(min=10, help="Number of half-samples for the intervals.")
    ] = 100,
    training_images: Annotated[
        int | None,
        typer.Option(min=10, help="Training images in which to look for copies; all by default."),
    ] = None,
    usefulness: Annotated[
        int,
        typer.Option(
            min=0, help="Steps of training a ResNet-18 on generated images; 0 leaves it out."
        ),
    ] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; generation in the run by default.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Compare samples, with and without class guidance, with real images, and look for copies.

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
    pairs: Annotated[
        int, typer.Option(min=1, help="Number of test images; each gives a pair.")
    ] = 20,
    repeats: Annotated[int, typer.Option(min=0, help="Pairs shown twice, with sides swapped.")] = 4,
    resnet_steps: Annotated[
        int, typer.Option(min=1, help="Training steps of the external classifier.")
    ] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Seed of images, order and sides.")] = 0,
    device: Device = "auto",
) -> None:
    """Write a page of blinded pairs: our counterfactuals and those of external guidance.

    Give the page to the readers and keep key.json. The last line printed is the page.
    """
    from simulations.studies.reader.export import export_reader_study

    print(export_reader_study(run, output, pairs, repeats, resnet_steps, seed, device))


@study.command(
    "reader-score", epilog="Example: fed-mediffusion study reader-score readers answers-*.json"
)
def reader_score(
    folder: Annotated[Path, typer.Argument(help="Folder that reader-export wrote.")],
    answers: Annotated[list[Path], typer.Argument(help="Files of answers from the readers.")],
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
    scales: Annotated[
        str, typer.Option(help="Scales of the grid, separated by commas.")
    ] = "0.5,1,2",
    starts: Annotated[
        str, typer.Option(help="Noise levels of the grid, in fractions of T.")
    ] = "0.3,0.5",
    steps: Annotated[str, typer.Option(help="Steps of the grid.")] = "5,10",
    reference: Annotated[
        str,
        typer.Option(
            help="SCALE:START pairs of the published procedure; validation images select one."
        ),
    ] = "50:0.2,200:0.2,500:0.2,200:0.5,500:0.5",
    grid_images: Annotated[
        int, typer.Option(min=1, help="Validation images per target, for the grid.")
    ] = 4,
    images: Annotated[int, typer.Option(min=1, help="Test images per target.")] = 10,
    ours: Annotated[
        bool,
        typer.Option("--ours", help="Our guidance alone: no grid, no ablations, no reference."),
    ] = False,
    between: Between = "",
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; guidance in the run by default.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Compare our guidance at several settings with the published procedure.

    The grid uses validation patients, the comparison test patients. An independent classifier,
    trained once and kept in the run, evaluates beside the model. The last line printed is the page
    of results.
    """
    from simulations.studies.guidance.options import Grid, Options, parse_reference
    from simulations.studies.guidance.study import study_guidance
    from simulations.studies.study_images import class_names

    options = Options(
        Grid.parse(scales, starts, steps),
        parse_reference(reference),
        grid_images,
        images,
        tuple(overrides or ()),
        ours,
        class_names(between),
    )
    print(study_guidance(run, options, output or run / "guidance", device))


@study.command(epilog="Example: fed-mediffusion study explanations runs/latest --images 20")
def explanations(
    run: Run,
    overrides: Changes = None,
    images: Annotated[int, typer.Option(min=1, help="Test images per finding.")] = 10,
    between: Between = "",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write; study-explanations in the run by default."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Compare counterfactuals with Grad-CAM, integrated gradients, SHAP and external guidance.

    Measures deletion, insertion, localisation and agreement of the maps on the same test images.
    The last line printed is the page of results.
    """
    from simulations.studies.explanations.study import study_explanations
    from simulations.studies.study_images import class_names

    folder = output or run / "study-explanations"
    print(study_explanations(run, images, overrides or [], folder, device, class_names(between)))


@study.command(
    epilog="Examples:\n\n"
    "fed-mediffusion study shortcut runs/marked\n\n"
    "fed-mediffusion study shortcut runs/marked --mended runs/mended --images 12"
)
def shortcut(
    run: Run,
    overrides: Changes = None,
    mended: Annotated[
        Path | None,
        typer.Option(help="Run trained without the shortcut, on the same patients and seed."),
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, help="Counterfactuals of each class at each site, at most.")
    ] = 12,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; study-shortcut in the run by default.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Test which site's scanner mark the classifier uses as a sign of a class.

    Pastes and removes marks on test images, and measures whether counterfactuals change their
    places. With a mended run both models are tested on the same images. The last line printed is
    the page of results.
    """
    from simulations.studies.shortcut.study import study_shortcut

    folder = output or run / "study-shortcut"
    print(study_shortcut(run, mended, overrides or [], images, folder, device))
