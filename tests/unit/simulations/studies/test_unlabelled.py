"""The study of unlabelled images, from runs that are already there."""

import json
from pathlib import Path

import pytest

from simulations.studies.unlabelled import study as module
from simulations.studies.unlabelled.study import study_unlabelled


def test_an_arm_that_was_not_measured_has_no_mean(
    tiny: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def summary(_: object, run: Path, __: object) -> dict[str, object]:
        measured = {"seed-0_with": 0.9, "seed-1_with": 0.7, "seed-0_without": 0.6}
        names = ("auc_macro_interval", "auc_pooled", "seconds", "settings_hash", "commit")
        return {**dict.fromkeys(names), "auc_macro": measured.get(run.name)}

    monkeypatch.setattr(module, "_run", summary)
    written = json.loads(study_unlabelled(tiny, 2, tmp_path).read_text())
    assert written["mean_auc_macro"] == {"with": pytest.approx(0.8), "without": None}
