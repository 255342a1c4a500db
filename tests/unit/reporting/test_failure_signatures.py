"""Each known failure of joint training is a warning from its threshold on, and not before it."""

import json
from pathlib import Path
from typing import Any

import pytest

from mediffusion_core.reporting.failure_signatures import (
    ADVERSARIAL_SHARE,
    AUC_DROP,
    FEWEST_ROUNDS,
    LATENT_VARIANCES,
    LEAST_DIVERSITY,
    LEAST_PSNR,
    LOSS_RISE,
    failure_signatures,
)
from mediffusion_core.reporting.report import run_warnings, write_report

Lines = list[dict[str, Any]]


def names(
    summary: dict[str, Any] | None = None, history: Lines | None = None, weight: float = 1.0
) -> list[str]:
    settings = {"training": {"joint": {"classification_weight": weight}}}
    return [one.name for one in failure_signatures(summary or {}, settings, history or [])]


def joint(number: int, diffusion: float, classification: float | None) -> dict[str, Any]:
    line = {"stage": "joint", "round": number, "diffusion_loss": diffusion}
    return line if classification is None else {**line, "classification_loss": classification}


def evaluated(number: int, auc: float | None) -> dict[str, Any]:
    return {"stage": "evaluation", "round": number, "auc_pooled": auc}


def test_a_run_without_figures_has_no_warning() -> None:
    assert names() == []
    assert names({"psnr": None, "diversity": None, "guidance": None}) == []


@pytest.mark.parametrize(
    ("last_auc", "last_loss", "is_found"),
    [
        (0.8 - AUC_DROP - 0.01, 0.3, True),
        (0.8 - AUC_DROP + 0.01, 0.3, False),
        (0.8 - AUC_DROP - 0.01, 0.5, False),  # the loss rose too: not the labels are over-fitted
        (None, 0.3, False),
    ],
)
def test_labels_are_over_fitted_if_the_loss_falls_and_the_validation_auc_too(
    last_auc: float | None, last_loss: float, is_found: bool
) -> None:
    history = [
        evaluated(0, 0.9),  # the untrained model is none that could be kept
        joint(1, 1.0, 0.4),
        evaluated(1, 0.8),
        joint(2, 0.9, last_loss),
        evaluated(2, last_auc),
    ]
    assert ("labels over-fitted" in names(history=history)) == is_found


@pytest.mark.parametrize(
    ("rise", "classification", "is_found"),
    [
        (LOSS_RISE + 0.01, (0.6, 0.2), True),
        (LOSS_RISE - 0.01, (0.6, 0.2), False),
        (LOSS_RISE + 0.01, (0.2, 0.6), False),
        (LOSS_RISE + 0.01, (None, None), False),
    ],
)
def test_classification_dominates_if_the_diffusion_loss_rises_while_its_own_falls(
    rise: float, classification: tuple[float | None, float | None], is_found: bool
) -> None:
    half = FEWEST_ROUNDS // 2
    first, last = classification
    history = [joint(1 + number, 0.5, first) for number in range(half)]
    history += [joint(1 + half + number, 0.5 * (1 + rise), last) for number in range(half)]
    assert ("classification dominates" in names(history=history)) == is_found
    assert names(history=history[1:]) == []  # of too few rounds


@pytest.mark.parametrize(
    ("summary", "name"),
    [
        ({"diversity": LEAST_DIVERSITY - 0.01}, "samples collapsed"),
        ({"diversity": LEAST_DIVERSITY}, None),
        ({"psnr": LEAST_PSNR - 0.1}, "reconstructions blurred"),
        ({"psnr": LEAST_PSNR}, None),
        (
            {"guidance": {"flipped": 0.8, "independent_flipped": 0.8 * ADVERSARIAL_SHARE - 0.01}},
            "counterfactuals adversarial",
        ),
        ({"guidance": {"flipped": 0.8, "independent_flipped": 0.8 * ADVERSARIAL_SHARE}}, None),
        ({"guidance": {"flipped": 0.1, "independent_flipped": 0.0}}, None),  # hardly any to judge
    ],
)
def test_figures_of_the_summary_warn_below_their_thresholds(
    summary: dict[str, Any], name: str | None
) -> None:
    assert names(summary) == ([] if name is None else [name])


def test_latents_warn_of_the_channels_whose_variance_is_far_from_1() -> None:
    low, high = (variance**0.5 for variance in LATENT_VARIANCES)

    def found(*deviations: float) -> list[str]:
        return names(history=[{"stage": "latents", "round": 1, "latent_std": list(deviations)}])

    assert found(low * 1.01, 1.0, high * 0.99) == []
    assert found(1.0, low * 0.99) == found(high * 1.01) == ["latents badly scaled"]


def test_the_report_shows_the_warnings_of_its_run(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"status": "completed", "psnr": 12.0}))
    [warning] = run_warnings(tmp_path)
    page = write_report(tmp_path).read_text()
    assert "<h2>Warnings</h2>" in page and "PSNR of 12.0 dB, below 25 dB" in page
    assert "12.0 dB" in warning.text
    (tmp_path / "summary.json").write_text(json.dumps({"status": "completed", "psnr": 30.0}))
    assert "<h2>Warnings</h2>" not in write_report(tmp_path).read_text()
