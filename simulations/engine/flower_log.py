"""The reason for a failed run, from Flower's output."""

import re

ERROR_PREFIX = "fed-mediffusion: "

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_WORKER_PREFIX = re.compile(r"^\(\w+ pid=\d+[^)]*\)\s?")
_EXCEPTION_LINE = re.compile(r"^(?:[A-Za-z_][\w.]*)?(Error|Exception|Interrupt|Exit)(\(\w+\))?:")
_LOGGED_ERROR = re.compile(r"^(?:ERROR|CRITICAL)\s*:\s+(?=\S)(.+)")
_WRAPPERS = (
    "An error was encountered. Ending simulation",
    "Simulation Runtime crashed",
    "ray.exceptions.RayTaskError",
    "flwr.clientapp.client_app.ClientAppException",
)
_RAY_START = (
    "The current node timed out during startup",
    "Failed to start the Ray GCS server",
    "Timed out while waiting for GCS to become available",
)
_REFUSAL = re.compile(r"╭─ Error ─*╮\n(.*?)\n╰", re.DOTALL)


def error_line(log_text: str) -> str | None:
    """The line of a log that says best what went wrong.

    The last line that the project wrote for its user, else the last exception that is not
    one of Flower's wrappers around another, else the last error that Flower logged (a process
    whose token has expired raises nothing), else None.
    """
    lines = [_plain(line) for line in log_text.splitlines()]
    for line in reversed(lines):
        if line.startswith(ERROR_PREFIX):
            return line.removeprefix(ERROR_PREFIX)
    for line in reversed(lines):
        if _EXCEPTION_LINE.match(line) and not any(text in line for text in _WRAPPERS):
            return line
    for line in reversed(lines):
        if (logged := _LOGGED_ERROR.match(line)) and not any(text in line for text in _WRAPPERS):
            return logged[1]
    return None


def ray_did_not_start(log_text: str) -> bool:
    """Whether Ray took too long to start, as it may where others take the cores."""
    return any(text in log_text for text in _RAY_START)


def refusal(log_text: str) -> str | None:
    """The text of the last box that ``flwr`` printed, on one line; None if there is no box."""
    boxes = _REFUSAL.findall(_ANSI.sub("", log_text))
    return " ".join(boxes[-1].replace("│", " ").split()) if boxes else None


def _plain(line: str) -> str:
    return _WORKER_PREFIX.sub("", _ANSI.sub("", line))
