"""A federation within one process, and its baselines."""

import json
from pathlib import Path

import numpy as np
import pytest

from configs.compose import compose
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.messaging import protocol
from mediffusion_core.run_io.run_folder import RunFolder
from server.messages import SiteError
from simulations.engine.in_process import run_in_process


@pytest.fixture
def overrides(shortest: tuple[str, ...], tmp_path: Path) -> list[str]:
    stored = [f"data.store='{tmp_path / 'store'}'", f"run.folder='{tmp_path / 'run'}'"]
    return [*shortest, *stored]


def test_a_single_site_trains_and_is_evaluated_on_all_sites_patients(overrides: list[str]) -> None:
    folder = run_in_process("config", [*overrides, "federation.only_site=site-1"])
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert list(summary["census"]) == ["site-1"]
    assert set(summary["auc_per_site"]) == {"site-0", "site-1", "site-2"}


def test_a_failing_site_is_set_aside_and_the_run_goes_on(
    overrides: list[str], tmp_path: Path
) -> None:
    (tmp_path / "run" / "sites" / "site-1" / "latents.safetensors").mkdir(parents=True)
    folder = run_in_process("config", overrides)
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["status"] == "completed"
    told = {(one["site"], one["kind"]) for one in summary["set_aside"]}
    assert told == {("site-1", protocol.ENCODE)}
    assert all("code internal" in one["reason"] for one in summary["set_aside"])
    [joint] = [line for line in folder.history() if line["stage"] == "joint"]
    assert sorted(joint["sites"]) == ["site-0", "site-2"]
    latents = next(line for line in folder.history() if line["stage"] == "latents")
    assert sorted(latents["contacts"]) == ["site-0", "site-1", "site-2"]


def test_fewer_sites_than_the_minimum_end_the_run(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "run" / "sites" / "site-1" / "latents.safetensors").mkdir(parents=True)
    with pytest.raises(SiteError, match=r"site-1 .* code internal"):
        run_in_process("config", [*overrides, "federation.min_sites=3"])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"


def test_a_folder_in_which_another_process_writes_stays_as_it_is(
    overrides: list[str], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.held(), pytest.raises(UserError, match="another process runs in"):
        run_in_process("config", overrides)
    assert [path.name for path in folder.path.iterdir()] == ["run.lock"]


def test_a_run_without_a_folder_is_refused(tiny: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"needs a run\.folder"):
        run_in_process("config", tiny)


def test_pooled_sites_keep_splits_and_labels(overrides: list[str]) -> None:
    apart = open_federated_dataset(compose("config", overrides))
    joined = open_federated_dataset(compose("config", [*overrides, "federation.pool_sites=true"]))
    (pool,) = joined.clients
    assert np.array_equal(joined.test_rows, apart.test_rows)
    assert joined.site_of_test() == apart.site_of_test()
    labels = {
        int(row): target.tolist()
        for site in range(3)
        for images in [apart.train(site)]
        for row, target in zip(images.rows, images.targets, strict=True)
    }
    images = joined.train(0)
    assert sorted(labels) == images.rows.tolist() == pool.train.tolist()
    for row, target in zip(images.rows, images.targets, strict=True):
        assert np.array_equal(labels[int(row)], target.numpy(), equal_nan=True)
    # The site without labels has no patients to choose a model by, here or there.
    held_out = [row for site in range(3) for row in apart.validation(site).rows]
    assert sorted(held_out) == joined.validation(0).rows.tolist()


def test_a_left_out_site_trains_nothing_and_keeps_its_share_of_the_test_set(
    overrides: list[str],
) -> None:
    whole = open_federated_dataset(compose("config", overrides))
    settings = compose("config", [*overrides, "federation.left_out_site=site-1"])
    without = open_federated_dataset(settings)
    assert [client.site for client in without.clients] == ["site-0", "site-2"]
    assert settings.num_participants == 2
    for index, other in ((0, 0), (1, 2)):
        assert np.array_equal(without.train(index).rows, whole.train(other).rows)
        assert np.array_equal(without.validation(index).rows, whole.validation(other).rows)
    assert np.array_equal(without.test_rows, whole.test_rows)
    assert "site-1" in without.site_of_test()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["federation.left_out_site=site-9"], "no such site; allowed: site-0, site-1, site-2"),
        (["federation.only_site=site-0", "federation.left_out_site=site-1"], "choose one of the"),
        (["federation.num_sites=1", "federation.left_out_site=site-0"], "must be at least 2"),
        (["federation.only_site=site-9"], "no such site; allowed: site-0, site-1, site-2"),
        (["federation.only_site=site-0", "federation.pool_sites=true"], "choose one of the two"),
        (["federation.pool_sites=true", "data.labels_at=server"], "allows neither"),
        (["federation.pool_sites=true", "data.partition=one_finding"], "divides among sites"),
    ],
)
def test_comparisons_that_do_not_fit_are_refused(
    overrides: list[str], settings: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_federated_dataset(compose("config", [*overrides, *settings]))
