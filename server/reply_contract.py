"""The contract of a site's reply: every reply is checked before the server uses any of it.

A site may be broken, outdated or hostile. Its reply is compared with what the server already has:
the components that it sent, the settings, the kind and round of its message, and the site's own
census. Records, names, shapes and types must be the expected ones. The size of a block is checked
before the block is decoded. Numbers must be finite and within `reply_bounds`.

A reply that passes can still be false: a site may train on wrong labels, claim more images than it
has (up to `federation.max_images`), or make up validation counts for them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from flwr.app import ArrayRecord, RecordDict
from torch import Tensor

from mediffusion_core.evaluation.calibration import NUM_BINS, TEMPERATURES
from mediffusion_core.evaluation.noised_validation import ValidationSums
from mediffusion_core.evaluation.subgroups import SUBGROUPS
from mediffusion_core.messaging import disclosure, protocol
from mediffusion_core.messaging.compression import (
    component_compression,
    layout,
    message_compression,
)
from mediffusion_core.messaging.disclosure import ANSWERS
from mediffusion_core.messaging.moment_names import MEAN
from mediffusion_core.messaging.omission import EMPTY, Layout, replied
from mediffusion_core.messaging.protocol import (
    AUTOENCODING,
    BOOTSTRAP_THRESHOLDS,
    CENSUS,
    CONTROLS,
    COUNTS,
    EVALUATE,
    EVALUATE_MODEL,
    FEATURE_CENSUS,
    HEAD,
    HEAD_MOMENTS,
    JOINT,
    LATENT_CENSUS,
    LEDGER_TIP,
    METRICS,
    STATISTICS,
    TRAIN_AUTOENCODER,
    TRAIN_JOINT,
    TRAINING,
    UNET,
    UNET_MOMENTS,
    WEIGHTED_BY,
)
from mediffusion_core.messaging.serialization import FORMAT, unpack
from mediffusion_core.models.public_encoders import ENCODER_WIDTHS
from mediffusion_core.privacy.ledger.tip import LedgerTip
from mediffusion_core.settings import Compression, Settings
from mediffusion_core.settings.allowed_metrics import ALLOWED_METRICS
from server.evaluation_bounds import (
    refuse_model_sums,
    refuse_noised_validation,
    refuse_validation,
)
from server.messages import Census, RefusedReplyError, StateDict, refuse_failure
from server.reply_bounds import (
    Bounds,
    refuse_census,
    refuse_class_sums,
    refuse_feature_sums,
    refuse_latent_sums,
)
from server.secure_sum import secure_layouts
from server.statistics_bounds import layout_of_statistics, refuse_statistics

NAME_BYTES = 64
"""Of a site's name."""
BLOCK_HEADER, TENSOR_HEADER = 4096, 256
"""Bytes that safetensors' description of a block, and of each of its tensors, may take."""
TIP_BYTES = 256
"""Of a ledger's tip."""


@dataclass(frozen=True)
class Asked:
    """A message to a site: its kind, its round, and the shared components that it carries."""

    kind: str
    round_number: int
    components: Mapping[str, StateDict]


@dataclass(frozen=True)
class Checked:
    """A reply that keeps the contract: its components, decoded, and its metrics."""

    components: dict[str, StateDict]
    metrics: dict[str, float]


class ReplyContract:
    """Checks the replies of one run. Whatever breaks the contract raises `RefusedReplyError`."""

    def __init__(self, settings: Settings, num_classes: int) -> None:
        """Takes the run's settings, and the number of classes of its data."""
        self._settings = settings
        self._hash = settings.fingerprint()
        self._num_classes = num_classes
        self._masked = protocol.SECURE if settings.privacy.secure_aggregation.enabled else ()

    def census(self, content: RecordDict) -> tuple[str, Census, dict[str, StateDict]]:
        """Checks an answer to the census.

        Returns:
            The site's name, its counts, and in a private run the tip of its ledger.

        Raises:
            RefusedReplyError: if the answer breaks the contract.
        """
        self._refuse_other(Asked(CENSUS, 0, {}), content)
        name = dict(content.config_records.get(protocol.IDENTITY, {})).get("site")
        if not isinstance(name, str) or not _is_name(name):
            raise RefusedReplyError("sent a name that no site may have")
        counts = dict(content.metric_records.get(METRICS, {}))
        census = refuse_census(counts, self._settings, self._num_classes)
        return name, census, self._ledger_tip(content)

    def read(self, asked: Asked, census: Census, content: RecordDict) -> Checked:
        """Checks and decodes an answer to any other message, and lets go of its bytes.

        Args:
            asked: The message.
            census: The site's own.
            content: Of the reply.

        Raises:
            RefusedReplyError: if the answer breaks the contract.
        """
        self._refuse_other(asked, content)
        metrics = _metrics(content)
        components: dict[str, StateDict] = {}
        for record, expected in self._layouts(asked).items():
            before = asked.components.get(record, {})
            state = _decoded(record, content.array_records.get(record), expected, bool(before))
            method = component_compression(record, self._method(asked))
            components[record] = replied(before, state, expected, method)
            _refuse_infinite(record, components[record])
        if asked.kind in TRAINING and protocol.MASKED not in components:
            bounds = Bounds.of(self._settings, asked.kind, asked.round_number, census)
            bounds.refuse_metrics(metrics, self._weights(asked))
            bounds.refuse_components(asked.components, components)
        elif asked.kind == LATENT_CENSUS:
            refuse_latent_sums(components[COUNTS], census, self._settings)
        elif asked.kind == FEATURE_CENSUS:
            refuse_feature_sums(components[COUNTS], census)
            if self._settings.training.joint.alignment.distillation_weight:
                refuse_class_sums(components[COUNTS], census)
        elif asked.kind == EVALUATE_MODEL:
            refuse_model_sums(components[COUNTS], census)
        elif asked.kind == STATISTICS:
            refuse_statistics(components[COUNTS], census, self._settings)
        elif asked.kind == EVALUATE:
            self._refuse_validation(components[COUNTS], census)
        return Checked(components | self._ledger_tip(content), metrics)

    def _refuse_other(self, asked: Asked, content: RecordDict) -> None:
        """Refuses failures, answers to another message, and records that are not declared."""
        instructions = {"round": asked.round_number, "settings_hash": self._hash}
        answers_to = dict(content.config_records.get(protocol.ANSWERS_TO, {}))
        if answers_to != protocol.answered(asked.kind, instructions):
            raise RefusedReplyError("answered another message, round or settings")
        refuse_failure(content)
        if set(content) - ANSWERS[asked.kind].records - set(disclosure.WITH_ANY):
            raise RefusedReplyError("sent records that its kind of message does not have")

    def _method(self, asked: Asked) -> Compression:
        return message_compression(asked.kind, self._settings.federation.compression)

    def _weights(self, asked: Asked) -> set[str]:
        """The metrics that the aggregation reads."""
        names = AUTOENCODING if asked.kind == TRAIN_AUTOENCODER else JOINT
        by_steps = self._settings.federation.weighting == "steps"
        return {WEIGHTED_BY[name] for name in names} | ({"steps"} if by_steps else set())

    def _layouts(self, asked: Asked) -> dict[str, Layout]:
        """The array records of an answer, with names, shapes and types."""
        if asked.kind in self._masked:
            return secure_layouts(asked.kind, asked.components)
        if asked.kind == LATENT_CENSUS:
            return {COUNTS: self._layout_of_latent_sums()}
        if asked.kind == FEATURE_CENSUS:
            return {COUNTS: self._layout_of_feature_sums()}
        if asked.kind == EVALUATE:
            return {COUNTS: self._layout_of_validation()}
        if asked.kind == EVALUATE_MODEL:
            return {COUNTS: self._layout_of_model_sums()}
        if asked.kind == STATISTICS:
            return {COUNTS: layout_of_statistics(self._settings, self._num_classes)}
        if asked.kind not in TRAINING:
            return {}
        names = AUTOENCODING if asked.kind == TRAIN_AUTOENCODER else JOINT
        found: dict[str, Layout] = {
            name: layout(asked.components[name], component_compression(name, self._method(asked)))
            for name in names
        }
        if asked.kind == TRAIN_JOINT and self._settings.training.joint.control_variates:
            for component, moments in ((UNET, UNET_MOMENTS), (HEAD, HEAD_MOMENTS)):
                found[CONTROLS[component]] = _layout_of_gradients(asked.components[moments])
        return found

    def _refuse_validation(self, sums: StateDict, census: Census) -> None:
        if self._settings.privacy.enabled:
            refuse_noised_validation(sums, self._settings)
        else:
            refuse_validation(sums, census, self._num_classes)

    def _layout_of_latent_sums(self) -> Layout:
        channels = torch.Size([self._settings.latent_shape[0]])
        return {
            "total": (channels, torch.float64),
            "squares": (channels, torch.float64),
            "count": (torch.Size([1]), torch.float32),
        }

    def _layout_of_feature_sums(self) -> Layout:
        alignment, classes = self._settings.training.joint.alignment, self._num_classes
        width = ENCODER_WIDTHS[alignment.encoder]
        shapes = {"count": [1], "repeats": [1], "mean": [width]}
        shapes |= {"scatter": [width, width], "within": [width, width]}
        if alignment.distillation_weight:
            shapes |= {"known": [classes], "positives": [classes]}
            shapes |= {"known_sums": [classes, width], "positive_sums": [classes, width]}
        return {name: (torch.Size(shape), torch.float32) for name, shape in shapes.items()}

    def _layout_of_validation(self) -> Layout:
        evaluation, classes = self._settings.evaluation, self._num_classes
        if self._settings.privacy.enabled:
            noised = ValidationSums.empty(classes).arrays()
            return {name: (value.shape, value.dtype) for name, value in noised.items()}
        counts = torch.Size([classes, evaluation.num_thresholds, 2, 2])
        draws = torch.Size([evaluation.num_bootstraps, classes, BOOTSTRAP_THRESHOLDS, 2, 2])
        return {
            "counts": (counts, torch.int64),
            "bootstraps": (draws, torch.int64),
            "temperature_losses": (TEMPERATURES.shape, torch.float64),
        }

    def _layout_of_model_sums(self) -> Layout:
        of_scores = self._layout_of_validation()
        (counts, whole), real = of_scores["counts"], torch.float64
        return {
            "counts": of_scores["counts"],
            "bootstraps": of_scores["bootstraps"],
            "subgroups": (torch.Size([len(SUBGROUPS), *counts]), whole),
            "reliability": (torch.Size([2, NUM_BINS, 3]), real),
            "squares": (torch.Size([2, 1]), real),
        }

    def _ledger_tip(self, content: RecordDict) -> dict[str, StateDict]:
        """The tip of the site's ledger, where the run is private."""
        if not self._settings.privacy.enabled:
            return {}
        block = _block(LEDGER_TIP, content.array_records.get(LEDGER_TIP), TIP_BYTES + BLOCK_HEADER)
        state = _tensors(LEDGER_TIP, block)
        tip = state.get("tip")
        if set(state) != {"tip"} or tip is None or tip.dtype != torch.uint8 or tip.dim() != 1:
            raise RefusedReplyError(f"sent a {LEDGER_TIP} of another form")
        try:
            LedgerTip.parse(bytes(tip.tolist()).decode("ascii"))
        except ValueError:
            raise RefusedReplyError(f"sent a {LEDGER_TIP} of another form") from None
        return {LEDGER_TIP: state}


def _is_name(text: str) -> bool:
    """Whether a site may be called so: its name stands in file names, tables and logs."""
    plain = text.isprintable() and not set(text) & set("/\\") and text == text.strip(" .")
    return plain and 0 < len(text.encode()) <= NAME_BYTES


def _layout_of_gradients(moments: StateDict) -> Layout:
    return {
        name.removesuffix(MEAN): (value.shape, value.dtype)
        for name, value in moments.items()
        if name.endswith(MEAN)
    }


def _metrics(content: RecordDict) -> dict[str, float]:
    """The metrics of a round, finite numbers of the allow-list.

    Raises:
        RefusedReplyError: for any other name or value.
    """
    given = dict(content.metric_records.get(METRICS, {}))
    if set(given) - ALLOWED_METRICS:
        raise RefusedReplyError("sent metrics that are not on the allow-list")
    for name, value in given.items():
        if not isinstance(value, float) or not math.isfinite(value):
            raise RefusedReplyError(f"sent a metric {name} that is not a finite number")
    return {name: float(str(value)) for name, value in given.items()}


def _decoded(
    record: str, given: ArrayRecord | None, expected: Layout, omits: bool
) -> dict[str, Tensor]:
    """The tensors of a record, which must be the expected ones; if it omits some, or empty ones.

    Raises:
        RefusedReplyError: if they are not.
    """
    limit = BLOCK_HEADER + sum(
        TENSOR_HEADER + len(name.encode()) + shape.numel() * dtype.itemsize
        for name, (shape, dtype) in expected.items()
    )
    state = _tensors(record, _block(record, given, limit))
    if set(state) != set(expected):
        raise RefusedReplyError(f"sent a {record} with other names")
    for name, (shape, dtype) in expected.items():
        if state[name].shape != shape and not (omits and state[name].shape == EMPTY):
            sizes = f"{tuple(state[name].shape)}, not {tuple(shape)}"
            raise RefusedReplyError(f"sent {record} {name} of shape {sizes}")
        if state[name].dtype != dtype:
            types = f"{state[name].dtype}, not {dtype}"
            raise RefusedReplyError(f"sent {record} {name} of type {types}")
    return state


def _block(record: str, given: ArrayRecord | None, limit: int) -> bytes:
    """The bytes of a record, at most `limit` of them; the record lets go of them."""
    if given is None or set(given) != {FORMAT}:
        raise RefusedReplyError(f"sent no block of {record}")
    block = given.pop(FORMAT).data
    if len(block) > limit:
        raise RefusedReplyError(f"sent {len(block)} bytes of {record}, more than {limit}")
    return block


def _tensors(record: str, block: bytes) -> dict[str, Tensor]:
    try:
        return unpack(block)
    except ValueError:
        raise RefusedReplyError(f"sent a {record} that cannot be read") from None


def _refuse_infinite(record: str, state: StateDict) -> None:
    """Refuses NaN and infinite values, in one pass and without a mask of the same size."""
    for name, values in state.items():
        if values.numel() and not all(math.isfinite(float(end)) for end in values.aminmax()):
            raise RefusedReplyError(f"sent a value in {record} {name} that is not finite")
