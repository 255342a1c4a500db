"""Runs with secure aggregation: sums, absent sites, charges, resume, and what one reply tells."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, RecordDict
from helpers.messages import sent
from numpy.typing import NDArray
from scipy.stats import kstest
from torch import Tensor

from client.secure_round import FILE
from client.site import open_site
from client.trainer import trainer_of
from configs.compose import compose, flatten
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.protocol import HEAD, UNET
from mediffusion_core.messaging.serialization import FORMAT, unpack
from mediffusion_core.privacy.ledger.ledger import Ledger
from mediffusion_core.privacy.ledger.site_ledger import ALL_SITES
from mediffusion_core.privacy.secure_aggregation.grid import STEPS, from_steps
from mediffusion_core.run_io.checkpoints import list_checkpoints
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.settings import Settings
from server.messages import SiteError
from server.reply_contract import ReplyContract
from server.secure_sum import secure_sum
from server.server_app import serve
from server.state import fresh_state
from simulations.engine.in_process import SitesHere, run_in_process

StateDict = Mapping[str, Tensor]

SECURE = (
    "data.phantom.patients_per_site=[24,24,24,24]",
    "federation.num_sites=4",
    "federation.num_rounds=2",
    "federation.server.head.learning_rate=10",
    "evaluation.every=2",
    "model.autoencoder.linear_start=true",
    "model.autoencoder.channels=[16]",
    "model.autoencoder.patch_size=4",
    "model.autoencoder.norm_groups=4",
    "model.head.latent_statistics=true",
    "model.head.dropout=0",
    "training.joint.diffusion_weight=0",
    "training.joint.noised_fraction=0",
    "training.joint.augmented_views=1",
    "data.augmentation=none",
    "privacy=dp",
    "privacy.target_delta=1e-4",
    "privacy.autoencoder=frozen",
    "privacy.trained=head",
    "privacy.physical_batch_size=64",
    "privacy.secure_aggregation.enabled=true",
)
QUIET = ("privacy.target_epsilon=null", "privacy.noise_multiplier=1e-6", "privacy.unit=image")
"""So little noise that sums can be compared, and no random choice among a patient's images."""

Absent = Callable[[str, int, int], bool]
"""Whether a site fails, by kind of message, round and number of the site."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def overrides(
    tiny: tuple[str, ...], few: tuple[str, ...], tmp_path: Path, store: Path
) -> list[str]:
    places = (f"data.store='{store}'", f"run.folder='{tmp_path / 'run'}'")
    return [*tiny, *few, *SECURE, *places]


@dataclass(frozen=True)
class Encoded:
    """A run with next to no noise whose sites have their latents, and its first weights."""

    overrides: list[str]
    settings: Settings
    folder: RunFolder
    weights: Mapping[str, StateDict]

    @property
    def contract(self) -> ReplyContract:
        classes = len(open_federated_dataset(self.settings).store.classes)
        return ReplyContract(self.settings, classes)

    def entries(self) -> int:
        return len(Ledger.open(self.folder.path / "ledger").entries())

    def part(self, site: int) -> NDArray[np.float64]:
        """The sum of the clipped gradients of one site."""
        context = Context(
            run_id=1,
            node_id=2 + site,
            node_config={"partition-id": site, "num-partitions": 4},
            state=RecordDict(),
            run_config={"config-name": "config", "overrides": flatten(self.overrides)},
        )
        trainer = trainer_of(open_site(context))
        return from_steps(trainer.joint_sum(self.weights[UNET], self.weights[HEAD], 3), 1.0)


@pytest.fixture(scope="module")
def encoded(
    tiny: tuple[str, ...],
    few: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
    store: Path,
) -> Encoded:
    place = tmp_path_factory.mktemp("encoded") / "run"
    one = ("federation.num_rounds=1", "evaluation.every=1")
    places = (f"data.store='{store}'", f"run.folder='{place}'")
    overrides = [*tiny, *few, *SECURE, *QUIET, *one, *places]
    folder, settings = run_in_process("config", overrides), compose("config", overrides)
    assert summary_of(folder)["status"] == "completed"
    classes = len(open_federated_dataset(settings).store.classes)
    weights = fresh_state(settings, classes).shared((UNET, HEAD))
    return Encoded(overrides, settings, folder, weights)


class Absentees(SitesHere):
    """Sites of which some fail at some messages."""

    absent: Absent

    def _answer(
        self, kind: str, round_number: int, index: int, records: Mapping[str, ArrayRecord]
    ) -> RecordDict:
        if not self.absent(kind, round_number, index):
            return super()._answer(kind, round_number, index, records)
        instructions = {"round": round_number, "settings_hash": self._hash}
        failure = ConfigRecord({"code": protocol.FAILED, "id": "0" * 8})
        answers_to = ConfigRecord(protocol.answered(kind, instructions))
        return RecordDict({protocol.FAILURE: failure, protocol.ANSWERS_TO: answers_to})


def run_without(absent: Absent, overrides: list[str]) -> RunFolder:
    settings = compose("config", overrides)
    assert settings.run.folder is not None
    folder = RunFolder(settings.run.folder)

    def connect(contract: ReplyContract) -> SitesHere:
        sites = Absentees("config", overrides, settings, contract)
        sites.absent = absent
        return sites

    serve(connect, settings, folder)
    return folder


def summary_of(folder: RunFolder) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder.path / "summary.json").read_text())
    return read


def test_a_run_is_charged_as_planned_and_tells_nothing_else_of_a_site(
    overrides: list[str], tmp_path: Path
) -> None:
    kept = f"privacy.ledger='{tmp_path / 'ledgers'}'"
    folder = run_in_process("config", [*overrides, kept])
    summary = summary_of(folder)
    assert summary["status"] == "completed" and not summary["set_aside"]
    ledger = Ledger.open(tmp_path / "ledgers" / ALL_SITES)
    dataset, promised = open_federated_dataset(compose("config", overrides)), summary["privacy"]
    for number, planned in enumerate(promised["sites"].values()):
        assert planned["sample_rate"] == 1.0 and planned["epsilon"] <= 8.0
        patients = sorted(set(dataset.groups(dataset.train(number).rows)))
        if patients:
            assert ledger.spent(patients, 1e-4) == pytest.approx(planned["epsilon"], rel=1e-6)
    assert len({planned["noise_multiplier"] for planned in promised["sites"].values()}) == 1
    rounds = [line for line in folder.history() if line["stage"] == "joint"]
    assert [line["sites"] for line in rounds] == [{site: {} for site in promised["sites"]}] * 2
    assert not list(folder.path.rglob(FILE))  # no secret outlasts its round
    first, last = (list_checkpoints(folder.checkpoints)[at] for at in (0, -1))
    for component, trained in ((UNET, False), (HEAD, True)):
        before, after = first.load(component), last.load(component)
        assert trained == any(not torch.equal(after[name], before[name]) for name in before)
    assert "secure aggregation" in (folder.path / "report.html").read_text()


def test_a_round_with_too_few_sites_ends_the_run_and_is_repeated(overrides: list[str]) -> None:
    with pytest.raises(SiteError, match="needed"):
        run_without(
            lambda kind, number, site: kind == protocol.TRAIN_JOINT and number == 2 and site > 1,
            overrides,
        )
    folder = run_in_process("config", overrides)
    assert summary_of(folder)["status"] == "completed"
    assert [line["round"] for line in folder.history() if line["stage"] == "joint"] == [1, 2]


@pytest.mark.parametrize("kind", [None, *protocol.SECURE])
def test_the_sum_is_that_of_the_sites_that_answer(encoded: Encoded, kind: str | None) -> None:
    """One of four sites may drop out at each message."""
    sites = Absentees("config", encoded.overrides, encoded.settings, encoded.contract)
    sites.absent = lambda asked, _, site: asked == kind and site == 0
    names = [reply.site for reply in sites.census()]
    found, replies = secure_sum(encoded.settings, sites.ask, 3, encoded.weights, names)
    # Once it has sent its masked sum, the sum has its part.
    gone = kind in protocol.SECURE[:3]
    assert [reply.site for reply in replies] == names[gone:]
    assert not any(set(reply.components) - {protocol.LEDGER_TIP} for reply in replies)
    expected = np.sum([encoded.part(site) for site in range(gone, 4)], axis=0)
    total = torch.cat([found[name].flatten() for name in sorted(found)]).numpy()
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(total, expected, atol=1e-4)


def test_one_reply_is_uniform_and_no_message_is_answered_out_of_order(encoded: Encoded) -> None:
    digest = encoded.settings.fingerprint()

    def ask(kind: str, carried: Mapping[str, StateDict], site: int) -> RecordDict:
        return sent(kind, encoded.overrides, digest, carried, site, 3).content

    before = encoded.entries()
    blank = {"present": torch.ones(4).byte(), "sealed": torch.zeros(4, 148).byte()}
    early = ask(protocol.TRAIN_JOINT, {**encoded.weights, protocol.DEALT: blank}, 0)
    assert protocol.FAILURE in early and encoded.entries() == before
    advertised = [ask(protocol.KEYS, {}, site) for site in range(4)]
    keys = [unpacked(one, protocol.PUBLIC_KEYS)["keys"] for one in advertised]
    roster = {protocol.ROSTER: {"keys": torch.stack(keys)}}
    dealt = [unpacked(ask(protocol.SHARES, roster, site), protocol.DEALT) for site in range(4)]
    present = torch.tensor([0, 1, 1, 1]).byte()
    first = {"present": present, "sealed": torch.stack([one["sealed"][0] for one in dealt])}
    carried = {**encoded.weights, protocol.DEALT: first}
    content = ask(protocol.TRAIN_JOINT, carried, 0)
    assert set(content) == {protocol.MASKED, protocol.ANSWERS_TO, protocol.LEDGER_TIP}
    assert encoded.entries() == before + 1
    numbers = unpacked(content, protocol.MASKED)["sum"].numpy().view(np.uint64)
    assert len(numbers) > 500
    for part in (numbers / 2.0**64, (numbers & np.uint64(0xFFFF)) / 2.0**16):
        assert kstest(part, "uniform").pvalue > 1e-4
    assert np.abs(encoded.part(0)).max() * STEPS < 2.0**40  # far from uniform without the masks
    # A second vector under the same masks would tell the difference of both.
    assert protocol.FAILURE in ask(protocol.TRAIN_JOINT, carried, 0)
    few = {protocol.ANSWERED: {"sites": torch.tensor([1, 1, 0, 0]).byte()}}
    assert protocol.FAILURE in ask(protocol.UNMASK, few, 0)
    assert protocol.FAILURE not in ask(
        protocol.UNMASK, {protocol.ANSWERED: {"sites": torch.ones(4).byte()}}, 0
    )


def unpacked(content: RecordDict, record: str) -> dict[str, Tensor]:
    return unpack(content.array_records[record][FORMAT].data)


def test_a_run_whose_epsilon_is_the_cap_charges_all_units_to_its_end(
    overrides: list[str],
) -> None:
    folder = run_in_process("config", [*overrides, "privacy.max_epsilon=8"])
    ledger = Ledger.open(folder.path / "ledger")
    units: dict[str, list[int]] = {}
    for entry in ledger.entries():
        units.setdefault(entry.run, []).append(entry.units)
    assert len(units) == 4
    for announced, *charged in units.values():
        assert announced == 0 < charged[0] and charged == [charged[0]] * 4
    assert 7.9 < ledger.worst(1e-4) <= 8
