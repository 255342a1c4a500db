"""The commands `provision` and `sign` of a coordinator, and `preflight` of a site."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from mediffusion_core.common.errors import UserError

SECRETS = Path("/run/secrets")
"""Folder of keys and certificates in containers."""


def add_commands(app: typer.Typer) -> None:
    """Adds the commands of a deployment to the command line."""
    app.command(epilog="Example: fed-mediffusion provision federation.yaml")(provision)
    app.command(
        epilog="Example: fed-mediffusion sign . --key signer.key --run-config 'overrides=\"...\"'"
    )(sign)
    app.command(epilog="Example: fed-mediffusion make-signer anna")(make_signer)
    add_preflight(app)


def add_preflight(app: typer.Typer) -> None:
    """Adds the commands that a site runs before it joins, and while it takes part."""
    app.command(epilog="Example: fed-mediffusion preflight --server federation.example.org:8000")(
        preflight
    )
    app.command(epilog="Example: fed-mediffusion status runs/latest")(status)


PassphraseSource = Annotated[
    str | None,
    typer.Option(
        help="Where the passphrase of the coordinator's keys is: file:PATH or env:NAME; by default "
        "the command asks for it."
    ),
]


def status(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of a server's run or of a site's runs; by default runs/latest, else runs."
        ),
    ] = None,
    audit: Annotated[
        Path | None, typer.Option(help="The audit log; by default $FED_MEDIFFUSION_AUDIT.")
    ] = None,
) -> None:
    """Show where a run stands: round, sites, last answers, epsilon and disk."""
    from deployment.status import Status
    from mediffusion_core.common.audit_log import AuditLog, AuditTail

    latest = Path("runs") / "latest"
    given = folder or (latest if latest.is_dir() else Path("runs"))
    log = AuditLog(audit) if audit else AuditLog.of_environment()
    lines = AuditTail(log.path).new_lines() if log else ()
    print("\n".join(Status.of_folder(given, lines).text()))


def provision(
    file: Annotated[Path, typer.Argument(help="The federation file, in YAML.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder of keys and kits; the federation's name by default.")
    ] = None,
    request: Annotated[
        Path | None, typer.Option(help="Register the key of this signing request of a site.")
    ] = None,
    renew: Annotated[
        str | None,
        typer.Option(help="Replace the key of this site, with --request, or of `server`."),
    ] = None,
    revoke: Annotated[str | None, typer.Option(help="Revoke this site's key.")] = None,
    encrypt_keys: Annotated[
        bool, typer.Option(help="Encrypt the new ca.key and signer.key with a passphrase.")
    ] = False,
    passphrase: PassphraseSource = None,
) -> None:
    """Make a certificate authority, a server certificate and a start-up kit for each site."""
    from deployment.federation_file import FederationFile
    from deployment.passphrase import Passphrase
    from deployment.provision import Kits

    if revoke and (renew or request):
        raise UserError("--revoke excludes --renew and --request")
    federation = FederationFile.read(file)
    folder = output or Path(federation.name)
    kits = Kits(federation, folder, Passphrase(passphrase), encrypt_keys)
    if revoke:
        steps = kits.revoke(revoke)
    elif renew:
        steps = kits.renew(renew, request)
    else:
        steps = kits.add(request) if request else kits.make()
    for step in steps:
        print(step)


def make_signer(
    name: Annotated[str, typer.Argument(help="Name of the files: NAME.key and NAME.pem.")],
    folder: Annotated[Path, typer.Option(help="Folder of the new files.")] = Path(),
    encrypt: Annotated[bool, typer.Option(help="Encrypt the key with a passphrase.")] = False,
    passphrase: PassphraseSource = None,
) -> None:
    """Make a signing key; the coordinator lists its public key with a role."""
    from deployment.certificates import write_secret
    from deployment.passphrase import Passphrase
    from deployment.signing import new_signer

    key, public = folder / f"{name}.key", folder / f"{name}.pem"
    if key.exists():
        raise UserError(f"{key} exists already")
    given = Passphrase(passphrase).read(f"for {key}", confirm=True) if encrypt else None
    private_pem, public_pem = new_signer(given)
    write_secret(key, private_pem)
    public.write_bytes(public_pem)
    print(public)


def sign(
    folder: Annotated[Path, typer.Argument(help="Folder of the app for `flwr run`.")],
    key: Annotated[Path, typer.Option(help="Private key of a coordinator or researcher.")],
    run_config: Annotated[
        list[str] | None,
        typer.Option("--run-config", "-c", help="The run's settings, as for `flwr run`."),
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, max=3650, help="Validity of the signature, in days.")
    ] = 30,
    version: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Version; sites refuse lower ones. By default the time in seconds.",
        ),
    ] = None,
    passphrase: PassphraseSource = None,
) -> None:
    """Sign an app and a run's settings; print the signed --run-config, which sites require."""
    from flwr.cli.build import build_fab_from_disk

    from deployment.passphrase import Passphrase
    from deployment.signed_run import signed_run_config, state_run
    from deployment.signing import run_hash

    given = run_config or []
    statement = state_run(build_fab_from_disk(folder.resolve()), given, days, version)
    print(signed_run_config(given, statement, key, Passphrase(passphrase)))
    until = datetime.fromtimestamp(statement.not_after, UTC)
    print(f"version {statement.version}, valid until {until:%Y-%m-%d %H:%M} UTC", file=sys.stderr)
    print(f"run {run_hash(statement.bundle, statement.settings)}", file=sys.stderr)


def preflight(
    server: Annotated[str, typer.Option(help="HOST:PORT of the federation's server.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the images.")] = Path("/data"),
    folder: Annotated[Path, typer.Option(help="Folder that the site writes to.")] = Path(
        "/var/lib/fed-mediffusion/runs"
    ),
    secrets: Annotated[Path, typer.Option(help="Folder of ca, node-key and signer.")] = SECRETS,
    insecure: Annotated[bool, typer.Option(help="Connect without TLS; for trials only.")] = False,
    site_file: Annotated[
        Path | None, typer.Option(help="The site file; its entries are checked too.")
    ] = None,
    image_size: Annotated[int, typer.Option(min=8, help="Side of prepared images.")] = 64,
    colour: Annotated[bool, typer.Option(help="Prepare colour images.")] = False,
) -> None:
    """Check whether a site can join: data, disk, memory, GPU, clock, server, keys, policy."""
    from deployment.check_output import report_checks
    from deployment.preflight import Site, checked
    from deployment.site_commands import findings_of_site
    from mediffusion_core.data.checks.inspection import CheckResult

    host, _, port = server.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--server {server} is not of the form HOST:PORT")
    kept = None if insecure else secrets
    site = Site(
        host=host.strip("[]"),
        port=int(port),
        data=data,
        writable=(folder,),
        authority=kept and kept / "ca",
        node_key=kept and kept / "node-key",
        signer=kept and kept / "signer",
    )
    policy: Iterator[CheckResult] = iter(())
    if site_file is not None:
        policy = findings_of_site(site_file, image_size, 3 if colour else 1)
    raise typer.Exit(report_checks(chain(checked(site), policy)))
