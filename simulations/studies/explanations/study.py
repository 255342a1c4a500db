"""`fed-mediffusion study explanations`: maps of the same decisions by several methods."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from simulations.baselines.independent_classifier import independent_classifier
from simulations.studies.explanations.measure import agreement, differences, measure
from simulations.studies.explanations.methods import Case, explanations
from simulations.studies.explanations.pictures import save_curves, save_maps
from simulations.studies.explanations.tables import explanations_page
from simulations.studies.guidance.methods import Ours, refuse_untrained_noise
from simulations.studies.guidance.options import changed_guidance
from simulations.studies.result_files import write_results
from simulations.studies.study_images import Choice, StudyImages, choose_images
from simulations.studies.trained_run import open_trained_run

BOOTSTRAPS = 400


def study_explanations(
    run: Path,
    images: int,
    overrides: Sequence[str],
    output: Path,
    device: str,
    between: Sequence[str] = (),
) -> Path:
    """Explains test images by every method and measures the maps.

    Args:
        run: Folder of a finished run.
        images: Images per finding, or per direction between two exclusive classes.
        overrides: Changes of our guidance, for example `num_inference_steps=10`.
        output: Folder to write.
        device: As `resolve_device` takes it.
        between: Two exclusive classes; the two most frequent if empty.

    Returns:
        The written page, `results.md`; beside it are `results.json` and two pictures.

    Raises:
        UserError: if captum is not installed, there is no run, its images are not found, too few of
            them fit, or one half of its network was not trained.
    """
    _check_captum()
    console = Console(stderr=True, soft_wrap=True)
    trained = open_trained_run(run, device, console)
    trained.require_counterfactuals()
    model, settings = trained.model, trained.settings
    guidance = changed_guidance(settings, overrides)
    refuse_untrained_noise(model.guided, [Ours("ours", guidance)])
    choice = Choice("explanations", images, additions=False, between=between)
    chosen = choose_images(trained, trained.dataset.test(), choice)
    external, figures = independent_classifier(run, settings, trained.dataset, console)
    seed = derive_seed(settings.seed, "explanations")
    case = Case(model, external, guidance, chosen.images, chosen.target, chosen.real, seed)
    about = {
        **trained.provenance(),
        "images": len(chosen.images),
        "masks": int(chosen.known.masks.flatten(1).any(dim=1).sum()),
        "guidance": guidance.model_dump(mode="json", exclude={"panel", "count"}),
        "independent": figures,
    }
    return _compare(case, chosen, about, output, console)


def _compare(
    case: Case, chosen: StudyImages, about: Mapping[str, Any], output: Path, console: Console
) -> Path:
    """Explains, measures, and writes figures, page and pictures."""
    masks, groups = chosen.known.masks, chosen.groups
    explained = explanations(
        case, lambda name: console.print(f"explaining {len(case.sources)} images: {name}")
    )
    rows = [
        measure(case, one, masks, groups, BOOTSTRAPS, case.seed)
        for one in track(explained, "measuring", console=console, transient=True)
    ]
    pairs = agreement(explained, groups, BOOTSTRAPS, case.seed)
    ours_minus = differences(rows, groups, BOOTSTRAPS, case.seed)
    results = {
        **about,
        "rows": [row.described() for row in rows],
        "ours_less": {
            name: {figure: asdict(one) for figure, one in figures.items()}
            for name, figures in ours_minus.items()
        },
        "agreement": [{"methods": list(names), **asdict(one)} for names, one in pairs.items()],
    }
    page = write_results(output, results, explanations_page(results, rows, ours_minus, pairs))
    save_curves(rows, output / "curves.png")
    save_maps(case, rows, chosen.panel.names, masks, output / "panel.png")
    return page


def _check_captum() -> None:
    try:
        import captum  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"captum cannot be imported ({error}); run `pip install 'captum>=0.9,<1'`"
        ) from error
