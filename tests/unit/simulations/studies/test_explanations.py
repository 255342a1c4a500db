"""The study of explanations on an untrained model and phantoms."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from mediffusion_core.common.errors import UserError
from simulations.baselines import independent_classifier
from simulations.baselines.settings import BaselineSettings
from simulations.results.study_tables import explanation_tables
from simulations.studies.explanations.measure import agreement
from simulations.studies.explanations.methods import Explanation
from simulations.studies.explanations.study import study_explanations
from unit.simulations.studies.test_generation import make_run

METHODS = ["Grad-CAM", "integrated gradients", "SHAP", "external guidance", "ours", "chance"]


@pytest.fixture(scope="module")
def run(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        recipe = BaselineSettings(rounds=2, local_epochs=0.3, every=2)
        patch.setattr(independent_classifier, "RECIPE", recipe)
        yield make_run(tmp_path_factory.mktemp("explanations") / "run", tiny)


def test_all_methods_explain_the_same_images(run: Path, tmp_path: Path) -> None:
    page = study_explanations(
        run, 2, ["num_inference_steps=2", "num_candidates=1"], tmp_path / "out", "cpu"
    )
    assert all(f"| {name} |" in explanation_tables([tmp_path / "out"]) for name in METHODS)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["method"]: row for row in results["rows"]}
    assert list(rows) == METHODS
    assert results["guidance"]["num_inference_steps"] == 2
    assert results["images"] == results["masks"] >= 4  # only findings that are there
    for row in rows.values():
        figures = row["figures"]
        for name in ("deletion", "insertion", "pointing", "inside"):
            assert 0 <= figures[name]["value"] <= 1, name
            assert figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"]
        # Both ways end where the other begins.
        deletion, insertion = row["deletion_curve"], row["insertion_curve"]
        assert (deletion[0], deletion[-1]) == pytest.approx((insertion[-1], insertion[0]))
    with_flips = [name for name, row in rows.items() if row["figures"]["flipped"]["count"]]
    assert with_flips == ["external guidance", "ours"]
    for name, figures in results["ours_less"].items():
        both = [rows[one]["figures"]["deletion"]["value"] for one in ("ours", name)]
        assert figures["deletion"]["value"] == pytest.approx(both[0] - both[1], abs=1e-6)
    assert list(results["ours_less"]) == [name for name in METHODS if name != "ours"]
    assert len(results["agreement"]) == math.comb(len(METHODS), 2)
    text = page.read_text()
    assert all(text.count(f"| {name} |") >= 2 for name in METHODS)
    for picture in ("panel.png", "curves.png"):
        assert picture in text
        assert Image.open(tmp_path / "out" / picture).size[0] > 100


def test_a_map_agrees_with_its_own_size_whatever_its_signs() -> None:
    signed = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = [Explanation("signed", signed, 0.0), Explanation("size", signed.abs(), 0.0)]
    [(names, one)] = agreement(found, ["a", "b", "c"], 10, 0).items()
    assert names == ("signed", "size") and one.value == pytest.approx(1)


def test_a_model_that_cannot_be_explained_is_named(
    tmp_path: Path, tiny: tuple[str, ...], run: Path
) -> None:
    blind = make_run(tmp_path / "blind", tiny, "training.joint.classification_weight=0")
    with pytest.raises(UserError, match="one half of its network"):
        study_explanations(blind, 1, [], tmp_path / "out", "cpu")
    with pytest.raises(UserError, match="does not exist"):
        study_explanations(tmp_path / "none", 1, [], tmp_path / "out", "cpu")
    with pytest.raises(UserError, match="unknown setting"):
        study_explanations(run, 1, ["stepz=1"], tmp_path / "out", "cpu")
