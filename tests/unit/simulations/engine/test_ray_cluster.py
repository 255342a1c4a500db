"""Which Ray a simulation uses, and how many CPUs of it a site gets; the nodes answer in
tests/integration/test_ray_cluster.py."""

import socket
from pathlib import Path

import pytest

from mediffusion_core.common.errors import UserError
from simulations.engine.ray_cluster import ADDRESS, _cpus_per_actor, find_cluster


@pytest.mark.parametrize("address", ["", "local"])
def test_without_an_address_the_run_has_a_ray_of_its_own(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADDRESS, address)
    assert find_cluster(Path("runs/new"), [], 3, 1.0) is None


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("head", "must be HOST:PORT"),
        ("head:", "must be HOST:PORT"),
        ("ray://head:10001", "must be HOST:PORT of a cluster that this machine is a node of"),
        ("http://head:8265", "must be HOST:PORT"),
        ("127.0.0.1:99999", "cannot be reached"),
        ("127.0.0.1:{free}", "cannot be reached .*refused"),
    ],
)
def test_an_address_without_a_cluster_is_one_line(
    address: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    monkeypatch.setenv(ADDRESS, given := address.format(free=free))
    with pytest.raises(UserError, match=reason) as raised:
        find_cluster(Path("runs/new"), [], 3, 1.0)
    assert str(raised.value).startswith(f"{ADDRESS}={given}") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("cpus", "num_sites", "cpus_per_site", "expected"),
    [
        ([1, 1], 3, 0.5, 1),
        ([4, 4], 3, 1.0, 2),  # four actors; with three CPUs each there were two
        ([64, 0, 64], 2, 8.0, 64),
        ([2, 3], 4, 2.0, 2),  # two sites at a time
        ([1, 1], 3, 1.5, None),
    ],
)
def test_an_actor_gets_as_many_cpus_as_let_all_sites_work_at_once(
    cpus: list[int], num_sites: int, cpus_per_site: float, expected: int | None
) -> None:
    assert _cpus_per_actor(cpus, num_sites, cpus_per_site) == expected
