"""A site's audit log holds a line for each answer, and no answer leaves without it."""

from pathlib import Path
from typing import Any

import pytest

from client.client_app import app
from configs.compose import compose
from mediffusion_core.common.audit_log import AUDIT, read_lines
from mediffusion_core.messaging import protocol
from mediffusion_core.privacy.ledger.site_ledger import open_site_ledger
from mediffusion_core.settings.site_file import SiteFile
from simulations.engine.in_process import order
from unit.client.test_site_policy import OPEN, PRIVATE, RUN_OF, census, context, described_site


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv(AUDIT, str(tmp_path / "audit.jsonl"))
    return tmp_path / "audit.jsonl"


def last(log: Path) -> dict[str, Any]:
    return dict(list(read_lines([log]))[-1].fields)


def test_an_answer_is_logged_with_what_was_asked_of_which_data_and_epsilon(
    tmp_path: Path, log: Path
) -> None:
    node, run = described_site(tmp_path, "uni"), (*RUN_OF, *PRIVATE)
    census(node, run)
    line = last(log)
    settings_hash = compose("config", run).fingerprint()
    assert (line["event"], line["at"], line["site"]) == ("answer", "site", "uni")
    assert (line["kind"], line["round"]) == (protocol.CENSUS, 1)
    assert (line["settings_hash"], line["outcome"], line["error"]) == (
        settings_hash,
        "answered",
        None,
    )
    assert str(line["data"]).startswith("folder-32-")
    ledger = open_site_ledger(SiteFile.read(Path(node["site-file"])), begin=False)
    assert line["epsilon"] == ledger.worst(1e-5) > 0
    encode = order(protocol.EVALUATE, settings_hash, {})
    app(encode, context(node, run))
    assert (last(log)["kind"], last(log)["outcome"]) == (protocol.EVALUATE, "internal")


def test_a_refusal_is_logged_with_its_reason_and_the_id_that_leaves(
    tmp_path: Path, log: Path
) -> None:
    sent = census(described_site(tmp_path, "uni", policy="")).config_records[protocol.FAILURE]
    line = last(log)
    assert (line["outcome"], line["error"]) == ("refused", sent["id"])
    assert sent["code"] == protocol.FAILED
    assert (line["site"], line["data"], line["epsilon"]) == (None, None, None)


def test_an_answer_that_can_not_be_logged_does_not_leave(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = described_site(tmp_path, "uni", policy=f"{OPEN}\n")
    (tmp_path / "file").touch()
    monkeypatch.setenv(AUDIT, str(tmp_path / "file" / "audit.jsonl"))
    content = census(node)
    assert set(content) == {protocol.FAILURE, protocol.ANSWERS_TO}
    assert content.config_records[protocol.FAILURE]["code"] == "audit"
