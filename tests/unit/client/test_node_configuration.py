"""A deployed site says itself where its files lie; no path that the server names counts."""

from pathlib import Path

import pytest

from client.node_configuration import own_folder, own_ledger, own_settings, own_threads
from configs.compose import compose
from mediffusion_core.common.errors import RefusedError, UserError
from mediffusion_core.privacy.ledger.site_ledger import LedgerPlaces

FROM_THE_SERVER = (
    "run.folder=/srv/run",
    "data.root=/etc",
    "data.store=/srv/store",
    "device=cuda:3",
    "privacy.ledger=/srv/ledger",
    "privacy.ledger_tips=/srv/tips",
)


def test_a_simulated_site_has_the_folder_of_the_run() -> None:
    settings = compose("config", FROM_THE_SERVER)
    node = {"partition-id": 0, "num-partitions": 3}
    assert own_settings(settings, node) == settings
    assert own_folder(settings, node) is own_ledger(node, "site-0") is None


def test_a_deployed_site_takes_no_path_from_the_server(tmp_path: Path) -> None:
    settings = compose("config", FROM_THE_SERVER)
    node = {"partition-id": 0, "folder": str(tmp_path), "data-root": "/data", "device": "cpu"}

    own = own_settings(settings, node)

    assert (own.run.folder, own.data.root, own.data.store) == (None, Path("/data"), None)
    assert own.device == "cpu"
    assert own.privacy.ledger is own.privacy.ledger_tips is None
    assert own_ledger(node, "uni") == LedgerPlaces(tmp_path / "ledger" / "uni")
    assert own.fingerprint() == settings.fingerprint()
    assert own_folder(own, node) == tmp_path / settings.fingerprint()


def test_a_site_without_images_of_its_own_does_not_read_the_servers_path() -> None:
    settings = compose("config", ("data=medmnist", "data.root=/etc"))
    with pytest.raises(UserError, match="data=medmnist needs data-root"):
        own_settings(settings, {"folder": "/runs"})


def test_a_private_run_on_images_needs_a_site_file(tmp_path: Path) -> None:
    node = {"folder": str(tmp_path), "data-root": "/data"}
    private = ("privacy=dp", "data.classes=[a,b]")
    with pytest.raises(RefusedError, match="needs site-file"):
        own_settings(compose("config", ("data=folder", "data.root=/x", *private)), node)
    own_settings(compose("config", ("privacy=dp",)), node)  # phantoms are no patients


@pytest.mark.parametrize("table", ["/etc/passwd", "../secret.csv", "a/../../b.csv"])
def test_a_table_outside_the_sites_data_is_refused(table: str) -> None:
    settings = compose("config", ("data=folder", "data.root=/x", f"data.table={table}"))
    with pytest.raises(UserError, match="does not lie in this site's data root"):
        own_settings(settings, {"folder": "/runs", "data-root": "/data"})


def test_a_table_below_the_sites_data_is_taken() -> None:
    settings = compose("config", ("data=folder", "data.root=/x", "data.table=labels/a.csv"))
    own = own_settings(settings, {"folder": "/runs", "data-root": "/data"})
    assert own.data.table == Path("labels/a.csv")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("data=dicom",), "data=dicom needs site-file"),
        (("privacy=dp", "data.labels_at=server"), "the server's part would overlap"),
    ],
)
def test_sites_that_would_need_a_common_secret_are_refused(
    given: tuple[str, ...], said: str
) -> None:
    settings = compose("config", given)
    with pytest.raises(UserError, match=said):
        own_settings(settings, {"folder": "/runs", "data-root": "/data"})


def test_threads_are_the_sites_or_its_share_of_the_cores() -> None:
    settings = compose("config", ("federation.cpus_per_site=2",))
    assert own_threads(settings, {}) == 2
    assert own_threads(settings, {"threads": 6}) == 6
