"""A federation of real containers, encrypted and authenticated: its run, walls and refusals."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from docker_engine import APP, SITES, TAG, USER, Federation, attempt, docker

from configs.compose import flatten
from deployment.certificates import new_site_key, write_secret
from deployment.federation_file import FederationFile
from deployment.provision import Kits
from deployment.signing import new_signer
from mediffusion_core.artifacts.checkpoints import list_checkpoints
from simulations.in_process import run_in_process

pytestmark = [pytest.mark.docker, pytest.mark.slow]

SMALLEST = (
    "training.autoencoder.local_epochs=1",
    "training.joint.local_epochs=1",
    "federation.autoencoder_rounds=1",
    "federation.num_rounds=1",
    "evaluation.every=1",
)
SERVER = {"host": "server", "port": 8000}


@pytest.fixture(scope="module")
def kits(images: None, tmp_path_factory: pytest.TempPathFactory) -> Kits:
    """A federation's keys, for containers' user to read."""
    folder = tmp_path_factory.mktemp("kits")
    content = {"name": "chest", "server": SERVER, "sites": SITES}
    made = Kits(FederationFile.model_validate(content), folder / "chest")
    list(made.make())
    give_to_containers(made.folder)
    return made


def give_to_containers(folder: Path) -> None:
    """Makes the containers' user the owner of all keys in a folder, which takes root."""
    script = f"find /keys -name '*.key' -exec chown {USER}:{USER} {{}} +"
    image = f"fed-mediffusion-site:{TAG}"
    mount = ("--user", "0", "--volume", f"{folder}:/keys", "--entrypoint", "sh")
    docker("run", "--rm", *mount, image, "-c", script)


@pytest.fixture(scope="module")
def federation(images: None, kits: Kits) -> Iterator[Federation]:
    started = Federation("fedmed-test", ("compose.yaml", "compose.tls.yaml"), kits.folder)
    started.up()
    yield started
    started.down()


@pytest.fixture(scope="module")
def signature(images: None, kits: Kits) -> str:
    """Of the app in the server's image, made there and not at the server that runs."""
    keys = f"{kits.folder / 'authority'}:/keys:ro"
    image = f"fed-mediffusion-server:{TAG}"
    command = ("--entrypoint", "fed-mediffusion", image, "sign", APP, "--key", "/keys/signer.key")
    return docker("run", "--rm", "--user", "0", "--volume", keys, *command).strip()


@pytest.fixture(scope="module")
def overrides(tiny: tuple[str, ...]) -> tuple[str, ...]:
    return (*tiny, *SMALLEST)


@pytest.fixture(scope="module")
def run_folder(
    federation: Federation,
    signature: str,
    overrides: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What a run of both stages left at the server."""
    assert federation.online() == len(SITES)
    assert federation.run(flatten(overrides), signature) == "finished:completed"
    folder = tmp_path_factory.mktemp("server") / "runs"
    federation.copy_out("server", "/var/lib/fed-mediffusion/runs", folder)
    (run,) = folder.glob("flwr-*")
    return run


def test_the_images_are_small_enough(images: None) -> None:
    for target in ("server", "site"):
        size = docker("image", "inspect", f"fed-mediffusion-{target}:{TAG}", "--format={{.Size}}")
        assert int(size) < 2e9


def test_a_run_of_both_stages_completes_with_its_figures(run_folder: Path) -> None:
    summary = json.loads((run_folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert set(summary["census"]) == set(SITES)
    assert 0.0 <= summary["auc_macro"] <= 1.0
    assert (run_folder / "report.html").is_file()
    assert not (run_folder / "sites").exists()


def test_the_weights_are_those_of_a_simulation(
    run_folder: Path, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    own = (f"run.folder={tmp_path / 'run'}", f"data.store={tmp_path / 'store'}")
    simulated = run_in_process("config", (*overrides, *own))
    expected = list_checkpoints(simulated.checkpoints)[-1]
    found = list_checkpoints(run_folder / "checkpoints")[-1]
    assert found.components() == expected.components()
    for component in expected.components():
        ours, theirs = found.load(component), expected.load(component)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("service", ["server", "site-0"])
def test_a_container_writes_into_its_volumes_alone(federation: Federation, service: str) -> None:
    script = (
        "id -u; grep CapEff /proc/self/status;"
        "for folder in / /opt /opt/venv/lib /usr /etc /home /data /run/secrets; do"
        " touch $folder/x 2>/dev/null && echo wrote $folder; done;"
        "touch /var/lib/fed-mediffusion/runs/x && rm /var/lib/fed-mediffusion/runs/x && echo volume"
    )
    lines = federation.inside(service, script).stdout.split("\n")
    assert lines[0] == str(USER)
    assert lines[1].split()[1] == "0" * 16
    assert lines[2:] == ["volume", ""]


def test_a_site_finds_no_way_out_but_to_the_server(federation: Federation) -> None:
    script = "python -c \"import socket; socket.create_connection(('192.0.2.1', 443), 5)\""
    assert "unreachable" in federation.inside("site-0", script).stderr


def test_preflight_says_that_a_site_may_join(federation: Federation) -> None:
    found = federation.inside("site-0", "fed-mediffusion preflight --server server:8000").stdout
    grades = {line[9:27].strip(): line[:8].strip() for line in found.splitlines()}
    for check in ("disk", "site's key", "coordinator's key", "server", "certificate", "clock"):
        assert grades[check] == "ok", found
    assert "PRIVATE" not in found


def test_a_site_can_neither_start_a_run_nor_register_a_key(federation: Federation) -> None:
    script = (
        "import ssl, urllib.request as r;"
        "c = ssl.create_default_context(cafile='/run/secrets/ca');"
        "r.urlopen('https://server:8000/v1/control/{}', b'', context=c)"
    )
    for path in ("start-run", "register-node", "list-runs"):
        said = federation.inside("site-0", f'python -c "{script.format(path)}"').stderr
        assert "HTTP Error 403" in said
    assert "refused /v1/control/start-run to" in federation.logs("server")


def stranger(federation: Federation, folder: Path, authority: Path, *options: str) -> str:
    """What a SuperNode with a key of its own says when it is not let in."""
    private, _ = new_site_key()
    write_secret(folder / "node.key", private)
    give_to_containers(folder)
    network = ("--network", f"{federation.project}_federation")
    # Files, not their folder, which the containers' user may not enter.
    key = ("--volume", f"{folder / 'node.key'}:/node.key:ro")
    trust = ("--volume", f"{authority}:/ca.pem:ro")
    limits = ("--max-retries", "1", "--max-wait-time", "10")
    image = f"fed-mediffusion-site:{TAG}"
    command = (image, "--superlink=server:8000", *limits, *options)
    done = attempt("run", "--rm", *network, *key, *trust, *command)
    assert done.returncode != 0
    return done.stdout + done.stderr


TLS = "--root-certificates=/ca.pem"
KEY = "--auth-supernode-private-key=/node.key"


def test_an_unregistered_key_is_refused(federation: Federation, kits: Kits, tmp_path: Path) -> None:
    authority = kits.folder / "authority" / "ca.pem"
    said = stranger(federation, tmp_path, authority, TLS, KEY)
    assert re.search(r"\[code: \d+\]", said), said


def test_a_client_without_a_key_is_refused(
    federation: Federation, kits: Kits, tmp_path: Path
) -> None:
    said = stranger(federation, tmp_path, kits.folder / "authority" / "ca.pem", TLS)
    assert re.search(r"\[code: \d+\]", said), said


def test_a_plaintext_client_is_refused(federation: Federation, kits: Kits, tmp_path: Path) -> None:
    said = stranger(federation, tmp_path, kits.folder / "authority" / "ca.pem", "--insecure")
    assert "Failed to initialize the connection" in said, said


def test_a_server_with_a_foreign_certificate_is_refused_by_a_site(
    federation: Federation, tmp_path: Path
) -> None:
    content = {"name": "foreign", "server": SERVER, "sites": SITES}
    foreign = Kits(FederationFile.model_validate(content), tmp_path / "foreign")
    list(foreign.make())
    said = stranger(federation, tmp_path, foreign.folder / "authority" / "ca.pem", TLS, KEY)
    assert "CERTIFICATE_VERIFY_FAILED" in said, said


@pytest.mark.parametrize("signed_by", ["nobody", "a stranger"])
def test_an_unsigned_bundle_is_refused_at_the_sites(
    federation: Federation,
    overrides: tuple[str, ...],
    tmp_path: Path,
    signed_by: str,
) -> None:
    signature = ""
    if signed_by == "a stranger":
        (tmp_path / "signer.key").write_bytes(new_signer()[0])
        (tmp_path / "signer.key").chmod(0o644)
        keys = f"{tmp_path / 'signer.key'}:/signer.key:ro"
        command = ("sign", APP, "--key", "/signer.key")
        image = f"fed-mediffusion-server:{TAG}"
        entry = ("--entrypoint", "fed-mediffusion", image)
        signature = docker("run", "--rm", "--volume", keys, *entry, *command).strip()
    assert federation.run(flatten(overrides), signature) == "finished:failed"
    federation.wait_for_log("site-0", "refused, code bundle: the app bundle")


def test_a_revoked_site_is_cut_off(federation: Federation, kits: Kits) -> None:
    list(kits.revoke("site-2"))
    federation.wait_for_log("server", "sites: revoked site-2", 60)
    federation.compose("restart", "--timeout", "5", "site-2")
    federation.wait_for_log("site-2", r"\[code: \d+\]", 180)
    assert federation.online() == len(SITES) - 1
