"""The attack that checks ε: closed forms, and a model that has learned its members by heart."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from typer.testing import CliRunner

from mediffusion_core.common.errors import UserError
from mediffusion_core.evaluation.membership_inference import attack, by_unit, largest_tpr
from mediffusion_core.privacy.accounting.accountant import Charge, epsilon
from mediffusion_core.privacy.ledger.ledger import Ledger
from mediffusion_core.settings.privacy import PrivacySettings
from simulations.cli.main import app
from simulations.engine.in_process import run_in_process
from simulations.studies.attack.study import privacy_ceiling, study_attack


def test_shifted_losses_are_told_apart_as_gaussians_are() -> None:
    generator = np.random.default_rng(0)
    found = attack(generator.normal(-1, 1, 4000), generator.normal(0, 1, 4000), 0)
    auc, tpr = float(ndtr(1 / math.sqrt(2))), float(ndtr(1 - 2.3263))
    assert found.auc == pytest.approx(auc, abs=0.015)
    assert found.tpr == pytest.approx(tpr, abs=0.025)
    assert found.auc_interval[0] < auc < found.auc_interval[1]
    assert found.tpr_interval[0] < tpr < found.tpr_interval[1]
    assert found.auc_interval[1] - found.auc_interval[0] < 0.03


def test_guessing_and_certainty() -> None:
    losses = np.linspace(0, 1, 1000)
    same = attack(losses, losses, 0)
    assert same.auc == pytest.approx(0.5) and same.tpr == pytest.approx(0.01)
    known = attack(losses - 2, losses, 0)
    assert known.auc == known.tpr == 1 and known.auc_interval == (1, 1)
    equal = attack(np.ones(50), np.ones(70), 0)
    assert equal.auc == 0.5 and equal.tpr == 0


def test_few_strangers_allow_no_wrong_accusation() -> None:
    found = attack(np.array([0.0, 1.0, 3.0]), np.array([2.0, 4.0]), 0)
    assert found.tpr == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="members and strangers"):
        attack(np.ones(3), np.ones(0), 0)


def test_all_images_of_a_unit_count_as_one() -> None:
    losses = torch.tensor([1.0, 4.0, 3.0, 10.0])
    assert by_unit(losses, ["b", "a", "b", "c"]).tolist() == [4.0, 2.0, 10.0]
    assert len(by_unit(torch.zeros(0), [])) == 0


def test_epsilon_bounds_the_attack() -> None:
    assert largest_tpr(0, 0) == pytest.approx(0.01)
    assert largest_tpr(2, 1e-3) == pytest.approx(math.exp(2) / 100 + 1e-3)
    assert largest_tpr(8, 1e-5) == largest_tpr(1e6, 0) == largest_tpr(math.inf, 0) == 1


def test_a_run_is_attacked_over_all_units_and_at_each_site(
    shortest: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = [*shortest, f"data.store='{tmp_path / 'store'}'"]
    run = run_in_process("config", [*overrides, f"run.folder='{tmp_path / 'run'}'"]).path
    with pytest.raises(UserError, match="holds no run of simulate"):
        study_attack(run, run / "attack.json", "cpu")
    launch = {"config_name": "config", "overrides": overrides}
    (run / "launch.json").write_text(json.dumps(launch))
    result = CliRunner().invoke(app, ["study", "attack", str(run)])
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == str(run / "attack.json")
    figures = json.loads((run / "attack.json").read_text())
    assert figures["unit"] == "patient" and "epsilon" not in figures
    assert set(figures["attacks"]) == {"diffusion loss", "classification loss"}
    for found in figures["attacks"].values():
        assert 0.3 < found["auc"] < 0.8  # after one round little is known by heart
        assert found["auc_interval"][0] <= found["auc"] <= found["auc_interval"][1]
    diffusion, classification = figures["attacks"].values()
    assert set(diffusion["sites"]) == {"site-0", "site-1", "site-2"}
    assert set(classification["sites"]) == {"site-0", "site-1"}  # site-2 has no labels
    assert sum(one["members"] for one in diffusion["sites"].values()) == diffusion["members"]


def test_the_ceiling_counts_rounds_that_were_made_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    sites = {"a": {"epsilon": 1.0}, "b": {"epsilon": 1.5}}
    (run / "summary.json").write_text(
        json.dumps({"privacy": {"target_delta": 1e-5, "sites": sites}})
    )
    privacy = PrivacySettings()
    assert privacy_ceiling(run, privacy)["epsilon"] == 1.5
    ledger = Ledger.open(run / "ledger")
    again = Charge(1.0, 4.0, 1)
    ledger.charge(["p"], Charge(1.0, 0.5, 1), "joint", "another run", 1)
    for _ in range(3):
        ledger.charge(["p"], again, "joint", "run/a", 1)
    found = privacy_ceiling(run, privacy)
    assert 1.5 < found["epsilon"] == pytest.approx(epsilon([again] * 3, 1e-5))
    assert found["largest_tpr"] == largest_tpr(found["epsilon"], 1e-5)
