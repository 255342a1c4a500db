"""Logs are text, or JSON by one setting, whatever wrote them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.logs import LOGS, configure_logs

ROOT = Path(__file__).parents[3]
PROGRAM = """
import logging, logging.config, sys
from flwr.supercore import log as flwr_log
from flwr.supercore.http_logging import get_uvicorn_log_config
from mediffusion_core.common.logs import configure_logs, log
configure_logs()
logging.config.dictConfig(get_uvicorn_log_config(logging.INFO))
flwr_log(logging.INFO, "SuperNode ID: %s", 7)
log.info("sites: registered uni")
logging.getLogger("uvicorn.error").info("Uvicorn running")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("two\\nlines")
"""


def written(**environment: str) -> list[str]:
    """What a process of its own writes: the formats hold for a whole process."""
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_every_line_is_json_where_that_is_asked_for() -> None:
    lines = [json.loads(line) for line in written(**{LOGS: "json"})]
    told = {(line["logger"], line["level"], line["message"]) for line in lines}
    assert told == {
        ("flwr", "INFO", "SuperNode ID: 7"),
        ("fed-mediffusion", "INFO", "sites: registered uni"),
        ("uvicorn.error", "INFO", "Uvicorn running"),
        ("fed-mediffusion", "ERROR", "two\nlines"),
    }
    (raised,) = [line for line in lines if "exception" in line]
    assert "ZeroDivisionError" in raised["exception"]
    assert all(line["time"].endswith("+00:00") for line in lines)


def test_lines_are_text_by_default() -> None:
    lines = written()
    assert "sites: registered uni" in lines and not any(line.startswith("{") for line in lines)


def test_another_format_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOGS, "yaml")
    with pytest.raises(UserError, match="allowed are text and json"):
        configure_logs()
