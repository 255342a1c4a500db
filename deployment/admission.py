"""Admission of tasks at a site: the ClientApp of a bundle that the coordinator has signed.

Threat model: the server, and any party that reaches sites through it, may send anything. A site
runs a task only under all of these conditions:

- The task is a ClientApp of an ordinary run. AgentApps, ServerApps, models and connectors are
  refused.
- The run's configuration has a statement signed by a coordinator or researcher in
  $FED_MEDIFFUSION_SIGNER. The statement names this bundle and this configuration. It has not
  expired by the site's clock. Its version is at least the highest version that the site has
  accepted from that key.
- The server's names for the bundle equal the names within the bundle. Flower makes the folder of
  the code from them.
- The site's engineer has approved it, where the site file has `policy.approval = "required"`.

Without a signer every task is refused. The site trusts its signers, its own clock, disk and
environment, and the signed code. The signed code must distrust the contents of messages, which
come from the server. A statement may be used again until it expires, or until the site accepts a
newer version. A newer version also ends older runs in progress; concurrent runs need one version.
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run

from deployment.accepted_versions import Accepted, AcceptedVersions
from deployment.approvals import Approvals
from deployment.bundle import AppBundle
from deployment.signed_run import SignedRun
from deployment.signers import Signer, read_signers
from deployment.signing import BundleRefusedError, Settings, run_hash, settings_digest
from mediffusion_core.common.audit_log import AuditLog
from mediffusion_core.common.errors import AuditError, UserError
from mediffusion_core.common.logs import log
from mediffusion_core.settings.site_file import SiteFile

SIGNER = "FED_MEDIFFUSION_SIGNER"
"""Environment variable with the path of the trusted signers; see `deployment.signers`."""
UNSIGNED = "FED_MEDIFFUSION_UNSIGNED"
SITE_FILE = "FED_MEDIFFUSION_SITE_FILE"
"""Environment variable with the path of the site file; `deployment.supernode` sets it."""
TRUST = "i-trust-this-server"
"""The only value of $FED_MEDIFFUSION_UNSIGNED: the site runs any ClientApp of the server."""


@dataclass(frozen=True)
class Admission:
    """The rules of one site for tasks.

    Attributes:
        signer: File of the trusted signers; None without one.
        trusts_server: Whether the site runs unsigned tasks.
        versions: Versions that the site has accepted.
        site_file: Says whether runs need approval; None without one.
        approvals: Runs that the site's engineer has approved.
        audit: The site's audit log; None where the site keeps none.
    """

    signer: Path | None
    trusts_server: bool = False
    versions: AcceptedVersions = field(default_factory=AcceptedVersions.of_site)
    site_file: Path | None = None
    approvals: Approvals = field(default_factory=Approvals.of_site)
    audit: AuditLog | None = field(default_factory=AuditLog.of_environment)
    _written: set[tuple[str, ...]] = field(default_factory=set, init=False, compare=False)

    @classmethod
    def of_environment(cls) -> "Admission":
        """Reads the rules from the site's environment.

        Raises:
            UserError: if both variables are set, or the second one has another value than `TRUST`.
        """
        signer, unsigned = os.environ.get(SIGNER), os.environ.get(UNSIGNED)
        site_file = os.environ.get(SITE_FILE)
        if unsigned and unsigned != TRUST:
            raise UserError(f"{UNSIGNED} is {unsigned}, the only value is {TRUST}")
        if unsigned and signer:
            raise UserError(f"{SIGNER} and {UNSIGNED} exclude each other")
        return cls(
            Path(signer) if signer else None,
            bool(unsigned),
            site_file=Path(site_file) if site_file else None,
        )

    def warn(self) -> None:
        """Warns at the start of a site without a signer."""
        if self.trusts_server:
            log.warning(
                f"WARNING: {UNSIGNED}={TRUST}: this site checks no signature and runs any code"
                " that its server sends. Never use this with patients' data."
            )
        elif self.signer is None:
            log.warning(f"WARNING: {SIGNER} is not set, every run is refused")

    def admit(self, task_type: str, run: Run, fab: Fab) -> Settings:
        """Checks a task, and returns its run's configuration.

        Args:
            task_type: Flower's kind of task.
            run: The run, as the server describes it.
            fab: The bundle from the server.

        Raises:
            BundleRefusedError: if the task may not run; the refusal is also logged.
        """
        try:
            config = self._admitted(task_type, run, fab)
        except BundleRefusedError as error:
            log.warning(f"refused, code bundle: {error}")
            self._write(run, fab, "refused", str(error))
            raise
        self._write(run, fab, "admitted", run_hash(fab.hash_str, settings_digest(config)))
        return config

    def _write(self, run: Run, fab: Fab, outcome: str, detail: str) -> None:
        """Writes into the audit log which run was admitted or refused; each outcome once.

        Args:
            run: The run.
            fab: Its bundle.
            outcome: `admitted` or `refused`.
            detail: The run's hash, or the reason of the refusal.

        Raises:
            BundleRefusedError: if the line can't be written.
        """
        written = (str(run.run_id), fab.hash_str, outcome, detail)
        if self.audit is None or written in self._written:
            return
        try:
            signed = SignedRun.verified(fab.content, run.override_config, self._signers())
            by, key = str(signed.signer), signed.signer.digest
        except BundleRefusedError:
            by, key = None, None
        try:
            self.audit.append(
                "run",
                at="site",
                run=str(run.run_id),
                signer=by,
                key=key,
                bundle=hashlib.sha256(fab.content).hexdigest(),
                outcome=outcome,
                detail=detail,
            )
        except AuditError as error:
            log.error(f"refused, audit log: {error}")
            raise BundleRefusedError("the site's audit log can't be written") from None
        self._written.add(written)

    def _admitted(self, task_type: str, run: Run, fab: Fab) -> Settings:
        if task_type != TaskType.CLIENT_APP or run.primary_task_type != TaskType.SERVER_APP:
            wanted = task_type if task_type != TaskType.CLIENT_APP else run.primary_task_type
            raise BundleRefusedError(f"a site runs ClientApps, no {wanted}")
        digest = hashlib.sha256(fab.content).hexdigest()
        if self.trusts_server:
            config = _run_config(digest, run, fab)
            self._require_approval(digest, config)
            return config
        signed = SignedRun.verified(fab.content, run.override_config, self._signers())
        config = _run_config(digest, run, fab)
        # A version that is not approved must not end the approved run before it.
        self._require_approval(digest, config)
        offered = Accepted(version=signed.statement.version, bundle=digest)
        self.versions.accept(signed.signer.digest, offered)
        return config

    def _require_approval(self, bundle: str, config: Settings) -> None:
        if self.site_file is None:
            return
        try:
            policy = SiteFile.read(self.site_file).policy
        except UserError:
            raise BundleRefusedError("the site's file can't be read") from None
        if policy.approval == "required":
            self.approvals.require(bundle, config)

    def _signers(self) -> list[Signer]:
        if self.signer is None:
            raise BundleRefusedError("the app bundle can't be checked: the site has no signer")
        try:
            return read_signers(self.signer)
        except (OSError, UserError):
            raise BundleRefusedError(
                "the app bundle can't be checked: the site's signer can't be read"
            ) from None


def _run_config(digest: str, run: Run, fab: Fab) -> Settings:
    """The run's configuration; refuses a bundle with other names than the server gives it."""
    try:
        bundle = AppBundle.read(fab.content)
        config = bundle.run_config(run.override_config)
    except ValueError:
        raise BundleRefusedError("the app bundle can't be read") from None
    named = (run.fab_id, run.fab_version, run.fab_hash, fab.hash_str)
    if named != (bundle.app_id, bundle.version, digest, digest):
        raise BundleRefusedError("the app bundle is not the one that the server names")
    return config
