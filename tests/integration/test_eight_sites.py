"""A deployment on one machine without containers: a SuperLink and eight SuperNodes over TLS.

Keys, kits and signature come from the commands that a coordinator runs, and the programs have the
options of the kits' compose files.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from flower_pair import PATIENCE, Pair, flower_environment, free_port

from configs.compose import flatten
from deployment.admission import SIGNER
from deployment.superlink import CONNECTION
from mediffusion_core.messaging.site_keys import SITES
from mediffusion_core.run_io.run_folder import RunFolder
from simulations.engine.app_bundle import ROOT, assemble_app

pytestmark = pytest.mark.deployment

NAMES = [f"site-{number}" for number in range(8)]
SMALL = (
    "federation.num_sites=8",
    f"data.phantom.patients_per_site={[24] * 8}".replace(" ", ""),
    "training.autoencoder.local_epochs=1",
    "training.joint.local_epochs=1",
    "evaluation.counterfactual.count=2",
    "evaluation.counterfactual.panel=1",
)


@dataclass
class Federation:
    """The programs, the keys, and the app that the coordinator signs."""

    pair: Pair
    kits: Path
    app: Path

    def start(self) -> None:
        server = self.kits / "server"
        self.pair.start_server(
            f"--ssl-ca-certfile={server / 'ca.pem'}",
            f"--ssl-certfile={server / 'server.pem'}",
            f"--ssl-keyfile={server / 'server.key'}",
            "--enable-supernode-auth",
            isolation="subprocess",
            **{SITES: str(server / "sites"), SIGNER: str(server / "signers.pem")},
        )
        for number, name in enumerate(NAMES):
            kit, own = self.kits / "kits" / name, self.pair.folder / name
            node = (
                f"partition-id={number}",
                f"num-partitions={len(NAMES)}",
                f'folder="{own / "runs"}"',
                f'data-root="{own}"',
            )
            self.pair.begin_site(
                name,
                f"--root-certificates={kit / 'ca.pem'}",
                f"--auth-supernode-private-key={kit / 'node.key'}",
                f"--node-config={' '.join(node)}",
                **{SIGNER: str(kit / "signer.pem")},
            )
        for name in NAMES:
            self.pair.services[name].wait_for("SuperNode ID")

    def run(self, overrides: str) -> RunFolder:
        """Signs a run and starts it at the server; returns its folder once it has ended."""
        config = f'overrides="{overrides}"'
        key = str(self.kits / "authority" / "signer.key")
        signed = self.command("fed-mediffusion", "sign", str(self.app), "--key", key, "-c", config)
        start = ("run", str(self.app), CONNECTION, "--stream", "-c", signed.strip())
        said = self.command("flwr", *start)
        runs = json.loads(self.command("flwr", "list", CONNECTION, "--format", "json"))["runs"]
        assert [run["status"] for run in runs] == ["finished:completed"], said
        return RunFolder(self.pair.folder / "server" / "runs" / f"flwr-{runs[0]['run-id']}")

    def command(self, program: str, *arguments: str) -> str:
        """The output of a command at the server."""
        done = subprocess.run(
            [Path(sys.executable).with_name(program), *arguments],
            cwd=self.pair.folder,
            env=flower_environment(self.pair.folder / "server"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("deployment")
    found = Federation(Pair(folder), folder / "chest", folder / "app")
    found.app.mkdir()
    assemble_app(ROOT, found.app)
    (folder / "federation.yaml").write_text(
        f"name: chest\nserver: {{host: localhost}}\nsites: {json.dumps(NAMES)}\n"
        "make_site_keys: true\n"
    )
    try:
        found.command("fed-mediffusion", "provision", "federation.yaml")
        found.start()
        yield found
    finally:
        found.pair.end()


def test_a_run_of_both_stages_completes_at_all_sites(
    federation: Federation, shortest: tuple[str, ...]
) -> None:
    folder = federation.run(flatten([*shortest, *SMALL]))
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


def test_a_caller_without_tls_is_refused(federation: Federation) -> None:
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


def test_the_end_leaves_no_process(federation: Federation) -> None:
    names = [*NAMES, "server"]
    assert all(federation.pair.programs(name) for name in names)
    federation.pair.end()
    deadline = time.monotonic() + PATIENCE
    # Flower's programs end soon after the one that started them.
    while left := {name for name in names if federation.pair.programs(name)}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
