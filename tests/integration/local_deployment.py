"""A deployment on one machine without containers: a SuperLink and SuperNodes over TLS.

Keys, kits and signature come from the commands that a coordinator runs, and the programs have the
options of the kits' compose files.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flower_pair import Pair, flower_environment

from deployment.admission import SIGNER
from deployment.superlink import CONNECTION
from mediffusion_core.messaging.site_keys import SITES
from mediffusion_core.run_io.run_folder import RunFolder
from simulations.engine.app_bundle import ROOT, assemble_app


@contextmanager
def started(folder: Path, names: Sequence[str]) -> Iterator["LocalDeployment"]:
    """A deployment whose programs run, and end with the block."""
    deployment = LocalDeployment(folder, names)
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.pair.end()


class LocalDeployment:
    """The programs, the keys, and the app that the coordinator signs."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """Makes keys and kits in a folder; `start` starts the programs."""
        self.names, self.pair = names, Pair(folder)
        self.kits, self._app = folder / "chest", folder / "app"
        self._app.mkdir()
        assemble_app(ROOT, self._app)
        (folder / "federation.yaml").write_text(
            f"name: chest\nserver: {{host: localhost}}\nsites: {json.dumps([*names])}\n"
            "make_site_keys: true\n"
        )
        self._command("fed-mediffusion", "provision", "federation.yaml")

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
        for number, name in enumerate(self.names):
            kit, own = self.kits / "kits" / name, self.pair.folder / name
            node = (
                f"partition-id={number}",
                f"num-partitions={len(self.names)}",
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
        for name in self.names:
            self.pair.services[name].wait_for("SuperNode ID")

    def run(self, overrides: str) -> RunFolder:
        """Signs a run and starts it at the server; returns its folder once it has ended."""
        key, config = self.kits / "authority" / "signer.key", f'overrides="{overrides}"'
        options = ("--key", str(key), "-c", config)
        signed = self._command("fed-mediffusion", "sign", str(self._app), *options)
        start = ("run", str(self._app), CONNECTION, "--stream", "-c", signed.strip())
        said = self._command("flwr", *start)
        runs = json.loads(self._command("flwr", "list", CONNECTION, "--format", "json"))["runs"]
        assert {run["status"] for run in runs} == {"finished:completed"}, said
        return RunFolder(self.pair.folder / "server" / "runs" / f"flwr-{runs[0]['run-id']}")

    def run_folders(self) -> list[RunFolder]:
        """Of the server's runs, also of one that goes on."""
        return [RunFolder(path) for path in (self.pair.folder / "server" / "runs").glob("flwr-*")]

    def _command(self, program: str, *arguments: str) -> str:
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
