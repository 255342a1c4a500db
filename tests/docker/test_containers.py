"""A federation of real containers, encrypted and authenticated: its run, walls and refusals."""

import json
import re
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from docker_engine import SITES, TAG, USER, Federation, attempt, docker, signed
from docker_kits import give_to_containers, new_kits

from configs.compose import flatten
from deployment import certificates
from deployment.certificates import new_site_key, write_secret
from deployment.provision import Kits
from deployment.signing import new_signer
from mediffusion_core.run_io.run_folder import RunFolder

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.mark.short
def test_a_federation_is_healthy_within_a_minute(federation: Federation) -> None:
    assert federation.seconds_to_healthy <= 60


@pytest.fixture(scope="module")
def run_folder(
    federation: Federation,
    sign: Callable[[str], str],
    overrides: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The files of a run of both stages at the server."""
    federation.wait_until_all_are_there()
    moved = federation.received("site-0")
    folder = federation.start(sign(flatten(overrides)))
    assert federation.wait_for_end(folder, 900) == "finished:completed"
    moved = federation.received("site-0") - moved
    target = tmp_path_factory.mktemp("server") / "run"
    federation.copy_out("server", folder, target)
    (target / "received").write_text(str(moved))
    return target


@pytest.mark.short
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
    run_folder: Path,
    overrides: tuple[str, ...],
    must_be_simulated: Callable[[Path, tuple[str, ...]], None],
) -> None:
    must_be_simulated(run_folder, overrides)


def test_a_site_receives_the_bytes_that_are_said(run_folder: Path) -> None:
    """The engine counts what TLS and HTTP add, and the app's code, too."""
    rounds = [
        line["traffic"]["site-0"] for line in RunFolder(run_folder).history() if "traffic" in line
    ]
    said = sum(line["bytes_received"] for line in rounds)
    moved = int((run_folder / "received").read_text())
    print(f"site-0 received {moved} bytes, {said} of them the weights of rounds")
    assert said < moved


@pytest.mark.short
def test_a_site_has_no_program_of_flowers_but_those_it_starts(images: None) -> None:
    look = ("--entrypoint", "sh", f"fed-mediffusion-site:{TAG}", "-c")
    found = docker("run", "--rm", *look, "find / -name 'flwr*' -o -name 'flower*' | grep /bin/")
    assert set(found.split()) == {"/opt/venv/bin/flower-superexec", "/opt/venv/bin/flwr-clientapp"}
    program = docker("run", "--rm", *look, "cat /opt/venv/bin/flwr-clientapp")
    assert "from deployment.clientapp import main" in program


@pytest.mark.short
def test_the_image_lists_its_packages(images: None) -> None:
    for target in ("server", "site"):
        image = f"fed-mediffusion-{target}:{TAG}"
        read = ("--entrypoint", "cat", image, "/opt/venv/sbom.cdx.json")
        listed = json.loads(docker("run", "--rm", *read))
        assert listed["bomFormat"] == "CycloneDX"
        found = {part["name"].lower(): part["version"] for part in listed["components"]}
        script = (
            "import importlib.metadata as m; print(*{d.name.lower() for d in m.distributions()})"
        )
        python = ("--entrypoint", "python", image, "-c", script)
        installed = set(docker("run", "--rm", *python).split())
        assert installed == found.keys(), installed ^ found.keys()
        assert found["torch"] == "2.13.0+cpu"


@pytest.mark.short
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


def test_preflight_passes_at_a_configured_site(federation: Federation) -> None:
    command = "fed-mediffusion-site preflight --server server:8000"
    found = federation.inside("site-0", command).stdout
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
        assert "HTTP Error 401" in said
    assert "refused /v1/control/start-run to" in federation.logs("server")


def stranger(
    federation: Federation, folder: Path, authority: Path, *options: str, server: str = "server"
) -> str:
    """The output of a SuperNode with a key of its own that is refused, or refuses the server."""
    private, _ = new_site_key()
    write_secret(folder / "node.key", private)
    give_to_containers(folder)
    network = ("--network", f"{federation.project}_federation")
    # Files, not their folder, which the containers' user may not enter.
    key = ("--volume", f"{folder / 'node.key'}:/node.key:ro")
    trust = ("--volume", f"{authority}:/ca.pem:ro")
    limits = ("--max-retries", "1", "--max-wait-time", "10")
    image = f"fed-mediffusion-site:{TAG}"
    command = (image, f"--superlink={server}:8000", *limits, *options)
    done = attempt("run", "--rm", *network, *key, *trust, *command)
    assert done.returncode != 0
    return done.stdout + done.stderr


TLS = "--root-certificates=/ca.pem"
KEY = "--auth-supernode-private-key=/node.key"


@pytest.mark.short
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
    foreign = new_kits(tmp_path)
    said = stranger(federation, tmp_path, foreign.folder / "authority" / "ca.pem", TLS, KEY)
    assert "CERTIFICATE_VERIFY_FAILED" in said, said


def test_a_server_with_an_expired_certificate_is_refused_by_a_site(
    federation: Federation, kits: Kits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "SKEW", timedelta(days=3))
    authority = kits.folder / "authority"
    key, expired = certificates.new_server(
        *certificates.read_authority(authority), ["late"], days=-1
    )
    (tmp_path / "server.pem").write_bytes(certificates.certificate_pem(expired))
    certificates.write_secret(tmp_path / "server.key", certificates.private_pem(key))
    give_to_containers(tmp_path)
    place = ("--network", f"{federation.project}_federation", "--network-alias", "late")
    files = {"ca.pem": authority / "ca.pem", "server.pem": tmp_path / "server.pem"}
    files["server.key"] = tmp_path / "server.key"
    mounts = [part for name, file in files.items() for part in ("--volume", f"{file}:/{name}:ro")]
    secured = ("--ssl-ca-certfile=/ca.pem", "--ssl-certfile=/server.pem")
    command = (f"fed-mediffusion-server:{TAG}", *secured, "--ssl-keyfile=/server.key")
    health = ("--host=0.0.0.0", "--health-server-address=127.0.0.1:9099")
    server = docker("run", "--detach", *place, *mounts, *command, *health).strip()
    try:
        while (
            state := docker("inspect", "--format={{.State.Health.Status}}", server)
        ) != "healthy\n":
            assert state == "starting\n", docker("logs", server)
            time.sleep(1)
        said = stranger(federation, tmp_path, authority / "ca.pem", TLS, KEY, server="late")
    finally:
        docker("rm", "--force", "--volumes", server)
    assert "certificate has expired" in said, said


@pytest.mark.parametrize("signed_by", ["no signer", "a stranger"])
def test_an_unsigned_bundle_is_refused_at_the_sites(
    federation: Federation,
    overrides: tuple[str, ...],
    tmp_path: Path,
    signed_by: str,
) -> None:
    config = f'overrides="{flatten(overrides)}"'
    if signed_by == "a stranger":
        (tmp_path / "signer.key").write_bytes(new_signer()[0])
        config = signed(tmp_path, flatten(overrides))
    assert federation.run(config) == "finished:failed"
    federation.wait_for_log("site-0", "refused, code bundle: the app bundle")
