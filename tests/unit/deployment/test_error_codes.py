"""The page of error codes lists exactly the codes that server and sites use."""

import ast
from pathlib import Path

import pytest

from client.failures import CODES
from mediffusion_core.messaging.failure_codes import FAILURES
from mediffusion_core.messaging.protocol import FAILED
from server.messages import FAILURE_CODE
from server.outcomes import MEANINGS, Outcome

ROOT = Path(__file__).parents[3]


def ledger_codes() -> set[str]:
    """First arguments of `LedgerError(...)` anywhere in the code."""
    found = set()
    for package in ("mediffusion_core", "client"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "LedgerError":
                    code = node.args[0]
                    assert isinstance(code, ast.Constant), f"{file}: a code that is no literal"
                    found.add(code.value)
    return found


def test_every_code_of_a_site_is_listed_and_no_other() -> None:
    assert set(FAILURES) == {*CODES.values(), "internal", FAILED, *ledger_codes()}
    assert all(FAILURE_CODE.fullmatch(code) for code in FAILURES)


def test_every_outcome_at_the_server_is_listed() -> None:
    assert set(MEANINGS) == set(Outcome)


@pytest.mark.parametrize("text", [*MEANINGS.values(), *(f.remedy for f in FAILURES.values())])
def test_a_line_of_the_table_is_one_line(text: str) -> None:
    assert text and "|" not in text and "\n" not in text
