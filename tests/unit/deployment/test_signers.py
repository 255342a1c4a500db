"""Who may sign runs: roles in the file of trusted signers, at a site and at the server."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.supercore.constant import TaskType
from typer.testing import CliRunner

from deployment.admission import Admission
from deployment.signers import Role, Signer, read_signers, write_signers
from deployment.signing import new_signer, read_signer
from deployment.start_guard import AUTOMATION, START
from deployment.superlink import closed
from mediffusion_core.common.audit_log import AUDIT, read_lines
from mediffusion_core.common.errors import UserError
from simulations.cli.main import app
from unit.deployment.test_admission import bundle, folder, offer, refusal, site

__all__ = ["folder", "site"]


@dataclass
class People:
    """The trusted signers of a federation, each with a folder that has its `signer.key`."""

    folder: Path

    def __post_init__(self) -> None:
        signers = []
        for name, role in (("chest", "coordinator"), ("anna", "researcher"), ("otto", "auditor")):
            (self.folder / name).mkdir()
            private, public = new_signer()
            (self.folder / name / "signer.key").write_bytes(private)
            (self.folder / name / "signer.pem").write_bytes(public)
            key = read_signer(self.folder / name / "signer.pem")
            signers.append(Signer(name, Role(role), key))
        self.file.write_bytes(write_signers(signers))

    @property
    def file(self) -> Path:
        return self.folder / "signers.pem"


@pytest.fixture
def people(tmp_path: Path) -> People:
    return People(tmp_path)


def test_the_file_has_each_persons_role_and_is_read_as_it_was_written(people: People) -> None:
    signers = read_signers(people.file)
    assert [str(one) for one in signers] == ["coordinator chest", "researcher anna", "auditor otto"]
    assert write_signers(signers) == people.file.read_bytes()


def test_a_single_key_without_a_role_is_a_coordinators(people: People) -> None:
    (one,) = read_signers(people.folder / "anna" / "signer.pem")
    assert one.role is Role.COORDINATOR


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: "no key",
        lambda text: text.replace("researcher anna", "chief anna"),
        lambda text: text.replace("researcher anna\n", ""),
        lambda text: text + "researcher eve\n",
        lambda text: text.replace("researcher anna", "researcher a/b"),
        lambda text: text.replace("MCowBQYDK2VwAyEA", "MCowBQYDK2VwAyEB", 1) + "x",
        lambda text: text + "é",
    ],
)
def test_a_file_of_another_form_is_refused(people: People, change: Any) -> None:
    """A key whose role can't be read must not become a coordinator's."""
    people.file.write_text(change(people.file.read_text()))
    with pytest.raises(UserError, match=r"signers\.pem"):
        read_signers(people.file)


def test_coordinators_and_researchers_start_runs_at_a_site_and_auditors_do_not(
    people: People, site: Admission
) -> None:
    trusting = replace(site, signer=people.file)
    for name in ("chest", "anna"):
        run, fab = offer(people.folder / name, bundle(), overrides=name)
        assert trusting.admit(TaskType.CLIENT_APP, run, fab)["overrides"] == name
    refused = refusal(trusting, *offer(people.folder / "otto", bundle()))
    assert refused == "otto is an auditor, who may sign no run"
    stranger = people.folder / "stranger"
    stranger.mkdir()
    (stranger / "signer.key").write_bytes(new_signer()[0])
    assert "does not fit" in refusal(trusting, *offer(stranger, bundle()))
    unsigned = replace(offer(people.folder / "anna", bundle())[0], override_config={})
    _, fab = offer(people.folder / "anna", bundle())
    assert "not signed" in refusal(trusting, unsigned, fab)


# At the server


def started(signers: Path, body: bytes, path: str = START) -> tuple[int, bytes]:
    """Status and text of the answer to a local caller; where it is passed on, what Flower gets."""
    create = lambda: FastAPI()  # noqa: E731
    application = closed(create, signers=signers)()

    async def answer(request: Request) -> dict[str, str]:
        return {"got": (await request.body()).hex()}

    for known in (START, AUTOMATION, "/v1/control/list-runs"):
        application.post(known)(answer)
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 40000),
        "server": ("server", 8000),
        "scheme": "http",
        "http_version": "1.1",
    }
    parts = [body[:10], body[10:]]

    async def receive() -> dict[str, Any]:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(application(scope, receive, send))  # type: ignore[arg-type]
    return int(sent[0]["status"]), sent[1]["body"]


def request(people: People, name: str, overrides: str = "seed=1", **changes: str) -> bytes:
    """What `flwr run` sends for a run that a person has signed."""
    run, fab = offer(people.folder / name, bundle(), overrides=overrides)
    config = user_config_to_proto({**run.override_config, **changes})
    return StartRunRequest(fab=Fab(content=fab.content), override_config=config).SerializeToString()


def test_the_server_starts_what_a_coordinator_or_a_researcher_has_signed(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(AUDIT, str(people.folder / "audit.jsonl"))
    for name in ("chest", "anna"):
        body = request(people, name)
        status, text = started(people.file, body)
        assert status == 200 and body.hex().encode() in text
    lines = [line.fields for line in read_lines([people.folder / "audit.jsonl"])]
    assert [line["signer"] for line in lines] == ["coordinator chest", "researcher anna"]
    assert len({line["detail"] for line in lines}) == 1  # the hash of one run


def test_the_server_starts_nothing_else(people: People) -> None:
    for body, said in (
        (request(people, "otto"), b"otto is an auditor"),
        (request(people, "anna", signature=""), b"not signed"),
        (request(people, "anna", overrides="seed=1", config="x"), b"can't be read"),
        (StartRunRequest(app_spec="@evil/app").SerializeToString(), b"not signed"),
        (b"\xff" * 20, b"the request can't be read"),
    ):
        assert started(people.file, body)[0] == 403 and said in started(people.file, body)[1]
    assert started(people.file, request(people, "anna"), AUTOMATION)[0] == 403
    assert started(people.folder / "none.pem", request(people, "anna"))[0] == 403


def test_reading_takes_no_key(people: People) -> None:
    assert started(people.file, b"", "/v1/control/list-runs")[0] == 200


def test_a_start_that_can_not_be_logged_is_refused(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    (people.folder / "file").touch()
    monkeypatch.setenv(AUDIT, str(people.folder / "file" / "audit.jsonl"))
    status, text = started(people.file, request(people, "anna"))
    assert status == 403 and b"can't be written" in text


def test_a_signing_key_is_made_and_never_overwritten(tmp_path: Path) -> None:
    arguments = ["make-signer", "anna", "--folder", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.output.strip() == str(tmp_path / "anna.pem")
    assert (tmp_path / "anna.key").stat().st_mode & 0o077 == 0
    assert read_signer(tmp_path / "anna.pem")
    assert "exists already" in str(CliRunner().invoke(app, arguments).exception)
