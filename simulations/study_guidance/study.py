"""`fed-mediffusion study guidance`: the grid, its knee, and ours against the reference."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from configs.compose import compose
from mediffusion_core.artifacts.provenance import current_commit
from mediffusion_core.artifacts.run_folder import write_json
from mediffusion_core.artifacts.trained import TrainedModel
from mediffusion_core.errors import UserError
from mediffusion_core.evaluation.features import build_extractor
from mediffusion_core.settings import CounterfactualSettings, DataSettings
from mediffusion_core.training.local import derive_seed, resolve_device
from simulations.independent_classifier import independent_classifier
from simulations.preparation import prepare_images
from simulations.simulate import LAUNCH
from simulations.study_guidance.images import choose_images, validation_images
from simulations.study_guidance.knee import knee
from simulations.study_guidance.measure import Bench, Row
from simulations.study_guidance.methods import Method, Nothing, Ours, Reference, ablations, grid
from simulations.study_guidance.options import Options
from simulations.study_guidance.pictures import save_chart, save_panel
from simulations.study_guidance.tables import guidance_page

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

    Raises:
        UserError: there is no run, its images cannot be found, or too few of them fit.
    """
    if not run.is_dir():
        raise UserError(f"run folder {run} does not exist")
    console = Console(stderr=True, soft_wrap=True)
    model = TrainedModel.load(run / "model", resolve_device(device))
    settings = model.settings.model_copy(update={"data": _data_of(run, model.settings.data)})
    hospitals = prepare_images(settings, console)
    if (hospitals.store.classes, hospitals.store.multi_label) != (model.classes, model.multi_label):
        raise UserError(f"the images of {run} are not those that its model was trained on")
    independent, opinion = independent_classifier(run, settings, hospitals, console)
    console.print(f"independent classifier: macro AUC {opinion['auc_macro']:.3f} on the test set")
    evaluation = settings.evaluation
    base = _changed(evaluation.counterfactual, options.overrides)
    extractor = build_extractor(evaluation.extractor, evaluation.inception_weights)
    held_out = choose_images(
        model, validation_images(hospitals), settings, hospitals, options.grid_images, "validation"
    )
    test = choose_images(model, hospitals.test(), settings, hospitals, options.images, "test")
    points = grid(base, options.scales, options.starts, options.steps)
    chosen = Bench(model, held_out, independent, extractor, BOOTSTRAPS)
    grid_rows = _measure(chosen, points, False, "grid", console)
    best = knee(
        [row.figures["l1"].value for row in grid_rows],
        [row.figures["flipped"].value for row in grid_rows],
    )
    name = None if best is None else grid_rows[best].method.name
    methods: list[Method] = [Nothing(), *ablations(base)]
    if best is not None:
        methods.append(Ours("knee of the grid", points[best].guidance))
    methods += [
        Reference(f"reference, s {scale:g}, t {start:g}", start, scale)
        for scale, start in options.reference
    ]
    bench = Bench(model, test, independent, extractor, BOOTSTRAPS)
    rows = _measure(bench, methods, True, "test patients", console)
    results = {
        "run": run.resolve().name,
        "seed": settings.seed,
        "commit": current_commit(),
        "images": {"test": len(test.images), "validation": len(held_out.images)},
        "independent": opinion,
        "fid_floor": bench.floor(),
        "knee": name,
        "rows": [row.described() for row in rows],
        "grid": [row.described() for row in grid_rows],
    }
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "results.json", results)
    save_chart(grid_rows, name, output / "grid.png")
    for row in rows:
        if row.method.name == "ours" or isinstance(row.method, Reference):
            title = row.method.name.replace(",", "").replace(" ", "-")
            seed = derive_seed(settings.seed, "guidance", "panel")
            save_panel(row, test, model.classes, seed, output / f"panel_{title}.png")
    page = output / "results.md"
    page.write_text(guidance_page(results, grid_rows, rows), encoding="utf-8")
    return page


def _measure(
    bench: Bench, methods: Sequence[Method], effects: bool, title: str, console: Console
) -> list[Row]:
    rows = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(title, total=len(methods))
        for method in methods:
            progress.update(task, description=f"{title}: {method.name}")
            rows.append(bench.measure(method, effects=effects))
            progress.advance(task)
    return rows


def _data_of(run: Path, data: DataSettings) -> DataSettings:
    """The data settings with the places of the images, which only the run's launch knows."""
    launch = run / LAUNCH
    if data.source == "phantom" or not launch.is_file():
        return data
    said = json.loads(launch.read_text())
    placed = compose(said["config_name"], said["overrides"]).data
    return data.model_copy(
        update={name: getattr(placed, name) for name in ("root", "store", "table", "columns")}
    )


def _changed(guidance: CounterfactualSettings, overrides: Sequence[str]) -> CounterfactualSettings:
    """The run's guidance with changes on top, checked as all settings are."""
    keys = [f"evaluation.counterfactual.{one}" for one in overrides]
    changes = compose("config", keys).evaluation.counterfactual if keys else guidance
    names = {one.partition("=")[0] for one in overrides}
    return guidance.model_copy(update={name: getattr(changes, name) for name in names})
