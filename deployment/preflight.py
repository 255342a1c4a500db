"""Checks of a site, and of its connection to the server, before it joins."""

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
from deployment.signers import read_signers
from deployment.signing import BundleRefusedError
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.machine import available_memory
from mediffusion_core.data.checks.inspection import CheckResult, Grade

TIMEOUT = 10.0
"""Seconds to wait for the server."""
AHEAD, BEHIND = 5, 300
"""Largest difference of a site's clock from the server's, in seconds: Flower's own limits."""
EXPIRY_WARNING = 30
"""Days before the end of the server's certificate from which on it is a warning."""
MEMORY = 2e9
DISK = 5e9
"""Bytes of memory and disk that the small presets need."""
OWN_PORTS = (9094, 9099)
"""Loopback ports of the SuperNode: runtime interface, and gRPC health."""


@dataclass(frozen=True)
class Site:
    """Paths of a site's kit, and the address of its server.

    A path that is None is not checked: a site without TLS has no keys. Without a signer, the site's
    environment must trust the server.
    """

    host: str
    port: int
    data: Path | None
    writable: tuple[Path, ...]
    authority: Path | None
    node_key: Path | None
    signer: Path | None


def checked(site: Site) -> Iterator[CheckResult]:
    """Runs all checks; yields one result each. No result contains a key."""
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


def _result(grade: Grade, check: str, detail: str) -> CheckResult:
    return CheckResult(grade, f"{check:18} {detail}")


def _finding_of(check: str, run: Callable[[], str]) -> CheckResult:
    try:
        return _result("ok", check, run())
    except UserError as error:
        return _result("error", check, str(error))
    except OSError as error:
        return _result("error", check, error.strerror or type(error).__name__)


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


def _memory() -> CheckResult:
    available = available_memory()
    grade: Grade = "ok" if available >= MEMORY else "warning"
    return _result(grade, "memory", f"{available / 1e9:.1f} GB")


def _gpu() -> CheckResult:
    if torch.cuda.is_available():
        return _result("ok", "GPU", torch.cuda.get_device_name())
    return _result("ok", "GPU", "none, the site computes on the CPU")


def _node_key(path: Path) -> str:
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UserError(f"{path} is no private key of a site")
    status = path.stat()
    # In Kubernetes a secret belongs to root, and the container reads it by the file's group.
    foreign = status.st_uid != os.geteuid()
    if status.st_mode & (0o037 if foreign else 0o077):
        raise UserError(f"{path} can be read by others; chmod 400 it")
    return f"{path}, {key.curve.name}"


def _coordinator(signer: Path | None) -> CheckResult:
    """Checks the key of the coordinator whose code the site runs."""
    check = "coordinator's key"
    try:
        admission = Admission.of_environment()
        if signer is not None and admission.trusts_server:
            raise UserError(f"{UNSIGNED} is set beside {signer}")
        if signer is not None:
            trusted = ", ".join(map(str, read_signers(signer)))
            return _result("ok", check, f"{signer}: {trusted}")
    except UserError as error:
        return _result("error", check, str(error))
    except OSError as error:
        return _result("error", check, error.strerror or type(error).__name__)
    if admission.trusts_server:
        return _result("warning", check, "not checked: the site runs any code of the server")
    return _result("error", check, f"none: every run is refused; in trials set {UNSIGNED}={TRUST}")


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


def _server(site: Site) -> Iterator[CheckResult]:
    address = f"{site.host}:{site.port}"
    try:
        with socket.create_connection((site.host, site.port), TIMEOUT):
            yield _result("ok", "server", f"{address} can be reached")
    except OSError as error:
        yield _result("error", "server", f"{address}: {error.strerror or error}")
        return
    if site.authority is None:
        yield _result("warning", "certificate", "not checked: the connection is not encrypted")
        connection = http.client.HTTPConnection(site.host, site.port, timeout=TIMEOUT)
    else:
        try:
            context = ssl.create_default_context(cafile=str(site.authority))
            yield _certificate(site, context)
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "verify_message", "") or error.strerror or str(error)
            yield _result("error", "certificate", f"{address}: {reason}")
            return
        connection = http.client.HTTPSConnection(
            site.host, site.port, timeout=TIMEOUT, context=context
        )
    yield _finding_of("clock", lambda: _clock(connection))


def _certificate(site: Site, context: ssl.SSLContext) -> CheckResult:
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
    return _result(grade, "certificate", f"{version}, valid for {days} days")


def _clock(connection: http.client.HTTPConnection) -> str:
    try:
        connection.request("GET", "/health")
        said = connection.getresponse().getheader("date")
    except http.client.HTTPException:
        said = None
    finally:
        connection.close()
    if said is None:
        raise UserError("the server's answer has no date")
    apart = time.time() - email.utils.parsedate_to_datetime(said).timestamp()
    if not -BEHIND < apart < AHEAD:
        raise UserError(f"{apart:+.0f} s from the server's; set the time by NTP")
    return f"{apart:+.0f} s from the server's"
