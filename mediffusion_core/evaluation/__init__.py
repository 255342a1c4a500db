"""Evaluation of models, without training and without federation.

Classification: areas under the ROC curve, from scores or from counts that add up over sites;
temperature scaling and calibration error, likewise from sums. Generation: features, FID and KID,
precision to coverage, and copies of training images, with intervals. Counterfactuals: flip rate,
closeness, place and size of the change, with intervals over patients. Sites and server call the
same functions, so a pooled figure can be compared with one computed in a single place.
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
from mediffusion_core.evaluation.generation import (
    diversity,
    frechet_distance,
    halves_by_group,
    kernel_distance,
)
from mediffusion_core.evaluation.similarity import psnr

__all__ = [
    "auc_from_counts",
    "best_temperature",
    "bootstrap_auc",
    "bootstrap_counts",
    "brier_score",
    "calibration_error",
    "class_scores",
    "diversity",
    "exact_auc",
    "frechet_distance",
    "halves_by_group",
    "interval",
    "kernel_distance",
    "logit_thresholds",
    "macro",
    "macro_interval",
    "psnr",
    "temperature_losses",
    "threshold_counts",
]
