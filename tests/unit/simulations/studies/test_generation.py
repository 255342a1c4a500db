"""The study of generation on an untrained model."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.untrained import untrained_model
from PIL import Image
from rich.console import Console

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.inference.joint_model import TrainedModel
from mediffusion_core.reporting.neighbours_picture import save_neighbours
from simulations.engine.simulate import LAUNCH
from simulations.results.study_tables import sample_tables
from simulations.studies.generation.sets import drawn_by_ddpm, drawn_with_labels
from simulations.studies.generation.study import Options, study_generation
from simulations.studies.generation.usefulness import (
    RepeatedAuc,
    difference,
    images_in_memory,
    usefulness,
)
from simulations.studies.trained_run import open_trained_run

CLASSES = ("Effusion", "Cardiomegaly", "Nodule", "Pneumothorax", "Consolidation")
OPTIONS = Options(
    count=20, steps=2, scale=1.0, ddpm=True, half_samples=10, training_images=24, usefulness_steps=0
)


def make_run(folder: Path, tiny: tuple[str, ...], *changes: str) -> Path:
    """A run's folder, as far as a study of its model needs it."""
    store = f"data.store='{folder.parent / 'store'}'"
    overrides = [*tiny, "data.phantom.patients_per_site=[120,120,120]", store, *changes]
    settings = compose("config", overrides)
    untrained_model(settings, CLASSES).save(folder / "model")
    (folder / LAUNCH).write_text(json.dumps({"config_name": "config", "overrides": overrides}))
    return folder


def test_samples_are_compared_with_real_images(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    run = make_run(tmp_path / "run", tiny, "diffusion.timesteps=8")
    options = replace(OPTIONS, usefulness_steps=2)
    page = study_generation(run, options, tmp_path / "out", "cpu")
    tables = sample_tables([tmp_path / "out"])
    assert "20 images of phantom a set" in tables and "| both |" in tables
    lines = tables.partition("| trained on |")[0].splitlines()
    asked = {line.split(" | ")[0]: line.split(" | ")[-1] for line in lines}
    assert asked["| samples, 2 steps"] == "- |"
    assert float(asked["| real"].strip(" |")) > 0
    assert float(asked["| class-guided, 2 steps, scale 1"].strip(" |")) > 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["key"]: row for row in results["sets"]}
    assert list(rows) == ["real", "reconstructed", "samples", "guided", "ddpm"]
    assert (results["count"], results["training_images"]) == (20, 24)
    for row in rows.values():
        for name in ("fid", "kid", "precision", "recall", "density", "coverage"):
            figure = row[name]
            assert figure["low"] <= figure["high"]
        assert row["precision"]["low"] >= 0 and row["coverage"]["high"] <= 1
        for picture in row["pictures"]:
            assert Image.open(tmp_path / "out" / picture).size[0] > 100
    # Images of untrained networks are far from real ones, whose own distance is the floor.
    assert rows["samples"]["fid"]["value"] > 2 * rows["real"]["fid"]["value"]
    assert rows["samples"]["kid"]["low"] > rows["real"]["kid"]["high"]
    assert rows["real"]["copying"] == 0.5
    assert rows["samples"]["copying"] < 0.5
    assert (rows["guided"]["obedience"] is None, rows["samples"]["obedience"]) == (False, None)
    text = page.read_text()
    assert text.count("| real |") == 3 and "DDPM, 8 steps" in text


def test_a_seed_gives_the_same_samples(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    run = make_run(tmp_path / "run", tiny, "diffusion.timesteps=4")
    model = TrainedModel.load(run / "model", torch.device("cpu"))
    labels = torch.tensor([[1.0, 0, 0, 0, torch.nan]] * 3)
    for draw in (
        lambda seed: drawn_by_ddpm(model, 3, seed),
        lambda seed: drawn_with_labels(model, labels, 4, 2.0, seed, Console(stderr=True)),
    ):
        first, again, other = (draw(seed).images for seed in (0, 0, 1))
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_classifier_learns_from_generated_images(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    """From real images, from as many drawn ones, and from both, on the same test patients."""
    run = make_run(tmp_path / "run", tiny, "data.phantom.patients_per_site=[60,60,60]")
    opened = open_trained_run(run, "cpu", Console(stderr=True))
    site = opened.dataset.train(0)
    labelled = site.subset(site.labelled)
    asked: list[torch.Tensor] = []

    def draw(labels: torch.Tensor) -> torch.Tensor:
        asked.append(labels)
        return labelled.take(torch.arange(len(labels)))

    found = usefulness(opened, labelled, draw, 3, lambda text: None)
    count = len(labelled)
    assert [one["images"] for one in found.values()] == [count, count, 2 * count]
    [labels] = asked
    assert not labels.isnan().any() and len(labels) == count
    assert found["real"]["against_real"] is None
    for name in ("synthetic", "both"):
        against = found[name]["against_real"]
        assert against["value"] == pytest.approx(found[name]["auc"] - found["real"]["auc"])
        assert against["low"] <= against["high"]
        low, high = found[name]["interval"]
        assert low <= found[name]["auc"] <= high
    kept = images_in_memory(labelled.take(torch.arange(count)), labelled.targets)
    assert torch.equal(kept.take(torch.arange(count)), labelled.take(torch.arange(count)))


def test_how_far_trainings_are_apart_is_in_the_interval_of_a_difference() -> None:
    draws = torch.tensor([[0.8] * 50, [0.9] * 50])
    same = difference(RepeatedAuc(0.85, draws), RepeatedAuc(0.85, draws))
    assert same["value"] == 0
    assert (same["low"], same["high"]) == pytest.approx((-0.1, 0.1))


def test_a_study_names_a_missing_input(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    def refused(run: Path, message: str) -> None:
        with pytest.raises(UserError, match=message):
            study_generation(run, OPTIONS, tmp_path / "out", "cpu")
        assert not (tmp_path / "out").exists()

    refused(tmp_path / "none", "does not exist")
    refused(tmp_path, "no trained model")
    few = make_run(tmp_path / "few", tiny, "data.phantom.patients_per_site=[60,60,60]")
    refused(few, r"images of \d+ patients; 20 are needed")
    blind = make_run(tmp_path / "blind", tiny, "training.joint.diffusion_weight=0")
    refused(blind, "trained no denoiser")


def test_a_study_asks_for_monai_before_it_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "monai", None)  # as Python marks what can't be imported
    with pytest.raises(UserError, match="needs MONAI"):
        study_generation(tmp_path, replace(OPTIONS, usefulness_steps=1), tmp_path / "out", "cpu")


def test_the_images_are_where_the_run_found_them(tmp_path: Path, tiny: tuple[str, ...]) -> None:
    run = make_run(tmp_path / "run", tiny)
    opened = open_trained_run(run, "cpu", Console(stderr=True))
    assert opened.settings.data.store == tmp_path / "store"
    assert opened.settings.fingerprint() == opened.model.settings.fingerprint()
    state = run / "model" / "state.json"
    state.write_text(state.read_text().replace('"source": "phantom"', '"source": "folder"'))
    (run / "model" / "SHA256SUMS").unlink()
    (run / LAUNCH).unlink()
    with pytest.raises(UserError, match=r"has no launch\.json"):
        open_trained_run(run, "cpu", Console(stderr=True))


def test_a_row_shows_an_image_and_its_neighbours(tmp_path: Path) -> None:
    images, neighbours = np.full((2, 1, 64, 64), 0.0), np.full((6, 1, 64, 64), 1.0)
    save_neighbours(images, neighbours, [[0.1, 0.2, 0.3]] * 2, tmp_path / "rows.png")
    picture = np.asarray(Image.open(tmp_path / "rows.png").convert("L"))
    line = picture[16 + 30 + 64]  # through the first row of tiles
    assert (line[20:140] < 5).all() and (line[170:260] > 250).all()
    with pytest.raises(ValueError, match="do not belong together"):
        save_neighbours(images, neighbours[:5], [[0.1, 0.2, 0.3]] * 2, tmp_path / "rows.png")
