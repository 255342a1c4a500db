"""`flwr-clientapp` at a site: Flower's program, with a second check of the bundle.

The SuperNode has checked the bundle before it made the task (`deployment.supernode`). In the site's
image this program replaces Flower's.
"""

import sys
from dataclasses import replace

from flwr.supernode.cli import flwr_clientapp

from deployment.admission import Admission
from deployment.flower_patches import admit_clientapp
from mediffusion_core.common.errors import UserError
from mediffusion_core.common.logs import configure_logs
from mediffusion_core.common.parent import end_with_parent


def main() -> None:
    """Runs Flower's program behind the site's admission; it ends with the SuperNode."""
    end_with_parent()
    try:
        configure_logs()
        # The SuperNode has written to the audit log that the run is admitted.
        admit_clientapp(replace(Admission.of_environment(), audit=None).admit)
    except UserError as error:
        sys.exit(str(error))
    flwr_clientapp()


if __name__ == "__main__":
    main()
