"""The study of unlabelled images, by real runs of two arms."""

import json
from pathlib import Path

import pytest

from simulations.study_unlabelled import study_unlabelled


@pytest.mark.slow
def test_both_arms_have_the_same_labels_and_one_has_nothing_else(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = [one for one in tiny if not one.startswith("seed=")]
    overrides += [f"data.store='{tmp_path / 'store'}'"]
    folder = tmp_path / "study"
    results = json.loads(study_unlabelled(overrides, 1, folder).read_text())
    assert [row["unlabelled"] for row in results["runs"]] == ["with", "without"]
    assert all(0 <= row["auc_macro"] <= 1 for row in results["runs"])
    arms = [json.loads((folder / f"seed-0_{arm}" / "summary.json").read_text())["census"]
            for arm in ("with", "without")]  # fmt: skip
    for site in arms[0]:
        first, second = arms[0][site], arms[1][site]
        assert second["train"] == second["labelled"] == first["labelled"]
        assert first["per_class"] == second["per_class"]
    # The site without labels has nothing to train on in the second arm.
    assert arms[0]["site-2"]["train"] > 0 == arms[1]["site-2"]["train"]
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}
    study_unlabelled(overrides, 1, folder)
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}
