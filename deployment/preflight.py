"""What a site can find out about itself and the way to the server before it joins."""

import email.utils
import http.client
import os
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from deployment.accepted_versions import AcceptedVersions
from deployment.admission import TRUST, UNSIGNED, Admission
from deployment.signing import BundleRefusedError, read_signer
from mediffusion_core.common.errors import UserError
from mediffusion_core.data.checks.inspection import Finding, Grade

TIMEOUT = 10.0
"""Seconds that the server may take to answer."""
AHEAD, BEHIND = 5, 300
"""Seconds that a site's clock may differ from the server's: Flower refuses other signatures."""
EXPIRY_WARNING = 30
"""Days before the end of the server's certificate from which on that is said."""
MEMORY = 2e9
DISK = 5e9
"""Bytes that a site should have, for the small presets."""
OWN_PORTS = (9094, 9099)
"""What the SuperNode opens on its own loopback: its runtime interface, and gRPC health."""


@dataclass(frozen=True)
class Site:
    """Where the parts of a site's kit lie, and which server it calls.

    A path that is None is not looked at: a site without TLS has no keys. Without a signer the
    environment must say that the site trusts its server.
    """

    host: str
    port: int
    data: Path | None
    writable: tuple[Path, ...]
    authority: Path | None
    node_key: Path | None
    signer: Path | None


def looked_at(site: Site) -> Iterator[Finding]:
    """All checks, each with what it found; none prints or returns a key."""
    if site.data is not None:
        yield _finding_of("images", partial(_images, site.data))
    for folder in site.writable:
        yield _finding_of("disk", partial(_disk, folder))
    yield _memory()
    yield _gpu()
    if site.node_key is not None:
        yield _finding_of("site's key", partial(_node_key, site.node_key))
    yield _coordinator(site.signer)
    if site.signer is not None:
        yield _finding_of("accepted versions", _accepted_versions)
    for port in OWN_PORTS:
        yield _finding_of("own port", partial(_own_port, port))
    yield from _server(site)


def _finding(grade: Grade, check: str, detail: str) -> Finding:
    return Finding(grade, f"{check:18} {detail}")


def _finding_of(check: str, look: Callable[[], str]) -> Finding:
    try:
        return _finding("ok", check, look())
    except UserError as error:
        return _finding("error", check, str(error))
    except OSError as error:
        return _finding("error", check, error.strerror or type(error).__name__)


def _images(folder: Path) -> str:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    if not any(folder.iterdir()):
        raise UserError(f"{folder} is empty")
    if os.access(folder, os.W_OK):
        raise UserError(f"{folder} can be written; mount it read-only")
    return f"{folder}, read-only"


def _disk(folder: Path) -> str:
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{folder} can't be written")
    free = shutil.disk_usage(folder).free
    if free < DISK:
        raise UserError(f"{folder} has {free / 1e9:.1f} GB free, {DISK / 1e9:.0f} GB are needed")
    return f"{folder}, {free / 1e9:.0f} GB free"


def _memory() -> Finding:
    available = _memory_limit()
    grade: Grade = "ok" if available >= MEMORY else "warning"
    return _finding(grade, "memory", f"{available / 1e9:.1f} GB")


def _memory_limit() -> float:
    """What the host has available, or less where the container is given less."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = float(line.split()[1]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return available if text == "max" else min(available, float(text))


def _gpu() -> Finding:
    if torch.cuda.is_available():
        return _finding("ok", "GPU", torch.cuda.get_device_name())
    return _finding("ok", "GPU", "none, the site computes on the CPU")


def _node_key(path: Path) -> str:
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{path} is no private key of a site")
    status = path.stat()
    # Kubernetes owns a secret and lets the container read it as the file's group.
    foreign = status.st_uid != os.geteuid()
    if status.st_mode & (0o037 if foreign else 0o077):
        raise UserError(f"{path} can be read by others; chmod 400 it")
    return f"{path}, {key.curve.name}"


def _coordinator(signer: Path | None) -> Finding:
    """Whose code the site will run."""
    check = "coordinator's key"
    try:
        admission = Admission.of_environment()
        if signer is not None and admission.trusts_server:
            raise UserError(f"{UNSIGNED} is set beside {signer}")
        if signer is not None:
            read_signer(signer)
            return _finding("ok", check, str(signer))
    except UserError as error:
        return _finding("error", check, str(error))
    except OSError as error:
        return _finding("error", check, error.strerror or type(error).__name__)
    if admission.trusts_server:
        return _finding("warning", check, "not asked for: any code of the server's is run")
    return _finding("error", check, f"none: every run is refused; in trials set {UNSIGNED}={TRUST}")


def _accepted_versions() -> str:
    versions = AcceptedVersions.of_site()
    try:
        accepted = versions.read()
    except BundleRefusedError as error:
        raise UserError(f"{versions.path}: {error}") from None
    return f"{versions.path}, {'of a signer' if accepted else 'none yet'}"


def _own_port(port: int) -> str:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UserError(f"{port} is taken by another program") from None
    return f"{port} is free"


def _server(site: Site) -> Iterator[Finding]:
    address = f"{site.host}:{site.port}"
    try:
        with socket.create_connection((site.host, site.port), TIMEOUT):
            yield _finding("ok", "server", f"{address} can be reached")
    except OSError as error:
        yield _finding("error", "server", f"{address}: {error.strerror or error}")
        return
    if site.authority is None:
        yield _finding("warning", "certificate", "not asked for: the connection is not encrypted")
        connection = http.client.HTTPConnection(site.host, site.port, timeout=TIMEOUT)
    else:
        try:
            context = ssl.create_default_context(cafile=str(site.authority))
            yield _certificate(site, context)
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "verify_message", "") or error.strerror or str(error)
            yield _finding("error", "certificate", f"{address}: {reason}")
            return
        connection = http.client.HTTPSConnection(
            site.host, site.port, timeout=TIMEOUT, context=context
        )
    yield _finding_of("clock", lambda: _clock(connection))


def _certificate(site: Site, context: ssl.SSLContext) -> Finding:
    with (
        socket.create_connection((site.host, site.port), TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname=site.host) as secured,
    ):
        presented = secured.getpeercert(binary_form=True)
        version = secured.version()
    assert presented is not None
    until = x509.load_der_x509_certificate(presented).not_valid_after_utc
    days = (until - datetime.now(UTC)).days
    grade: Grade = "ok" if days > EXPIRY_WARNING else "warning"
    return _finding(grade, "certificate", f"{version}, valid for {days} days")


def _clock(connection: http.client.HTTPConnection) -> str:
    try:
        connection.request("GET", "/health")
        said = connection.getresponse().getheader("date")
    except http.client.HTTPException:
        said = None
    finally:
        connection.close()
    if said is None:
        raise UserError("the server does not say what time it is")
    apart = time.time() - email.utils.parsedate_to_datetime(said).timestamp()
    if not -BEHIND < apart < AHEAD:
        raise UserError(f"{apart:+.0f} s from the server's; set the time by NTP")
    return f"{apart:+.0f} s from the server's"
