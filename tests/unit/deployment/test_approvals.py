"""Approval of runs at a site: what waits, what may start, and until when."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.supercore.constant import TaskType
from typer.testing import CliRunner

from deployment.admission import Admission
from deployment.approvals import MOST_PENDING, Approvals
from deployment.command_line import app
from deployment.signing import (
    BundleRefusedError,
    read_signer,
    run_hash,
    settings_digest,
    signer_name,
)
from mediffusion_core.common.audit_log import AuditLog, read_lines
from unit.deployment.test_admission import bundle, folder, offer, refusal, site

__all__ = ["folder", "site"]

SITE = 'name = "uni"\n[data]\nsource = "folder"\nroot = "/data"\n[policy]\napproval = "{}"\n'
DIGEST = "0" * 64


@pytest.fixture
def strict(site: Admission, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Admission:
    """A site whose engineer approves each run."""
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    file = folder / "site.toml"
    file.write_text(SITE.format("required"))
    file.chmod(0o600)
    return replace(site, site_file=file, approvals=Approvals.of_site())


def asked(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments])
    return str(result.exception) if result.exception else result.output.strip()


def test_a_run_waits_until_its_hash_is_approved(strict: Admission, folder: Path) -> None:
    run, fab = offer(folder, bundle(), overrides="seed=1 \x1b[2J")
    refused = refusal(strict, run, fab)
    command = refused.rpartition("fed-mediffusion-site ")[2].split()
    assert command[0] == "approve" and command[1] in asked("pending")
    assert "seed=1 \\x1b[2J" in asked("pending") and fab.hash_str in asked("pending")
    assert asked(*command) == f"approved {command[1]}"
    strict.admit(TaskType.CLIENT_APP, run, fab)
    assert asked("pending") == "no run waits for approval"
    assert asked("approvals") == command[1]
    assert "is not approved" in refusal(strict, *offer(folder, bundle(), overrides="seed=2"))


def test_a_bundle_is_approved_for_all_settings(strict: Admission, folder: Path) -> None:
    (folder / "app.fab").write_bytes(bundle())
    for seed in (1, 2):
        refusal(strict, *offer(folder, bundle(), overrides=f"seed={seed}"))
    asked("approve", str(folder / "app.fab"))
    assert asked("pending") == "no run waits for approval"
    for seed in (1, 2, 3):
        strict.admit(TaskType.CLIENT_APP, *offer(folder, bundle(), overrides=f"seed={seed}"))
    assert "is not approved" in refusal(strict, *offer(folder, bundle("other")))


def test_admitted_and_refused_runs_stand_in_the_audit_log_once(
    strict: Admission, folder: Path
) -> None:
    log = AuditLog(folder / "audit.jsonl")
    audited = replace(strict, audit=log)
    run, fab = offer(folder, bundle())
    for _ in range(3):
        refused = refusal(audited, run, fab)
    asked("approve", fab.hash_str)
    for _ in range(3):
        audited.admit(TaskType.CLIENT_APP, run, fab)
    first, second = [line.fields for line in read_lines([log.path])]
    assert (first["outcome"], first["detail"]) == ("refused", refused[:256])
    assert (second["outcome"], second["bundle"]) == ("admitted", fab.hash_str)
    assert second["detail"] in refused  # the run's hash
    signer = read_signer(folder / "signer.pem")
    assert second["signer"] == "coordinator coordinator"
    assert second["key"] == signer_name(signer)


def test_without_its_audit_log_a_site_runs_nothing(strict: Admission, folder: Path) -> None:
    (folder / "file").touch()
    audited = replace(strict, audit=AuditLog(folder / "file" / "audit.jsonl"))
    run, fab = offer(folder, bundle())
    asked("approve", fab.hash_str)
    assert refusal(audited, run, fab) == "the site's audit log can't be written"


def test_an_approval_ends(strict: Admission, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, fab = offer(folder, bundle(), seconds=10**6)
    assert " until " in asked("approve", fab.hash_str, "--days", "1")
    strict.admit(TaskType.CLIENT_APP, run, fab)
    later = time.time() + 2 * 24 * 60 * 60
    monkeypatch.setattr(time, "time", lambda: later)
    assert "is not approved" in refusal(strict, run, fab)
    assert " expired " in asked("approvals")


def test_an_approval_is_withdrawn(strict: Admission, folder: Path) -> None:
    run, fab = offer(folder, bundle())
    asked("approve", fab.hash_str)
    assert asked("approve", fab.hash_str, "--withdraw").startswith("withdrew")
    assert "is not approved" in refusal(strict, run, fab)
    assert "is not approved; " in asked("approve", fab.hash_str, "--withdraw")


def test_what_waits_does_not_end_an_approved_run_of_a_lower_version(
    strict: Admission, folder: Path
) -> None:
    old, new = offer(folder, bundle("old"), version=5), offer(folder, bundle("new"), version=6)
    asked("approve", old[1].hash_str)
    refusal(strict, *new)
    strict.admit(TaskType.CLIENT_APP, *old)


def test_only_signed_runs_wait(strict: Admission, folder: Path) -> None:
    run, fab = offer(folder, bundle())
    assert "not signed" in refusal(strict, replace(run, override_config={}), fab)
    assert asked("pending") == "no run waits for approval"


def test_a_site_that_trusts_its_server_may_demand_approval_too(
    strict: Admission, folder: Path
) -> None:
    trusting = replace(strict, signer=None, trusts_server=True)
    run, fab = offer(folder, bundle())
    assert "is not approved" in refusal(trusting, run, fab)
    asked("approve", fab.hash_str)
    trusting.admit(TaskType.CLIENT_APP, run, fab)


def test_without_the_policy_no_run_needs_approval(strict: Admission, folder: Path) -> None:
    assert strict.site_file is not None
    strict.site_file.write_text(SITE.format("none"))
    strict.admit(TaskType.CLIENT_APP, *offer(folder, bundle()))


def test_a_site_file_or_a_record_that_can_not_be_read_refuses(
    strict: Admission, folder: Path
) -> None:
    offered = offer(folder, bundle())
    missing = replace(strict, site_file=folder / "none.toml")
    assert "file can't be read" in refusal(missing, *offered)
    strict.approvals.path.parent.mkdir(parents=True)
    strict.approvals.path.write_text("{")
    assert "approvals is damaged" in refusal(strict, *offered)
    assert "approvals is damaged" in asked("pending")
    assert "approvals is damaged" in asked("approve", DIGEST)


def test_waiting_runs_do_not_fill_the_disk(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path / "approvals.json")
    for number in range(MOST_PENDING + 5):
        with pytest.raises(BundleRefusedError):
            approvals.require(DIGEST, {"overrides": f"seed={number}"})
    waiting = approvals.read().pending
    last = run_hash(DIGEST, settings_digest({"overrides": f"seed={MOST_PENDING + 4}"}))
    assert len(waiting) == MOST_PENDING and list(waiting)[-1] == last


def test_a_mistake_is_one_line(strict: Admission) -> None:
    assert "neither a hash of 64" in asked("approve", "3f2a")
