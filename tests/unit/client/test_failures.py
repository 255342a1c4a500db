"""Under privacy every failure of a site is the same: its reason stays in the site's logs."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from flwr.app import Message, RecordDict
from flwr.common.serde import recorddict_to_proto

from client import site
from client.client_app import app
from client.trainer.private import PrivateTrainer
from configs.compose import compose
from mediffusion_core.common.audit_log import AUDIT, read_lines
from mediffusion_core.messaging import protocol
from mediffusion_core.privacy.dp_sgd.gradient_check import WrongGradientError
from server.messages import FAILURE_CODE, FAILURE_ID
from server.state import fresh_state
from simulations.engine.in_process import order
from unit.client.test_site_policy import (
    CLASSES,
    PRIVATE,
    RUN_OF,
    context,
    described_site,
)

RUN = (
    *RUN_OF,
    *PRIVATE,
    "model.unet.channels=[32,32]",
    "model.unet.attention=[false,false]",
    "model.head.hidden=8",
)
LIMITS = 'max_epsilon = 50.0\nmin_noise_multiplier = 0.5\nallowed_settings."seed" = [0, 1]\n'
LEDGER_TIP = {"tip": torch.tensor(list(f"99:{'0' * 64}".encode()), dtype=torch.uint8)}

Sent = Mapping[str, Mapping[str, torch.Tensor]]


class Hospital:
    """A deployed site in a joint round, whose files can be put back as they were."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patches = folder / "live", monkeypatch
        self.node = described_site(self.folder, "uni", policy=LIMITS)
        self.home = self.folder / "uni"
        monkeypatch.setenv("XDG_DATA_HOME", str(self.folder / "data"))
        monkeypatch.setenv(AUDIT, str(self.folder / "audit.jsonl"))
        monkeypatch.setattr(site, "PATIENCE", 0.05)
        settings = compose("config", RUN)
        state = fresh_state(settings, len(CLASSES))
        self.hash = settings.fingerprint()
        self.codec = state.codec(settings).state_dict()
        self.joint = {name: dict(state.weights[name]) for name in protocol.JOINT}
        for kind, records in (
            (protocol.CENSUS, {}),
            (protocol.ENCODE, {protocol.AUTOENCODER: self.codec}),
        ):
            assert protocol.FAILURE not in self.answer(kind, records)
        self.kept = folder / "kept"
        shutil.copytree(self.folder, self.kept)

    def put_back(self) -> None:
        logging.getLogger(f"fed-mediffusion.site.{self.own}").handlers.clear()  # of deleted files
        shutil.rmtree(self.folder)
        shutil.copytree(self.kept, self.folder)

    def answer(self, kind: str, records: Sent, overrides: Sequence[str] = ()) -> RecordDict:
        site._opened.cache_clear()
        message = order(kind, self.hash, records)
        return self.reply(message, overrides).content

    def reply(self, message: Message, overrides: Sequence[str]) -> Message:
        return app(message, context(self.node, (*RUN, *overrides)))

    def joint_round(self, *overrides: str) -> RecordDict:
        return self.answer(protocol.TRAIN_JOINT, self.joint, overrides)

    def edit(self, old: str, new: str) -> None:
        file = self.home / "site.toml"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    @property
    def ledger(self) -> Path:
        return self.folder / "data" / "fed-mediffusion" / "ledgers" / "uni"

    @property
    def tip(self) -> Path:
        return self.home / "store" / "ledger-heads" / "uni"

    @property
    def own(self) -> Path:
        return self.home / "runs" / self.hash / "sites" / "uni"


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Hospital(tmp_path_factory.mktemp("hospital"), monkeypatch)


def run(*overrides: str) -> Callable[[Hospital], RecordDict]:
    """A run with these settings asks for a joint round."""
    return lambda one: one.joint_round(*overrides)


def after(change: Callable[[Hospital], Any]) -> Callable[[Hospital], RecordDict]:
    """A joint round at a site that was changed."""

    def way(one: Hospital) -> RecordDict:
        change(one)
        return one.joint_round()

    return way


def policy(line: str) -> Callable[[Hospital], RecordDict]:
    """A joint round at a site with one more limit."""
    return after(lambda one: one.edit("[policy]\n", f"[policy]\n{line}\n"))


def table(change: Callable[[list[str]], list[str]]) -> Callable[[Hospital], RecordDict]:
    """A joint round at a site with another table of labels."""

    def edit(one: Hospital) -> None:
        path = one.home / "images" / "labels.csv"
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, *change(rows)]) + "\n")

    return after(edit)


def raising(error: Exception) -> Callable[[Hospital], RecordDict]:
    """A joint round that ends with an error."""

    def fail(*_: object) -> None:
        raise error

    def way(one: Hospital) -> RecordDict:
        with one.patches.context() as patched:
            patched.setattr(PrivateTrainer, "_train_joint", fail)
            return one.joint_round()

    return way


def undeclared(one: Hospital) -> RecordDict:
    def too_much(*_: object) -> tuple[dict[str, Any], dict[str, float]]:
        return {"weights_of_patients": {}}, {"steps": 1.0}

    with one.patches.context() as patched:
        patched.setattr(PrivateTrainer, "joint_round", too_much)
        return one.joint_round()


def held(one: Hospital) -> RecordDict:
    with FileLock(one.own / "site.lock"):
        return one.joint_round()


def unlogged(one: Hospital) -> RecordDict:
    """Neither the audit log nor the site's log can be written."""
    with one.patches.context() as patched:
        patched.setenv(AUDIT, str(one.home / "site.toml" / "audit.jsonl"))
        return one.joint_round()


def unwritable(path: Path) -> None:
    """Puts a folder in the place of a file."""
    path.unlink(missing_ok=True)
    path.mkdir()


def spoil(path: Path) -> None:
    path.write_bytes(b"spoiled" + path.read_bytes()[7:])


WAYS: dict[str, tuple[str, Callable[[Hospital], RecordDict]]] = {
    # Settings of the run
    "no such setting": ("data", run("sead=1")),
    "a value out of range": ("data", run("data.test_fraction=2")),
    "settings that the server does not have": ("settings", run("privacy.batch_size=7")),
    "no classes": ("data", run("data.classes=null")),
    "classes in another order": ("refused", run("data.classes=[healthy,effusion]")),
    "one class": ("refused", run("data.classes=[healthy]")),
    "a class that nobody has": ("refused", run("data.classes=[effusion,healthy,nodule]")),
    "several findings": ("refused", run("data.multi_label=true")),
    "a large test set": ("refused", run("data.test_fraction=0.8")),
    "a small validation set": ("refused", run("data.validation_fraction=0.0001")),
    "no bad file": ("refused", run("data.max_bad_fraction=0")),
    "no privacy": ("refused", run("privacy.enabled=false")),
    "images as units": ("refused", run("privacy.unit=image")),
    "too large a delta by policy": ("refused", run("privacy.target_delta=1e-3")),
    "too little noise": ("refused", run("privacy.noise_multiplier=0.4")),
    "too little noise in counts": ("refused", run("privacy.release_noise=0.4")),
    "a setting that is not allowed": ("refused", run("seed=2")),
    # The site file
    "no site file": ("data", after(lambda one: (one.home / "site.toml").unlink())),
    "a site file that others may write": (
        "data", after(lambda one: (one.home / "site.toml").chmod(0o666))
    ),
    "a broken site file": ("data", after(lambda one: one.edit("[policy]", "[policy"))),
    "an unknown device": ("data", after(lambda one: one.edit('"cpu"', '"cuda:9"'))),
    "metrics that weigh": ("refused", policy('allowed_metrics = ["steps"]')),
    "no classes in the site file": ("refused", after(lambda one: one.edit("classes", "# c"))),
    # The images
    "no table": ("data", after(lambda one: (one.home / "images" / "labels.csv").unlink())),
    "no images": ("data", after(lambda one: shutil.rmtree(one.home / "images"))),
    "an unknown class": ("data", table(lambda rows: [*rows[:-1], "23.png,other,p23"])),
    "images that cannot be read": (
        "data", after(lambda one: [path.write_bytes(b"") for path in one.home.rglob("1*.png")])
    ),
    "two patients": ("data", table(lambda rows: rows[:2])),
    "a table that changed": ("data", table(lambda rows: rows[::-1])),
    "no store": ("data", after(lambda one: one.edit("store = ", 'store = "/proc/x" # '))),
    # The site's own files
    "a folder that is in use": ("data", held),
    "no latents": ("data", after(lambda one: (one.own / "latents.safetensors").unlink())),
    "damaged latents": ("data", after(lambda one: spoil(one.own / "latents.safetensors"))),
    "damaged counts": ("data", after(lambda one: spoil(one.own / "privacy.json"))),
    "no ledger": ("ledger-removed", after(lambda one: (one.ledger / "ledger.sqlite").unlink())),
    "an edited ledger": (
        "ledger-unreadable", after(lambda one: spoil(one.ledger / "ledger.sqlite"))
    ),
    "no tip": ("tip-removed", after(lambda one: one.tip.unlink())),
    "another tip": ("tip-unreadable", after(lambda one: spoil(one.tip))),
    "no salt": (
        "salt-removed",
        after(lambda one: [path.unlink() for path in one.ledger.iterdir() if not path.suffix]),
    ),
    "an older ledger than the server's": (
        "ledger-behind",
        lambda one: one.answer(
            protocol.TRAIN_JOINT, {**one.joint, protocol.LEDGER_TIP: LEDGER_TIP}
        ),
    ),
    "no log": ("audit", unlogged),
    "no log of the site": (
        "data",
        after(lambda one: (unwritable(one.own / "site.log"), spoil(one.own / "privacy.json"))),
    ),
    # The work
    "no weights": ("internal", lambda one: one.answer(protocol.TRAIN_JOINT, {})),
    "wrong weights": (
        "internal",
        lambda one: one.answer(protocol.TRAIN_JOINT, dict.fromkeys(one.joint, LEDGER_TIP)),
    ),
    "wrong gradients": ("gradients", raising(WrongGradientError("off by 0.3"))),
    "no memory": ("internal", raising(MemoryError())),
    "undeclared content": ("internal", undeclared),
}  # fmt: skip
"""Ways to fail: the reason's own code, and what fails."""


def test_failures_look_alike(hospital: Hospital) -> None:
    hospital.put_back()
    assert protocol.FAILURE not in hospital.joint_round()
    sent: dict[bytes, list[str]] = {}
    reasons: dict[str, object] = {}
    for name, (_, way) in WAYS.items():
        hospital.put_back()
        content = way(hospital)
        assert set(content) == {protocol.FAILURE, protocol.ANSWERS_TO}, name
        serialized = recorddict_to_proto(content).SerializeToString(deterministic=True)
        sent.setdefault(serialized, []).append(name)
        line = list(read_lines([hospital.folder / "audit.jsonl"]))[-1].fields
        failure = content.config_records[protocol.FAILURE]
        reasons[name] = line["outcome"] if line["error"] == failure["id"] else "not logged"
    assert len(sent) == 1, list(sent.values())
    expected = {name: code for name, (code, _) in WAYS.items()} | {"no log": "not logged"}
    assert reasons == expected  # in the audit log
    assert FAILURE_CODE.fullmatch(str(failure["code"])) and FAILURE_ID.fullmatch(str(failure["id"]))


def test_a_failure_follows_from_the_message_alone(hospital: Hospital) -> None:
    """To every kind of message: a server could write the failure itself."""
    found = {}
    for kind, records in (
        (protocol.CENSUS, {}),
        (protocol.TRAIN_JOINT, hospital.joint),
        (protocol.EVALUATE, hospital.joint),
    ):
        ids = []
        for overrides in (("data.classes=[healthy]",), ("sead=1",)):
            hospital.put_back()
            content = hospital.answer(kind, records, overrides)
            assert content.config_records[protocol.FAILURE]["code"] == protocol.FAILED
            ids.append(content.config_records[protocol.FAILURE]["id"])
        assert ids[0] == ids[1]
        found[kind] = ids[0]
    assert len(set(found.values())) == len(found)


def test_without_privacy_the_code_leaves_with_a_random_id(hospital: Hospital) -> None:
    hospital.put_back()
    hospital.edit("[policy]\n", "[policy]\nrequire_privacy = false\n")
    plain = "privacy.enabled=false"
    failures = [
        hospital.answer(protocol.CENSUS, {}, (plain, more)).config_records[protocol.FAILURE]
        for more in ("data.multi_label=true", "data.classes=null", "data.classes=null")
    ]
    assert [one["code"] for one in failures] == ["refused", "data", "data"]
    assert len({one["id"] for one in failures}) == 3


def test_the_log_of_the_site_has_reason_and_id(hospital: Hospital) -> None:
    hospital.put_back()
    spoil(hospital.own / "privacy.json")
    failure = dict(hospital.joint_round().config_records[protocol.FAILURE])
    log = (hospital.own / "site.log").read_text()
    assert f"{failure['id']} data {hospital.own / 'privacy.json'} is damaged" in log
    assert "Traceback" in log and "data" not in json.dumps(failure)
