"""`fed-mediffusion provision`: keys, certificates and a start-up kit for each site.

Existing files stay unchanged. Run the command again after a site was added.

    authority/          for the coordinator: ca.key, signer.key and their public keys
    server/             for the server: key, certificate, compose file, and sites/SITE.pub
    kits/SITE/          for one site
    revoked/            public keys of revoked sites
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from cryptography import x509

from deployment import certificates
from deployment.federation_file import FederationFile
from deployment.signing import new_signer
from mediffusion_core.common.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"
LOCAL_NAMES = ("server", "localhost", "127.0.0.1")
"""Names of the server on its own machine, beside its public name."""


@dataclass(frozen=True)
class Kits:
    """The folder of one federation."""

    federation: FederationFile
    folder: Path

    def make(self) -> Iterator[str]:
        """Makes all missing keys and kits; yields one line for each."""
        if not (self._authority / "ca.key").is_file():
            self._make_authority()
            yield f"made the authority of {self.federation.name}, for the coordinator alone"
        if not (self._server / "server.key").is_file():
            yield self._make_server()
        for site in self.federation.sites:
            if self._is_revoked(site):
                yield f"{site} is revoked, --renew {site} lets it in again"
            elif not (self._kit(site) / "node.key").is_file():
                yield self._make_kit(site)

    def renew(self, name: str) -> Iterator[str]:
        """Makes a new key for one site, or a new key and certificate for the server.

        Raises:
            UserError: if the federation has no site of that name.
        """
        if name == "server":
            yield self._make_server()
            return
        self._known(name)
        (self._revoked / f"{name}.pub").unlink(missing_ok=True)
        yield self._make_kit(name)

    def revoke(self, site: str) -> Iterator[str]:
        """Revokes one site: moves its key out of the server's folder.

        Raises:
            UserError: if the site is unknown, has no key at the server, or is the last one.
        """
        self._known(site)
        key = self._keys / f"{site}.pub"
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

    def _is_revoked(self, site: str) -> bool:
        return (self._revoked / f"{site}.pub").is_file()

    def _known(self, site: str) -> None:
        if site not in self.federation.sites:
            names = ", ".join(self.federation.sites)
            raise UserError(f"no site {site} in this federation; there are {names}")

    def _make_authority(self) -> None:
        self._authority.mkdir(parents=True, mode=0o700, exist_ok=True)
        key, certificate = certificates.new_authority(self.federation.name)
        private, public = new_signer()
        (self._authority / "ca.pem").write_bytes(certificates.certificate_pem(certificate))
        (self._authority / "signer.pem").write_bytes(public)
        certificates.write_secret(self._authority / "signer.key", private)
        # Written last: `make` takes the authority as complete once this file exists.
        certificates.write_secret(self._authority / "ca.key", certificates.private_pem(key))

    def _make_server(self) -> str:
        self._keys.mkdir(parents=True, exist_ok=True)
        key, authority = certificates.read_authority(self._authority)
        hosts = list(dict.fromkeys((self.federation.server.host, *LOCAL_NAMES)))
        days = self.federation.certificate_days
        server_key, certificate = certificates.new_server(key, authority, hosts, days)
        (self._server / "ca.pem").write_bytes(certificates.certificate_pem(authority))
        (self._server / "server.pem").write_bytes(certificates.certificate_pem(certificate))
        certificates.write_secret(self._server / "server.key", certificates.private_pem(server_key))
        self._fill("server.compose.yaml", self._server / "compose.yaml", {})
        return f"made the server's certificate, valid until {_until(certificate)}"

    def _make_kit(self, site: str) -> str:
        kit = self._kit(site)
        kit.mkdir(parents=True, mode=0o700, exist_ok=True)
        private, public = certificates.new_site_key()
        for name, source in (("ca.pem", "ca.pem"), ("signer.pem", "signer.pem")):
            (kit / name).write_bytes((self._authority / source).read_bytes())
        certificate = x509.load_pem_x509_certificate((self._server / "server.pem").read_bytes())
        filled = {"site": site, "until": _until(certificate)}
        for template, name in (
            ("README.md", "README.md"),
            ("site.compose.yaml", "compose.yaml"),
            ("site.toml", "site.toml"),
        ):
            self._fill(template, kit / name, filled)
        certificates.write_secret(kit / "node.key", private)
        # Renamed into place: the server must never read a partial key.
        temporary = self._keys / f".{site}.tmp"
        temporary.write_bytes(public)
        temporary.replace(self._keys / f"{site}.pub")
        return f"made the kit of {site}: {kit}"

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


def _until(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"
