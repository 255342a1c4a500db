"""The folder of keys is the register of the SuperLink's sites."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from deployment.certificates import new_site_key
from deployment.registry import Nodes, synchronise
from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging.site_keys import read_keys


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """Flower's own state, in a database file as the server has it."""
    factory = LinkStateFactory(
        str(tmp_path / "superlink.db"), NoOpFederationManager(), ObjectStoreFactory()
    )
    yield factory.state()


def keep(folder: Path, *sites: str) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    for site in sites:
        (folder / f"{site}.pub").write_bytes(new_site_key()[1])
    return read_keys(folder)


def let_in(nodes: Nodes, key: bytes) -> bool:
    return nodes.get_node_id_by_public_key(key) is not None  # type: ignore[attr-defined]


def test_keys_in_the_folder_are_let_in_and_no_other(nodes: Nodes, tmp_path: Path) -> None:
    keys = keep(tmp_path / "sites", "st-anna", "uni")
    assert synchronise(nodes, keys) == ["sites: registered st-anna", "sites: registered uni"]
    assert all(let_in(nodes, key) for key in keys.values())
    assert not any(let_in(nodes, key) for key in keep(tmp_path / "others", "east").values())
    assert synchronise(nodes, keys) == []


def test_a_key_that_leaves_is_revoked_for_good(nodes: Nodes, tmp_path: Path) -> None:
    keys = keep(tmp_path / "sites", "st-anna", "uni")
    synchronise(nodes, keys)
    revoked = {"st-anna": keys["st-anna"]}
    assert synchronise(nodes, revoked) == ["sites: revoked uni"]
    assert not let_in(nodes, keys["uni"])
    assert let_in(nodes, keys["st-anna"])
    assert synchronise(nodes, revoked) == []

    (refused,) = synchronise(nodes, keys)
    assert "refused uni, its key was revoked before" in refused
    assert not let_in(nodes, keys["uni"])


def test_a_renewed_key_takes_the_place_of_the_old_one(nodes: Nodes, tmp_path: Path) -> None:
    old = keep(tmp_path / "sites", "uni")
    synchronise(nodes, old)
    new = keep(tmp_path / "sites", "uni")
    assert synchronise(nodes, new) == ["sites: revoked uni", "sites: registered uni"]
    assert not let_in(nodes, old["uni"])
    assert let_in(nodes, new["uni"])


def test_a_folder_without_keys_or_with_a_broken_one_revokes_no_site(tmp_path: Path) -> None:
    folder = tmp_path / "sites"
    with pytest.raises(UserError, match="no key in"):
        read_keys(folder)
    keep(folder, "uni")
    (folder / "st-anna.pub").write_text("ecdsa-sha2-nistp384 half of a ke")
    with pytest.raises(UserError, match=r"st-anna\.pub is no public key"):
        read_keys(folder)
