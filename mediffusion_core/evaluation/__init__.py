"""Judging a model: nothing here trains, and nothing here knows of a federation.

`classification` turns scores into areas under the ROC curve, exactly or from counts that add up
over sites; `calibration` finds a temperature, likewise from sums, and measures how far
probabilities can be trusted; `features`, `generation` and `manifolds` measure how far generated
images stand from real ones, `half_samples` how sure that is, `memorisation` whether they are
copies; `counterfactual_figures` brings together what `similarity`, `localisation` and `transition`
say of counterfactuals, with the intervals of `resampling`. Sites call the same functions as the
server, so that a pooled figure and one computed in a single place can be held against each other.
"""

from mediffusion_core.evaluation.calibration import (
    best_temperature,
    brier_score,
    calibration_error,
    temperature_losses,
)
from mediffusion_core.evaluation.classification import (
    auc_from_counts,
    bootstrap_auc,
    bootstrap_counts,
    class_scores,
    exact_auc,
    interval,
    logit_thresholds,
    macro,
    macro_interval,
    threshold_counts,
)
from mediffusion_core.evaluation.features import (
    EXTRACTORS,
    FeatureExtractor,
    build_extractor,
    efficientnet_lite0,
    inception,
)
from mediffusion_core.evaluation.generation import (
    frechet_distance,
    halves_by_group,
    kernel_distance,
)
from mediffusion_core.evaluation.similarity import psnr

__all__ = [
    "EXTRACTORS",
    "FeatureExtractor",
    "auc_from_counts",
    "best_temperature",
    "bootstrap_auc",
    "bootstrap_counts",
    "brier_score",
    "build_extractor",
    "calibration_error",
    "class_scores",
    "efficientnet_lite0",
    "exact_auc",
    "frechet_distance",
    "halves_by_group",
    "inception",
    "interval",
    "kernel_distance",
    "logit_thresholds",
    "macro",
    "macro_interval",
    "psnr",
    "temperature_losses",
    "threshold_counts",
]
