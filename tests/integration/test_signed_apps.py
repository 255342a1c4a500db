"""A real SuperNode runs no ClientApp of a server but the one that the coordinator signed.

Each app leaves a mark at a site whose code it runs. The server is the attacker's: it starts
whatever it likes. One site has a signer, one was given none, and the engineer of the third approves
each run.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from flower_pair import PATIENCE, Pair, Sent, agent_bundle, client_bundle

from deployment.admission import SIGNER
from deployment.bundle import AppBundle
from deployment.signing import Statement, new_signer, settings_digest
from mediffusion_core.common.audit_log import AUDIT, read_lines

VERSION = 1000
APPROVING = """
name = "approving"
data = {source = "folder", root = "/data"}
policy = {approval = "required"}
"""
SPAWN = """
import sys
from flwr.proto.runtime_pb2 import CreateTaskRequest
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
given = dict(zip(sys.argv, sys.argv[1:]))
interceptors = [
    RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"),
    RuntimeTokenHttpInterceptor(given["--token"]),
]
client = RuntimeHttpClient.from_server_address(
    given["--runtime-api-address"], True, None, interceptors
)
client.CreateTask(CreateTaskRequest(type="flwr-serverapp", fab_hash="0" * 64))
"""
"""A ClientApp that asks its SuperNode to start the bundle's ServerApp."""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("signer", "foreign"):
        private, public = new_signer()
        (folder / f"{name}.key").write_bytes(private)
        (folder / f"{name}.pem").write_bytes(public)
    return folder


@pytest.fixture(scope="module")
def pair(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    started = Pair(tmp_path_factory.mktemp("pair"))
    try:
        started.start_server()
        started.start_site("site", **{SIGNER: str(keys / "signer.pem")})
        started.start_site("signerless")
        own = started.folder / "approving.toml"
        own.write_text(APPROVING)
        own.chmod(0o600)
        node = f'--node-config=site-file="{own}" folder="{started.folder / "runs"}"'
        started.start_site("approving", node, **{SIGNER: str(keys / "signer.pem")})
        yield started
    finally:
        started.end()


class Attacks:
    """Runs that a server starts, and what became of them."""

    def __init__(self, pair: Pair, keys: Path, folder: Path) -> None:
        self.pair, self.keys, self.folder = pair, keys, folder
        self.runs: dict[str, Sent] = {}

    def signed(
        self, bundle: bytes, *, key: str = "signer", version: int = VERSION, seconds: int = 600
    ) -> str:
        """A statement on a bundle that is run with its own defaults."""
        read = AppBundle.read(bundle)
        statement = Statement(
            bundle=read.digest,
            not_after=int(time.time()) + seconds,
            settings=settings_digest(read.defaults),
            version=version,
        )
        return statement.signed_by(self.keys / f"{key}.key")

    def start(self, name: str, bundle: bytes, signature: str = "", **config: str) -> None:
        self.runs[name] = self.pair.start_run(bundle, signature=signature, **config)

    def outcome(self, name: str) -> dict[str, str]:
        return self.runs[name].answers()


@pytest.fixture(scope="module")
def attacks(pair: Pair, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Attacks:
    """A signed run that went well, and after it those that must not."""
    folder = tmp_path_factory.mktemp("apps")
    runs = Attacks(pair, keys, folder)
    good = client_bundle(folder, "good")
    runs.start("good", good, runs.signed(good))
    runs.outcome("good")

    runs.start("unsigned", client_bundle(folder, "unsigned"))
    foreign = client_bundle(folder, "foreign")
    runs.start("foreign", foreign, runs.signed(foreign, key="foreign"))
    expired = client_bundle(folder, "expired")
    runs.start("expired", expired, runs.signed(expired, seconds=-1))
    older = client_bundle(folder, "older")
    runs.start("older", older, runs.signed(older, version=VERSION - 1))
    runs.start("swapped", client_bundle(folder, "swapped"), runs.signed(good))
    # The signed bundle itself, with settings that the coordinator has not seen.
    runs.start("resettled", good, runs.signed(good), overrides="privacy=none")
    agent = agent_bundle(folder, "agent")
    runs.start("agent", agent)
    runs.start("signed-agent", agent, runs.signed(agent, version=VERSION + 1))
    return runs


def test_a_signed_clientapp_runs(attacks: Attacks) -> None:
    assert attacks.outcome("good")["site"] == "ran"
    assert "good" in attacks.pair.marks("site")


def test_a_site_without_a_signer_runs_nothing(attacks: Attacks) -> None:
    assert "the site has no signer" in attacks.outcome("good")["signerless"]
    assert "no flwr-agentapp" in attacks.outcome("agent")["signerless"]
    assert attacks.pair.marks("signerless") == set()
    assert "every run is refused" in attacks.pair.services["signerless"].said()


def test_a_signed_run_waits_where_the_engineer_has_not_approved_it(attacks: Attacks) -> None:
    assert "is not approved at this site" in attacks.outcome("good")["approving"]
    assert attacks.pair.marks("approving") == set()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param("unsigned", "is not signed", id="unsigned"),
        pytest.param("foreign", "signature does not fit", id="foreign_signature"),
        pytest.param("swapped", "signature does not fit", id="signature_of_another_bundle"),
        pytest.param("expired", "signature has expired", id="expired_signature"),
        pytest.param("older", f"version {VERSION - 1}, {VERSION} was accepted", id="rolled_back"),
        pytest.param("resettled", "signed for other settings", id="other_settings"),
        pytest.param("agent", "runs ClientApps, no flwr-agentapp", id="agentapp"),
        pytest.param("signed-agent", "runs ClientApps, no flwr-agentapp", id="signed_agentapp"),
    ],
)
def test_nothing_else_runs(attacks: Attacks, name: str, reason: str) -> None:
    assert reason in attacks.outcome(name)["site"]
    assert attacks.pair.marks("site") == {"good"}
    said = attacks.pair.services["site"].said()
    assert "refused, code bundle: " in said
    assert "flwr-agentapp` process" not in said


def test_refused_bundles_are_not_unpacked(attacks: Attacks) -> None:
    for name in attacks.runs:
        attacks.outcome(name)
    installed = attacks.pair.folder / "site" / "flower" / "apps"
    assert [path.name.split(".")[1] for path in installed.iterdir()] == ["good"]
    assert not (attacks.pair.folder / "signerless" / "flower" / "apps").exists()


def test_a_server_with_signers_starts_signed_runs_alone(keys: Path, tmp_path: Path) -> None:
    """Flower's own client sends its request to Flower's own SuperLink."""
    guarded = Pair(tmp_path)
    try:
        audit = str(tmp_path / "audit.jsonl")
        guarded.start_server(**{SIGNER: str(keys / "signer.pem"), AUDIT: audit})
        runs = Attacks(guarded, keys, tmp_path / "apps")
        bundle = client_bundle(tmp_path / "apps", "good")
        for signature in ("", runs.signed(bundle, key="foreign")):
            with pytest.raises(httpx.HTTPError):
                guarded.start_run(bundle, signature=signature)
        guarded.start_run(bundle, signature=runs.signed(bundle))
    finally:
        guarded.end()
    said = guarded.services["server"].said()
    assert "refused to start a run: the app bundle is not signed" in said
    (line,) = read_lines([tmp_path / "audit.jsonl"])
    assert (line.fields["event"], line.fields["signer"]) == ("start", "coordinator coordinator")


def test_a_signed_clientapp_can_start_no_serverapp_beside_it(attacks: Attacks) -> None:
    bundle = client_bundle(attacks.folder, "spawner", SPAWN)
    attacks.start("spawner", bundle, attacks.signed(bundle, version=VERSION + 2))
    assert "/create-task" in attacks.outcome("spawner")["site"]
    assert "spawner-serverapp" not in attacks.pair.marks("site")
    assert "no flwr-serverapp" in attacks.pair.services["site"].said()


def test_a_clientapp_ends_with_its_supernode(attacks: Attacks) -> None:
    """It would go on beside the one that the site's next SuperNode starts."""
    blocked = client_bundle(attacks.folder, "blocked", "import time; time.sleep(600)")
    attacks.start("blocked", blocked, attacks.signed(blocked, version=VERSION + 3))
    deadline = time.monotonic() + PATIENCE
    while "blocked" not in attacks.pair.marks("site"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert attacks.pair.programs("site") >= {"flower-superexec", "flwr-clientapp"}
    attacks.pair.services["site"].process.kill()
    attacks.pair.services["site"].process.wait()  # Flower takes a zombie for a running parent
    while attacks.pair.programs("site"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
