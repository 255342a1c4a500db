"""A whole federation with differential privacy, and what leaves its sites."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, RecordDict
from helpers.messages import sent
from torch import Tensor

from configs.compose import compose
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.inference.joint_model import TrainedModel, build_joint
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.serialization import FORMAT, unpack
from mediffusion_core.models import Autoencoder, LatentCodec
from mediffusion_core.privacy.accounting.accountant import Charge, epsilon
from mediffusion_core.privacy.accounting.filters import RenyiFilter, noise_multiplier_for
from mediffusion_core.privacy.ledger.ledger import Ledger
from mediffusion_core.privacy.ledger.site_ledger import ALL_SITES
from mediffusion_core.run_io.checkpoints import list_checkpoints
from mediffusion_core.training.adam_moments import fresh_moments
from server.latent_scale import noise_in_sums
from server.messages import SiteError
from server.run import FederatedRun
from server.state import fresh_state
from simulations.engine.in_process import run_in_process
from simulations.engine.simulate import _site_errors

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
    "evaluation.counterfactual.count=2",
    "evaluation.counterfactual.panel=1",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def overrides(tiny: tuple[str, ...], tmp_path: Path, store: Path) -> list[str]:
    return [*tiny, *PRIVATE, f"data.store='{store}'", f"run.folder='{tmp_path / 'run'}'"]


def patients(overrides: list[str], site: int) -> list[str]:
    dataset = open_federated_dataset(compose("config", overrides))
    return sorted(set(dataset.groups(dataset.train(site).rows)))


def costing(spent: float) -> Charge:
    """A charge of an earlier run."""
    budget = RenyiFilter(spent, 1e-4)
    return Charge(1.0, noise_multiplier_for(budget, lambda noise: [Charge(1.0, noise, 1)]), 1)


def test_a_private_federation_goes_on_without_the_patients_who_have_spent_their_budget(
    overrides: list[str], tmp_path: Path
) -> None:
    ledger = Ledger.open(tmp_path / "ledgers" / ALL_SITES)
    whole, half, last = (patients(overrides, site) for site in range(3))
    # At one site half of the patients may not even be counted. At another one all have too little
    # left for training.
    ledger.charge(half[::2], Charge(1.0, 0.1, 1), "joint", "an earlier run", 1)
    ledger.charge(last, costing(19.7), "joint", "an earlier run", 1)
    before = ledger.spent(half[::2], 1e-4)
    # A whole pass a round: with half a one, a site whose noised count is low skips the second.
    kept = [
        f"privacy.ledger='{tmp_path / 'ledgers'}'",
        "privacy.max_epsilon=20",
        "training.joint.local_epochs=1",
    ]
    folder = run_in_process("config", [*overrides, *kept])
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["status"] == "completed" and summary["privacy"]["unit"] == "patient"
    assert not summary["set_aside"]
    assert folder.history()[0]["privacy"] == summary["privacy"]  # watch shows it from the start
    promised = summary["privacy"]["sites"]
    assert set(promised) == set(summary["census"]) == {"site-0", "site-1", "site-2"}
    for site, trained in (("site-0", whole), ("site-1", half[1::2])):
        planned = promised[site]["epsilon"]
        assert ledger.spent(trained, 1e-4) == pytest.approx(planned, rel=1e-6)
    assert ledger.spent(half[::2], 1e-4) == before > 20 >= ledger.spent(last, 1e-4)
    counted: dict[str, list[int]] = {}
    for entry in ledger.entries()[2:]:
        counted.setdefault(entry.run, []).append(entry.units)
    assert counted["run/site-0"] == [len(whole)] * 5
    assert counted["run/site-1"] == [len(half) // 2] * 5
    # Each charge by itself fits in or not.
    assert counted["run/site-2"][0] == len(last)
    assert set(counted["run/site-2"]) == {0, len(last)}
    log = (folder.path / "sites" / "site-1" / "site.log").read_text()
    assert f"{(len(half) + 1) // 2} of {len(half)} units have spent their budget" in log
    newest = list_checkpoints(folder.checkpoints)[-1]
    known = bytes(newest.load("ledger_site-2")["tip"].tolist()).decode()
    assert known == str(ledger.verify())  # it was charged last
    rounds = [line["sites"] for line in folder.history() if line["stage"] == "joint"]
    told = {"images_seen", "labelled_seen", "steps"}
    assert [{site: set(sent) for site, sent in one.items()} for one in rounds] == [
        dict.fromkeys(promised, told)
    ] * 2


def test_a_run_whose_epsilon_is_the_cap_charges_all_units_to_its_end(
    overrides: list[str],
) -> None:
    target = ["privacy.target_epsilon=8", "privacy.noise_multiplier=null", "privacy.max_epsilon=8"]
    folder = run_in_process("config", [*overrides, *target])
    ledger = Ledger.open(folder.path / "ledger")
    for site in range(3):
        held = len(patients(overrides, site))
        charged = [entry.units for entry in ledger.entries() if entry.run == f"run/site-{site}"]
        assert len(charged) > 3 and set(charged) == {held}
        [spent] = ledger.compositions(patients(overrides, site))
        assert 0.99 < RenyiFilter(8.0, 1e-4).share(spent) <= 1
    assert 6 < ledger.worst(1e-4) < 7.5  # the filter's price


def test_compression_costs_no_privacy(overrides: list[str], tmp_path: Path) -> None:
    """The noise is added before the weights are rounded."""
    short = ("federation.num_rounds=1", "evaluation.every=1", "federation.compression=int8")
    kept = f"privacy.ledger='{tmp_path / 'ledgers'}'"
    folder = run_in_process("config", [*overrides, *short, kept])
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["status"] == "completed"
    ledger = Ledger.open(tmp_path / "ledgers" / ALL_SITES)
    for site, promised in enumerate(summary["privacy"]["sites"].values()):
        spent = ledger.spent(patients(overrides, site), 1e-4)
        assert spent == pytest.approx(promised["epsilon"], rel=1e-6)


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
    entries = Ledger.open(tmp_path / "ledgers" / ALL_SITES).entries()
    stages = [entry.stage for entry in entries if entry.run == "run/site-0"]
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
    protocol.FEATURE_CENSUS: (),
    protocol.ENCODE: (),
    protocol.TRAIN_JOINT: protocol.JOINT,
    protocol.KEYS: (),
    protocol.SHARES: (),
    protocol.UNMASK: (),
    protocol.EVALUATE: (protocol.UNET, protocol.HEAD),
    protocol.EVALUATE_MODEL: (protocol.UNET, protocol.HEAD),
    protocol.STATISTICS: (),
}
"""Every kind of message, with the components that go to a site."""
REFUSED = (
    protocol.EVALUATE,
    protocol.EVALUATE_MODEL,
    protocol.FEATURE_CENSUS,
    protocol.KEYS,
    protocol.SHARES,
    protocol.UNMASK,
    protocol.STATISTICS,
)
"""Kinds that need another task, or a setting that the runs of these tests do not have."""


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
        ledger = Ledger.open(tmp_path / "run" / "ledger")
        charged = [entry.stage for entry in ledger.entries()][len(entries) :]
        entries += charged
        if kind in REFUSED:
            assert not charged
            failure = content.config_records[protocol.FAILURE]
            assert failure["code"] == protocol.FAILED
        elif kind == protocol.ENCODE:
            assert set(content) == {protocol.ANSWERS_TO, protocol.LEDGER_TIP} and not charged
        else:
            assert protocol.FAILURE not in content and len(charged) == 1
    assert entries == ["census", "autoencoder", "latents", "joint"]


def test_validation_units_are_charged_for_sums_with_noise_and_training_units_are_not(
    overrides: list[str], codec: LatentCodec, tmp_path: Path
) -> None:
    overrides = [*overrides, "privacy.validation_noise=2.0"]
    weights = components(overrides, codec)
    asked(protocol.ENCODE, overrides, {protocol.AUTOENCODER: codec.state_dict()})
    sending = {name: weights[name] for name in SENT[protocol.EVALUATE]}
    records = [
        asked(protocol.EVALUATE, overrides, sending).array_records[protocol.COUNTS]
        for _ in range(2)
    ]
    sums = [unpack(one[FORMAT].data) for one in records]
    assert set(sums[0]) == {"histogram", "gains"}
    assert not torch.equal(sums[0]["histogram"], sums[1]["histogram"])
    ledger = Ledger.open(tmp_path / "run" / "ledger")
    assert [entry.stage for entry in ledger.entries()] == ["census", "validation", "validation"]
    dataset = open_federated_dataset(compose("config", overrides))
    validated = dataset.groups(dataset.validation(0).rows)
    assert ledger.entries()[1].units == len(set(validated)) > 0
    assert ledger.spent(validated, 1e-4) == pytest.approx(epsilon([Charge(1.0, 2.0, 2)], 1e-4))
    census = epsilon([Charge(1.0, 8.0, 1)], 1e-4)
    assert ledger.spent(patients(overrides, 0), 1e-4) == pytest.approx(census)


def test_validation_units_that_have_spent_their_budget_are_left_out(
    overrides: list[str], codec: LatentCodec, tmp_path: Path
) -> None:
    """With next to no noise, so that the sums count them."""
    overrides = [*overrides, "privacy.validation_noise=0.001", "privacy.max_epsilon=1e9"]
    weights = components(overrides, codec)
    asked(protocol.ENCODE, overrides, {protocol.AUTOENCODER: codec.state_dict()})
    sending = {name: weights[name] for name in SENT[protocol.EVALUATE]}
    dataset = open_federated_dataset(compose("config", overrides))
    units = sorted(set(dataset.groups(dataset.validation(0).rows)))
    ledger = Ledger.open(tmp_path / "run" / "ledger")
    ledger.charge(units[:1], Charge(1.0, 1e-5, 1), "validation", "an earlier run", 1)
    record = asked(protocol.EVALUATE, overrides, sending).array_records[protocol.COUNTS]
    counted = unpack(record[FORMAT].data)["histogram"].sum(dim=(1, 2))  # (C,)
    assert counted.round().tolist() == [len(units) - 1] * len(CLASSES)
    assert ledger.entries()[-1].units == len(units) - 1


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_without_units_validation_fails_as_with_them(
    overrides: list[str], codec: LatentCodec, tmp_path: Path, unit: str
) -> None:
    """Else a server learned from a failure whether there is a unit."""
    overrides = [*overrides, "privacy.validation_noise=2.0", f"privacy.unit={unit}"]
    asked(protocol.ENCODE, overrides, {protocol.AUTOENCODER: codec.state_dict()})
    weights = components(overrides, codec)
    whole = {name: dict(weights[name]) for name in SENT[protocol.EVALUATE]}
    bad = {**whole, protocol.HEAD: {n: one[:-1] for n, one in whole[protocol.HEAD].items()}}
    broken = {name: {n: one * torch.nan for n, one in whole[name].items()} for name in whole}

    def answers() -> list[bool]:
        return [
            protocol.FAILURE in asked(protocol.EVALUATE, overrides, sending)
            for sending in (whole, bad, broken)
        ]

    before = answers()
    dataset = open_federated_dataset(compose("config", overrides))
    units = sorted(set(dataset.groups(dataset.validation(0).rows)))
    ledger = Ledger.open(tmp_path / "run" / "ledger")
    ledger.charge(units, Charge(1.0, 1e-5, 1), "validation", "an earlier run", 1)
    overrides += ["privacy.max_epsilon=1e9"]
    assert answers() == before == [False, True, False]
    assert ledger.entries()[-1].units == 0


def test_a_private_run_has_an_auc_of_its_own_patients(overrides: list[str]) -> None:
    """With next to no noise it is that of the sites' patients; the untrained model is not asked."""
    folder = run_in_process("config", [*overrides, "privacy.validation_noise=0.001"])
    summary = json.loads((folder.path / "summary.json").read_text())
    assert 0.2 < summary["auc_pooled"] < 1
    low, high = summary["auc_pooled_interval"]
    assert low < summary["auc_pooled"] < high
    assert summary["privacy"]["validation_epsilon"] > 1000
    ledger = Ledger.open(folder.path / "ledger")
    validated = [entry for entry in ledger.entries() if entry.stage == "validation"]
    assert [entry.round_number for entry in validated] == [2, 2, 2]


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
    ledger = Ledger.open(tmp_path / "run" / "ledger")
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
    ledger = Ledger.open(tmp_path / "run" / "ledger")
    assert [entry.stage for entry in ledger.entries()] == ["census", "latents", "latents"]


@pytest.mark.parametrize(
    ("sites", "caps", "more"),
    [((0, 0), (1000.0, 0.001), ()), ((0, 2), (1000.0, 1000.0), ("data.use_unlabelled=false",))],
    ids=["all budgets are spent", "no label and so no image"],
)
def test_a_site_with_nothing_to_train_on_answers_as_any_other(
    overrides: list[str],
    codec: LatentCodec,
    tmp_path: Path,
    sites: tuple[int, int],
    caps: tuple[float, float],
    more: tuple[str, ...],
) -> None:
    weights = components(overrides, codec)
    shapes: list[dict[str, object]] = []
    for name, site, cap in zip(("run", "empty"), sites, caps, strict=True):
        folder = f"run.folder='{tmp_path / name}'"
        given = [*overrides, f"privacy.max_epsilon={cap}", folder, *more]
        found: dict[str, object] = {}
        for kind, names in SENT.items():
            sending = {name: weights[name] for name in names}
            if kind == protocol.ENCODE:
                sending = {protocol.AUTOENCODER: codec.state_dict()}
            found |= shape(kind, asked(kind, given, sending, site))
        found.pop(f"{protocol.CENSUS} {protocol.IDENTITY}")
        shapes.append(found)
    assert shapes[0] == shapes[1]
    charged = [
        [(entry.stage, entry.units > 0) for entry in Ledger.open(tmp_path / name).entries()]
        for name in ("run/ledger", "empty/ledger")
    ]
    stages = ("census", "autoencoder", "latents", "joint")
    assert charged == [[(stage, units) for stage in stages] for units in (True, False)]


def shape(kind: str, content: RecordDict) -> dict[str, object]:
    """All of a reply but its numbers, which are noised."""
    found: dict[str, object] = {}
    for name, record in content.items():
        if name == protocol.LEDGER_TIP:
            tip = bytes(unpack(record[FORMAT].data)["tip"].tolist())  # type: ignore[union-attr]
            found[f"{kind} {name}"] = tip.split(b":")[0]
        elif isinstance(record, ArrayRecord):
            tensors = unpack(record[FORMAT].data)
            found |= {f"{kind} {name} {one}": value.shape for one, value in tensors.items()}
        elif name == protocol.METRICS:
            found[f"{kind} {name}"] = set(record)
        else:
            found[f"{kind} {name}"] = {key: str(value) for key, value in record.items()}
    return found


def test_a_ledger_older_than_the_servers_knowledge_is_refused(
    overrides: list[str], tmp_path: Path
) -> None:
    told = asked(protocol.CENSUS, overrides, {}).array_records[protocol.LEDGER_TIP]
    tip = unpack(told[FORMAT].data)
    again = asked(protocol.CENSUS, overrides, {protocol.LEDGER_TIP: tip})
    assert protocol.FAILURE not in again
    ledger = tmp_path / "run" / "ledger"
    shutil.rmtree(ledger)
    ledger.with_name("ledger.head").unlink()
    content = asked(protocol.CENSUS, overrides, {protocol.LEDGER_TIP: tip})
    assert content.config_records[protocol.FAILURE]["code"] == protocol.FAILED
    assert "ledger-behind" in (tmp_path / "run" / "sites" / "site-0" / "site.log").read_text()


def test_a_ledger_set_back_while_the_run_was_down_is_refused(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server keeps the ledger's tip over its own restart, and compares it before a round."""
    ledger, older = tmp_path / "run" / "ledger", tmp_path / "older"
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
    with pytest.raises(SiteError, match=r"0 replies to query\.encode count"):
        run_in_process("config", overrides)
    for site in range(3):
        log = tmp_path / "run" / "sites" / f"site-{site}" / "site.log"
        assert "ledger-behind" in log.read_text()


def test_too_large_a_delta_is_refused(overrides: list[str], tmp_path: Path) -> None:
    content = asked(protocol.CENSUS, [*overrides, "privacy.target_delta=0.01"], {})
    failure = content.config_records[protocol.FAILURE]
    assert failure["code"] == protocol.FAILED
    # The person who simulates owns the sites, and is shown the reason.
    [line] = _site_errors(tmp_path / "run", f"site-0 failed: code failed, id {failure['id']}; ...")
    assert "site-0: " in line and "privacy.target_delta=0.01 is too large for a site" in line
