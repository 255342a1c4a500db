"""`fed-mediffusion sizing`: traffic and memory of a federation, from its settings alone."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mediffusion_core.common.errors import UserError
from mediffusion_core.messaging.compression import component_compression, compress_weights
from mediffusion_core.messaging.protocol import (
    AUTOENCODER,
    AUTOENCODING,
    EMA_HEAD,
    EMA_UNET,
    HEAD,
    JOINT,
    UNET,
)
from mediffusion_core.models import encoder_half
from mediffusion_core.models.public_encoders import ENCODER_WIDTHS
from mediffusion_core.settings import AlignmentSettings, Settings
from server.checkpoints import stored
from server.state import fresh_state

StateDict = Mapping[str, Tensor]

MEGABIT = 125_000
"""Bytes per second of one Mbit/s."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of weights and moments, without names, shapes and the overhead of a message.

    Attributes:
        autoencoder: In each direction, in a round of the autoencoder stage.
        codec: The uncompressed weights of the autoencoder.
        joint_down: From the server to a site, in a round of the joint stage.
        joint_up: From a site to the server, in such a round.
        decoded: A site's reply in such a round, decompressed.
        evaluation: From the server to a site, for an evaluation.
        alignment: Sums over features from a site, and their whitening to it; 0 without alignment.
        control: The control variates of one site; 0 where the run has none.
        checkpoint: The server's state, without control variates.
    """

    autoencoder: int
    codec: int
    joint_down: int
    joint_up: int
    decoded: int
    evaluation: int
    alignment: int
    control: int
    checkpoint: int

    @classmethod
    def of(cls, settings: Settings, num_classes: int) -> "Sizes":
        """Sizes of the networks of the settings; no weight is allocated."""
        with torch.device("meta"):
            components = stored(fresh_state(settings, num_classes))
        average = (EMA_UNET, EMA_HEAD) if settings.training.joint.needs_average else ()
        method, alignment = settings.federation.compression, settings.training.joint.alignment
        sent = {
            name: compress_weights(components[name], component_compression(name, method))
            for name in (*AUTOENCODING, *JOINT, *average)
        }
        joint, controls = _bytes(sent, JOINT), settings.training.joint.control_variates
        control = _bytes(components, (UNET, HEAD)) if controls else 0
        return cls(
            autoencoder=_bytes(sent, AUTOENCODING),
            codec=_bytes(components, (AUTOENCODER,)),
            joint_down=joint + _bytes(sent, average) + control,
            joint_up=joint + control,
            decoded=_bytes(components, JOINT),
            evaluation=_bytes({**components, UNET: encoder_half(components[UNET])}, (UNET, HEAD)),
            alignment=_feature_sums(alignment, num_classes) + _whitening(alignment, num_classes),
            control=control,
            checkpoint=_bytes(components, components) + _whitening(alignment, num_classes),
        )

    def memory(self, sites: int) -> int:
        """Bytes at the server in a joint round.

        Its state, the encoded message, one reply encoded and decoded, and the sums of all replies,
        which are three times as wide as a reply. Only control variates are kept of each site.
        """
        whole = self.checkpoint + self.joint_down + self.joint_up + 4 * self.decoded
        return whole + sites * self.control

    def disk(self, sites: int, settings: Settings) -> int:
        """Bytes on the server's disk: checkpoints, and replies where a rule needs them all.

        The newest checkpoints are kept, and for each of them at most one of a selected round.
        """
        replies = sites * self.decoded if settings.federation.num_malicious_sites else 0
        return 2 * settings.run.keep_last * (self.checkpoint + sites * self.control) + replies

    def traffic(self, settings: Settings) -> int:
        """Bytes that one site receives and sends in a run."""
        federation, every = settings.federation, settings.evaluation.every
        evaluations = 1 + -(-federation.num_rounds // every)
        # The codec is sent twice more: for the sums of latents, and to encode the images.
        stages = 2 * self.autoencoder * settings.autoencoder_rounds + 2 * self.codec
        stages += self.alignment
        rounds = (self.joint_down + self.joint_up) * federation.num_rounds
        # No correction is known before a site's first round.
        return stages + rounds - self.control + evaluations * self.evaluation


def parse_site_counts(text: str) -> list[int]:
    """Numbers of sites, separated by commas.

    Raises:
        UserError: if a part is not a number.
    """
    numbers = text.split(",")
    if not all(number.strip().isdigit() for number in numbers):
        raise UserError(f"--sites {text} is not of the form 3,30,300")
    return [int(number) for number in numbers]


def print_sizing(
    settings: Settings, num_classes: int, site_counts: Sequence[int], megabits: float
) -> None:
    """Prints the traffic of one site, and traffic, memory and disk of the server.

    Args:
        settings: Of the run.
        num_classes: Number of classes or findings.
        site_counts: Numbers of sites, one row each.
        megabits: Bandwidth of each site and of the server, in Mbit/s.
    """
    sizes, speed = Sizes.of(settings, num_classes), megabits * MEGABIT
    console = Console(soft_wrap=True, highlight=False)
    console.print(_site_table(sizes, settings, megabits))
    columns = ("sites", "server, a joint round", "seconds to transfer", "memory", "disk")
    server = Table(*columns)
    for count in site_counts:
        traffic = count * (sizes.joint_down + sizes.joint_up)
        server.add_row(
            str(count),
            _size(traffic),
            f"{traffic / speed:.0f}",
            _size(sizes.memory(count)),
            _size(sizes.disk(count, settings)),
        )
    console.print(server)


def _site_table(sizes: Sizes, settings: Settings, megabits: float) -> Table:
    speed = megabits * MEGABIT
    table = Table("one site", "receives", "sends", f"seconds at {megabits:g} Mbit/s")
    for name, down, up in (
        ("round of the autoencoder", sizes.autoencoder, sizes.autoencoder),
        ("round of the joint stage", sizes.joint_down, sizes.joint_up),
        ("evaluation", sizes.evaluation, 0),
    ):
        table.add_row(name, _size(down), _size(up), f"{(down + up) / speed:.1f}")
    total = sizes.traffic(settings)
    table.add_row("whole run", _size(total), "both directions", f"{total / speed:.0f}")
    return table


def _bytes(components: Mapping[str, StateDict], names: Iterable[str]) -> int:
    return sum(value.nbytes for name in names for value in components[name].values())


def _feature_sums(alignment: AlignmentSettings, num_classes: int) -> int:
    """Bytes of a site's sums over features."""
    width = ENCODER_WIDTHS[alignment.encoder]
    of_classes = 2 * num_classes * (width + 1) if alignment.distillation_weight else 0
    return 4 * (2 * width**2 + width + 2 + of_classes) if alignment.enabled else 0


def _whitening(alignment: AlignmentSettings, num_classes: int) -> int:
    """Bytes of the map from features to directions, and of the classifier of these."""
    width = ENCODER_WIDTHS[alignment.encoder]
    classifier = num_classes * (alignment.directions + 1) if alignment.distillation_weight else 0
    return 4 * (width * (alignment.directions + 1) + classifier) if alignment.enabled else 0


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.2f} MB"
