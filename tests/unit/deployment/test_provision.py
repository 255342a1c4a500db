"""Keys, certificates and kits: first issue, renewal and revocation."""

import base64
import ssl
import stat
import threading
from pathlib import Path
from socket import socketpair

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_private_key,
)
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from deployment import certificates
from deployment.passphrase import Passphrase
from deployment.signers import read_signers
from deployment.signing import Statement, new_signer, read_signer
from deployment.site_request import make_request, read_request
from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging.site_keys import read_keys
from mediffusion_core.settings.site_file import SiteFile
from simulations.cli.main import app

FILE = """
name: chest
server: {host: federation.example.org, port: 8443}
sites: [st-anna, uni]
make_site_keys: true
"""
OWN_KEYS = FILE.replace("true", "false")


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    (tmp_path / "federation.yaml").write_text(FILE)
    return tmp_path


def provision(folder: Path, *options: str) -> str:
    arguments = [str(folder / "federation.yaml"), "--output", str(folder / "chest"), *options]
    result = CliRunner().invoke(app, ["provision", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        return str(result.exception)
    return result.output


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def handshake(server: Path, authority: Path, name: str) -> str | None:
    """A client's error about a server's certificate, None if it accepts it."""
    here, there = socketpair()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(server / "server.pem", server / "server.key")

    def serve() -> None:
        try:
            serving.wrap_socket(there, server_side=True).close()
        except OSError:
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client = ssl.create_default_context(cafile=str(authority))
        client.wrap_socket(here, server_hostname=name).close()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        here.close()
        thread.join()
    return None


def test_a_kit_holds_a_sites_files_and_no_secret_of_others(federation: Path) -> None:
    provision(federation)
    made = contents(federation / "chest")
    assert set(contents(federation / "chest" / "kits" / "uni")) == {
        "README.md",
        "ca.pem",
        "compose.yaml",
        "kubernetes.yaml",
        "kustomization.yaml",
        "node.key",
        "signer.pem",
        "site.toml",
    }
    secrets = {name: text for name, text in made.items() if name.endswith(".key")}
    assert set(secrets) == {
        "authority/ca.key",
        "authority/signer.key",
        "server/server.key",
        "kits/st-anna/node.key",
        "kits/uni/node.key",
    }
    assert len(set(secrets.values())) == len(secrets)
    for name, secret in secrets.items():
        path = federation / "chest" / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, name
        assert not any(secret in text for other, text in made.items() if other != name)


def test_a_kits_compose_file_names_its_server_and_confines_the_site(federation: Path) -> None:
    provision(federation)
    text = (federation / "chest" / "kits" / "uni" / "compose.yaml").read_text()
    site = yaml.safe_load(text)["services"]["site"]
    assert "--superlink=federation.example.org:8443" in site["command"]
    assert any('site-file="/run/secrets/site-file"' in part for part in site["command"])
    assert (site["read_only"], site["cap_drop"]) == (True, ["ALL"])
    assert site["volumes"][0].endswith(":/data:ro")
    assert "ports" not in site


def test_a_kits_site_file_protects_until_the_engineer_says_otherwise(federation: Path) -> None:
    provision(federation)
    site = SiteFile.read(federation / "chest" / "kits" / "uni" / "site.toml")
    policy = site.policy
    assert (site.name, policy.require_privacy, policy.approval) == ("uni", True, "required")
    assert policy.max_epsilon and policy.min_noise_multiplier and policy.allowed_settings
    assert policy.keep_latents == "run"


def test_the_servers_compose_file_opens_its_port_and_follows_the_keys(federation: Path) -> None:
    provision(federation)
    text = (federation / "chest" / "server" / "compose.yaml").read_text()
    server = yaml.safe_load(text)["services"]["server"]
    assert server["ports"] == ["8443:8000"]
    assert "--enable-supernode-auth" in server["command"]
    assert server["volumes"][0] == "./sites:/etc/fed-mediffusion/sites:ro"


def test_a_second_call_changes_nothing(federation: Path) -> None:
    provision(federation)
    before = contents(federation / "chest")
    assert provision(federation) == ""
    assert contents(federation / "chest") == before


def test_a_site_that_joins_later_gets_a_kit_and_the_others_keep_theirs(federation: Path) -> None:
    provision(federation)
    before = contents(federation / "chest" / "kits" / "uni")
    (federation / "federation.yaml").write_text(FILE.replace("uni]", "uni, west]"))
    assert "made the kit of west" in provision(federation)
    assert contents(federation / "chest" / "kits" / "uni") == before
    assert set(read_keys(federation / "chest" / "server" / "sites")) == {"st-anna", "uni", "west"}


def test_sites_are_renewed_and_revoked_one_by_one(federation: Path) -> None:
    provision(federation)
    keys = federation / "chest" / "server" / "sites"
    before = read_keys(keys)

    provision(federation, "--revoke", "uni")
    assert set(read_keys(keys)) == {"st-anna"}
    assert "uni is revoked" in provision(federation)
    assert set(read_keys(keys)) == {"st-anna"}

    provision(federation, "--renew", "uni")
    after = read_keys(keys)
    assert after["st-anna"] == before["st-anna"]
    assert after["uni"] != before["uni"]


def test_a_renewed_kit_keeps_the_sites_changes(federation: Path) -> None:
    provision(federation)
    file = federation / "chest" / "kits" / "uni" / "site.toml"
    file.write_text(file.read_text().replace("auto", "cuda:0"))
    provision(federation, "--renew", "uni")
    assert "cuda:0" in file.read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--revoke", "east"), "no site east in this federation; there are st-anna, uni"),
        (("--renew", "east"), "no site east"),
        (("--renew", "uni", "--revoke", "uni"), "--revoke excludes --renew"),
        (("--request", "none.csr"), "none.csr: No such file"),
    ],
)
def test_a_mistake_is_one_line(federation: Path, options: tuple[str, ...], said: str) -> None:
    provision(federation)
    assert said in provision(federation, *options)


def test_kits_and_server_have_the_trusted_signers_of_the_federation(federation: Path) -> None:
    provision(federation)
    places = [
        federation / "chest" / place for place in ("server/signers.pem", "kits/uni/signer.pem")
    ]
    assert [str(one) for one in read_signers(places[0])] == ["coordinator chest"]
    (federation / "anna.pem").write_bytes(new_signer()[1])
    listed = "signers:\n  - {name: anna, role: researcher, key: anna.pem}\n"
    (federation / "federation.yaml").write_text(FILE + listed)
    said = provision(federation)
    assert "wrote the trusted signers of uni; send it" in said
    for place in places:
        found = [str(one) for one in read_signers(place)]
        assert found == ["coordinator chest", "researcher anna"]
    assert provision(federation) == ""


@pytest.fixture
def own_keys(federation: Path) -> Path:
    """A federation whose sites make their own keys."""
    (federation / "federation.yaml").write_text(OWN_KEYS)
    return federation


def request(folder: Path, name: str) -> tuple[Path, str]:
    """A new key of a site in a folder of its own: the request, and the key's fingerprint."""
    folder.mkdir()
    printed = CliRunner().invoke(app, ["site", "request", name, "--folder", str(folder)]).output
    said, file = printed.split()[1], printed.split()[-1]
    return Path(file), said.rstrip(";")


def test_a_site_makes_its_own_key_and_the_coordinator_never_has_it(
    own_keys: Path, tmp_path: Path
) -> None:
    assert "uni has no key at the server yet" in provision(own_keys)
    file, fingerprint = request(tmp_path / "uni", "uni")
    key = tmp_path / "uni" / "node.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    secret = key.read_bytes().splitlines()[1:-1]
    assert not any(line in file.read_bytes() for line in secret)
    assert fingerprint in provision(own_keys, "--request", str(file))
    assert set(read_keys(own_keys / "chest" / "server" / "sites")) == {"uni"}
    assert "uni has no key" not in provision(own_keys)
    made = contents(own_keys / "chest")
    assert not any(name.endswith("node.key") for name in made)
    assert not any(line in text for text in made.values() for line in secret)
    # The server lets in the site's own key: what Flower reads of both is one key.
    private = load_ssh_private_key(key.read_bytes(), password=None)
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert read_keys(own_keys / "chest" / "server" / "sites")["uni"] == pem


def test_a_key_is_replaced_only_where_the_coordinator_renews_it(
    own_keys: Path, tmp_path: Path
) -> None:
    provision(own_keys)
    first, second = request(tmp_path / "1", "uni")[0], request(tmp_path / "2", "uni")[0]
    provision(own_keys, "--request", str(first))
    keys = own_keys / "chest" / "server" / "sites"
    before = read_keys(keys)
    assert "uni has a key already" in provision(own_keys, "--request", str(second))
    assert "needs its new --request" in provision(own_keys, "--renew", "uni")
    other = request(tmp_path / "3", "st-anna")[0]
    wrong = provision(own_keys, "--renew", "uni", "--request", str(other))
    assert "is the request of st-anna" in wrong and read_keys(keys) == before
    provision(own_keys, "--renew", "uni", "--request", str(second))
    assert read_keys(keys) != before
    provision(own_keys, "--request", str(other))
    provision(own_keys, "--revoke", "uni")
    assert "uni is revoked" in provision(own_keys, "--request", str(first))
    provision(own_keys, "--renew", "uni", "--request", str(first))
    assert set(read_keys(keys)) == {"st-anna", "uni"}


def test_a_wrong_request_is_named(own_keys: Path, tmp_path: Path) -> None:
    provision(own_keys)
    file, _ = request(tmp_path / "uni", "uni")
    for change, said in (
        (file.read_text().replace("CERTIFICATE REQUEST", "CERTIFICATE"), "no signing request"),
        ("", "no signing request"),
    ):
        (tmp_path / "changed.csr").write_text(change)
        assert said in provision(own_keys, "--request", str(tmp_path / "changed.csr"))
    stranger, _ = request(tmp_path / "east", "east")
    assert "no site east" in provision(own_keys, "--request", str(stranger))
    provision(own_keys, "--request", str(file))
    key = load_ssh_private_key((tmp_path / "uni" / "node.key").read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    for name, signed_with, said in (
        ("st-anna", key, "st-anna has the key of uni"),
        ("st-anna", ec.generate_private_key(ec.SECP256R1()), "no key of the curve P-384"),
        ("../x", ec.generate_private_key(ec.SECP384R1()), "has no site's name"),
    ):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = x509.CertificateSigningRequestBuilder().subject_name(subject)
        pem = made.sign(signed_with, hashes.SHA384()).public_bytes(Encoding.PEM)
        (tmp_path / "changed.csr").write_bytes(pem)
        assert said in provision(own_keys, "--request", str(tmp_path / "changed.csr"))


def test_a_request_that_was_not_signed_with_its_key_is_refused(tmp_path: Path) -> None:
    """Else a site could register another one's public key under its own name."""
    file, _ = request(tmp_path / "uni", "uni")
    body = bytearray(base64.b64decode("".join(file.read_text().splitlines()[1:-1])))
    body[body.index(b"uni") + 2] ^= 1  # the name is covered by the signature
    pem = base64.encodebytes(bytes(body)).decode()
    file.write_text(
        f"-----BEGIN CERTIFICATE REQUEST-----\n{pem}-----END CERTIFICATE REQUEST-----\n"
    )
    with pytest.raises(UserError, match="was not signed with the key"):
        read_request(file)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    request(tmp_path / "uni", "uni")
    before = (tmp_path / "uni" / "node.key").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        make_request("uni", tmp_path / "uni")
    assert (tmp_path / "uni" / "node.key").read_bytes() == before
    with pytest.raises(UserError, match="is no site's name"):
        make_request("../uni", tmp_path)


def test_the_coordinators_keys_are_encrypted(
    federation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "passphrase").write_text("correct horse\n")
    given = ("--passphrase", f"file:{tmp_path / 'passphrase'}")
    provision(federation, "--encrypt-keys", *given)
    authority = federation / "chest" / "authority"
    for name in ("ca.key", "signer.key"):
        assert b"ENCRYPTED PRIVATE KEY" in (authority / name).read_bytes()
    assert "valid until" in provision(federation, "--renew", "server", *given)
    assert "a passphrase of" in provision(federation, "--renew", "server")
    monkeypatch.setenv("SECRET", "wrong")
    wrong = provision(federation, "--renew", "server", "--passphrase", "env:SECRET")
    assert "the passphrase is wrong" in wrong
    said = provision(federation, "--renew", "server", "--passphrase", "correct horse")
    assert "never the passphrase itself" in said and "correct" not in said
    monkeypatch.setenv("SECRET", "correct horse")
    signed = Statement(bundle="0" * 64, settings="0" * 64, not_after=1, version=1).signed_by(
        authority / "signer.key", Passphrase("env:SECRET")
    )
    assert Statement.verified(signed, read_signer(authority / "signer.pem"))


def test_keys_are_not_encrypted_with_an_empty_passphrase(federation: Path) -> None:
    said = provision(federation, "--encrypt-keys", "--passphrase", "env:NOT_SET")
    assert "is empty" in said and not (federation / "chest" / "authority" / "ca.key").exists()


def test_the_last_site_is_not_revoked(federation: Path) -> None:
    provision(federation)
    provision(federation, "--revoke", "uni")
    assert "st-anna is the last site" in provision(federation, "--revoke", "st-anna")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\nsites: [a]\n", "server: Field required"),
        (FILE.replace("uni]", "St-Anna]"), "two sites have one name"),
        (FILE.replace("uni]", "../uni]"), "sites.1: String should match"),
        (FILE.replace("uni]", "server]"), "no site may be called server"),
        (FILE + "signers: [{name: a, role: chief, key: a.pem}]", "signers.0.role: Input should be"),
        (
            FILE + "signers: [{name: a, role: auditor, key: a}, {name: a, role: auditor, key: a}]",
            "two signers have one name",
        ),
        ("name: [", "federation.yaml"),
    ],
)
def test_a_wrong_federation_file_is_named(federation: Path, text: str, said: str) -> None:
    (federation / "federation.yaml").write_text(text)
    assert said in provision(federation)
    assert not (federation / "chest").exists()


def test_the_servers_certificate_holds_for_its_names_alone(federation: Path) -> None:
    provision(federation)
    server, authority = federation / "chest" / "server", federation / "chest/authority/ca.pem"
    for name in ("federation.example.org", "server", "127.0.0.1"):
        assert handshake(server, authority, name) is None
    assert "mismatch" in str(handshake(server, authority, "elsewhere.example.org"))


def test_a_foreign_certificate_is_refused(federation: Path, tmp_path: Path) -> None:
    provision(federation)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "federation.yaml").write_text(FILE)
    provision(foreign)
    authority = federation / "chest" / "authority" / "ca.pem"
    assert handshake(foreign / "chest" / "server", authority, "federation.example.org")


def test_an_expired_certificate_is_refused(federation: Path, tmp_path: Path) -> None:
    provision(federation)
    key, authority = certificates.read_authority(federation / "chest" / "authority")
    server_key, certificate = certificates.new_server(key, authority, ["uni"], days=0)
    (tmp_path / "server.pem").write_bytes(certificates.certificate_pem(certificate))
    (tmp_path / "server.key").write_bytes(certificates.private_pem(server_key))
    said = handshake(tmp_path, federation / "chest" / "authority" / "ca.pem", "uni")
    assert said == "certificate has expired"


def test_a_renewed_server_has_another_certificate_of_the_same_authority(federation: Path) -> None:
    provision(federation)
    server = federation / "chest" / "server"
    before = (server / "server.pem").read_bytes()
    assert "valid until" in provision(federation, "--renew", "server")
    assert (server / "server.pem").read_bytes() != before
    assert handshake(server, federation / "chest" / "authority" / "ca.pem", "server") is None
