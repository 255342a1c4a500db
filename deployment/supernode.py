"""`python -m deployment.supernode`: Flower's SuperNode, with the options of `flower-supernode`.

It makes tasks only for the ClientApp of a bundle that the coordinator has signed; see
`deployment.admission`.
"""

import os
import sys
from pathlib import Path

from flwr.common.config import parse_config_args
from flwr.supernode.cli import flower_supernode

from deployment.admission import SITE_FILE, Admission
from deployment.arguments import option_value
from deployment.flower_patches import admit_tasks, allow_slow_starts
from deployment.latent_expiry import watch_latents
from deployment.metrics import serve_metrics
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.logs import configure_logs


def main() -> None:
    """Starts the SuperNode behind the site's admission."""
    node = parse_config_args([option_value(sys.argv, "--node-config") or ""])
    # The processes that Flower starts for messages inherit it.
    os.environ[SITE_FILE] = str(node.get("site-file", ""))
    try:
        configure_logs()
        admission = Admission.of_environment()
        if "folder" in node:
            serve_metrics(Path(str(node["folder"])))
    except UserError as error:
        sys.exit(str(error))
    admission.warn()
    if "site-file" in node and "folder" in node:
        watch_latents(Path(str(node["folder"])), Path(str(node["site-file"])))
    admit_tasks(admission.admit)
    allow_slow_starts()
    flower_supernode()


if __name__ == "__main__":
    main()
