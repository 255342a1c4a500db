"""Statistics of simulated sites, from the command to the page."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from configs.compose import compose, split
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.partitioning.federated_dataset import (
    FederatedDataset,
    open_federated_dataset,
)
from mediffusion_core.evaluation.site_statistics import intensity_histograms
from mediffusion_core.privacy.ledger.ledger import Ledger
from simulations.cli.main import app
from simulations.engine.statistics import run_config, statistics

SITES = [f"site-{number}" for number in range(3)]


@pytest.fixture(scope="module")
def overrides(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    data = tuple(one for one in tiny if one.startswith(("seed=", "data", "model")))
    return (*data, f"data.store={tmp_path_factory.mktemp('store')}")


@pytest.fixture(scope="module")
def dataset(overrides: tuple[str, ...]) -> FederatedDataset:
    return open_federated_dataset(compose("config", overrides))


@pytest.fixture(scope="module")
def folder(overrides: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("statistics") / "result"
    done = CliRunner().invoke(app, ["statistics", *overrides, "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert done.output.rstrip().endswith(str(output))
    assert "| site-0 | 60 | 60 |" in done.output and "| all sites | 180 | 180 |" in done.output
    return output


@pytest.fixture(scope="module")
def figures(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "statistics.json").read_text()))


def test_pooled_counts_are_those_of_the_images_of_all_sites(
    figures: dict[str, Any], dataset: FederatedDataset
) -> None:
    pooled, images = figures["pooled"], [dataset.every_image(site) for site in range(3)]
    targets = torch.cat([one.targets for one in images])
    for number, name in enumerate(dataset.store.classes):
        own, cells = targets[:, number], pooled["classes"][name]
        if not any(cells[state]["suppressed_at"] for state in ("positive", "negative", "missing")):
            counts = [cells[state]["count"] for state in ("positive", "negative", "missing")]
            assert counts == [int((own == 1).sum()), int((own == 0).sum()), int(own.isnan().sum())]
    [intensity] = pooled["intensity"]
    exact = sum(intensity_histograms(one).sum(axis=0)[0] for one in images)
    shown = [not at for at in intensity["suppressed_at"]]
    assert [n for n, one in zip(intensity["histogram"], shown, strict=True) if one] == [
        int(n) for n, one in zip(exact, shown, strict=True) if one
    ]
    assert sum(shown) > 16 and 0.9 < intensity["shown"] <= 1


def test_labels_are_those_that_the_run_leaves_the_sites(figures: dict[str, Any]) -> None:
    sites = figures["sites"]
    assert list(sites) == SITES and figures["pooled"]["unit"] == "patient"
    assert all(one["images"] == one["units"] == 60 for one in sites.values())
    labelled = [one["labelled"]["labelled"]["count"] for one in sites.values()]
    assert labelled[0] is not None and labelled[0] < 60
    assert figures["set_aside"] == []


def test_the_page_stands_alone_and_names_suppressed_cells(
    folder: Path, figures: dict[str, Any]
) -> None:
    page = (folder / "statistics.html").read_text()
    assert all(f"<b>{site}.</b>" in page for site in [*SITES, "all sites"])
    assert page.count("<svg") == 4
    # Sites have no patients under 18.
    assert figures["sites"]["site-0"]["subgroups"]["age"]["0-17"]["count"] is None
    assert '<td class="suppressed">suppressed</td>' in page
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert not list(folder.rglob("latents*")) and not (folder / "report.html").exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["sites"]) == ("completed", SITES)


def test_private_sites_are_described_by_noised_sums(
    overrides: tuple[str, ...], dataset: FederatedDataset, tmp_path: Path
) -> None:
    """With next to no noise they are the counts of all patients, of the site's own images."""
    private = ("privacy=dp", "privacy.target_epsilon=1e9", "privacy.release_noise=1e-3")
    folder = statistics((*overrides, *private), "config", tmp_path / "result")
    figures = json.loads((folder / "statistics.json").read_text())
    pooled = figures["pooled"]
    assert (pooled["images"], pooled["unit"]) == (None, "patient")
    assert pooled["units"] == pytest.approx(180, abs=0.1)
    targets = torch.tensor(dataset.store.labels)
    for number, name in enumerate(dataset.store.classes):
        positives = float((targets[:, number] == 1).sum())
        assert 0 < pooled["classes"][name]["positive"]["count"] <= positives + 0.1
    assert figures["privacy"]["epsilon"] > 1000
    assert "standard deviation of 0.0" in (folder / "statistics.html").read_text()
    ledger = Ledger.open(folder / "ledger")
    assert [(one.stage, one.units) for one in ledger.entries()] == [
        ("statistics", round(one["units"])) for one in figures["sites"].values()
    ]


def test_sites_of_too_few_patients_are_refused_in_one_line(
    overrides: tuple[str, ...], tmp_path: Path
) -> None:
    few = (*overrides, "data.phantom.patients_per_site=[9,9,9]")
    with pytest.raises(UserError, match=r"0 replies to query\.census count"):
        statistics(few, "config", tmp_path / "result")
    log = (tmp_path / "result" / "sites" / "site-0" / "site.log").read_text()
    assert "9 patients are fewer than policy.min_patients 10" in log


def test_the_run_configuration_of_deployed_sites_names_the_classes() -> None:
    with pytest.raises(UserError, match=r"needs data\.classes"):
        run_config(["data=folder"], "config")
    text = run_config(["data=folder", "data.classes=[Effusion,Nodule]"], "config")
    settings = compose("config", split(text.removeprefix('overrides="').removesuffix('"')))
    assert (settings.task, settings.data.classes) == ("statistics", ("Effusion", "Nodule"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluation.model=x"], "need task=evaluation"),
        (["federation.num_malicious_sites=1"], "num_malicious_sites"),
    ],
)
def test_settings_that_statistics_cannot_keep_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose("config", ["task=statistics", *overrides])
