"""A deployment on one machine without containers: a SuperLink and eight SuperNodes over TLS."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from flower_pair import PATIENCE, flower_environment, free_port
from local_deployment import LocalDeployment, started

from configs.compose import flatten

pytestmark = pytest.mark.deployment

NAMES = [f"site-{number}" for number in range(8)]
EIGHT = (
    "federation.num_sites=8",
    f"data.phantom.patients_per_site={[24] * 8}".replace(" ", ""),
)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDeployment]:
    with started(tmp_path_factory.mktemp("deployment"), NAMES) as found:
        yield found


def test_a_run_of_both_stages_completes_at_all_sites(
    federation: LocalDeployment, shortest: tuple[str, ...], few: tuple[str, ...]
) -> None:
    folder = federation.run(flatten([*shortest, *few, *EIGHT]))
    summary = json.loads((folder.path / "summary.json").read_text())
    assert (summary["status"], sorted(summary["census"])) == ("completed", NAMES)
    assert summary["set_aside"] == []
    rounds = {line["stage"]: line for line in folder.history() if "sites" in line}
    for stage in ("autoencoder", "joint"):
        assert sorted(rounds[stage]["sites"]) == NAMES
    # What belongs to a site stays in its own folder.
    assert not (folder.path / "sites").exists()
    for name in NAMES:
        own = federation.pair.folder / name / "runs"
        assert [path.name for path in own.glob("*/sites/*")] == [name]


def test_a_caller_without_tls_is_refused(federation: LocalDeployment) -> None:
    """A plain request and a plain SuperNode; the same request over TLS is answered."""
    address = f"127.0.0.1:{federation.pair.port}"
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{address}/health", timeout=PATIENCE)
    authority = str(federation.kits / "server" / "ca.pem")
    assert httpx.get(
        f"https://localhost:{federation.pair.port}/health", verify=authority
    ).is_success
    (plain := federation.pair.folder / "plain").mkdir()
    options = (f"--superlink={address}", f"--port={free_port()}", "--insecure")
    limits = ("--max-retries=1", "--max-wait-time=10")
    # A file, since a pipe would stay open until the SuperNode's own children have ended.
    with (plain / "log.txt").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "deployment.supernode", *options, *limits],
            cwd=plain,
            env=flower_environment(plain),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    assert done.returncode != 0
    assert "Failed to initialize the connection" in (plain / "log.txt").read_text()


def test_the_end_leaves_no_process(federation: LocalDeployment) -> None:
    names = [*NAMES, "server"]
    assert all(federation.pair.programs(name) for name in names)
    federation.pair.end()
    deadline = time.monotonic() + PATIENCE
    # Flower's programs end soon after the one that started them.
    while left := {name for name in names if federation.pair.programs(name)}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
