"""`fed-mediffusion study explanations`: several methods' maps of the same decisions, by figures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.run_io.run_folder import write_json
from simulations.baselines.independent_classifier import independent_classifier
from simulations.studies.explanations.measure import agreement, differences, measure
from simulations.studies.explanations.methods import Case, explanations
from simulations.studies.explanations.pictures import save_curves, save_maps
from simulations.studies.explanations.tables import explanations_page
from simulations.studies.guidance.images import StudyImages, choose_images
from simulations.studies.guidance.methods import Ours, refuse_blind_guidance
from simulations.studies.guidance.options import changed_guidance
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
        images: Images a finding, or a way between two exclusive classes.
        overrides: Changes of our guidance, as `num_inference_steps=10`.
        output: Folder to write.
        device: As `resolve_device` takes it.
        between: The two exclusive classes; without, the most frequent ones.

    Returns:
        The written page, `results.md`; beside it stand `results.json` and two pictures.

    Raises:
        UserError: captum is not installed, there is no run, its images cannot be found, too few
            of them fit, or one half of its network is not trained.
    """
    _check_captum()
    console = Console(stderr=True, soft_wrap=True)
    opened = open_trained_run(run, device, console)
    if not opened.settings.training.joint.trains_both_halves:
        raise UserError(f"the run {run} trained one half of its network, which explains nothing")
    guidance = changed_guidance(opened.settings, overrides)
    refuse_blind_guidance(opened.model.guided, [Ours("ours", guidance)])
    chosen = choose_images(
        opened.model,
        opened.hospitals.test(),
        opened.settings,
        opened.hospitals,
        images,
        "explanations",
        additions=False,
        between=between,
    )
    independent, opinion = independent_classifier(run, opened.settings, opened.hospitals, console)
    seed = derive_seed(opened.settings.seed, "explanations")
    latents = opened.model.encode(chosen.images)
    case = Case(opened.model, independent, guidance, latents, chosen.target, chosen.real, seed)
    about = {
        **opened.provenance(run),
        "images": len(latents),
        "masks": int(chosen.known.masks.flatten(1).any(dim=1).sum()),
        "guidance": guidance.model_dump(mode="json", exclude={"panel", "count"}),
        "independent": opinion,
    }
    return _compare(case, chosen, about, output, console)


def _compare(
    case: Case, chosen: StudyImages, about: Mapping[str, Any], output: Path, console: Console
) -> Path:
    """Explains, measures, and writes the page with what is known about the study."""
    masks, groups = chosen.known.masks, chosen.groups
    found = explanations(
        case, lambda name: console.print(f"explaining {len(case.latents)} images: {name}")
    )
    rows = [
        measure(case, one, masks, groups, BOOTSTRAPS, case.seed)
        for one in track(found, "measuring", console=console, transient=True)
    ]
    pairs = agreement(found, groups, BOOTSTRAPS, case.seed)
    ahead = differences(rows, groups, BOOTSTRAPS, case.seed)
    results = {
        **about,
        "rows": [row.described() for row in rows],
        "ours_less": {
            name: {figure: asdict(one) for figure, one in figures.items()}
            for name, figures in ahead.items()
        },
        "agreement": [{"methods": list(names), **asdict(one)} for names, one in pairs.items()],
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "results.json", results)
    save_curves(rows, output / "curves.png")
    save_maps(case, rows, chosen.panel.names, masks, output / "panel.png")
    page = output / "results.md"
    page.write_text(explanations_page(results, rows, ahead, pairs), encoding="utf-8")
    return page


def _check_captum() -> None:
    try:
        import captum  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"captum cannot be imported ({error}); run `pip install 'captum>=0.9,<1'`"
        ) from error
