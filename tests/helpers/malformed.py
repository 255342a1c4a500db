"""Replies that break the contract of their message, as changes of an honest one."""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from mediffusion_core.messaging.protocol import (
    ANSWERS_TO,
    AUTOENCODER,
    CENSUS,
    COUNTS,
    ENCODE,
    EVALUATE,
    FAILURE,
    HEAD,
    HEAD_MOMENTS,
    IDENTITY,
    LATENT_CENSUS,
    METRICS,
    TRAIN_AUTOENCODER,
    TRAIN_JOINT,
    UNET,
    UNET_MOMENTS,
)
from mediffusion_core.messaging.serialization import FORMAT, pack, unpack

State = dict[str, Tensor]
Tamper = Callable[[RecordDict], None]


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


MALFORMED: list[tuple[str, str, Tamper]] = [
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
