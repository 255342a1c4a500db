"""The signed configuration of a run, for `flwr run`."""

import time
from collections.abc import Sequence
from pathlib import Path

import click
from flwr.common.config import parse_config_args

from deployment.bundle import AppBundle
from deployment.passphrase import Passphrase
from deployment.signing import SIGNATURE, Statement, settings_digest
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
