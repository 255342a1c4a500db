"""Client-level differential privacy: the server adds noise to each mean, which hides single sites.

DP-FedAvg (arXiv 1710.06963, algorithm 1) with equal weights. Δ_k is the change of site k in all
weights of a stage, as one vector, and m the number of sites that are asked. The server's mean is

    θ + (Σ_k min(1, C / ‖Δ_k‖) Δ_k + σ C z) / m,   z ~ N(0, I)

m is a constant: a silent site, or one with nothing to train a component on, has Δ_k = 0. The
guarantee of the composed Gaussian mechanism holds against a reader of the global weights, not
against one of the sites' replies. Every round is charged to every site, drawn or not, since the
run's seed determines the draw.
"""

import json
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.common.files import sync
from mediffusion_core.common.hash_chain import Tip, first_digest, next_digest, read_tip, write_tip
from mediffusion_core.messaging.protocol import WEIGHTED_BY
from mediffusion_core.privacy.accounting.accountant import Charge, epsilon
from mediffusion_core.privacy.dp_sgd.randomness import normal
from mediffusion_core.settings import ClientLevelSettings
from server.messages import Reply
from server.strategy.gathering import Aggregated

StateDict = Mapping[str, Tensor]

FILE, TIP = "client_level.jsonl", "client_level.tip"
"""In the run's folder: a line for each noised mean, written before there is one, in a chain of
digests as the ledger's; and the number and last digest of the lines. Each checkpoint has that tip
too. So a record shows that is removed, changed, cut off or an older copy. The chain has no key."""
EMPTY = first_digest("fed-mediffusion noised means 1")


class ClientLevelPrivacy:
    """Makes the noised means of a run, and counts them over all its restarts."""

    def __init__(self, settings: ClientLevelSettings, participants: int, folder: Path) -> None:
        """Takes how much noise there is, m, and the run's folder."""
        assert settings.noise_multiplier is not None
        self._noise, self._bound = settings.noise_multiplier, settings.max_update_norm
        self._delta = settings.target_delta
        self._participants = participants
        self._path, self._tip_path = folder / FILE, folder / TIP
        self._seen: Tip | None = None

    def gather(self, stage: str, round_number: int, sent: Mapping[str, StateDict]) -> "NoisedMeans":
        """The sums of one round, for its noised means.

        Args:
            stage: Its name.
            round_number: From 1.
            sent: The stage's weights as the sites were sent them, by component.
        """
        charge = partial(self._charge, stage, round_number)
        deviation = self._noise * self._bound
        return NoisedMeans(sent, self._bound, deviation, self._participants, charge)

    def spent(self) -> dict[str, Any]:
        """The privacy cost of the run for a site so far: ε at δ, and the number of noised means.

        Raises:
            UserError: as `tip`.
        """
        rounds = self.tip().count
        charges = [Charge(1.0, self._noise, rounds)] if rounds else []
        return {
            "epsilon": epsilon(charges, self._delta),
            "target_delta": self._delta,
            "noise_multiplier": self._noise,
            "rounds": rounds,
        }

    def tip(self) -> Tip:
        """How many noised means there were, and the last digest of their chain.

        Raises:
            UserError: if the record has other lines than this run wrote, or fewer than its tip.
        """
        digests = self._digests()
        self._seen = Tip(len(digests) - 1, digests[-1])
        return self._seen

    def must_extend(self, tip: Tip) -> None:
        """Refuses a record that does not contain a tip kept elsewhere, such as a checkpoint's.

        Raises:
            UserError: if it has fewer noised means, or others; and as `tip`.
        """
        self._refuse_unless_extends(self._digests(), tip, "the checkpoint")

    def _digests(self) -> list[str]:
        """The chain: the digest of no line, then the one after each line."""
        digests = [EMPTY]
        lines = self._path.read_bytes().split() if self._path.exists() else []
        kept = self._kept_tip()
        if kept is None and lines:
            raise UserError(
                f"{self._tip_path} is gone, the tip of {self._path.name}; put it back, or finish "
                "the run with the earlier version that began it"
            )
        for number, text in enumerate(lines, start=1):
            try:
                line = json.loads(text)
                given, expected = line["digest"], _link(digests[-1], line["stage"], line["round"])
            except (ValueError, KeyError, TypeError):
                digests.append(digests[-1])  # cut short by a kill: it counts, and has no digest
                continue
            if given != expected:
                raise UserError(f"{self._path}: line {number} is not what this run wrote")
            digests.append(expected)
        self._refuse_unless_extends(digests, kept, self._tip_path.name)
        self._refuse_unless_extends(digests, self._seen, "this process")
        return digests

    def _kept_tip(self) -> Tip | None:
        try:
            return read_tip(self._tip_path)
        except (OSError, ValueError) as error:
            raise UserError(f"{self._tip_path} cannot be read ({error})") from None

    def _refuse_unless_extends(self, digests: list[str], tip: Tip | None, whose: str) -> None:
        if tip is None:
            return
        if (found := len(digests) - 1) < tip.count:
            raise UserError(
                f"{self._path} has {found} noised means and {whose} {tip.count}: ε would be "
                "stated too small; put the file back"
            )
        if digests[tip.count] != tip.digest:
            raise UserError(
                f"{self._path}: noised mean {tip.count} is another one in {whose}; put the file "
                "back"
            )

    def _charge(self, stage: str, round_number: int) -> None:
        """Writes the line, then the tip: as the ledger's, the record may be ahead of its tip."""
        before = self.tip()
        if not before.count:
            write_tip(self._tip_path, before)
        digest = _link(before.digest, stage, round_number)
        entry = {"stage": stage, "round": round_number, "digest": digest}
        line = json.dumps(entry, separators=(",", ":"))
        with self._path.open("a", encoding="utf-8") as file:
            # Begins its own line: one that was cut short by a kill counts as another one.
            file.write(f"\n{line}")
            file.flush()
            os.fsync(file.fileno())
        sync(self._path.parent)
        self._seen = Tip(before.count + 1, digest)
        write_tip(self._tip_path, self._seen)


def _link(before: str, stage: str, round_number: int) -> str:
    return next_digest(before, [stage, round_number])


class NoisedMeans:
    """The noised means of one round, reply by reply."""

    def __init__(
        self,
        sent: Mapping[str, StateDict],
        bound: float,
        deviation: float,
        participants: int,
        charge: Callable[[], None],
    ) -> None:
        """Takes the weights as sent, C, σ C, m, and the function that writes the cost to disk."""
        self._before = _flat(sent)
        self._bound, self._deviation, self._participants = bound, deviation, participants
        self._charge = charge
        self._sums = {
            key: torch.zeros(value.shape, dtype=torch.float64)
            for key, value in self._before.items()
        }

    def take(self, reply: Reply) -> None:
        """Adds a site's clipped change."""
        changes = _changes(self._before, reply)
        factor = min(1.0, self._bound / max(_norm(changes), 1e-30))
        for key, change in changes.items():
            self._sums[key] += factor * change

    def aggregated(self) -> Aggregated:
        """The noised means, to be taken once; on the disk as spent when this returns."""
        self._charge()
        means: dict[str, dict[str, Tensor]] = {}
        for (component, name), before in self._before.items():
            total = self._sums.pop((component, name))
            noised = total + self._deviation * normal(total.shape)
            mean = before.double() + noised / self._participants
            means.setdefault(component, {})[name] = mean.to(before.dtype)
        return Aggregated(dict(means))


Key = tuple[str, str]


def _flat(components: Mapping[str, StateDict]) -> dict[Key, Tensor]:
    """All tensors by component and name."""
    return {
        (component, name): value
        for component, state in components.items()
        for name, value in state.items()
    }


def _changes(before: Mapping[Key, Tensor], reply: Reply) -> dict[Key, Tensor]:
    """Differences of the components that a site trained, after minus before, in float64."""
    return {
        (component, name): reply.components[component][name].double() - value.double()
        for (component, name), value in before.items()
        if reply.metrics[WEIGHTED_BY[component]] > 0
    }


def _norm(changes: Mapping[Key, Tensor]) -> float:
    """Of all of them as one vector."""
    return math.sqrt(sum(float(change.square().sum()) for change in changes.values()))
