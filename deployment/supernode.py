"""`python -m deployment.supernode`: Flower's SuperNode, with the options of `flower-supernode`.

It makes tasks only for the ClientApp of a bundle that the coordinator has signed; see
`deployment.admission`.
"""

import sys

from flwr.supernode.cli import flower_supernode

from deployment.admission import Admission
from deployment.flower_patches import admit_tasks, allow_slow_starts
from mediffusion_core.common.errors import UserError


def main() -> None:
    """Starts the SuperNode behind the site's admission."""
    try:
        admission = Admission.of_environment()
    except UserError as error:
        sys.exit(str(error))
    admission.warn()
    admit_tasks(admission.admit)
    allow_slow_starts()
    flower_supernode()


if __name__ == "__main__":
    main()
