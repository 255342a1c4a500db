"""`fed-mediffusion study generation`: a run's samples beside real images, on one page."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.evaluation.features import FeatureExtractor, build_extractor
from mediffusion_core.evaluation.generation import halves_by_group
from mediffusion_core.reporting.neighbours_picture import save_neighbours
from mediffusion_core.reporting.pictures import save_sample_grid
from mediffusion_core.run_io.run_folder import write_json
from simulations.baselines.pixel_classifier import require_monai
from simulations.studies.generation.measure import Measured, RealImages, measure, obedience
from simulations.studies.generation.sets import (
    SampleSet,
    drawn,
    drawn_by_ddpm,
    drawn_with_labels,
    reconstructed,
)
from simulations.studies.generation.tables import generation_page
from simulations.studies.generation.usefulness import usefulness
from simulations.studies.pooled_images import training_images
from simulations.studies.trained_run import TrainedRun, open_trained_run

SMALLEST = 20
"""Patients a set at least: half of them still have as many neighbours as the figures ask for."""
GRID, ROWS, CHUNK = 32, 8, 64


@dataclass(frozen=True)
class Options:
    """What is drawn and how it is judged."""

    count: int
    steps: int
    scale: float
    ddpm: bool
    half_samples: int
    training_images: int | None
    """Compared with at most so many training images; with all by default."""
    usefulness_steps: int
    """Of training on what is drawn; 0 leaves it out."""


def study_generation(run: Path, options: Options, output: Path, device: str) -> Path:
    """Draws, measures, and writes `results.json`, `results.md` and pictures.

    Args:
        run: Folder of a finished run.
        options: What is drawn and how it is judged.
        output: Folder to write.
        device: As `resolve_device` takes it.

    Returns:
        The written page.

    Raises:
        UserError: there is no run, its images cannot be found, too few of them are test images,
            its denoiser is not trained, or a classifier is asked for and MONAI is not installed.
    """
    if options.usefulness_steps:
        require_monai()
    console = Console(stderr=True, soft_wrap=True)
    opened = open_trained_run(run, device, console)
    if not opened.settings.training.joint.diffusion_weight:
        raise UserError(f"the run {run} trained no denoiser (training.joint.diffusion_weight=0)")
    study = _Study(run, opened, options, console)
    rows: list[dict[str, Any]] = []
    for one in study.sets():
        rows.append(study.row(one, output))
        # After each set, so that what was measured is there where the study is stopped.
        _write(study.results(rows), output)
    return _write({**study.results(rows), "usefulness": study.usefulness()}, output)


def _write(results: dict[str, Any], output: Path) -> Path:
    write_json(output / "results.json", results)
    page = output / "results.md"
    page.write_text(generation_page(results), encoding="utf-8")
    return page


class _Study:
    """The real images with their features, and what is drawn beside them."""

    def __init__(self, run: Path, opened: TrainedRun, options: Options, console: Console) -> None:
        self._run, self._opened = run, opened
        self._options, self._console = options, console
        self._test = opened.hospitals.test()
        self._groups = opened.hospitals.groups(opened.hospitals.test_rows)
        first, self._second = halves_by_group(self._groups, options.count, self._seed("halves"))
        self.count = len(first)
        patients = min(len(set(self._groups_of(half))) for half in (first, self._second))
        if patients < SMALLEST:
            raise UserError(
                f"half of the test set has images of {patients} patients; {SMALLEST} are needed"
            )
        self._extractor = self._build_extractor()
        self._training = self._training_images()
        searched = torch.arange(len(self._training))[: options.training_images]
        self.real = RealImages(
            self._extractor(self._test.take(first)),
            self._groups_of(first),
            self._extractor(self._test.take(self._second)),
            self._groups_of(self._second),
            self._features_of_training(searched),
        )

    def sets(self) -> Iterator[SampleSet]:
        """What is held against the real images, one after the other."""
        model, options = self._opened.model, self._options
        floor = self._test.take(self._second)
        yield SampleSet("real", "real", floor)
        yield reconstructed(model, floor)
        self._console.print(f"drawing {self.count} samples")
        yield drawn(model, self.count, options.steps, self._seed("samples"))
        if self._classifies:
            yield self._drawn_with(self._test.targets[self._second], "guided")
        if options.ddpm:
            self._console.print(f"drawing {self.count} samples by DDPM")
            yield drawn_by_ddpm(model, self.count, self._seed("samples"))

    def row(self, images: SampleSet, output: Path) -> dict[str, Any]:
        """The figures of one set, whose pictures are written."""
        self._console.print(f"measuring: {images.name}")
        is_real = images.key in ("real", "reconstructed")
        groups = self._groups_of(self._second) if is_real else None
        features = self._extractor(images.images)
        measured = measure(
            features, groups, self.real, self._options.half_samples, self._seed("half-samples")
        )
        asked = None
        if images.labels is not None:
            asked = obedience(self._opened.model, images.images, images.labels)
        return {
            "key": images.key,
            "name": images.name,
            **measured.figures,
            "obedience": asked,
            "pictures": self._pictures(images, measured, output),
        }

    def results(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """What is known after the sets in the rows."""
        settings = self._opened.settings
        return {
            **self._opened.provenance(self._run),
            "extractor": settings.evaluation.extractor,
            "count": self.count,
            "half_samples": self._options.half_samples,
            "training_images": len(self.real.training),
            "obedience_real": self._obedience_of_real,
            "sets": rows,
            "usefulness": None,
        }

    def usefulness(self) -> dict[str, Any] | None:
        """What a classifier learns from drawn images; None where it is not asked for."""
        labelled = self._training.subset(self._training.labelled)
        if not self._options.usefulness_steps or not self._classifies:
            return None
        return usefulness(
            self._opened,
            labelled,
            lambda labels: self._drawn_with(labels, "useful").images,
            self._options.usefulness_steps,
            self._console.print,
        )

    @cached_property
    def _obedience_of_real(self) -> float:
        """What `obedience` is of the real images whose labels are asked for."""
        floor, labels = self._test.take(self._second), self._test.targets[self._second]
        return obedience(self._opened.model, floor, labels)

    def _pictures(self, images: SampleSet, measured: Measured, output: Path) -> list[str]:
        """A grid, and the images nearest to the training images beside some that a seed draws."""
        grid, beside = f"grid_{images.key}.png", f"neighbours_{images.key}.png"
        save_sample_grid(images.images[:GRID], output / grid)
        nearest = measured.neighbours.distances[:, 0].argsort()
        generator = torch.Generator().manual_seed(self._seed("shown"))
        others = torch.randperm(len(nearest), generator=generator)
        chosen = torch.tensor(
            list(dict.fromkeys([*nearest[: ROWS // 2].tolist(), *others.tolist()]))[:ROWS]
        )
        positions = measured.neighbours.positions[chosen].flatten()
        distances = measured.neighbours.distances[chosen].tolist()
        neighbours = self._training.take(positions)
        save_neighbours(images.images[chosen], neighbours, distances, output / beside)
        return [grid, beside]

    @property
    def _classifies(self) -> bool:
        return bool(self._opened.settings.training.joint.classification_weight)

    def _drawn_with(self, labels: Tensor, what: str) -> SampleSet:
        steps, scale = self._options.steps, self._options.scale
        seed = self._seed(what)
        return drawn_with_labels(self._opened.model, labels, steps, scale, seed, self._console)

    def _training_images(self) -> ImageSet:
        """Those of all sites, in drawn order."""
        images = training_images(self._opened.hospitals)
        generator = torch.Generator().manual_seed(self._seed("training"))
        return images.subset(torch.randperm(len(images), generator=generator))

    def _features_of_training(self, searched: Tensor) -> Tensor:
        parts = track(
            searched.split(CHUNK),
            "features of training images",
            console=self._console,
            transient=True,
        )
        return torch.cat([self._extractor(self._training.take(part)) for part in parts])

    def _build_extractor(self) -> FeatureExtractor:
        evaluation = self._opened.settings.evaluation
        return build_extractor(
            evaluation.extractor, evaluation.inception_weights, self._opened.model.device
        )

    def _groups_of(self, chosen: Tensor) -> tuple[str, ...]:
        return tuple(self._groups[place] for place in chosen.tolist())

    def _seed(self, *what: str) -> int:
        return derive_seed(self._opened.settings.seed, "generation", *what)
