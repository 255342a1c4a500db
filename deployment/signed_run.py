"""The signed configuration of a run: how it is made for `flwr run`, and how it is checked."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from flwr.common.config import parse_config_args

from deployment.bundle import AppBundle
from deployment.passphrase import Passphrase
from deployment.signers import Role, Signer
from deployment.signing import (
    SIGNATURE,
    BundleRefusedError,
    Settings,
    Statement,
    settings_digest,
)
from mediffusion_core.common.errors import UserError

DAY = 24 * 60 * 60


def state_run(
    content: bytes, run_config: Sequence[str], days: int, version: int | None = None
) -> Statement:
    """The statement of a run, before its signature.

    Args:
        content: The app bundle.
        run_config: In the form of `flwr run --run-config`.
        days: Validity of the statement.
        version: By default the seconds since the epoch.

    Raises:
        UserError: if the bundle or the configuration can't be read.
    """
    if any(part.endswith(".toml") for part in run_config):
        raise UserError('--run-config takes key="value" here, no TOML file')
    now = int(time.time())
    try:
        bundle = AppBundle.read(content)
        settings = bundle.run_config(parse_config_args(list(run_config)))
    except (ValueError, click.ClickException) as error:
        raise UserError(f"the run can't be signed: {error}") from None
    if settings.get(SIGNATURE, "") != "":
        raise UserError(f"--run-config has a {SIGNATURE} already")
    return Statement(
        bundle=bundle.digest,
        not_after=now + days * DAY,
        settings=settings_digest(settings),
        version=now if version is None else version,
    )


def signed_run_config(
    run_config: Sequence[str], statement: Statement, key_file: Path, passphrase: Passphrase
) -> str:
    """The whole text for `flwr run --run-config`.

    Raises:
        UserError: if the file holds no signing key, or the passphrase is wrong.
    """
    signature = statement.signed_by(key_file, passphrase)
    return " ".join([*run_config, f'{SIGNATURE}="{signature}"'])


@dataclass(frozen=True)
class SignedRun:
    """A run that a trusted signer has signed: its statement, and its configuration."""

    signer: Signer
    statement: Statement
    settings: Settings

    @classmethod
    def verified(
        cls, content: bytes, overrides: Settings, signers: Sequence[Signer]
    ) -> "SignedRun":
        """Checks the signature of a run.

        Args:
            content: The app bundle.
            overrides: The run's configuration, without the bundle's defaults.
            signers: Whom the site or the server trusts.

        Raises:
            BundleRefusedError: if no signer has signed this bundle with this configuration, the
                signature has expired, or the signer may not sign runs.
        """
        signature = str(overrides.get(SIGNATURE, ""))
        signer, statement = _signed_by(signature, signers)
        if statement.bundle != hashlib.sha256(content).hexdigest():
            raise BundleRefusedError("the app bundle's signature does not fit")
        if signer.role == Role.AUDITOR:
            raise BundleRefusedError(f"{signer.name} is an auditor, who may sign no run")
        if statement.not_after < time.time():
            raise BundleRefusedError("the app bundle's signature has expired")
        try:
            settings = AppBundle.read(content).run_config(overrides)
        except ValueError:
            raise BundleRefusedError("the app bundle can't be read") from None
        if statement.settings != settings_digest(settings):
            raise BundleRefusedError("the app bundle was signed for other settings of the run")
        return cls(signer, statement, settings)


def _signed_by(signature: str, signers: Sequence[Signer]) -> tuple[Signer, Statement]:
    refusal = BundleRefusedError("the app bundle's signature does not fit")
    for signer in signers:
        try:
            return signer, Statement.verified(signature, signer.key)
        except BundleRefusedError as error:
            refusal = error
    raise refusal
