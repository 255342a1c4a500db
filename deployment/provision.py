"""`fed-mediffusion provision`: keys, certificates and a start-up kit for each site.

Existing files stay unchanged. Run the command again after a site was added.

    authority/          for the coordinator: ca.key, signer.key and their public keys
    server/             for the server: key, certificate, compose file and manifests, signers.pem,
                        sites/SITE.pub
    kits/SITE/          for one site
    revoked/            public keys of revoked sites

A site makes its own key, and sends a signing request: the coordinator never has a site's private
key. With `make_site_keys` in the federation file, for trials on one machine, kits have keys.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from cryptography import x509

from deployment import certificates
from deployment.federation_file import FederationFile
from deployment.passphrase import Passphrase
from deployment.signers import Role, Signer, write_signers
from deployment.signing import new_signer, read_signer
from deployment.site_request import Request, read_request
from mediffusion_core.common.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"
LOCAL_NAMES = ("server", "localhost", "127.0.0.1")
"""Names of the server on its own machine, beside its public name."""


@dataclass(frozen=True)
class Kits:
    """The folder of one federation.

    Attributes:
        federation: Its file.
        folder: Of all keys and kits.
        passphrase: Of the coordinator's keys.
        encrypt: Whether new keys of the coordinator are encrypted with it.
    """

    federation: FederationFile
    folder: Path
    passphrase: Passphrase = field(default_factory=Passphrase)
    encrypt: bool = False

    def make(self) -> Iterator[str]:
        """Makes all missing keys and kits; yields one line for each.

        Raises:
            UserError: if the passphrase can't be had or is wrong, or a signer's key can't be read.
        """
        if not (self._authority / "ca.key").is_file():
            self._make_authority()
            yield f"made the authority of {self.federation.name}, for the coordinator alone"
        if not (self._server / "server.key").is_file():
            yield self._make_server()
        signers = self._signers()
        if _replaced(self._server / "signers.pem", signers):
            yield "wrote the trusted signers of the server"
        for site in self.federation.sites:
            if not (self._kit(site) / "compose.yaml").is_file():
                yield self._make_kit(site)
            if _replaced(self._kit(site) / "signer.pem", signers):
                yield f"wrote the trusted signers of {site}; send it {self._kit(site)}/signer.pem"
            if self._is_revoked(site):
                yield f"{site} is revoked, --renew {site} lets it in again"
            elif not self._key_of(site).is_file():
                if self.federation.make_site_keys:
                    yield self._make_key(site)
                else:
                    yield f"{site} has no key at the server yet; --request FILE adds it"

    def renew(self, name: str, request: Path | None = None) -> Iterator[str]:
        """Replaces the key of one site, or the key and certificate of the server.

        Args:
            name: A site, or `server`.
            request: File of the site's new signing request.

        Raises:
            UserError: if the federation has no site of that name, or the request is missing, not
                the site's or wrong.
        """
        if name == "server":
            yield self._make_server()
            return
        self._known(name)
        if request is None and not self.federation.make_site_keys:
            raise UserError(f"{name} makes its own key; --renew {name} needs its new --request")
        given = None if request is None else read_request(request)
        if given is not None and given.name != name:
            raise UserError(f"{request} is the request of {given.name}, not of {name}")
        (self._revoked / f"{name}.pub").unlink(missing_ok=True)
        yield self._make_key(name) if given is None else self._register(given)

    def add(self, request: Path) -> Iterator[str]:
        """Registers the key of a site's signing request.

        Raises:
            UserError: if the request is wrong, the site is unknown or revoked, or it has a key.
        """
        given = read_request(request)
        self._known(given.name)
        if self._is_revoked(given.name) or self._key_of(given.name).is_file():
            state = "is revoked" if self._is_revoked(given.name) else "has a key already"
            raise UserError(
                f"{given.name} {state}; --renew {given.name} --request {request} replaces its key"
            )
        yield self._register(given)

    def revoke(self, site: str) -> Iterator[str]:
        """Revokes one site: moves its key out of the server's folder.

        Raises:
            UserError: if the site is unknown, has no key at the server, or is the last one.
        """
        self._known(site)
        key = self._key_of(site)
        if not key.is_file():
            raise UserError(f"{site} has no key at the server")
        if len(list(self._keys.glob("*.pub"))) == 1:
            raise UserError(f"{site} is the last site with a key; stop the server instead")
        self._revoked.mkdir(exist_ok=True)
        key.replace(self._revoked / key.name)
        yield f"revoked {site}; the server cuts it off within seconds once its folder has changed"

    @property
    def _authority(self) -> Path:
        return self.folder / "authority"

    @property
    def _server(self) -> Path:
        return self.folder / "server"

    @property
    def _keys(self) -> Path:
        return self._server / "sites"

    @property
    def _revoked(self) -> Path:
        return self.folder / "revoked"

    def _kit(self, site: str) -> Path:
        return self.folder / "kits" / site

    def _key_of(self, site: str) -> Path:
        return self._keys / f"{site}.pub"

    def _is_revoked(self, site: str) -> bool:
        return (self._revoked / f"{site}.pub").is_file()

    def _known(self, site: str) -> None:
        if site not in self.federation.sites:
            names = ", ".join(self.federation.sites)
            raise UserError(f"no site {site} in this federation; there are {names}")

    def _make_authority(self) -> None:
        given = None
        if self.encrypt:
            given = self.passphrase.read("for ca.key and signer.key", confirm=True)
        self._authority.mkdir(parents=True, mode=0o700, exist_ok=True)
        key, certificate = certificates.new_authority(self.federation.name)
        private, public = new_signer(given)
        (self._authority / "ca.pem").write_bytes(certificates.certificate_pem(certificate))
        (self._authority / "signer.pem").write_bytes(public)
        certificates.write_secret(self._authority / "signer.key", private)
        # Written last: `make` takes the authority as complete once this file exists.
        certificates.write_secret(self._authority / "ca.key", certificates.private_pem(key, given))

    def _make_server(self) -> str:
        self._keys.mkdir(parents=True, exist_ok=True)
        key, authority = certificates.read_authority(self._authority, self.passphrase)
        hosts = list(dict.fromkeys((self.federation.server.host, *LOCAL_NAMES)))
        days = self.federation.certificate_days
        server_key, certificate = certificates.new_server(key, authority, hosts, days)
        (self._server / "ca.pem").write_bytes(certificates.certificate_pem(authority))
        (self._server / "server.pem").write_bytes(certificates.certificate_pem(certificate))
        certificates.write_secret(self._server / "server.key", certificates.private_pem(server_key))
        for kind in ("kubernetes", "kustomization", "compose"):
            self._fill(f"server.{kind}.yaml", self._server / f"{kind}.yaml", {})
        return f"made the server's certificate, valid until {_until(certificate)}"

    def _make_kit(self, site: str) -> str:
        kit = self._kit(site)
        kit.mkdir(parents=True, mode=0o700, exist_ok=True)
        (kit / "ca.pem").write_bytes((self._authority / "ca.pem").read_bytes())
        certificate = x509.load_pem_x509_certificate((self._server / "server.pem").read_bytes())
        filled = {"site": site, "until": _until(certificate)}
        self._fill("README.md", kit / "README.md", filled)
        self._fill("site.toml", kit / "site.toml", filled)
        for kind in ("kubernetes", "kustomization"):
            self._fill(f"site.{kind}.yaml", kit / f"{kind}.yaml", filled)
        # Written last: `make` takes the kit as complete once this file exists.
        self._fill("site.compose.yaml", kit / "compose.yaml", filled)
        return f"made the kit of {site}: {kit}"

    def _signers(self) -> bytes:
        """The coordinator, and the signers of the federation file."""
        own = read_signer(self._authority / "signer.pem")
        listed = [
            Signer(one.name, one.role, read_signer(one.key)) for one in self.federation.signers
        ]
        return write_signers([Signer(self.federation.name, Role.COORDINATOR, own), *listed])

    def _make_key(self, site: str) -> str:
        private, public = certificates.new_site_key()
        certificates.write_secret(self._kit(site) / "node.key", private)
        return self._register(Request(site, public))

    def _register(self, request: Request) -> str:
        """Gives the server a site's key, which no other site may have."""
        for other in self._keys.glob("*.pub"):
            if other.read_bytes() == request.public and other.stem != request.name:
                raise UserError(f"{request.name} has the key of {other.stem}")
        # Renamed into place: the server must never read a partial key.
        temporary = self._keys / f".{request.name}.tmp"
        temporary.write_bytes(request.public)
        temporary.replace(self._key_of(request.name))
        return f"registered {request.name}, key {request.fingerprint}"

    def _fill(self, template: str, path: Path, values: Mapping[str, str]) -> None:
        """Writes a file from its template, unless the file exists: a user may have edited it."""
        if path.is_file():
            return
        server = self.federation.server
        known = {
            "federation": self.federation.name,
            "server": f"{server.host}:{server.port}",
            "port": str(server.port),
        }
        text = Template((TEMPLATES / template).read_text(encoding="utf-8"))
        path.write_text(text.substitute(known | dict(values)), encoding="utf-8")


def _replaced(path: Path, content: bytes) -> bool:
    """Writes a file unless it has the content; returns whether it was written."""
    if path.is_file() and path.read_bytes() == content:
        return False
    path.write_bytes(content)
    return True


def _until(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"
