"""The attack that checks ε: closed forms, and a model that has learned its members by heart."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import ndtr

from mediffusion_core.evaluation.membership_inference import (
    attack,
    by_best_column,
    by_unit,
    entropies,
    label_entropies,
    largest_tpr,
    roc_curve,
)
from mediffusion_core.privacy.accounting.accountant import Charge, epsilon
from mediffusion_core.privacy.ledger.ledger import Ledger
from mediffusion_core.settings.privacy import PrivacySettings
from simulations.studies.attack.study import privacy_ceiling


def test_shifted_losses_are_told_apart_as_gaussians_are() -> None:
    generator = np.random.default_rng(0)
    found = attack(generator.normal(-1, 1, 4000), generator.normal(0, 1, 4000), 0)
    auc, tpr = float(ndtr(1 / math.sqrt(2))), float(ndtr(1 - 2.3263))
    assert found.auc == pytest.approx(auc, abs=0.015)
    assert found.tpr == pytest.approx(tpr, abs=0.025)
    assert found.auc_interval[0] < auc < found.auc_interval[1]
    assert found.tpr_interval[0] < tpr < found.tpr_interval[1]
    assert found.auc_interval[1] - found.auc_interval[0] < 0.03


def test_few_accusations_are_as_gaussians_allow() -> None:
    generator = np.random.default_rng(1)
    found = attack(generator.normal(-3, 1, 20000), generator.normal(0, 1, 20000), 0)
    expected = float(ndtr(3 - 3.0902))  # the quantile of 0.1 %
    assert found.strict_tpr == pytest.approx(expected, abs=0.05)
    assert found.strict_tpr_interval[0] < expected < found.strict_tpr_interval[1]
    assert found.strict_tpr < found.tpr


def test_the_roc_curve_has_the_area_and_the_ends_of_the_attack() -> None:
    generator = np.random.default_rng(2)
    members, strangers = generator.normal(-1, 1, 300).round(1), generator.normal(0, 1, 200).round(1)
    false, true = roc_curve(members, strangers)
    assert (false[0], true[0]) == (0, 0) and (false[-1], true[-1]) == (1, 1)
    assert (np.diff(false) >= 0).all() and (np.diff(true) >= 0).all()
    assert np.trapezoid(true, false) == pytest.approx(attack(members, strangers, 0).auc)


def test_the_chosen_column_is_attacked_on_units_that_did_not_choose_it() -> None:
    generator = np.random.default_rng(3)
    members, strangers = generator.normal(size=(400, 5)), generator.normal(size=(300, 5))
    members[:, 3] -= 2
    best, aucs, other, other_strangers = by_best_column(members, strangers, 0)
    assert best == 3 and len(aucs) == 5 and max(aucs) == aucs[3]
    assert (len(other), len(other_strangers)) == (200, 150)
    assert set(other) < set(members[:, 3]) and set(other_strangers) < set(strangers[:, 3])
    assert attack(other, other_strangers, 0).auc == pytest.approx(ndtr(2 / math.sqrt(2)), abs=0.04)


def test_choosing_among_chance_gives_chance() -> None:
    found = []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        halves = by_best_column(
            generator.normal(size=(60, 6)), generator.normal(size=(60, 6)), seed
        )
        best, aucs, other, strangers = halves
        found.append((aucs[best], attack(other, strangers, 0).auc))
    chosen, attacked = np.array(found).mean(axis=0)
    assert chosen > 0.56  # on the half that chose
    assert attacked == pytest.approx(0.5, abs=0.03)


def test_halves_need_two_units_of_each_kind() -> None:
    with pytest.raises(ValueError, match="at least two"):
        by_best_column(np.ones((5, 2)), np.ones((1, 2)), 0)


def test_entropies_are_those_of_the_papers() -> None:
    made = torch.tensor([[0.7, 0.2, 0.1]])
    label = torch.tensor([[0.0, 1.0, 0.0]])
    expected = -0.8 * math.log(0.2) - 0.7 * math.log(0.3) - 0.1 * math.log(0.9)
    assert label_entropies(made, label, False).item() == pytest.approx(expected)
    plain = -sum(p * math.log(p) for p in (0.7, 0.2, 0.1))
    assert entropies(made, False).item() == pytest.approx(plain)


def test_entropies_of_findings_leave_out_unknown_labels() -> None:
    made = torch.tensor([[0.9, 0.4, 0.5]])
    label = torch.tensor([[1.0, 0.0, math.nan]])
    expected = (-0.1 * math.log(0.9) - 0.4 * math.log(0.6)) / 2
    assert label_entropies(made, label, True).item() == pytest.approx(expected)
    binary = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in (0.9, 0.4, 0.5)]
    assert entropies(made, True).item() == pytest.approx(sum(binary) / 3)
    certain = torch.tensor([[1.0, 0.0, 1.0]])
    assert label_entropies(certain, torch.tensor([[1.0, 0.0, 1.0]]), True).item() == 0
    assert torch.isfinite(label_entropies(certain, 1 - certain, True)).all()
    assert entropies(certain, True).item() == 0


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
    both = by_unit(torch.stack([losses, 2 * losses], dim=1), ["b", "a", "b", "c"])
    assert both.tolist() == [[4.0, 8.0], [2.0, 4.0], [10.0, 20.0]]


def test_epsilon_bounds_the_attack() -> None:
    assert largest_tpr(0, 0) == pytest.approx(0.01)
    assert largest_tpr(2, 1e-3) == pytest.approx(math.exp(2) / 100 + 1e-3)
    assert largest_tpr(8, 1e-5) == largest_tpr(1e6, 0) == largest_tpr(math.inf, 0) == 1


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
