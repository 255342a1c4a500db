"""Messages: a site's reply, apply_change as a record or on the wire, read as the server reads it.

The server's messages to a site are apply_change likewise. A site opens its data first, which takes
0.1 s, so one case in 128 is of this kind.
"""

import copy
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as WireRecordDict
from torch import Tensor

from configs.compose import compose, flatten
from fuzz.harness import Target
from fuzz.mutations import EDITS, edited
from fuzz.networks import SMALL
from mediffusion_core.evaluation.calibration import TEMPERATURES
from mediffusion_core.messaging import protocol
from mediffusion_core.messaging.compression import (
    component_compression,
    compress_change,
    message_compression,
)
from mediffusion_core.messaging.protocol import (
    ANSWERS_TO,
    AUTOENCODER,
    AUTOENCODING,
    BOOTSTRAP_THRESHOLDS,
    CENSUS,
    COUNTS,
    EVALUATE,
    FAILURE,
    HEAD,
    IDENTITY,
    JOINT,
    LATENT_CENSUS,
    LEDGER_TIP,
    METRICS,
    TRAIN_AUTOENCODER,
    TRAIN_JOINT,
    UNET,
)
from mediffusion_core.messaging.serialization import FORMAT, pack, unpack
from mediffusion_core.settings import Compression, Settings
from server.messages import RefusedReplyError
from server.reply_contract import Asked, ReplyContract
from server.state import fresh_state
from simulations.engine.in_process import answer, order

SMALL_KINDS = (CENSUS, LATENT_CENSUS, EVALUATE)
KINDS = (*SMALL_KINDS, *SMALL_KINDS, TRAIN_AUTOENCODER, TRAIN_JOINT)
COMPRESSIONS: tuple[Compression, ...] = ("none", "int8")
CLASSES = 5
COUNTED = {"images": 20, "train": 12, "labelled": 6, "validation": 4, "test": 4, "patients": 20,
           "per_class": [3] * CLASSES}  # fmt: skip
NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2**31, 2**63 - 1, 0.0, 0.5, -1.0, 1e308, float("nan"), float("inf"), [], [0] * 5,
    [1.5], [float("nan")], [10**6] * 5,
)  # fmt: skip
TEXTS: tuple[Any, ...] = (
    "", "north", "../../etc", "a\nb", "\x1b[2J", "\u202e", "x" * 100, "budget", "0123abcd", 0, -1,
    2**63 - 1, 1.5, True, b"\xff", [], ["a"], [1], "é",
)  # fmt: skip
FIELDS = ("images_seen", "labelled_seen", "steps", "loss", "train", "per_class", "images", "secret")
CONFIGS = ((ANSWERS_TO, "kind"), (ANSWERS_TO, "round"), (ANSWERS_TO, "settings_hash"),
           (IDENTITY, "site"), (FAILURE, "code"), (FAILURE, "id"), ("secret", "text"))  # fmt: skip
TYPES = (torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16)
FILLS = (0.0, 1.0, -1.0, 1e30, float("nan"), float("inf"))
WHATS = ("drop", "metric", "metric", "config", "block", "fill", "type", "shape", "name", "array")

Edit = tuple[str, int, int, list[tuple[str, int, bytes]]]


def target(root: Path) -> Target:
    """Reads one reply, or gives a site one message."""
    overrides = (*SMALL, f"data.store={root / 'store'}", f"run.folder={root / 'run'}")
    runs = [_Run(compose("config", (*overrides, f"federation.compression={one}")))
            for one in COMPRESSIONS]  # fmt: skip
    site = _Site(overrides, runs[0])

    def run(case: tuple[int, list[Edit], list[tuple[str, int, bytes]] | bytes]) -> None:
        which, edits, wire = case
        at_site = which % 128 == 127
        kind = (
            SMALL_KINDS[which // 128 % len(SMALL_KINDS)] if at_site else KINDS[which % len(KINDS)]
        )
        one = runs[which // len(KINDS) % len(runs)]
        content = site.message(kind) if at_site else one.reply(kind)
        for edit in edits:
            _change(content, edit)
        if wire:
            content = _sent(content, wire)
        if at_site:
            site.ask(kind, content)
        else:
            one.read(kind, content)

    edit = st.tuples(st.sampled_from(WHATS), st.integers(0, 99), st.integers(0, 99), EDITS)
    numbers = st.integers(0, 1023)
    seeds = [
        bytes([number]) + _wire(runs[0].reply(kind)) for number, kind in enumerate(SMALL_KINDS)
    ]
    return Target(
        root=root,
        cases=st.tuples(numbers, st.lists(edit, max_size=2), st.one_of(st.just([]), EDITS)),
        run=run,
        refused=(RefusedReplyError,),
        seeds=seeds,
        of_bytes=lambda given: (given[0] % len(SMALL_KINDS) if given else 0, [], given[1:]),
    )


class _Run:
    """Valid replies of a site to a run's messages, and the run's contract."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.weights = fresh_state(settings, CLASSES).weights
        self._contract = ReplyContract(settings, CLASSES)
        self._replies = {kind: self._valid(kind) for kind in KINDS}

    def reply(self, kind: str) -> RecordDict:
        return copy.deepcopy(self._replies[kind])

    def read(self, kind: str, content: RecordDict) -> None:
        if kind == CENSUS:
            self._contract.census(content)
        else:
            self._contract.read(Asked(kind, 1, self.weights), COUNTED, content)

    def _valid(self, kind: str) -> RecordDict:
        number = 0 if kind == CENSUS else 1
        instructions = {"round": number, "settings_hash": self.settings.fingerprint()}
        content = RecordDict({ANSWERS_TO: ConfigRecord(protocol.answered(kind, instructions))})
        if kind == CENSUS:
            content[IDENTITY] = ConfigRecord({"site": "north"})
            content[METRICS] = MetricRecord({**COUNTED})
        elif kind in (LATENT_CENSUS, EVALUATE):
            content[COUNTS] = _record(self._sums(kind))
        else:
            names = AUTOENCODING if kind == TRAIN_AUTOENCODER else JOINT
            method = message_compression(kind, self.settings.federation.compression)
            for name in names:
                same = self.weights[name]
                content[name] = _record(
                    compress_change(same, same, component_compression(name, method))
                )
            content[METRICS] = MetricRecord({"images_seen": 12.0, "labelled_seen": 6.0})
        return content

    def _sums(self, kind: str) -> dict[str, Tensor]:
        channels, height, width = self.settings.latent_shape
        if kind == LATENT_CENSUS:
            count = torch.tensor([float(12 * height * width)])
            zeros = torch.zeros(channels, dtype=torch.float64)
            return {"total": zeros, "squares": zeros.clone(), "count": count}
        evaluation = self.settings.evaluation
        draws = (evaluation.num_bootstraps, CLASSES, BOOTSTRAP_THRESHOLDS, 2, 2)
        return {
            "counts": torch.zeros(CLASSES, evaluation.num_thresholds, 2, 2, dtype=torch.int64),
            "bootstraps": torch.zeros(draws, dtype=torch.int64),
            "temperature_losses": torch.zeros(len(TEMPERATURES), dtype=torch.float64),
        }


class _Site:
    """A site on phantom images, asked as Flower asks it."""

    def __init__(self, overrides: tuple[str, ...], run: _Run) -> None:
        self._config = {"config-name": "config", "overrides": flatten(overrides)}
        self._run = run
        self.ask(CENSUS, self.message(CENSUS))  # prepares the images

    def message(self, kind: str) -> RecordDict:
        names = {LATENT_CENSUS: (AUTOENCODER,), EVALUATE: (UNET, HEAD)}.get(kind, ())
        arrays = {name: self._run.weights[name] for name in names}
        return order(kind, self._run.settings.fingerprint(), arrays).content

    def ask(self, kind: str, content: RecordDict) -> None:
        message = order(kind, "", {})
        message.content = content
        reply = answer(message, 0, 3, self._config).content
        assert ANSWERS_TO in reply
        assert set(reply) <= {ANSWERS_TO, FAILURE, IDENTITY, METRICS, COUNTS, LEDGER_TIP}


def _record(state: dict[str, Tensor]) -> ArrayRecord:
    return ArrayRecord({FORMAT: Array(*pack(state))})


def _wire(content: RecordDict) -> bytes:
    return recorddict_to_proto(content).SerializeToString()


def _sent(content: RecordDict, wire: list[tuple[str, int, bytes]] | bytes) -> RecordDict:
    """A content after the wire, whose bytes change; the server refuses what Flower cannot read."""
    try:
        received = wire if isinstance(wire, bytes) else edited(_wire(content), wire)
        return recorddict_from_proto(WireRecordDict.FromString(received))
    except Exception:
        raise RefusedReplyError("sent a reply that Flower cannot read") from None


def _change(content: RecordDict, edit: Edit) -> None:
    """Changes a content in place; nothing where it has no such part."""
    what, first, second, edits = edit
    records = sorted(content)
    arrays = sorted(content.array_records)
    try:
        if what == "drop" and records:
            del content[records[first % len(records)]]
        elif what == "metric":
            given = dict(content.metric_records.get(METRICS, {}))
            given[FIELDS[first % len(FIELDS)]] = NUMBERS[second % len(NUMBERS)]
            content[METRICS] = MetricRecord(given)
        elif what == "config":
            name, key = CONFIGS[first % len(CONFIGS)]
            given = {**content.config_records.get(name, {}), key: TEXTS[second % len(TEXTS)]}
            content[name] = ConfigRecord(given)
        elif arrays:
            _change_arrays(content, arrays[first % len(arrays)], what, second, edits)
    except (
        TypeError,
        KeyError,
        ValueError,
        RuntimeError,
    ):  # Flower's records and torch refuse some values
        pass


def _change_arrays(
    content: RecordDict, name: str, what: str, second: int, edits: list[tuple[str, int, bytes]]
) -> None:
    block = content.array_records[name][FORMAT].data
    if what == "block":
        made = edited(block, edits)
        content[name] = ArrayRecord({FORMAT: Array("uint8", (len(made),), FORMAT, made)})
    elif what == "array":
        other = ("", "x", FORMAT)[second % 3]
        content[name] = ArrayRecord({other: Array("float99", (-1, second), other, block)})
    else:
        state = unpack(block)
        names = sorted(state)
        chosen = names[second % len(names)]
        value = state[chosen]
        if what == "fill":
            state[chosen] = torch.full_like(value, FILLS[second % len(FILLS)])
        elif what == "type":
            state[chosen] = value.to(TYPES[second % len(TYPES)])
        elif what == "shape":
            state[chosen] = value.flatten()[: second % 4].clone()
        else:
            state[f"{chosen}x"] = state.pop(chosen)
        content[name] = _record(state)
