"""The study of shortcuts: its rule on hand-made classifiers, and the command on phantoms."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from mediffusion_core.data import marks
from mediffusion_core.evaluation.counterfactual_panel import Counterfactuals
from mediffusion_core.settings import MarkKind
from simulations.cli.main import app
from simulations.studies.shortcut.decision import Sample, decide, holm
from simulations.studies.shortcut.interventions import concentration, mark_effects
from simulations.studies.shortcut.measure import (
    Removals,
    SiteImages,
    choose_assigned,
    collect,
    removal,
)
from simulations.studies.shortcut.tables import sentences
from unit.simulations.studies.test_generation import make_run

SIZE = 32
CLASSES = ("Effusion", "Nodule")
CORNER = torch.from_numpy(marks.mask("letter", SIZE))


def federation() -> SiteImages:
    """Two sites of 30 random images; those at site-1 have the letter every second time."""
    images = torch.rand(60, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 0.3
    images[30::2] = marks.pasted(images[30::2], "letter")
    sites = ("site-0",) * 30 + ("site-1",) * 30
    return SiteImages(images, sites, tuple(str(number) for number in range(60)))


def reads_corner(images: Tensor) -> Tensor:
    """Log odds (B, 2): of an effusion by the contrast in the corner, of a nodule by the centre."""
    corner = images[:, 0, CORNER].std(dim=1)
    centre = images[:, 0, 12:20, 12:20].mean(dim=(1, 2))
    return torch.stack([20 * (corner - 0.2), 200 * (centre - 0.15)], dim=1)


def reads_centre(images: Tensor) -> Tensor:
    """Log odds (B, 2) of both findings by the centre alone."""
    return reads_corner(images)[:, 1:].expand(-1, 2)


def counterfactuals(given: SiteImages, log_odds: Tensor, corner: bool) -> Removals:
    """Hand-made ones: without an effusion the letter is gone, without a nodule the centre is."""
    positions, classes = choose_assigned(log_odds, given.sites, 12, 0)
    sources = given.images[positions]
    changed = sources.clone()
    erased = (classes == 0) if corner else torch.zeros_like(classes, dtype=torch.bool)
    changed[erased] = marks.removed(sources[erased], "letter")
    changed[~erased, :, 12:20, 12:20] *= 0.5
    nothing = torch.zeros(len(positions))
    made = Counterfactuals(sources, changed, nothing, nothing, nothing > 0, nothing > 0)
    return Removals(positions, classes, made)


@pytest.mark.parametrize("corner", [True, False])
def test_a_classifier_is_named_with_the_mark_and_site_that_it_uses_and_no_other(
    corner: bool,
) -> None:
    given, classify = federation(), reads_corner if corner else reads_centre
    log_odds = classify(given.images)
    effects = {kind: mark_effects(given.images, kind, classify, log_odds) for kind in marks.KINDS}
    removals = counterfactuals(given, log_odds, corner)
    tested = decide(collect(given, effects, removals, CLASSES), seed=0)
    assert len(tested) == len(marks.KINDS) * 2 * len(CLASSES)
    used = [(one.site, one.kind, one.label, one.sign) for one in tested if one.used]
    assert used == ([("site-1", "letter", "Effusion", 1)] if corner else [])
    [said] = sentences(tested, None)
    if corner:
        assert said.startswith("The classifier uses the corner letter of site-1 as a sign of Eff")
    else:
        assert (
            said
            == "The classifier uses none of the 12 tested combinations of mark, site and class."
        )


def test_effects_are_those_of_the_pixels() -> None:
    given = federation()
    found = mark_effects(given.images, "letter", reads_corner, reads_corner(given.images))
    assert found.found.tolist() == [False] * 30 + [True, False] * 15
    assert found.pasted.isnan()[:, 0].tolist() == found.found.tolist()
    assert found.removed.isnan()[:, 0].tolist() == (~found.found).tolist()
    by_hand = reads_corner(marks.pasted(given.images[:1], "letter")) - reads_corner(
        given.images[:1]
    )
    torch.testing.assert_close(found.pasted[:1], by_hand)


def test_a_change_spread_evenly_has_concentration_one() -> None:
    images = torch.zeros(2, 1, SIZE, SIZE)
    changed = images + 0.1
    place = torch.from_numpy(marks.region("border", SIZE))
    changed[1, :, ~place] = 0
    expected = torch.tensor([1.0, 1 / float(place.float().mean())])
    torch.testing.assert_close(concentration(images, changed, "border"), expected)


def test_the_rule_needs_all_three_tests_and_a_large_effect() -> None:
    def p_value(mean: float, count: int = 20, least: float = 1.0, sign: int = 1) -> float:
        values = mean + torch.linspace(-0.5, 0.5, count)
        return Sample(values, [str(n) for n in range(count)]).p_value(sign, least, 10_000, 0)

    assert p_value(2.0) < 1e-3 and p_value(-2.0, sign=-1) < 1e-3
    assert p_value(0.9) > 0.5  # significant, but too small to count
    assert p_value(2.0, count=7) == 1.0
    assert p_value(9.0, count=9) == 0.5**9  # no less than that of a sign test
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_what_a_mended_model_no_longer_uses_is_said() -> None:
    given = federation()
    models = []
    for corner in (True, False):
        classify = reads_corner if corner else reads_centre
        log_odds = classify(given.images)
        kinds: list[MarkKind] = ["letter"]
        effects = {kind: mark_effects(given.images, kind, classify, log_odds) for kind in kinds}
        removals = counterfactuals(given, log_odds, corner)
        models.append(decide(collect(given, effects, removals, CLASSES), seed=0))
    used, gone, none = sentences(models[0], models[1])
    assert used.startswith("The classifier uses the corner letter of site-1")
    assert gone.startswith(
        "The mended classifier no longer uses the corner letter of site-1 for Effusion: pasting it "
        "changes the log odds by +0.00"
    )
    assert none.startswith("The mended classifier uses none of the 4")


def test_exclusive_classes_become_the_next_likeliest() -> None:
    log_odds = torch.tensor([[2.0, -1.0, -3.0], [-4.0, -2.0, 1.0]])
    target = removal(log_odds, torch.tensor([0, 2]), multi_label=False)
    assert target.index.tolist() == [1, 1] and target.present.all()


def test_the_command_tests_two_runs_on_the_same_images(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    few_patients = "data.phantom.patients_per_site=[60,60,60]"
    mark = ("data.phantom.mark.site=1", "data.phantom.mark.other_rate=1")
    run = make_run(tmp_path / "marked", tiny, few_patients, *mark)
    mended = make_run(tmp_path / "mended", tiny, few_patients)
    few = ["num_inference_steps=2", "num_candidates=1", "--images", "1", "--device", "cpu"]
    command = ["study", "shortcut", str(run), *few]
    done = CliRunner().invoke(app, [*command, "--mended", str(mended)])
    assert done.exit_code == 0, done.output
    folder = run / "study-shortcut"
    results = json.loads((folder / "results.json").read_text())
    assert len(results["marks"]["before"]) == results["tests"] == 3 * 3 * 5
    letters = {
        one["site"]: one["removed"]["count"]
        for one in results["marks"]["before"]
        if one["kind"] == "letter"
    }
    assert letters["site-1"] > 4 and letters["site-0"] == letters["site-2"] == 0
    assert not any(one["used"] for one in results["marks"]["before"])  # it was not trained
    assert results["truth"]["site"] == "site-1" and not results["truth"]["named"]
    assert results["mended"]["run"] == "mended"
    text = (folder / "results.md").read_text()
    assert all(one in text for one in results["outcome"])
    assert Image.open(folder / "panel.png").size[0] > 100
    other = make_run(tmp_path / "other", tiny, few_patients, "seed=2")
    refused = CliRunner().invoke(app, [*command, "--mended", str(other)])
    assert refused.exit_code != 0
    assert "has other test patients" in str(refused.exception) + refused.output
