"""A whole federation with differential privacy, and what leaves its sites."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict
from helpers.messages import sent
from torch import Tensor

from configs.compose import compose
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.inference.joint_model import TrainedModel, build_joint
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.serialization import FORMAT, unpack
from mediffusion_core.models import Autoencoder, LatentCodec
from mediffusion_core.privacy.accounting.accountant import Charge, noise_multiplier_for
from mediffusion_core.privacy.ledger.ledger import Ledger
from mediffusion_core.run_io.checkpoints import list_checkpoints
from mediffusion_core.training.adam_moments import fresh_moments
from server.latent_scale import noise_in_sums
from server.run import FederatedRun
from server.state import fresh_state
from simulations.engine.in_process import run_in_process

Weights = Mapping[str, Tensor]

CLASSES = tuple("abcde")

PRIVATE = (
    "privacy=dp",
    "privacy.target_epsilon=null",
    "privacy.noise_multiplier=1.0",
    "privacy.target_delta=1e-4",
    "privacy.batch_size=16",
    "privacy.physical_batch_size=8",
    "training.autoencoder.local_epochs=0.5",
    "training.joint.local_epochs=0.5",
    "federation.autoencoder_rounds=1",
    "federation.num_rounds=2",
    "evaluation.every=2",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def overrides(tiny: tuple[str, ...], tmp_path: Path, store: Path) -> list[str]:
    return [*tiny, *PRIVATE, f"data.store='{store}'", f"run.folder='{tmp_path / 'run'}'"]


def spend(ledger: Ledger, overrides: list[str], site: int, charge: Charge) -> None:
    """An earlier run on a site's patients."""
    dataset = open_federated_dataset(compose("config", overrides))
    patients = dataset.groups(dataset.train(site).rows)
    ledger.charge(patients, charge, "joint", "an earlier run", 1)


def test_a_private_federation_costs_the_planned_epsilon_and_continues_without_spent_sites(
    overrides: list[str], tmp_path: Path
) -> None:
    ledgers = {site: Ledger.open(tmp_path / "ledgers" / f"site-{site}") for site in range(3)}
    # One site may not even be counted, another one's patients have nothing left for training.
    spend(ledgers[1], overrides, 1, Charge(1.0, 0.1, 1))
    spend(
        ledgers[2],
        overrides,
        2,
        Charge(1.0, noise_multiplier_for(19.7, 1e-4, lambda noise: [Charge(1.0, noise, 1)]), 1),
    )
    kept = [f"privacy.ledger='{tmp_path / 'ledgers'}'", "privacy.max_epsilon=20"]
    folder = run_in_process("config", [*overrides, *kept])
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["status"] == "completed" and summary["privacy"]["unit"] == "patient"
    promised = summary["privacy"]["sites"]
    assert set(promised) == set(summary["census"]) == {"site-0", "site-2"}
    assert ledgers[0].worst(1e-4) == pytest.approx(promised["site-0"]["epsilon"], rel=1e-6)
    stages = [[entry.stage for entry in ledger.entries()] for ledger in ledgers.values()]
    assert stages[0] == ["census", "autoencoder", "latents", "joint", "joint"]
    assert stages[1] == ["joint"]
    assert stages[2][:2] == ["joint", "census"] and "joint" not in stages[2][2:]
    newest = list_checkpoints(folder.checkpoints)[-1]
    known = bytes(newest.load("ledger_site-0")["tip"].tolist()).decode()
    assert known == str(ledgers[0].verify())
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    rounds = [line["sites"] for line in lines if line["stage"] == "joint"]
    told = {"images_seen", "labelled_seen", "steps"}
    assert [{site: set(sent) for site, sent in one.items()} for one in rounds] == [
        {"site-0": told}
    ] * 2


def test_compression_costs_no_privacy(overrides: list[str], tmp_path: Path) -> None:
    """The noise is added before the weights are rounded."""
    short = ("federation.num_rounds=1", "evaluation.every=1", "federation.compression=int8")
    kept = f"privacy.ledger='{tmp_path / 'ledgers'}'"
    folder = run_in_process("config", [*overrides, *short, kept])
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["status"] == "completed"
    for site, promised in summary["privacy"]["sites"].items():
        ledger = Ledger.open(tmp_path / "ledgers" / site)
        assert ledger.worst(1e-4) == pytest.approx(promised["epsilon"], rel=1e-6)


def test_a_frozen_autoencoder_stays_and_costs_no_step(overrides: list[str], tmp_path: Path) -> None:
    linear = (
        "model.autoencoder.channels=[16]",
        "model.autoencoder.norm_groups=4",
        "model.autoencoder.linear_start=true",
    )
    short = ("federation.num_rounds=1", "evaluation.every=1", "privacy.autoencoder=frozen")
    kept = f"privacy.ledger='{tmp_path / 'ledgers'}'"
    folder = run_in_process("config", [*overrides, *linear, *short, kept])
    start = fresh_state(compose("config", [*overrides, *linear]), len(CLASSES))
    for name, value in list_checkpoints(folder.checkpoints)[-1].load("autoencoder").items():
        assert torch.equal(value, start.weights["autoencoder"][name]), name
    stages = [entry.stage for entry in Ledger.open(tmp_path / "ledgers" / "site-0").entries()]
    assert stages == ["census", "latents", "joint"]
    [latents] = [line for line in folder.history() if line["stage"] == "latents"]
    assert latents["psnr"] > 25
    settings = compose("config", overrides)
    one, four = (noise_in_sums(settings, sites) for sites in (1, 4))
    assert one == pytest.approx(8 * 4) and four == pytest.approx(2 * one)  # σ 2 √c, c = 4


@pytest.mark.parametrize("trained", ["adapters", "attention", "head"])
def test_from_a_public_model_only_the_named_part_changes(
    overrides: list[str], codec: LatentCodec, tmp_path: Path, trained: str
) -> None:
    settings = compose("config", overrides)
    public = TrainedModel(settings, CLASSES, True, codec, build_joint(settings, len(CLASSES)), 1.0)
    public.save(tmp_path / "public")
    given = (
        f"privacy.public_model='{tmp_path / 'public'}'",
        "privacy.autoencoder=public",
        "privacy.release_noise=0.5",  # so that few labelled patients are told from none
    )
    folder = run_in_process("config", [*overrides, *given, f"privacy.trained={trained}"])
    newest = list_checkpoints(folder.checkpoints)[-1]
    before = public.joint.unet.state_dict()
    moved = {n for n, value in newest.load("unet").items() if not torch.equal(value, before[n])}
    if trained == "head":
        assert not moved
    elif trained == "attention":
        assert moved == {name for name in before if ".attentions." in name}
    else:
        assert any(".attentions." in name for name in moved)
        assert any(".resnets." in name for name in moved)
        assert all(name.endswith(".weight") for name in moved)
    head = public.joint.head.state_dict()
    assert not all(torch.equal(value, head[n]) for n, value in newest.load("head").items())
    for name, value in newest.load("autoencoder").items():
        assert torch.equal(value, codec.autoencoder.state_dict()[name])
    opened = TrainedModel.load(folder.model, torch.device("cpu"))
    assert opened.settings.privacy.trained == trained


@pytest.fixture
def codec(overrides: list[str]) -> LatentCodec:
    settings = compose("config", overrides)
    torch.manual_seed(0)
    autoencoder = Autoencoder(settings.model.autoencoder, settings.data.channels)
    return LatentCodec(autoencoder, torch.zeros(4), torch.ones(4))


def components(overrides: list[str], codec: LatentCodec) -> dict[str, Weights]:
    joint = build_joint(compose("config", overrides), 5)
    return {
        protocol.AUTOENCODER: codec.autoencoder.state_dict(),
        protocol.UNET: joint.unet.state_dict(),
        protocol.HEAD: joint.head.state_dict(),
        protocol.AUTOENCODER_MOMENTS: fresh_moments(codec.autoencoder),
        protocol.UNET_MOMENTS: fresh_moments(joint.unet),
        protocol.HEAD_MOMENTS: fresh_moments(joint.head),
    }


def asked(
    kind: str, overrides: list[str], sending: Mapping[str, Weights], site: int = 0
) -> RecordDict:
    reply = sent(kind, overrides, compose("config", overrides).fingerprint(), sending, site)
    return reply.content


SENT = {
    protocol.CENSUS: (),
    protocol.TRAIN_AUTOENCODER: protocol.AUTOENCODING,
    protocol.LATENT_CENSUS: (protocol.AUTOENCODER,),
    protocol.ENCODE: (),
    protocol.TRAIN_JOINT: protocol.JOINT,
    protocol.EVALUATE: (protocol.UNET, protocol.HEAD),
}
"""Every kind of message, with the components that go to a site."""


def test_every_kind_of_message_is_charged_empty_or_refused(
    overrides: list[str], codec: LatentCodec, tmp_path: Path
) -> None:
    kinds = {value for name, value in vars(protocol).items() if _is_kind(name, value)}
    assert kinds == set(SENT)
    weights = components(overrides, codec)
    entries: list[str] = []
    for kind, names in SENT.items():
        sending = {name: weights[name] for name in names}
        if kind == protocol.ENCODE:
            sending = {protocol.AUTOENCODER: codec.state_dict()}
        content = asked(kind, overrides, sending)
        ledger = Ledger.open(tmp_path / "run" / "sites" / "site-0" / "ledger")
        charged = [entry.stage for entry in ledger.entries()][len(entries) :]
        entries += charged
        if kind == protocol.EVALUATE:
            failure = content.config_records[protocol.FAILURE]
            assert failure["code"] == "refused"
        elif kind == protocol.ENCODE:
            assert set(content) == {protocol.ANSWERS_TO, protocol.LEDGER_TIP} and not charged
        else:
            assert protocol.FAILURE not in content and len(charged) == 1
    assert entries == ["census", "autoencoder", "latents", "joint"]


def _is_kind(name: str, value: object) -> bool:
    return (
        name.isupper() and isinstance(value, str) and value.startswith(("query.", "train.", "eval"))
    )


def test_the_noised_counts_are_drawn_and_charged_once(overrides: list[str], tmp_path: Path) -> None:
    first, second = (
        dict(asked(protocol.CENSUS, overrides, {}).metric_records[protocol.METRICS])
        for _ in range(2)
    )
    assert first == second and set(first) == {"train", "labelled"}
    ledger = Ledger.open(tmp_path / "run" / "sites" / "site-0" / "ledger")
    assert [entry.stage for entry in ledger.entries()] == ["census"]


def test_the_same_question_twice_is_charged_twice_and_answered_with_other_noise(
    overrides: list[str], codec: LatentCodec, tmp_path: Path
) -> None:
    sending = {protocol.AUTOENCODER: codec.autoencoder.state_dict()}
    totals = [
        unpack(
            asked(protocol.LATENT_CENSUS, overrides, sending)
            .array_records[protocol.COUNTS][FORMAT]
            .data
        )["total"]
        for _ in range(2)
    ]
    assert not torch.equal(*totals)
    ledger = Ledger.open(tmp_path / "run" / "sites" / "site-0" / "ledger")
    assert [entry.stage for entry in ledger.entries()] == ["census", "latents", "latents"]


def test_a_site_at_its_cap_answers_with_a_code_and_does_nothing(
    overrides: list[str], codec: LatentCodec
) -> None:
    given = [*overrides, "privacy.max_epsilon=0.5"]
    weights = components(given, codec)
    sending = {name: weights[name] for name in protocol.AUTOENCODING}
    content = asked(protocol.TRAIN_AUTOENCODER, given, sending)
    assert set(content) == {protocol.ANSWERS_TO, protocol.FAILURE}
    assert content.config_records[protocol.FAILURE]["code"] == protocol.BUDGET


def test_a_ledger_older_than_the_servers_knowledge_is_refused(
    overrides: list[str], tmp_path: Path
) -> None:
    told = asked(protocol.CENSUS, overrides, {}).array_records[protocol.LEDGER_TIP]
    tip = unpack(told[FORMAT].data)
    again = asked(protocol.CENSUS, overrides, {protocol.LEDGER_TIP: tip})
    assert protocol.FAILURE not in again
    ledger = tmp_path / "run" / "sites" / "site-0" / "ledger"
    shutil.rmtree(ledger)
    ledger.with_name("ledger.head").unlink()
    content = asked(protocol.CENSUS, overrides, {protocol.LEDGER_TIP: tip})
    assert content.config_records[protocol.FAILURE]["code"] == "ledger-behind"


def test_a_ledger_set_back_while_the_run_was_down_is_refused(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server keeps the ledger's tip over its own restart, and compares it before a round."""
    ledger, older = tmp_path / "run" / "sites" / "site-0" / "ledger", tmp_path / "older"
    tip = ledger.with_name("ledger.head")
    joint_round = FederatedRun._joint_round

    def killed_in_the_second(run: FederatedRun) -> None:
        if older.exists():
            raise KeyboardInterrupt
        shutil.copytree(ledger, older)
        shutil.copy(tip, tmp_path)
        joint_round(run)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(FederatedRun, "_joint_round", killed_in_the_second)
        run_in_process("config", overrides)
    shutil.rmtree(ledger)
    shutil.copytree(older, ledger)
    shutil.copy(tmp_path / tip.name, tip)
    folder = run_in_process("config", overrides)
    summary = json.loads((folder.path / "summary.json").read_text())
    assert {one["site"] for one in summary["set_aside"]} == {"site-0"}
    assert all("ledger-behind" in one["reason"] for one in summary["set_aside"])
    trained = [set(line["sites"]) for line in folder.history() if line["stage"] == "joint"]
    assert trained[-1] == {"site-1", "site-2"}


def test_too_large_a_delta_is_refused(overrides: list[str]) -> None:
    content = asked(protocol.CENSUS, [*overrides, "privacy.target_delta=0.01"], {})
    assert content.config_records[protocol.FAILURE]["code"] == "data"
