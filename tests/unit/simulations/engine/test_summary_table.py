"""The table at the end of `simulate`: figures, and which ε is which."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from configs.compose import compose
from mediffusion_core.privacy.accounting.accountant import Charge, epsilon
from mediffusion_core.privacy.ledger.ledger import Ledger
from mediffusion_core.privacy.ledger.site_ledger import LEFT_OUT
from simulations.engine.summary_table import summary_table

SUMMARY: Mapping[str, Any] = {
    "auc_macro": 0.8614,
    "auc_macro_interval": [0.8421, 0.8793],
    "fid": 84.61,
    "fid_floor": 52.04,
    "counterfactual": {"flip_rate": None, "eligible": 0, "l1": 0.1},
}


def printed(folder: Path, summary: Mapping[str, Any], *overrides: str) -> str:
    (folder / "summary.json").write_text(json.dumps(summary))
    console = Console(width=200)
    with console.capture() as shown:
        console.print(summary_table(compose("config", overrides), folder))
    return shown.get()


def line(text: str, start: str) -> str:
    return next(one for one in text.splitlines() if start in one)


def test_figures_stand_with_what_explains_them(tmp_path: Path) -> None:
    shown = printed(tmp_path, SUMMARY)
    assert "95 % interval 0.842 to 0.879" in line(shown, "AUC, test")
    assert "floor 52.0" in line(shown, "FID")
    assert "ε" not in shown


def test_figures_that_could_not_be_measured_are_shown_as_such(tmp_path: Path) -> None:
    """A test set too small for any bootstrap: null in `summary.json`, after a whole run."""
    missing = {"auc_macro": None, "auc_macro_interval": [None, None], "calibration": None}
    shown = printed(tmp_path, {**SUMMARY, **missing})
    for title in ("AUC, test", "KID", "Counterfactuals that flip"):
        assert "not measured" in line(shown, title)
    assert "95 %" not in shown


def test_epsilon_of_the_run_stands_apart_from_that_of_the_ledger(tmp_path: Path) -> None:
    charges = [Charge(0.1, 1.0, 20), Charge(0.1, 1.0, 30)]
    ledger = Ledger.open(tmp_path / "ledger")
    for charge in charges:
        ledger.charge(["p0"], charge, "joint", "a run", 1)
    planned = {"epsilon": epsilon(charges[:1], 1e-5), "noise_multiplier": 1.0}
    summary = {**SUMMARY, "privacy": {"sites": {"site-0": planned}}}
    shown = printed(tmp_path, summary, "privacy=dp")
    assert f"{planned['epsilon']:.2f}" in line(shown, "ε of this run's planned rounds, site-0")
    assert f"{epsilon(charges, 1e-5):.2f}" in line(shown, "ε in the ledger of all sites")
    assert "left out" not in shown
    log = tmp_path / "sites" / "site-0" / "site.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"2026-01-01 INFO joint 3: 2 of 7 {LEFT_OUT}\n")
    assert "left out" in printed(tmp_path, summary, "privacy=dp")
    (tmp_path / "ledger.head").unlink()
    shown = printed(tmp_path, summary, "privacy=dp")
    assert "unknown" in line(shown, "ε in the ledger of all sites") and "tip-removed" in shown


@pytest.mark.parametrize("spent", [9.1, None])
def test_the_budget_of_a_whole_site_is_shown(tmp_path: Path, spent: float | None) -> None:
    whole = {"epsilon": spent, "noise_multiplier": 2.0, "rounds": 5}
    shown = line(printed(tmp_path, {**SUMMARY, "client_level": whole}), "ε of a whole site")
    assert ("9.10" if spent else "not measured") in shown and "5 noised means" in shown
