"""Measurements of a finished run, beside the figures of its summary.

Each function takes the folder of the run and a folder to write to, and returns figures as JSON
values. An estimate has `value`, `low`, `high` and `count`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from mediffusion_core.common.hashing import derive_seed
from mediffusion_core.evaluation.bootstrap import Estimate, estimate_mean
from mediffusion_core.evaluation.classification import interval
from mediffusion_core.evaluation.counterfactual_metrics import image_figures
from mediffusion_core.evaluation.counterfactual_panel import compare
from mediffusion_core.evaluation.features import build_extractor
from mediffusion_core.evaluation.generation import diversity, frechet_distance, halves_by_group
from mediffusion_core.evaluation.jackknife import half_sample_intervals
from mediffusion_core.evaluation.similarity import psnr, structural_similarity
from simulations.baselines.independent_classifier import independent_classifier
from simulations.baselines.macro_auc import Bootstrap, bootstrapped_macro_auc
from simulations.studies.explanations.study import study_explanations
from simulations.studies.guidance.flips import record_flips
from simulations.studies.guidance.methods import ONE_CANDIDATE
from simulations.studies.result_files import RESULTS
from simulations.studies.run_cells import Measure
from simulations.studies.study_images import Choice, choose_images
from simulations.studies.trained_run import TrainedRun, open_trained_run

BOOTSTRAPS, HALF_SAMPLES = 400, 50
IMAGES = 4
"""Test images for each target, of guidance and explanations."""
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Guidance scales, as multiples of the run's own."""
SIZES = (BOOTSTRAPS, HALF_SAMPLES, IMAGES, SCALES)
GUIDED = ("flipped", "independent_flipped", "l1", "off_target", "energy_inside")


def measure_reconstruction(run: Path, output: Path) -> dict[str, Any]:
    """Quality of reconstructions of test images.

    `psnr`, `ssim`, and the macro AUC of an independent classifier on images and on reconstructions:
    `auc_images`, `auc_reconstructions`, and `auc_lost`, their difference on the same patients.
    """
    trained, console = _opened(run)
    classifier, _ = independent_classifier(run, trained.settings, trained.dataset, console)
    test = trained.dataset.test()
    groups = trained.dataset.groups(test.rows)
    images = test.take(torch.arange(len(test)))
    made = trained.model.decode(trained.model.encode(images))
    bootstrap = Bootstrap(groups, BOOTSTRAPS, _seed(trained))
    before, after = (
        bootstrapped_macro_auc(
            classifier.logits(shown), test.targets, trained.model.multi_label, bootstrap
        )
        for shown in (images, made)
    )
    columns = {"psnr": psnr(made, images), "ssim": structural_similarity(made, images)}
    return {
        **_means(columns, groups, _seed(trained)),
        "auc_images": _drawn(before.value, before.draws, len(test)),
        "auc_reconstructions": _drawn(after.value, after.draws, len(test)),
        "auc_lost": _drawn(before.value - after.value, before.draws - after.draws, len(test)),
    }


def measure_samples(run: Path, output: Path) -> dict[str, Any]:
    """FID and diversity of samples, with intervals; `fid_floor` is that of real images.

    The intervals are of the delete-half jackknife.
    """
    trained, _ = _opened(run)
    model, settings = trained.model, trained.settings
    test = trained.dataset.test()
    groups = trained.dataset.groups(test.rows)
    wanted, seed = settings.evaluation, derive_seed(settings.seed, "paper", "samples")
    first, second = halves_by_group(groups, wanted.num_samples, seed)
    extractor = build_extractor(wanted.extractor, wanted.inception_weights)
    real, others = extractor(test.take(first)), extractor(test.take(second))
    drawn = extractor(model.sample(len(first), wanted.sampling_steps, seed))

    def figures(samples: Tensor, real: Tensor) -> dict[str, float]:
        return {"fid": frechet_distance(samples, real), "diversity": diversity(samples, real)}

    numbers = [str(number) for number in range(len(drawn))]
    real_groups = [groups[place] for place in first.tolist()]
    found = half_sample_intervals(figures, drawn, real, (numbers, real_groups), HALF_SAMPLES, seed)
    intervals = {
        name: asdict(Estimate(one.value, one.low, one.high, len(first)))
        for name, one in found.items()
    }
    return {**intervals, "fid_floor": frechet_distance(others, real)}


def measure_guidance(run: Path, output: Path) -> dict[str, Any]:
    """Counterfactuals of the same test images at several guidance scales, with one candidate each.

    `scales` has the figures of each scale, `less_own` their differences from those at the run's own
    scale, paired by image.
    """
    trained, console = _opened(run)
    trained.require_counterfactuals()
    model, own = trained.model, trained.settings.evaluation.counterfactual
    chosen = choose_images(trained, trained.dataset.test(), Choice("guidance", IMAGES))
    classifier, _ = independent_classifier(run, trained.settings, trained.dataset, console)
    latents = model.encode(chosen.images)
    detail = model.detail(chosen.images, latents)
    columns = {}
    for factor in SCALES:
        scale = factor * own.guidance_scale
        guidance = own.model_copy(update={**ONE_CANDIDATE, "guidance_scale": scale})
        made = model.render(model.explain(latents, chosen.target, guidance, detail), detail)
        compared = compare(model, chosen.images, made, chosen.target)
        found = image_figures(compared, chosen.target, chosen.known, classifier)
        columns[scale] = {name: found[name] for name in GUIDED}
    at_own, seed = columns[own.guidance_scale], _seed(trained)
    record_flips(run, *(float(at_own[name].nanmean()) for name in GUIDED[:2]))
    return {
        "own_scale": own.guidance_scale,
        "scales": {
            f"{scale:g}": _means(found, chosen.groups, seed) for scale, found in columns.items()
        },
        "less_own": {
            f"{scale:g}": _means(
                {name: found[name] - at_own[name] for name in GUIDED}, chosen.groups, seed
            )
            for scale, found in columns.items()
            if scale != own.guidance_scale
        },
    }


def measure_explanations(run: Path, output: Path) -> dict[str, Any]:
    """The study of explanations with few images: `rows`, and `ours_less` with differences."""
    study_explanations(run, IMAGES, [], output / "explanations", "cpu")
    results = json.loads((output / "explanations" / RESULTS).read_text(encoding="utf-8"))
    return {name: results[name] for name in ("rows", "ours_less", "images", "masks")}


MEASURES: Mapping[str, Measure] = {
    "reconstruction": measure_reconstruction,
    "samples": measure_samples,
    "guidance": measure_guidance,
    "explanations": measure_explanations,
}


def _opened(run: Path) -> tuple[TrainedRun, Console]:
    console = Console(soft_wrap=True)
    return open_trained_run(run, "cpu", console), console


def _seed(run: TrainedRun) -> int:
    return derive_seed(run.settings.seed, "paper", "bootstrap")


def _means(columns: Mapping[str, Tensor], groups: Sequence[str], seed: int) -> dict[str, Any]:
    return {
        name: asdict(estimate_mean(values, groups, BOOTSTRAPS, seed))
        for name, values in columns.items()
    }


def _drawn(value: float, draws: Tensor, count: int) -> dict[str, Any]:
    low, high = interval(draws)
    return asdict(Estimate(value, low, high, count))
