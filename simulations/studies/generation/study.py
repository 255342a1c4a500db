"""`fed-mediffusion study generation`: a run's samples compared with real images."""

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
from simulations.baselines.pixel_classifier import require_monai
from simulations.studies.generation.measure import Measured, RealImages, label_agreement, measure
from simulations.studies.generation.sets import (
    SampleSet,
    drawn,
    drawn_by_ddpm,
    drawn_with_labels,
    reconstructed,
)
from simulations.studies.generation.tables import generation_page
from simulations.studies.generation.usefulness import usefulness
from simulations.studies.result_files import write_results
from simulations.studies.trained_run import TrainedRun, open_trained_run

SMALLEST = 20
"""Fewest patients in a set: half of them still give the neighbours that the figures need."""
GRID, ROWS, CHUNK = 32, 8, 64


@dataclass(frozen=True)
class Options:
    """The sets to draw and how they are measured."""

    count: int
    steps: int
    scale: float
    ddpm: bool
    half_samples: int
    training_images: int | None
    """Training images in which copies are searched, at most; None for all."""
    usefulness_steps: int
    """Steps of training on generated images; 0 leaves it out."""


def study_generation(run: Path, options: Options, output: Path, device: str) -> Path:
    """Draws and measures samples, and writes `results.json`, `results.md` and pictures.

    The files are written after each set, so a study that is stopped leaves what it measured.

    Args:
        run: Folder of a finished run.
        options: The sets to draw and how they are measured.
        output: Folder to write.
        device: As `resolve_device` takes it.

    Returns:
        The written page.

    Raises:
        UserError: if there is no run, its images are not found, too few of them are test images,
            its denoiser was not trained, or MONAI is needed and not installed.
    """
    if options.usefulness_steps:
        require_monai()
    console = Console(stderr=True, soft_wrap=True)
    trained = open_trained_run(run, device, console)
    if not trained.settings.training.joint.diffusion_weight:
        raise UserError(f"the run {run} trained no denoiser (training.joint.diffusion_weight=0)")
    study = _Study(trained, options, console)
    rows: list[dict[str, Any]] = []
    for images in study.sets():
        rows.append(study.row(images, output))
        results = study.results(rows)
        write_results(output, results, generation_page(results))
    results = {**study.results(rows), "usefulness": study.usefulness()}
    return write_results(output, results, generation_page(results))


class _Study:
    """The real images with their features, and the sets that are compared with them."""

    def __init__(self, run: TrainedRun, options: Options, console: Console) -> None:
        self._run, self._options, self._console = run, options, console
        self._test = run.dataset.test()
        self._groups = run.dataset.groups(run.dataset.test_rows)
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
        """The sets of images, drawn one after the other."""
        model, options = self._run.model, self._options
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
        """The figures of one set; writes its pictures."""
        self._console.print(f"measuring: {images.name}")
        is_real = images.key in ("real", "reconstructed")
        groups = self._groups_of(self._second) if is_real else None
        features = self._extractor(images.images)
        measured = measure(
            features, groups, self.real, self._options.half_samples, self._seed("half-samples")
        )
        agreement = None
        if images.labels is not None:
            agreement = label_agreement(self._run.model, images.images, images.labels)
        return {
            "key": images.key,
            "name": images.name,
            **measured.figures,
            "obedience": agreement,
            "pictures": self._pictures(images, measured, output),
        }

    def results(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The results with the measured rows."""
        settings = self._run.settings
        return {
            **self._run.provenance(),
            "extractor": settings.evaluation.extractor,
            "count": self.count,
            "half_samples": self._options.half_samples,
            "training_images": len(self.real.training),
            "obedience_real": self._real_label_agreement,
            "sets": rows,
            "usefulness": None,
        }

    def usefulness(self) -> dict[str, Any] | None:
        """The usefulness of class-guided samples; None if it is not requested."""
        labelled = self._training.subset(self._training.labelled)
        if not self._options.usefulness_steps or not self._classifies:
            return None
        return usefulness(
            self._run,
            labelled,
            lambda labels: self._drawn_with(labels, "useful").images,
            self._options.usefulness_steps,
            self._console.print,
        )

    @cached_property
    def _real_label_agreement(self) -> float:
        """`label_agreement` of the real images that have the requested labels."""
        floor, labels = self._test.take(self._second), self._test.targets[self._second]
        return label_agreement(self._run.model, floor, labels)

    def _pictures(self, images: SampleSet, measured: Measured, output: Path) -> list[str]:
        """Writes a grid, and the images nearest to training images with some random ones."""
        grid, neighbour_rows = f"grid_{images.key}.png", f"neighbours_{images.key}.png"
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
        save_neighbours(images.images[chosen], neighbours, distances, output / neighbour_rows)
        return [grid, neighbour_rows]

    @property
    def _classifies(self) -> bool:
        return bool(self._run.settings.training.joint.classification_weight)

    def _drawn_with(self, labels: Tensor, purpose: str) -> SampleSet:
        steps, scale = self._options.steps, self._options.scale
        seed = self._seed(purpose)
        return drawn_with_labels(self._run.model, labels, steps, scale, seed, self._console)

    def _training_images(self) -> ImageSet:
        """The training images of all sites, in random order."""
        images = self._run.training_images()
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
        evaluation = self._run.settings.evaluation
        return build_extractor(
            evaluation.extractor, evaluation.inception_weights, self._run.model.device
        )

    def _groups_of(self, chosen: Tensor) -> tuple[str, ...]:
        return tuple(self._groups[place] for place in chosen.tolist())

    def _seed(self, purpose: str) -> int:
        return derive_seed(self._run.settings.seed, "generation", purpose)
