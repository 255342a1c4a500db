"""A site's key, made at the site, and its signing request for the coordinator.

The request is a certificate signing request (PKCS #10, RFC 2986): name and public key of the site,
signed with its private key, which stays at the site. Anyone can make a request in a site's name, so
site and coordinator compare the key's fingerprint by telephone.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_ssh_private_key
from cryptography.x509.oid import NameOID

from deployment.certificates import new_site_key, public_line, write_secret
from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging.site_keys import fingerprint
from mediffusion_core.settings.site_file import NAME


@dataclass(frozen=True)
class Request:
    """A site's name and its public key in OpenSSH's format."""

    name: str
    public: bytes

    @property
    def fingerprint(self) -> str:
        """Of the public key, as `ssh-keygen -l` has it."""
        return fingerprint(self.public)


def make_request(name: str, folder: Path) -> tuple[Path, Request]:
    """Makes `node.key`, readable by its owner alone, and `NAME.csr` in a folder.

    Returns:
        The file of the request, and the request.

    Raises:
        UserError: if the name is none of a site, or the folder has a key already.
    """
    if not re.fullmatch(NAME, name):
        raise UserError(f"{name} is no site's name: letters, digits, `_`, `.` and `-`, at most 63")
    folder.mkdir(parents=True, exist_ok=True)
    key_file, file = folder / "node.key", folder / f"{name}.csr"
    if key_file.exists():
        raise UserError(f"{key_file} exists already; a new key needs the coordinator's --renew")
    private, public = new_site_key()
    key = load_ssh_private_key(private, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    file.write_bytes(request.sign(key, hashes.SHA384()).public_bytes(Encoding.PEM))
    write_secret(key_file, private)
    return file, Request(name, public)


def read_request(file: Path) -> Request:
    """Reads a signing request.

    Raises:
        UserError: if it is none, or was not signed with the key that it names.
    """
    try:
        request = x509.load_pem_x509_csr(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{file} is no signing request") from None
    key = request.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise UserError(f"{file} has no key of the curve P-384")
    if not request.is_signature_valid:
        raise UserError(f"{file} was not signed with the key that it names")
    names = [str(one.value) for one in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if len(names) != 1 or not re.fullmatch(NAME, names[0]):
        raise UserError(f"{file} has no site's name")
    return Request(names[0], public_line(key))
