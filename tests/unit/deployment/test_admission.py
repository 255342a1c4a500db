"""Admission of app bundles at a site, and the record of it."""

import io
import json
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run

from deployment.accepted_versions import PLACE, Accepted, AcceptedVersions
from deployment.admission import SIGNER, TRUST, UNSIGNED, Admission
from deployment.bundle import AppBundle
from deployment.signing import BundleRefusedError, Statement, new_signer, settings_digest
from mediffusion_core.common.errors import UserError

PROJECT = """
[project]
name = "{name}"
version = "{version}"
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "a:b"
clientapp = "a:b"
[tool.flwr.app.config]
overrides = ""
signature = ""
"""


def bundle(name: str = "tiny", version: str = "1.0") -> bytes:
    buffer = io.BytesIO()
    project = zipfile.ZipInfo("pyproject.toml")  # of 1980, where a name alone would be of now
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(project, PROJECT.format(name=name, version=version))
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    private, public = new_signer()
    (tmp_path / "signer.key").write_bytes(private)
    (tmp_path / "signer.pem").write_bytes(public)
    return tmp_path


@pytest.fixture
def site(folder: Path) -> Admission:
    return Admission(folder / "signer.pem", versions=AcceptedVersions(folder / "kept" / "versions"))


def offer(
    folder: Path, content: bytes, *, version: int = 5, seconds: int = 60, overrides: str = ""
) -> tuple[Run, Fab]:
    """A run of a bundle, signed with the settings that it has."""
    read = AppBundle.read(content)
    config = {"overrides": overrides}
    statement = Statement(
        bundle=read.digest,
        not_after=int(time.time()) + seconds,
        settings=settings_digest(read.run_config(config)),
        version=version,
    )
    run = replace(
        Run.create_empty(1),
        fab_id=read.app_id,
        fab_version=read.version,
        fab_hash=read.digest,
        override_config={**config, "signature": statement.signed_by(folder / "signer.key")},
    )
    return run, Fab(read.digest, content, {})


def refusal(site: Admission, run: Run, fab: Fab, task: str = TaskType.CLIENT_APP) -> str:
    with pytest.raises(BundleRefusedError) as caught:
        site.admit(task, run, fab)
    return str(caught.value)


def test_a_signed_run_is_admitted_with_its_settings(site: Admission, folder: Path) -> None:
    run, fab = offer(folder, bundle(), overrides="seed=1")
    assert site.admit(TaskType.CLIENT_APP, run, fab)["overrides"] == "seed=1"


@pytest.mark.parametrize("task", [task for task in TaskType if task != TaskType.CLIENT_APP])
def test_no_other_kind_of_task_such_as_serverapp_or_agentapp_is_admitted(
    site: Admission, folder: Path, task: TaskType
) -> None:
    run, fab = offer(folder, bundle())
    assert f"no {task.value}" in refusal(site, run, fab, task)


@pytest.mark.parametrize("kind", [TaskType.AGENT_APP, TaskType.SIMULATION, ""])
def test_no_other_kind_of_run_is_admitted(site: Admission, folder: Path, kind: str) -> None:
    run, fab = offer(folder, bundle())
    assert "a site runs ClientApps" in refusal(site, replace(run, primary_task_type=kind), fab)


def test_an_unsigned_bundle_is_refused_and_logged(
    site: Admission, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, fab = offer(folder, bundle())
    assert "not signed" in refusal(site, replace(run, override_config={}), fab)
    assert "refused, code bundle: the app bundle is not signed" in caplog.text


def test_an_expired_signature_is_refused(site: Admission, folder: Path) -> None:
    assert "has expired" in refusal(site, *offer(folder, bundle(), seconds=-1))


def test_a_run_is_refused_once_its_signature_has_expired(
    site: Admission, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, fab = offer(folder, bundle())
    site.admit(TaskType.CLIENT_APP, run, fab)
    later = time.time() + 120
    monkeypatch.setattr(time, "time", lambda: later)
    assert "has expired" in refusal(site, run, fab)


def test_another_bundle_and_other_settings_are_refused(site: Admission, folder: Path) -> None:
    run, fab = offer(folder, bundle())
    other = bundle("other")
    _, sent = offer(folder, other)
    assert "does not fit" in refusal(site, replace(run, fab_hash=sent.hash_str), sent)
    changed = replace(run, override_config={**run.override_config, "overrides": "privacy=none"})
    assert "other settings" in refusal(site, changed, fab)
    unknown = replace(run, override_config={**run.override_config, "more": "x"})
    assert "can't be read" in refusal(site, unknown, fab)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fab_id", "tests/other"),
        ("fab_id", "tests/.."),
        ("fab_version", "/../../../data/evil"),
        ("fab_version", "2.0"),
        ("fab_hash", "../../data"),
    ],
)
def test_names_that_only_the_server_gives_are_refused(
    site: Admission, folder: Path, field: str, value: str
) -> None:
    """Flower makes the folder from which it loads the code from them."""
    run, fab = offer(folder, bundle())
    assert "not the one that the server names" in refusal(site, replace(run, **{field: value}), fab)


def test_a_hash_of_the_servers_is_refused(site: Admission, folder: Path) -> None:
    run, fab = offer(folder, bundle())
    assert "not the one" in refusal(site, run, replace(fab, hash_str="../../x"))


@pytest.mark.parametrize(
    ("name", "version"),
    [("..", "1.0"), ("a b", "1.0"), ("a/b", "1.0"), ("tiny", "../../x"), ("tiny", "1..0")],
)
def test_a_bundle_whose_names_lead_elsewhere_is_none(name: str, version: str) -> None:
    with pytest.raises(ValueError, match="part of a folder's name"):
        AppBundle.read(bundle(name, version))


def test_a_rolled_back_version_is_refused_also_after_a_restart(
    site: Admission, folder: Path
) -> None:
    old, new = offer(folder, bundle("old"), version=5), offer(folder, bundle("new"), version=6)
    site.admit(TaskType.CLIENT_APP, *old)
    site.admit(TaskType.CLIENT_APP, *new)
    restarted = replace(site)
    assert "version 5, 6 was accepted" in refusal(restarted, *old)
    assert "with another app bundle" in refusal(restarted, *offer(folder, bundle("x"), version=6))


def test_the_same_version_goes_on_and_serves_several_settings(
    site: Admission, folder: Path
) -> None:
    for overrides in ("seed=1", "seed=1", "seed=2", "seed=1"):
        site.admit(TaskType.CLIENT_APP, *offer(folder, bundle(), overrides=overrides))


def test_a_refused_bundle_does_not_raise_the_version(site: Admission, folder: Path) -> None:
    run, fab = offer(folder, bundle("new"), version=6)
    changed = replace(run, override_config={**run.override_config, "overrides": "x"})
    refusal(site, changed, fab)
    site.admit(TaskType.CLIENT_APP, *offer(folder, bundle("old"), version=5))


def test_each_signer_has_versions_of_its_own(site: Admission, folder: Path, tmp_path: Path) -> None:
    site.admit(TaskType.CLIENT_APP, *offer(folder, bundle(), version=9))
    private, public = new_signer()
    (tmp_path / "signer.key").write_bytes(private)
    (tmp_path / "other.pem").write_bytes(public)
    other = replace(site, signer=tmp_path / "other.pem")
    other.admit(TaskType.CLIENT_APP, *offer(tmp_path, bundle(), version=1))
    assert sorted(one.version for one in site.versions.read().values()) == [1, 9]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"x": {"version": 1, "bundle": "y"}}'])
def test_a_damaged_record_refuses(site: Admission, folder: Path, damage: str) -> None:
    offered = offer(folder, bundle())
    site.admit(TaskType.CLIENT_APP, *offered)
    site.versions.path.write_text(damage)
    assert "accepted versions is damaged" in refusal(site, *offered)
    assert site.versions.path.read_text() == damage


def test_a_record_that_can_not_be_kept_refuses(site: Admission, folder: Path) -> None:
    (folder / "file").touch()
    nowhere = replace(site, versions=AcceptedVersions(folder / "file" / "versions"))
    assert "can't be used" in refusal(nowhere, *offer(folder, bundle()))


def test_the_record_is_replaced_in_one_piece(site: Admission, folder: Path) -> None:
    site.admit(TaskType.CLIENT_APP, *offer(folder, bundle(), version=5))
    (kept,) = json.loads(site.versions.path.read_text()).values()
    assert kept == Accepted(version=5, bundle=offer(folder, bundle())[1].hash_str).model_dump()
    assert {path.name for path in site.versions.path.parent.iterdir()} <= {
        "versions",
        "versions.lock",
    }


def test_without_a_signer_or_with_one_that_can_not_be_read_nothing_is_admitted(
    site: Admission, folder: Path
) -> None:
    offered = offer(folder, bundle())
    assert "no signer" in refusal(replace(site, signer=None), *offered)
    assert "signer can't be read" in refusal(replace(site, signer=folder / "none"), *offered)
    assert "signer can't be read" in refusal(replace(site, signer=folder / "signer.key"), *offered)


def test_a_site_that_trusts_its_server_still_runs_clientapps_alone(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trusting = Admission(None, trusts_server=True, versions=AcceptedVersions(folder / "unused"))
    trusting.warn()
    assert "WARNING" in caplog.text
    run, fab = offer(folder, bundle())
    unsigned = replace(run, override_config={"overrides": "seed=1"})
    assert trusting.admit(TaskType.CLIENT_APP, unsigned, fab)["overrides"] == "seed=1"
    assert "no flwr-agentapp" in refusal(trusting, unsigned, fab, TaskType.AGENT_APP)
    assert "not the one" in refusal(trusting, replace(unsigned, fab_version="/../.."), fab)
    assert "can't be read" in refusal(trusting, unsigned, replace(fab, content=b"no archive"))


def test_the_environment_sets_signer_and_trust(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (SIGNER, UNSIGNED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    site = Admission.of_environment()
    assert (site.signer, site.trusts_server) == (None, False)
    assert site.versions.path == tmp_path / "fed-mediffusion" / "accepted-versions.json"
    site.warn()
    assert "every run is refused" in caplog.text

    monkeypatch.setenv(UNSIGNED, TRUST)
    assert Admission.of_environment().trusts_server
    monkeypatch.setenv(SIGNER, "signer.pem")
    with pytest.raises(UserError, match="exclude each other"):
        Admission.of_environment()
    monkeypatch.setenv(UNSIGNED, "")
    monkeypatch.setenv(PLACE, str(tmp_path / "elsewhere"))
    site = Admission.of_environment()
    assert (site.signer, site.trusts_server) == (Path("signer.pem"), False)
    assert site.versions.path == tmp_path / "elsewhere"
    monkeypatch.setenv(UNSIGNED, "yes")
    with pytest.raises(UserError, match=f"the only value is {TRUST}"):
        Admission.of_environment()
