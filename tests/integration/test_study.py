"""The studies of unlabelled images, labels, the paper's questions and privacy, with real runs."""

import csv
import json
import sys
from pathlib import Path

import pytest

from mediffusion_core.common.errors import UserError
from simulations.studies.labels.plan import make_plan
from simulations.studies.labels.study import study_labels
from simulations.studies.paper import plan as paper
from simulations.studies.paper.study import study_paper
from simulations.studies.privacy import plan as privacy
from simulations.studies.privacy.study import study_privacy
from simulations.studies.privacy.table import CSV
from simulations.studies.unlabelled.study import study_unlabelled

# `fed-mediffusion simulate` without Flower's processes, which take a minute to start.
SIMULATE = """#!{python}
import sys
from simulations.engine.in_process import run_in_process

start = sys.argv.index("simulations.cli.main")
assert sys.argv[start + 1] == "simulate"
run_in_process("config", sys.argv[start + 2 :])
"""
PRIVATE = (
    "privacy=dp",
    "privacy.target_delta=1e-4",
    "privacy.autoencoder=frozen",
    "privacy.trained=head",
    "data.labelled_fraction_by_site={}",
    "model.autoencoder.channels=[32]",
    "model.autoencoder.norm_groups=8",
    "model.autoencoder.patch_size=4",
    "model.autoencoder.linear_start=true",
    "model.head.latent_statistics=true",
    "training.joint.diffusion_weight=0",
    "training.joint.noised_fraction=0",
)
"""The least that trains privately: the classifier alone."""


@pytest.mark.slow
def test_both_arms_have_the_same_labels_and_one_has_nothing_else(
    shortest: tuple[str, ...],
    few: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = tmp_path / "simulate.py"
    program.write_text(SIMULATE.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    overrides = [one for one in (*shortest, *few) if not one.startswith("seed=")]
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


@pytest.mark.slow
def test_a_study_of_labels_runs_its_cells_once_and_compares_them(
    tiny: tuple[str, ...], few: tuple[str, ...], tmp_path: Path
) -> None:
    base = [*tiny, *few, f"data.store='{tmp_path / 'store'}'"]
    asked = make_plan(base, "joint,resnet", "0.4", seeds=1, minutes=0.1, tune=False)
    folder = tmp_path / "study"
    results = json.loads(study_labels(asked, folder, workers=2).read_text())
    assert [row["method"] for row in results["rows"]] == ["joint", "resnet"]
    for row, run in zip(results["rows"], results["runs"], strict=True):
        # The AUC of the saved predictions is that of the evaluator.
        assert row["auc_macro"] == pytest.approx(run["auc_macro"], abs=1e-6)
        assert run["settings_hash"]
    figures = list(folder.glob("cells/*/figures.json"))
    before = {path: path.stat().st_mtime_ns for path in figures}
    study_labels(asked, folder, workers=2)
    assert before == {path: path.stat().st_mtime_ns for path in figures}


@pytest.mark.slow
def test_a_question_of_the_paper_is_answered_by_a_run_and_its_measurement(
    shortest: tuple[str, ...], few: tuple[str, ...], tmp_path: Path
) -> None:
    base = [*shortest, *few, f"data.store='{tmp_path / 'store'}'"]
    asked = paper.make_plan(base, "autoencoder")
    folder = tmp_path / "study"
    page = study_paper(asked, folder, jobs=2)
    text = page.read_text()
    assert "Reconstructions have a PSNR of " in text and "Not answered" not in text
    cells = list(folder.glob("cells/*/figures.json"))
    assert len(cells) == 2
    before = {path: path.stat().st_mtime_ns for path in cells}
    results = (folder / "results.csv").read_text()
    page.unlink()  # as if the study had been killed before it was written
    study_paper(asked, folder, jobs=2)
    assert page.read_text() == text and (folder / "results.csv").read_text() == results
    assert before == {path: path.stat().st_mtime_ns for path in cells}


@pytest.mark.slow
def test_private_runs_are_compared_attacked_and_audited(
    shortest: tuple[str, ...], few: tuple[str, ...], tmp_path: Path
) -> None:
    base = (*shortest, *few, *PRIVATE, f"data.store='{tmp_path / 'store'}'")
    asked = privacy.make_plan(base, "8,infinity", seeds=1, canaries=60)
    folder = tmp_path / "study"
    page = study_privacy(asked, folder, jobs=2)
    text = page.read_text()
    assert "2 of 2 runs have finished" in text and "Not measured" not in text
    with (folder / CSV).open() as lines:
        rows = list(csv.DictReader(lines))
    for epsilon in ("8", "inf"):
        own = {row["figure"]: row for row in rows if row["epsilon"] == epsilon}
        assert 0 <= float(own["macro AUC"]["value"]) <= 1
        assert 0 <= float(own["attack TPR"]["value"]) <= 1
        bound, provable = (float(own[name]["value"]) for name in ("audited ε", "provable ε"))
        # All canaries are found without noise.
        assert bound == provable if epsilon == "inf" else bound <= provable
    assert float(own["ε of the stage"]["value"]) > 1e6
    cells = list(folder.glob("cells/*/figures.json"))
    assert len(cells) == 6
    before = {path: path.stat().st_mtime_ns for path in cells}
    page.unlink()  # as if the study had been killed before it was written
    study_privacy(asked, folder, jobs=2)
    assert page.read_text() == text
    assert before == {path: path.stat().st_mtime_ns for path in cells}


def test_a_cell_that_fails_is_named_with_its_reason(
    tiny: tuple[str, ...], few: tuple[str, ...], tmp_path: Path
) -> None:
    base = [*tiny, *few, f"data.store='{tmp_path / 'store'}'", "device=cuda:7"]
    asked = make_plan(base, "joint", "0.4", seeds=1, minutes=0.1, tune=False)
    with pytest.raises(UserError, match=r"joint 40% seed 0 failed: .*cuda:7"):
        study_labels(asked, tmp_path / "study", workers=1)
