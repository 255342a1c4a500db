"""The logs of a server or a site: lines of text, or of JSON by one setting."""

import json
import logging
import os
from datetime import UTC, datetime

from mediffusion_core.common.errors import UserError

LOGS = "FED_MEDIFFUSION_LOGS"
"""Environment variable: `text`, the default, or `json`."""
log = logging.getLogger("fed-mediffusion")
"""The messages of the project on the standard error of a server or a site."""


def configure_logs() -> None:
    """Lets a process of a server or a site write its logs as $FED_MEDIFFUSION_LOGS says.

    Raises:
        UserError: if the variable has another value.
    """
    given = os.environ.get(LOGS) or "text"
    if given not in ("text", "json"):
        raise UserError(f"{LOGS} is {given}; allowed are text and json")
    if given == "json":
        # Flower and Uvicorn make their handlers and formatters themselves, also later than this.
        logging.Formatter.format = _json  # type: ignore[method-assign]
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
        log.propagate = False


def _json(self: logging.Formatter, record: logging.LogRecord) -> str:
    line = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname,
        "logger": record.name,
        "message": record.getMessage(),
    }
    if record.exc_info:
        line["exception"] = self.formatException(record.exc_info)
    return json.dumps(line)
