"""A simulation on a Ray cluster of two nodes, which its owner started on this machine."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from integration.flower_pair import free_port
from integration.processes import LIMIT, start, workers
from integration.run_folders import STAGES, assert_same_end, checkpoint, untimed

from mediffusion_core.common.errors import UserError
from mediffusion_core.run_io.run_folder import RunFolder
from simulations.engine.app_bundle import APP_PACKAGES
from simulations.engine.guardian import guarded
from simulations.engine.in_process import run_in_process
from simulations.engine.processes import MARKER_VARIABLE, marked_processes, read_process
from simulations.engine.ray_cluster import ADDRESS, find_cluster

ROUNDS = (
    "federation.autoencoder_rounds=1",
    "federation.num_rounds=2",
    "evaluation.every=2",
)
NODE = (
    "--num-cpus=1",
    "--object-store-memory=100000000",
    "--node-ip-address=127.0.0.1",
    "--min-worker-port=0",
    "--max-worker-port=0",
    "--dashboard-agent-listen-port=0",
    "--disable-usage-stats",
    "--block",
)


@dataclass
class Cluster:
    """Two `ray start` processes, all of whose processes have a marker of their own."""

    address: str
    marker: str

    def nodes(self) -> set[int]:
        """Process ids of the nodes' raylets."""
        programs = {pid: read_process(pid, "cmdline") for pid in marked_processes(self.marker)}
        return {pid for pid, line in programs.items() if line.split(b"\0")[0].endswith(b"/raylet")}


@pytest.fixture(scope="module")
def cluster(temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Nodes in whose own environment the app's packages are other ones."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for package in APP_PACKAGES:
        (elsewhere / package).mkdir()
        (elsewhere / package / "__init__.py").write_text("raise ImportError('of another folder')")
    address = f"127.0.0.1:{free_port()}"
    head = (
        "--head",
        f"--port={address.partition(':')[2]}",
        f"--ray-client-server-port={free_port()}",
        "--include-dashboard=false",
        f"--temp-dir={temporary / 'ray'}",
    )
    (base := tmp_path_factory.mktemp("cluster") / "base").mkdir()
    with guarded(base) as marker:
        found = Cluster(address, marker)
        for number, options in enumerate([head, (f"--address={address}",)], start=1):
            started = subprocess.Popen(
                [Path(sys.executable).with_name("ray"), "start", *options, *NODE],
                cwd=elsewhere,
                env={**os.environ, "PYTHONPATH": str(elsewhere), MARKER_VARIABLE: marker}
                | {"SPT_NOENV": "1", "TMPDIR": str(temporary)},
                stdin=subprocess.DEVNULL,
                stdout=(log := base / f"node-{number}.txt").open("wb"),
                stderr=subprocess.STDOUT,
            )
            deadline = time.monotonic() + LIMIT
            while "Ray runtime started" not in log.read_text():
                assert started.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield found


def test_a_run_on_two_nodes_killed_and_resumed_equals_one_in_one_process(
    cluster: Cluster, tiny: tuple[str, ...], few: tuple[str, ...], temporary: Path, tmp_path: Path
) -> None:
    """The launcher's end is that of its sites, and the cluster stays."""
    folder = RunFolder(tmp_path / "run")
    overrides = [*tiny, *few, *ROUNDS, f"data.store={tmp_path / 'store'}"]
    arguments = ["simulate", *overrides, f"run.folder={folder.path}"]
    command = start(arguments, tmp_path / "killed", temporary, **{ADDRESS: cluster.address})
    marker, nodes = command.marker(), cluster.nodes()
    assert len(nodes) == 2
    command.wait_until(lambda: checkpoint(folder, "joint-1"))
    assert {parent(pid) for pid in workers(marker)} == nodes
    command.kill()
    assert cluster.nodes() == nodes and not checkpoint(folder, "joint-2")

    again = ["simulate", "--resume", str(folder.path)]
    command = start(again, tmp_path / "resumed", temporary, **{ADDRESS: cluster.address})
    marker = command.marker()
    assert command.wait() == 0, command.out.read_text() + command.err.read_text()
    assert "2 nodes, 2 CPUs, 2 sites at once" in command.out.read_text()
    assert marked_processes(marker) == [] and cluster.nodes() == nodes
    assert not list(folder.path.glob("fedmed-*"))

    alone = run_in_process("config", [*overrides, f"run.folder='{tmp_path / 'alone'}'"])
    assert_same_end(folder, alone)
    trained = [
        [untimed(line) for line in one.history() if line["stage"] in STAGES]
        for one in (folder, alone)
    ]
    assert trained[0] == trained[1]


def parent(pid: int) -> int:
    fields = dict(line.split(b":\t", 1) for line in read_process(pid, "status").splitlines())
    return int(fields[b"PPid"])


def test_what_the_nodes_lack_is_one_line(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADDRESS, cluster.address)
    with pytest.raises(UserError, match=r"node .* does not have /nowhere$"):
        find_cluster(tmp_path / "run", [tmp_path, Path("/nowhere")], 3, 0.5)
    with pytest.raises(UserError, match=r"no node has the 2 CPUs .*=1\.5; the largest has 1$"):
        find_cluster(tmp_path / "run", [], 3, 1.5)
    assert list(tmp_path.iterdir()) == []
