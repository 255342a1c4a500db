"""A site's reply counts only if it keeps the contract of its message."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from helpers.attacks import Always, Attack, run_with
from helpers.malformed import (
    MALFORMED,
    Tamper,
    on_config,
    on_first,
    on_metrics,
    on_named,
    with_value,
)
from helpers.messages import sent
from torch import Tensor

from configs.compose import compose
from mediffusion_core.data.partitioning.federated_dataset import open_federated_dataset
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.protocol import (
    ANSWERS_TO,
    AUTOENCODER,
    AUTOENCODING,
    CENSUS,
    COUNTS,
    ENCODE,
    EVALUATE,
    FAILURE,
    FEATURE_CENSUS,
    JOINT,
    LATENT_CENSUS,
    TRAIN_AUTOENCODER,
    TRAIN_JOINT,
)
from mediffusion_core.messaging.serialization import FORMAT, pack
from mediffusion_core.models.class_means import ClassSums
from mediffusion_core.models.whitening import FeatureSums
from mediffusion_core.run_io.checkpoints import list_checkpoints
from mediffusion_core.settings import Settings
from server.messages import Census, RefusedReplyError
from server.reply_contract import Asked, ReplyContract
from server.state import fresh_state

ROUND = 1


@dataclass
class Honest:
    """A real site's answer to each kind of message."""

    settings: Settings
    contract: ReplyContract
    census: Census
    asked: Mapping[str, Asked]
    contents: Mapping[str, RecordDict]

    def read(self, kind: str, content: RecordDict) -> Any:
        if kind == CENSUS:
            return self.contract.census(content)
        return self.contract.read(self.asked[kind], self.census, content)


@pytest.fixture(scope="module")
def honest(shortest: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Honest]:
    folder = tmp_path_factory.mktemp("honest")
    places = (f"data.store={folder / 'store'}", f"run.folder={folder / 'run'}")
    overrides = (*shortest, *places)
    settings = compose("config", overrides)
    classes = len(open_federated_dataset(settings).store.classes)
    state = fresh_state(settings, classes)
    components, codec = state.weights, state.codec(settings).state_dict()
    carried: dict[str, Mapping[str, Any]] = {
        CENSUS: {},
        TRAIN_AUTOENCODER: {name: components[name] for name in AUTOENCODING},
        LATENT_CENSUS: {AUTOENCODER: components[AUTOENCODER]},
        ENCODE: {AUTOENCODER: codec},
        TRAIN_JOINT: {name: components[name] for name in JOINT},
        EVALUATE: state.averages,
    }
    contract = ReplyContract(settings, classes)
    numbers = {kind: 0 if kind == CENSUS else ROUND for kind in carried}
    contents = {
        kind: sent(kind, overrides, settings.fingerprint(), arrays, 0, numbers[kind]).content
        for kind, arrays in carried.items()
    }
    asked = {kind: Asked(kind, numbers[kind], arrays) for kind, arrays in carried.items()}
    _, census, _ = contract.census(copy.deepcopy(contents[CENSUS]))
    yield Honest(settings, contract, census, asked, contents)


@pytest.mark.parametrize(
    "kind", [CENSUS, TRAIN_AUTOENCODER, LATENT_CENSUS, ENCODE, TRAIN_JOINT, EVALUATE]
)
def test_an_honest_reply_is_read(honest: Honest, kind: str) -> None:
    honest.read(kind, copy.deepcopy(honest.contents[kind]))


@pytest.mark.parametrize(
    ("kind", "tamper"), [pytest.param(*rest, id=name) for name, *rest in MALFORMED]
)
def test_hostile_reply_is_refused_and_its_text_is_not_repeated(
    honest: Honest, kind: str, tamper: Tamper
) -> None:
    content = copy.deepcopy(honest.contents[kind])
    tamper(content)
    with pytest.raises(RefusedReplyError) as refused:
        honest.read(kind, content)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 200


def _not_symmetric(scatter: Tensor) -> Tensor:
    scatter = scatter.clone()
    scatter[0, 1] += 1
    return scatter


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("count", lambda x: x + 1, "feature sums of"),
        ("repeats", lambda x: x * 0 + 1e6, "repeated images"),
        ("repeats", lambda x: x * 0 + 0.5, "repeated images"),
        ("mean", lambda x: x + 1e9, "mean features"),
        ("scatter", lambda x: -x, "squares outside"),
        ("scatter", lambda x: x + 1e20, "squares outside"),
        ("scatter", _not_symmetric, "no scatter"),
        ("within", lambda x: x + 10 * float(x.max()) * (1 - torch.eye(len(x))), "no scatter"),
        ("within", lambda x: x + 1e3 * torch.eye(len(x)), "larger scatter within"),
        ("within", lambda x: x[:-1], "of shape"),
        ("mean", lambda x: x.double(), "of type"),
        ("positives", lambda x: x + 1, "other numbers of images per class"),
        ("known", lambda x: x * 0, "numbers of known labels"),
        ("known", lambda x: x + 1, "numbers of known labels"),
        ("known", lambda x: x - 0.5, "numbers of known labels"),
        ("known_sums", lambda x: x + 1e9, "known_sums of features above"),
        ("positive_sums", lambda x: x + 1, "positive_sums of features above"),
        ("positive_sums", lambda x: x + 50 * (x != 0), "positive_sums that are larger"),
        ("known_sums", lambda x: x + 50 * (x != 0), "known_sums that are larger"),
        ("positive_sums", lambda x: x * torch.nan, "not finite"),
    ],
)
def test_hostile_reply_with_false_feature_sums_is_refused(
    shortest: tuple[str, ...],
    aligned: tuple[str, ...],
    name: str,
    change: Callable[[Tensor], Tensor],
    said: str,
) -> None:
    distilled = "training.joint.alignment.distillation_weight=1"
    settings = compose("config", (*shortest, *aligned, distilled))
    features = torch.randn(12, 120, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1.0, 0.0, torch.nan], [0.0, 0.0, 1.0]]).repeat(6, 1)
    sums = FeatureSums.of(features, [str(number // 2) for number in range(12)]).arrays()
    sums |= ClassSums.of(features, targets).arrays()
    census: Census = {"train": 12, "per_class": [6, 0, 6]}
    contract, asked = ReplyContract(settings, 3), Asked(FEATURE_CENSUS, 1, {})

    def read(arrays: Mapping[str, Tensor]) -> None:
        given = {"round": 1, "settings_hash": settings.fingerprint()}
        records = {
            ANSWERS_TO: ConfigRecord(protocol.answered(FEATURE_CENSUS, given)),
            COUNTS: ArrayRecord({FORMAT: Array(*pack(arrays))}),
        }
        contract.read(asked, census, RecordDict(records))

    read(sums)
    with pytest.raises(RefusedReplyError, match=said):
        read({**sums, name: change(sums[name])})


def test_hostile_reply_that_raises_anything_sets_its_site_aside(
    shortest: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unforeseen error in the check does not end the run."""
    read = ReplyContract.read

    def raising(contract: ReplyContract, asked: Asked, census: Census, content: RecordDict) -> Any:
        if "raise" in content.config_records:
            raise ZeroDivisionError
        return read(contract, asked, census, content)

    monkeypatch.setattr(ReplyContract, "read", raising)
    tampers = {TRAIN_JOINT: on_config("raise", any=1)}
    _, summary = run_with(shortest, tmp_path, Always(tampers))
    told = [(one["site"], one["kind"], one["reason"]) for one in summary["set_aside"]]
    assert told == [("site-1", TRAIN_JOINT, "sent a reply that cannot be checked")]


def test_hostile_reply_leaves_the_run_as_if_its_site_had_failed(
    shortest: tuple[str, ...], tmp_path: Path
) -> None:
    hostile = {
        TRAIN_AUTOENCODER: on_first(AUTOENCODER, lambda x: 1000 * x),
        LATENT_CENSUS: on_named(COUNTS, "count", lambda x: x * 0 + 1e15),
        TRAIN_JOINT: on_metrics(images_seen=1e15),
        EVALUATE: on_named(COUNTS, "temperature_losses", with_value(0.0)),
    }
    failing = dict.fromkeys(hostile, on_config(FAILURE, code="internal", id="0123abcd"))
    folders = []
    for name, tampers in (("hostile", hostile), ("failing", failing)):
        folder, summary = run_with(shortest, tmp_path / name, Always(tampers))
        assert summary["status"] == "completed"
        assert {one["site"] for one in summary["set_aside"]} == {"site-1"}
        assert {one["kind"] for one in summary["set_aside"]} == set(hostile)
        folders.append(folder)
    checkpoints = [list_checkpoints(folder.checkpoints)[-1] for folder in folders]
    for component in checkpoints[0].components():
        one, other = (checkpoint.load(component) for checkpoint in checkpoints)
        assert all(torch.equal(one[name], other[name]) for name in one)


CONFIGURATIONS = {
    "own normalisation, few images, eight bits, FedNova": (
        "federation.local_normalisation=true",
        "data.phantom.patients_per_site=[60,60,12]",
        "training.joint.local_epochs=0.5",
        "federation.compression=int8",
        "federation.weighting=steps",
    ),
    "control variates, labels at the server": (
        "training.joint.control_variates=true",
        "federation.compression=bf16",
        "data.labels_at=server",
    ),
    "adaptive server": (
        "federation.server.unet.method=fedadam",
        "federation.server.unet.learning_rate=0.1",
        "training.joint.weight_decay=1.0",
    ),
    "pseudo-labels without denoising": (
        "training.joint.diffusion_weight=0",
        "training.joint.consistency.weight=1",
        "training.joint.consistency.thresholds=adaptive",
        "evaluation.counterfactual.count=1",
    ),
}


@pytest.mark.parametrize("changes", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_honest_sites_are_never_set_aside(
    shortest: tuple[str, ...], tmp_path: Path, changes: tuple[str, ...]
) -> None:
    rounds = ("federation.num_rounds=3", "evaluation.every=3")
    _, summary = run_with((*shortest, *rounds, *changes), tmp_path, Attack())
    assert summary["status"] == "completed" and summary["set_aside"] == []
