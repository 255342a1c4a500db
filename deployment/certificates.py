"""The federation's own certificate authority, and the keys of server, sites and bundles."""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deployment.passphrase import Passphrase, encryption
from mediffusion_core.common.errors import UserError

AUTHORITY_DAYS = 3650
SKEW = datetime.timedelta(minutes=5)
"""Certificates are valid from this long before now, for clocks that are late."""


def new_authority(name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A certificate authority that may sign server certificates, but no further authorities."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} authority")])
    builder = _builder(subject, subject, key.public_key(), AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    builder = builder.add_extension(usage, critical=True).add_extension(
        x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
    )
    return key, builder.sign(key, hashes.SHA384())


def new_server(
    authority_key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    hosts: Sequence[str],
    days: int,
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A server's key and certificate.

    Args:
        authority_key: Private key of the authority.
        authority: Certificate of the authority.
        hosts: Domain names and IP addresses of the server.
        days: Validity of the certificate.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    builder = _builder(subject, authority.subject, key.public_key(), days)
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (names, False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical)
    return key, builder.sign(authority_key, hashes.SHA384())


def private_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """A private key as a PEM file; without a passphrase the file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption(passphrase))


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as a PEM file."""
    return certificate.public_bytes(Encoding.PEM)


def new_site_key() -> tuple[bytes, bytes]:
    """A site's private and public key (NIST P-384) in OpenSSH's format, which Flower reads.

    Flower reads no encrypted key.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return private, public_line(key.public_key())


def public_line(key: ec.EllipticCurvePublicKey) -> bytes:
    """A site's public key as a line in OpenSSH's format."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"


def read_authority(
    folder: Path, passphrase: Passphrase | None = None
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Key and certificate of the authority in a folder of `provision`.

    Raises:
        UserError: if the key can't be read, or the passphrase is wrong.
    """
    key = (passphrase or Passphrase()).load(folder / "ca.key")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{folder / 'ca.key'} holds no key of an authority")
    return key, x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())


def write_secret(path: Path, content: bytes) -> None:
    """Writes a file that is readable by its owner alone from its creation on."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(**wanted: bool) -> x509.KeyUsage:
    usages = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{usage: wanted.get(usage, False) for usage in usages})


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
