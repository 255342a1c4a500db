"""Replies that keep the contract of their message and are false all the same."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from client import latent_cache
from configs.compose import compose
from helpers.malformed import State, Tamper, on_arrays
from mediffusion_core.evaluation.calibration import TEMPERATURES
from mediffusion_core.messaging.protocol import (
    CENSUS,
    COUNTS,
    EVALUATE,
    FAILURE,
    LATENT_CENSUS,
    METRICS,
    MOMENTS,
    TRAINING,
)
from mediffusion_core.messaging.serialization import FORMAT, unpack
from mediffusion_core.run_io.run_folder import RunFolder
from mediffusion_core.settings import Settings
from server.messages import Census
from server.reply_bounds import MAX_STRETCH, Bounds
from server.reply_contract import ReplyContract
from server.server_app import serve
from simulations.engine.in_process import SitesHere

Records = Mapping[str, ArrayRecord]


@dataclass
class Answered:
    """An honest answer, before it is falsified.

    Attributes:
        kind: Of message.
        round_number: Its round.
        sent: The components that the site was sent.
        content: Of the answer.
        first: The arrays of the first site's honest answer.
        census: Counts that the site claims.
        settings: Of the run.
    """

    kind: str
    round_number: int
    sent: dict[str, State]
    content: RecordDict
    first: Records
    census: Census
    settings: Settings

    def reach(self, component: str, weights: Tensor) -> Tensor:
        """How far the contract lets a weight be moved, nearly."""
        bounds = Bounds.of(self.settings, self.kind, self.round_number, self.census)
        decay = max(1.0, self.settings.training.joint.weight_decay)
        return 0.99 * bounds.steps * bounds.rates[component] * (MAX_STRETCH + decay * weights.abs())


class Attack:
    """The answers of a false site. The base class is honest."""

    def training(self) -> AbstractContextManager[Any]:
        """Within it, the site makes its honest answer."""
        return nullcontext()

    def falsify(self, answered: Answered) -> None:
        """Changes the content of an answer."""


class Always(Attack):
    """Tampers with answers of some kinds, always alike."""

    def __init__(self, tampers: Mapping[str, Tamper]) -> None:
        self._tampers = tampers

    def falsify(self, answered: Answered) -> None:
        if answered.kind in self._tampers:
            self._tampers[answered.kind](answered.content)


class Changes(Attack):
    """Sends other weights than training made, as far from those it was sent as is allowed."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self._change = change

    def falsify(self, answered: Answered) -> None:
        if answered.kind not in TRAINING:
            return
        for component in MOMENTS.keys() & answered.sent.keys():
            before = answered.sent[component]

            def changed(state: State, component: str = component, before: State = before) -> None:
                for name, value in before.items():
                    reach = answered.reach(component, value)
                    # An empty tensor stands for one that the site left as it was.
                    trained = state[name] if state[name].numel() else value
                    change = self.change(f"{component}/{name}", value, trained)
                    state[name] = value + change.clamp(-reach, reach)

            on_arrays(component, changed)(answered.content)

    def change(self, name: str, before: Tensor, trained: Tensor) -> Tensor:
        """By how much a weight is changed."""
        return self._change(trained - before)


class Stale(Changes):
    """Answers each round with the weights that it was sent in the first one."""

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}

    def change(self, name: str, before: Tensor, trained: Tensor) -> Tensor:
        return self._first.setdefault(name, before) - before


class Copy(Attack):
    """Sends the weights and moments of another site as its own."""

    def falsify(self, answered: Answered) -> None:
        if answered.kind in TRAINING:
            for name, record in answered.first.items():
                answered.content[name] = ArrayRecord(dict(record))


class FlippedLabels(Attack):
    """Trains on the opposite of each label."""

    def training(self) -> AbstractContextManager[Any]:
        kept = latent_cache.kept_latents

        def flipped(site: Any) -> Any:
            latents = kept(site)
            return replace(latents, targets=1 - latents.targets)

        return patch.object(latent_cache, "kept_latents", flipped)


class HugeCounts(Changes):
    """Claims as many images as the run allows, and sends the opposite of its changes."""

    def __init__(self) -> None:
        super().__init__(torch.neg)

    def falsify(self, answered: Answered) -> None:
        most = answered.settings.federation.max_images
        metrics = answered.content.metric_records.get(METRICS, {})
        if answered.kind == CENSUS:
            counts = dict.fromkeys(("images", "train", "labelled"), most)
            counts |= {"validation": 0, "test": 0}
            answered.content[METRICS] = MetricRecord({**metrics, **counts})
        elif answered.kind == LATENT_CENSUS:
            _, height, width = answered.settings.latent_shape

            def grown(state: State) -> None:
                factor = most * height * width / float(state["count"])
                state |= {name: value * factor for name, value in state.items()}

            on_arrays(COUNTS, grown)(answered.content)
        elif answered.kind == EVALUATE:
            on_arrays(COUNTS, _nothing)(answered.content)
        elif answered.kind in TRAINING:
            kind, number = answered.kind, answered.round_number
            bounds = Bounds.of(answered.settings, kind, number, answered.census)
            seen = {"images_seen": bounds.images, "labelled_seen": bounds.labelled}
            claimed = {**metrics, **seen, "steps": float(bounds.steps)}
            answered.content[METRICS] = MetricRecord(claimed)
        super().falsify(answered)


def _nothing(state: State) -> None:
    state |= {name: torch.zeros_like(value) for name, value in state.items()}


def _wide_latents(content: RecordDict) -> None:
    def wide(state: State) -> None:
        state["squares"] = state["squares"] * 100

    on_arrays(COUNTS, wide)(content)


def _opposite_validation(content: RecordDict) -> None:
    """Patients with a finding scored as those without it, and losses that favour 1/8."""

    def opposite(state: State) -> None:
        for name in ("counts", "bootstraps"):
            state[name] = state[name].flip(-2)
        state["temperature_losses"] = state["temperature_losses"].max() * TEMPERATURES

    on_arrays(COUNTS, opposite)(content)


ABSENT = Always(
    dict.fromkeys([CENSUS], lambda content: content.update({FAILURE: ConfigRecord({})}))
)
"""A site that is not there."""


def well_formed() -> dict[str, Attack]:
    """Every attack by its name, to be used in one run."""
    generator = torch.Generator().manual_seed(0)

    def noise(change: Tensor) -> Tensor:
        return 10 * change.square().mean().sqrt() * torch.randn(change.shape, generator=generator)

    return {
        "sign-flipped": Changes(torch.neg),
        "x1000 within the bounds": Changes(lambda change: 1000 * change),
        "x-1000 within the bounds": Changes(lambda change: -1000 * change),
        "noise of ten times the size": Changes(noise),
        "untrained": Changes(torch.zeros_like),
        "stale weights": Stale(),
        "a copy of another site": Copy(),
        "flipped labels": FlippedLabels(),
        "huge counts, sign-flipped": HugeCounts(),
        "latents of ten times the deviation": Always({LATENT_CENSUS: _wide_latents}),
        "opposite validation": Always({EVALUATE: _opposite_validation}),
    }


class OneHostile(SitesHere):
    """Sites in this process, the second of which is hostile."""

    attack: Attack
    settings: Settings
    _first: Records = MappingProxyType({})

    def _exchange(
        self, kind: str, round_number: int, records: Any, receive: Any, needed: int
    ) -> None:
        self._first: Records = {}
        super()._exchange(kind, round_number, records, receive, needed)

    def _answer(self, kind: str, round_number: int, index: int, records: Records) -> RecordDict:
        if index != 1:
            content = super()._answer(kind, round_number, index, records)
            if index == 0 and kind in TRAINING:
                self._first = {n: ArrayRecord(dict(r)) for n, r in content.array_records.items()}
            return content
        with self.attack.training():
            content = super()._answer(kind, round_number, index, records)
        census = self._census.get("site-1", {})
        sent = {name: unpack(record[FORMAT].data) for name, record in records.items()}
        answered = Answered(kind, round_number, sent, content, self._first, census, self.settings)
        self.attack.falsify(answered)
        return content


def run_with(
    overrides: Sequence[str], folder: Path, attack: Attack
) -> tuple[RunFolder, dict[str, Any]]:
    """A run whose second site attacks: its folder and its summary."""
    given = (*overrides, f"data.store='{folder / 'store'}'", f"run.folder='{folder / 'run'}'")
    settings = compose("config", given)

    def connect(contract: ReplyContract) -> OneHostile:
        sites = OneHostile("config", given, settings, contract)
        sites.attack, sites.settings = attack, settings
        return sites

    run_folder = RunFolder(folder / "run")
    serve(connect, settings, run_folder)
    return run_folder, json.loads((run_folder.path / "summary.json").read_text())
