"""A site's reply counts only if it keeps the contract of its message."""

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
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
    HEAD,
    HEAD_MOMENTS,
    IDENTITY,
    JOINT,
    LATENT_CENSUS,
    METRICS,
    TRAIN_AUTOENCODER,
    TRAIN_JOINT,
    UNET,
    UNET_MOMENTS,
)
from mediffusion_core.messaging.serialization import FORMAT, pack, unpack
from mediffusion_core.run_io.checkpoints import list_checkpoints
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.settings import Settings
from server.messages import BudgetSpentError, Census, RefusedReplyError, refuse_failure
from server.reply_contract import Asked, ReplyContract
from server.server_app import serve
from server.state import fresh_state
from simulations.engine.in_process import SitesHere

State = dict[str, Tensor]
Tamper = Callable[[RecordDict], None]
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


def on_arrays(record: str, change: Callable[[State], None]) -> Tamper:
    """Changes the tensors of a record."""

    def tamper(content: RecordDict) -> None:
        state = unpack(content.array_records[record][FORMAT].data)
        change(state)
        content[record] = ArrayRecord({FORMAT: Array(*pack(state))})

    return tamper


def on_first(record: str, change: Callable[[Tensor], Tensor], ends: str = "") -> Tamper:
    """Changes the first matrix of a record whose name ends so."""

    def first(state: State) -> None:
        name = next(n for n, value in sorted(state.items()) if value.dim() > 1 and n.endswith(ends))
        state[name] = change(state[name]).contiguous()

    return on_arrays(record, first)


def on_named(record: str, name: str, change: Callable[[Tensor], Tensor]) -> Tamper:
    """Changes one tensor of a record."""

    def named(state: State) -> None:
        state[name] = change(state[name]).contiguous()

    return on_arrays(record, named)


def on_config(record: str, **values: Any) -> Tamper:
    def tamper(content: RecordDict) -> None:
        content[record] = ConfigRecord({**content.config_records.get(record, {}), **values})

    return tamper


def on_metrics(**values: Any) -> Tamper:
    def tamper(content: RecordDict) -> None:
        content[METRICS] = MetricRecord({**content.metric_records[METRICS], **values})

    return tamper


def without(record: str) -> Tamper:
    def tamper(content: RecordDict) -> None:
        del content[record]

    return tamper


def without_metric(name: str) -> Tamper:
    def tamper(content: RecordDict) -> None:
        del content.metric_records[METRICS][name]

    return tamper


def undeclared_record(content: RecordDict) -> None:
    content["images"] = ArrayRecord({FORMAT: Array(*pack({"x": torch.zeros(1)}))})


def cut_block(content: RecordDict) -> None:
    array = content.array_records[UNET][FORMAT]
    array.data = array.data[:-1]


def huge_block(content: RecordDict) -> None:
    array = content.array_records[UNET][FORMAT]
    array.data = array.data + bytes(10_000_000)


def of_another_header(content: RecordDict) -> None:
    """A type and shapes that safetensors has and PyTorch does not."""
    fields = {"dtype": "F4", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}
    header = json.dumps({"conv_in.weight": fields}).encode()
    array = content.array_records[UNET][FORMAT]
    array.data = len(header).to_bytes(8, "little") + header


def two_blocks(content: RecordDict) -> None:
    block = content.array_records[UNET][FORMAT]
    content[UNET] = ArrayRecord({FORMAT: block, "second": copy.deepcopy(block)})


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    def changed(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor.flatten()[0] = value
        return tensor

    return changed


def first_negative(tensor: Tensor) -> Tensor:
    return with_value(-1)(tensor)


def raised(state: State) -> None:
    """More patients predicted positive at the last threshold than at the first."""
    counts = state["counts"]
    counts[0, 0, 1, 1], counts[0, 0, 1, 0] = 0, counts[0, 0, 1].sum()
    counts[0, -1, 1, 1], counts[0, -1, 1, 0] = counts[0, -1, 1].sum(), 0


def add_name(state: State) -> None:
    state["further"] = torch.zeros(1)


def drop_name(state: State) -> None:
    state.popitem()


HOSTILE: list[tuple[str, str, Tamper]] = [
    # Weights
    ("NaN", TRAIN_JOINT, on_first(UNET, with_value(math.nan))),
    ("infinity", TRAIN_JOINT, on_first(HEAD, with_value(math.inf))),
    ("weights x 1000", TRAIN_JOINT, on_first(UNET, lambda x: 1000 * x)),
    ("head x -1000", TRAIN_JOINT, on_first(HEAD, lambda x: -1000 * x)),
    ("autoencoder x 1000", TRAIN_AUTOENCODER, on_first(AUTOENCODER, lambda x: 1000 * x)),
    ("weights + 1e30", TRAIN_AUTOENCODER, on_first(AUTOENCODER, lambda x: x + 1e30)),
    ("one element", TRAIN_JOINT, on_first(UNET, lambda x: x.flatten()[:1])),
    ("other shape", TRAIN_JOINT, on_first(UNET, lambda x: x[:-1])),
    ("int64", TRAIN_JOINT, on_first(UNET, lambda x: x.long())),
    ("bool", TRAIN_JOINT, on_first(UNET, lambda x: x > 0)),
    ("float64", TRAIN_AUTOENCODER, on_first(AUTOENCODER, lambda x: x.double())),
    ("further name", TRAIN_JOINT, on_arrays(UNET, add_name)),
    ("missing name", TRAIN_JOINT, on_arrays(UNET, drop_name)),
    # Moments
    ("negative second moment", TRAIN_JOINT, on_first(UNET_MOMENTS, first_negative, "exp_avg_sq")),
    ("moments' steps -1e6", TRAIN_JOINT, on_named(HEAD_MOMENTS, "steps", lambda x: x - 1e6)),
    ("moments' steps 1e9", TRAIN_JOINT, on_named(UNET_MOMENTS, "steps", lambda x: x + 1e9)),
    ("first moments 1e30", TRAIN_JOINT, on_first(UNET_MOMENTS, lambda x: x + 1e30, "exp_avg")),
    ("second moments 0", TRAIN_JOINT, on_first(UNET_MOMENTS, lambda x: x * 0, "exp_avg_sq")),
    ("second moments 1e38", TRAIN_JOINT, on_first(HEAD_MOMENTS, lambda x: x + 1e38, "exp_avg_sq")),
    # Records
    ("header of other types", TRAIN_JOINT, of_another_header),
    ("cut block", TRAIN_JOINT, cut_block),
    ("huge block", TRAIN_JOINT, huge_block),
    ("two blocks", TRAIN_JOINT, two_blocks),
    ("no UNet", TRAIN_JOINT, without(UNET)),
    ("no counts", EVALUATE, without(COUNTS)),
    ("undeclared record", ENCODE, undeclared_record),
    # Metrics
    ("images 1e15", TRAIN_JOINT, on_metrics(images_seen=1e15)),
    ("images 1e308", TRAIN_AUTOENCODER, on_metrics(images_seen=1e308)),
    ("images -1", TRAIN_JOINT, on_metrics(images_seen=-1.0)),
    ("more labels than the census", TRAIN_JOINT, on_metrics(labelled_seen=37.0)),
    ("metric NaN", TRAIN_JOINT, on_metrics(loss=math.nan)),
    ("metric list", TRAIN_JOINT, on_metrics(images_seen=[1.0, 2.0])),
    ("steps -1e6", TRAIN_JOINT, on_metrics(steps=-1e6)),
    ("one step too many", TRAIN_JOINT, on_metrics(steps=10.0)),
    ("further metric", TRAIN_JOINT, on_metrics(oldest=97.0)),
    ("no images_seen", TRAIN_JOINT, without_metric("images_seen")),
    # Which message
    ("stale", TRAIN_JOINT, on_config(ANSWERS_TO, round=0)),
    ("other settings", TRAIN_JOINT, on_config(ANSWERS_TO, settings_hash="0" * 16)),
    ("other kind", TRAIN_JOINT, on_config(ANSWERS_TO, kind=EVALUATE)),
    ("no message", CENSUS, without(ANSWERS_TO)),
    # Failures
    ("failure", TRAIN_JOINT, on_config(FAILURE, code="internal", id="0123abcd")),
    ("failure of any text", ENCODE, on_config(FAILURE, code="x\ny" * 9999, id="0123abcd")),
    ("budget where there is none", TRAIN_JOINT, on_config(FAILURE, code="budget", id="0123abcd")),
    ("failure without an id", CENSUS, on_config(FAILURE, code="internal")),
    # Census
    ("count -1", CENSUS, on_metrics(train=-1)),
    ("count 2^62", CENSUS, on_metrics(images=2**62)),
    ("count of parts", CENSUS, on_metrics(labelled=1.5)),
    ("more labelled than train", CENSUS, on_metrics(labelled=10**6)),
    ("more patients than images", CENSUS, on_metrics(patients=10**6)),
    ("splits of more than all", CENSUS, on_metrics(validation=10**6)),
    ("class of more than train", CENSUS, on_metrics(per_class=[10**6] * 5)),
    ("another number of classes", CENSUS, on_metrics(per_class=[1, 2])),
    ("further count", CENSUS, on_metrics(oldest=97)),
    ("missing count", CENSUS, without_metric("validation")),
    ("path as a name", CENSUS, on_config(IDENTITY, site="../../site")),
    ("long name", CENSUS, on_config(IDENTITY, site="a" * 65)),
    ("name of two lines", CENSUS, on_config(IDENTITY, site="a\nb")),
    ("long name in bytes", CENSUS, on_config(IDENTITY, site="\U0001f40d" * 64)),
    ("dots as a name", CENSUS, on_config(IDENTITY, site="..")),
    ("number as a name", CENSUS, on_config(IDENTITY, site=7)),
    # Latent sums
    ("latent count 1e15", LATENT_CENSUS, on_named(COUNTS, "count", lambda x: x * 0 + 1e15)),
    ("latent count -1e9", LATENT_CENSUS, on_named(COUNTS, "count", lambda x: x * 0 - 1e9)),
    ("negative squares", LATENT_CENSUS, on_named(COUNTS, "squares", first_negative)),
    ("squares 1e300", LATENT_CENSUS, on_named(COUNTS, "squares", lambda x: x * 0 + 1e300)),
    ("sums above their squares", LATENT_CENSUS, on_named(COUNTS, "total", lambda x: x + 1e9)),
    # Validation
    ("negative counts", EVALUATE, on_named(COUNTS, "counts", first_negative)),
    ("twice as many patients", EVALUATE, on_named(COUNTS, "counts", lambda x: x * 10**6)),
    ("counts that rise", EVALUATE, on_arrays(COUNTS, raised)),
    ("other patients at a threshold", EVALUATE, on_named(COUNTS, "counts", with_value(3))),
    ("bootstraps 2^40", EVALUATE, on_named(COUNTS, "bootstraps", lambda x: x + 2**40)),
    ("temperature at will", EVALUATE, on_named(COUNTS, "temperature_losses", with_value(0.0))),
    ("losses 1e300", EVALUATE, on_named(COUNTS, "temperature_losses", lambda x: x * 1e300)),
    ("negative losses", EVALUATE, on_named(COUNTS, "temperature_losses", lambda x: -x)),
]


@pytest.mark.parametrize(
    "kind", [CENSUS, TRAIN_AUTOENCODER, LATENT_CENSUS, ENCODE, TRAIN_JOINT, EVALUATE]
)
def test_an_honest_reply_is_read(honest: Honest, kind: str) -> None:
    honest.read(kind, copy.deepcopy(honest.contents[kind]))


@pytest.mark.parametrize(
    ("kind", "tamper"), [pytest.param(*rest, id=name) for name, *rest in HOSTILE]
)
def test_hostile_reply_is_refused_and_its_text_is_not_repeated(
    honest: Honest, kind: str, tamper: Tamper
) -> None:
    content = copy.deepcopy(honest.contents[kind])
    tamper(content)
    with pytest.raises(RefusedReplyError) as refused:
        honest.read(kind, content)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 200


def test_a_spent_budget_is_no_hostile_reply_where_a_run_is_private() -> None:
    failure = ConfigRecord({"code": protocol.BUDGET, "id": "0123abcd"})
    with pytest.raises(BudgetSpentError):
        refuse_failure(RecordDict({FAILURE: failure}), private=True)


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
    _, summary = run_with(shortest, tmp_path, tampers)
    told = [(one["site"], one["kind"], one["reason"]) for one in summary["set_aside"]]
    assert told == [("site-1", TRAIN_JOINT, "sent a reply that cannot be checked")]


class OneHostile(SitesHere):
    """Three sites; the second sends tampered answers from a given message on."""

    tampers: Mapping[str, Tamper]

    def _answer(
        self, kind: str, round_number: int, index: int, records: Mapping[str, ArrayRecord]
    ) -> RecordDict:
        content = super()._answer(kind, round_number, index, records)
        if index == 1 and kind in self.tampers:
            self.tampers[kind](content)
        return content


def run_with(
    overrides: tuple[str, ...], folder: Path, tampers: Mapping[str, Tamper]
) -> tuple[RunFolder, dict[str, Any]]:
    given = (*overrides, f"data.store={folder / 'store'}", f"run.folder={folder / 'run'}")
    settings = compose("config", given)

    def connect(contract: ReplyContract) -> SitesHere:
        sites = OneHostile("config", given, settings, contract)
        sites.tampers = tampers
        return sites

    run_folder = RunFolder(folder / "run")
    serve(connect, settings, run_folder)
    return run_folder, json.loads((run_folder.path / "summary.json").read_text())


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
        folder, summary = run_with(shortest, tmp_path / name, tampers)
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
    _, summary = run_with((*shortest, *rounds, *changes), tmp_path, {})
    assert summary["status"] == "completed" and summary["set_aside"] == []
