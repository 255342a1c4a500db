"""Canaries in the real private rounds: sound steps keep their ε, and wrong ones are found."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.privacy.accounting.accountant import Charge, epsilon
from mediffusion_core.privacy.accounting.plan import Plan
from mediffusion_core.privacy.dp_sgd import noise, per_sample_clipping
from mediffusion_core.privacy.dp_sgd.randomness import normal
from mediffusion_core.settings import Settings
from simulations.cli.main import app
from simulations.engine.in_process import run_in_process
from simulations.studies.audit.study import _Audit

CANARIES, MANY = 400, 1500
PRIVATE = (
    "privacy=dp",
    "privacy.target_epsilon=null",
    "privacy.noise_multiplier=3.0",
    "privacy.batch_size=64",
    "privacy.physical_batch_size=128",
    "federation.autoencoder_rounds=1",
    "federation.num_rounds=1",
    "evaluation.every=1",
)
STEPS = 4


def settings_of(tiny: tuple[str, ...], *more: str) -> Settings:
    return compose("config", (*tiny, *PRIVATE, *more))


def audited(
    settings: Settings, stage: str = "joint", units: int = 64, canaries: int = CANARIES
) -> dict[str, float]:
    plan = Plan.of(settings, units)
    return _Audit(settings, plan, 3, canaries).of(stage, STEPS, lambda done: None)


@pytest.mark.parametrize(
    ("stage", "more", "units"),
    [
        ("joint", (), 64),
        ("joint", ("privacy.noise_multiplicity=2",), 64),
        ("joint", (), 256),  # q = 1/4
        ("autoencoder", (), 64),
    ],
    ids=["joint", "two rows", "a quarter sampled", "autoencoder"],
)
def test_the_bound_of_sound_steps_is_below_their_epsilon(
    tiny: tuple[str, ...], stage: str, more: tuple[str, ...], units: int
) -> None:
    settings = settings_of(tiny, *more)
    found = audited(settings, stage, units)
    rate = min(1.0, 64 / units)
    assert found["epsilon"] == pytest.approx(epsilon([Charge(rate, 3.0, STEPS)], 1e-5))
    assert 0 <= found["lower_bound"] < found["epsilon"]


def test_noise_of_a_third_is_found(tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    def weaker(shape: torch.Size) -> Tensor:
        return normal(shape) / 3

    monkeypatch.setattr(noise, "normal", weaker)
    found = audited(settings_of(tiny), canaries=MANY)
    assert found["lower_bound"] > found["epsilon"] < 3


def test_a_bound_that_is_not_kept_is_found(
    tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients are clipped to four times the bound that noise and accounting assume."""
    clip = per_sample_clipping._factors
    monkeypatch.setattr(per_sample_clipping, "_factors", lambda norms, c: clip(norms, 4 * c))
    found = audited(settings_of(tiny), canaries=MANY)
    assert found["lower_bound"] > found["epsilon"]


@pytest.mark.parametrize("name", ["privacy.grad_sample_mode=ghost", "privacy.clipping=per_layer"])
def test_other_clipping_is_refused(tiny: tuple[str, ...], name: str) -> None:
    with pytest.raises(UserError, match="an audit needs"):
        audited(settings_of(tiny, name))


def test_scores_are_the_canaries_share_of_the_noised_gradients(
    tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without noise and with every unit in each step: 1 a step for those that took part."""
    seen: list[np.ndarray] = []

    def bound(scores: np.ndarray, took_part: np.ndarray, delta: float, confidence: float) -> float:
        seen.append(scores - STEPS * took_part)
        return 0.0

    monkeypatch.setattr("simulations.studies.audit.study.epsilon_lower_bound", bound)
    monkeypatch.setattr(noise, "normal", lambda shape: torch.zeros(shape, dtype=torch.float64))
    audited(settings_of(tiny))
    assert np.abs(seen[0]).max() < 0.02  # a computed norm may be off by 0.1 %


def test_the_audit_stands_beside_the_promise(
    tiny: tuple[str, ...], few: tuple[str, ...], tmp_path: Path
) -> None:
    """Of a real run, by the command, in summary and report."""
    folder = tmp_path / "run"
    places = (f"data.store='{tmp_path / 'store'}'", f"run.folder='{folder}'")
    overrides = [*tiny, *few, *PRIVATE, "privacy.target_delta=1e-4", *places]
    run_in_process("config", overrides)
    (folder / "launch.json").write_text(
        json.dumps({"config_name": "config", "overrides": overrides})
    )
    done = CliRunner().invoke(app, ["study", "audit", str(folder), "--canaries", "60"])
    assert done.exit_code == 0, done.output
    figures = json.loads((folder / "summary.json").read_text())["audit"]
    assert set(figures["stages"]) == {"autoencoder", "joint"}
    for one in figures["stages"].values():
        assert 0 <= one["lower_bound"] < one["epsilon"] <= figures["epsilon"]
    report = (folder / "report.html").read_text()
    assert "measured on synthetic units with 95 % confidence" in report
