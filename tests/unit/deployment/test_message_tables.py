"""Everything that a site can be asked, and all that it may answer, is declared and documented."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.client_app import app as client_app
from deployment.message_tables import message_tables, write_message_tables
from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging import disclosure, protocol
from mediffusion_core.messaging.disclosure import ANSWERS
from simulations.cli.main import app

PAGE = Path(__file__).parents[3] / "docs" / "privacy" / "messages.md"
NAMES = {
    value
    for name, value in vars(protocol).items()
    if name.isupper() and isinstance(value, str) and value != protocol.EMA
}
KINDS = {name for name in NAMES if re.fullmatch(r"(train|evaluate|query)\.\w+", name)}


def test_every_kind_of_message_is_in_the_table_and_has_a_handler() -> None:
    assert len(KINDS) >= 6
    assert set(ANSWERS) == KINDS == set(client_app._registered_funcs)


def test_every_record_is_one_that_a_site_may_send_or_one_that_it_is_sent() -> None:
    may_leave = set().union(*(answer.records for answer in ANSWERS.values()))
    records = {*NAMES - KINDS, *protocol.CONTROLS.values()} - {protocol.FAILED}
    assert records == may_leave | protocol.FROM_SERVER | set(disclosure.WITH_ANY)
    assert not may_leave & protocol.FROM_SERVER
    assert {*protocol.JOINT, *protocol.CONTROLS.values()} <= may_leave


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_answer_states_content_risk_protection_and_charge(
    kind: str,
) -> None:
    answer = ANSWERS[kind]
    for said in (
        answer.content,
        answer.risk,
        answer.protection,
        answer.private,
        answer.charge,
    ):
        assert said and "|" not in said and "\n" not in said
    # An answer without a charge sends no data.
    assert (answer.charge == "nothing") == (answer.private in ("nothing", "refused"))


def test_the_page_has_the_tables_of_the_protocol(tmp_path: Path) -> None:
    copy = tmp_path / "messages.md"
    copy.write_text(PAGE.read_text())
    assert write_message_tables(copy) == copy
    command = "fed-mediffusion site messages docs/privacy/messages.md"
    assert copy.read_text() == PAGE.read_text(), command
    assert CliRunner().invoke(app, ["site", "messages"]).output == f"{message_tables()}\n"


def test_a_document_without_the_marks_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("text")
    with pytest.raises(UserError, match="messages: begin"):
        write_message_tables(tmp_path / "other.md")
