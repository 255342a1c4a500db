"""Ends a process with the one that started it.

`python -m mediffusion_core.common.parent COMMAND ...` runs a command that ends so.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


def end_with_parent() -> None:
    """Lets Linux send SIGKILL to this process when its parent ends; does nothing elsewhere.

    Flower's programs also watch their parent, and interrupt themselves. That takes effect only when
    Python runs its next instruction in the main thread, so that an app that waits, or computes,
    goes on, and writes beside the process that takes its place.

    Raises:
        OSError: if the system refuses.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it has ended meanwhile
        signal.raise_signal(signal.SIGKILL)


def tied(command: Sequence[str]) -> list[str]:
    """The command that runs the given one so that it ends with the process that starts it."""
    return [sys.executable, "-m", "mediffusion_core.common.parent", *command]


def main() -> None:
    """Becomes the command of the arguments; the kernel's promise outlasts that."""
    end_with_parent()
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
