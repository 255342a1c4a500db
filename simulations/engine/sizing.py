"""`fed-mediffusion sizing`: what a federation moves and holds, from its settings alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mediffusion_core.messaging.compression import outward
from mediffusion_core.messaging.protocol import (
    AUTOENCODER,
    AUTOENCODING,
    EMA_HEAD,
    EMA_UNET,
    HEAD,
    JOINT,
    UNET,
)
from mediffusion_core.settings import Settings
from server.state import fresh_state, stored

StateDict = Mapping[str, Tensor]

MEGABIT = 125_000
"""Bytes a second."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of weights and moments, without names, shapes and the few hundred of a message's own.

    `autoencoder` is what goes each way in a round of its stage, `codec` its weights whole.
    """

    autoencoder: int
    codec: int
    joint_down: int
    joint_up: int
    decoded: int
    evaluation: int
    checkpoint: int

    @classmethod
    def of(cls, settings: Settings, num_classes: int) -> "Sizes":
        """Sizes of what these settings train; no weight is allocated."""
        with torch.device("meta"):
            components = stored(fresh_state(settings, num_classes))
        average = (EMA_UNET, EMA_HEAD) if settings.training.joint.needs_average else ()
        method = settings.federation.compression
        travelling = {name: outward(components[name], method) for name in (*AUTOENCODING, *JOINT)}
        travelling |= {name: outward(components[name], method) for name in average}
        joint = _bytes(travelling, JOINT)
        return cls(
            autoencoder=_bytes(travelling, AUTOENCODING),
            codec=_bytes(components, (AUTOENCODER,)),
            joint_down=joint + _bytes(travelling, average),
            joint_up=joint,
            decoded=_bytes(components, JOINT),
            evaluation=_bytes(components, (UNET, HEAD)),
            checkpoint=_bytes(components, components),
        )

    def memory(self, sites: int) -> int:
        """Bytes at the server in a joint round: its own state, and every site's reply.

        Replies are there as they came, and decoded.
        """
        return self.checkpoint + sites * (self.joint_up + self.decoded)

    def traffic(self, settings: Settings) -> int:
        """Bytes that one site receives and sends in a whole run."""
        federation, every = settings.federation, settings.evaluation.every
        judgements = 1 + -(-federation.num_rounds // every)
        # The codec goes out twice more: for the sums of latents, and to encode with.
        stages = 2 * self.autoencoder * settings.autoencoder_rounds + 2 * self.codec
        rounds = (self.joint_down + self.joint_up) * federation.num_rounds
        return stages + rounds + judgements * self.evaluation


def print_sizing(
    settings: Settings, num_classes: int, sites: Sequence[int], megabits: float
) -> None:
    """Prints what one site moves, and what the server moves and holds for so many sites.

    Args:
        settings: Of the run.
        num_classes: Classes or findings.
        sites: Numbers of sites.
        megabits: Of each site's line, and of the server's, in a second.
    """
    sizes, speed = Sizes.of(settings, num_classes), megabits * MEGABIT
    console = Console(soft_wrap=True, highlight=False)
    one = Table("one site", "receives", "sends", f"seconds at {megabits:g} Mbit/s")
    for name, down, up in (
        ("round of the autoencoder", sizes.autoencoder, sizes.autoencoder),
        ("round of the joint stage", sizes.joint_down, sizes.joint_up),
        ("judgement", sizes.evaluation, 0),
    ):
        one.add_row(name, _size(down), _size(up), f"{(down + up) / speed:.1f}")
    total = sizes.traffic(settings)
    one.add_row("whole run", _size(total), "both ways", f"{total / speed:.0f}")
    console.print(one)
    server = Table("sites", "server, a joint round", "seconds of its line", "memory", "checkpoint")
    for number in sites:
        moved = number * (sizes.joint_down + sizes.joint_up)
        server.add_row(
            str(number),
            _size(moved),
            f"{moved / speed:.0f}",
            _size(sizes.memory(number)),
            _size(sizes.checkpoint),
        )
    console.print(server)


def _bytes(components: Mapping[str, StateDict], names: Iterable[str]) -> int:
    return sum(value.nbytes for name in names for value in components[name].values())


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.2f} MB"
