"""`flwr-clientapp` at a site: Flower's, which first looks who signed the app bundle.

Flower's SuperNode starts the program of this name for every message. In the site's image this one
comes first in PATH. $FED_MEDIFFUSION_SIGNER names the file with the coordinator's public key.
"""

import os
import sys
from pathlib import Path
from typing import Any

from flwr.supernode.cli import flwr_clientapp
from flwr.supernode.runtime import run_clientapp as runtime

from deployment.signing import BundleRefusedError, check

SIGNER = "FED_MEDIFFUSION_SIGNER"
SIGNATURE = "signature"
"""Key of the run's configuration that carries the bundle's signature."""


def guard(signer: Path) -> None:
    """Puts the check between the arrival of a bundle and its installation."""
    signatures: list[str] = []
    pull, install = runtime.pull_task_input, runtime.install_from_fab

    def pull_and_note(client: Any) -> Any:
        task = pull(client)
        signatures.append(str(task[1].run_config.get(SIGNATURE, "")))
        return task

    def install_checked(bundle: bytes, **options: Any) -> Any:
        try:
            check(bundle, signatures[-1], signer)
        except BundleRefusedError as error:
            print(f"refused, code bundle: {error}", file=sys.stderr, flush=True)
            raise
        return install(bundle, **options)

    runtime.pull_task_input = pull_and_note
    runtime.install_from_fab = install_checked


def main() -> None:
    """Runs Flower's program, behind the check where the site knows a signer."""
    signer = os.environ.get(SIGNER)
    if signer:
        guard(Path(signer))
    flwr_clientapp()


if __name__ == "__main__":
    main()
