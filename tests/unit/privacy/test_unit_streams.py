"""Row draws of single units: one unit more or less changes no row of another."""

from collections.abc import Mapping

import numpy as np
import torch
from helpers.toy import PROCESS, joint_training
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from torch import Tensor

from mediffusion_core.data.image_set import ImageSet
from mediffusion_core.privacy.dp_sgd.autoencoder_rows import draw_rows
from mediffusion_core.privacy.dp_sgd.joint_rows import UnitRows
from mediffusion_core.privacy.unit_streams import UnitStreams
from mediffusion_core.privacy.units import UnitIndex, numbered
from mediffusion_core.training.latent_set import LatentSet

LATENT, SIDE, CLASSES, VIEWS, STEP = (2, 4, 4), 8, 3, 3, 7
SECRET = b"of the round"
WEIGHTS = (1.0, 0.1)
Held = Mapping[str, tuple[bool, ...]]
"""By unit, whether each of its images has a label."""
Rows = dict[str, tuple[Tensor, ...]]
"""By unit, all numbers of its rows."""

NAMES = [f"patient {number}" for number in range(12)]
IMAGES = st.lists(st.booleans(), min_size=1, max_size=3).map(tuple)
UNITS = st.dictionaries(st.sampled_from(NAMES), IMAGES, min_size=1, max_size=12)


def random(name: str, *shape: int) -> Tensor:
    seed = int.from_bytes(name.encode(), "big") % 2**31
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class OneSite:
    """A site whose images follow from the names of their units, in the order of a table."""

    def __init__(self, held: Held, turned: bool) -> None:
        table = [(unit, number) for unit, of in held.items() for number in range(len(of))]
        self.index = UnitIndex(*numbered([unit for unit, _ in table]))
        labelled = [number for number, (unit, one) in enumerate(table) if held[unit][one]]
        names = [f"{unit}, {number}" for unit, number in table]
        targets = torch.full((len(names), CLASSES), torch.nan)
        for one in labelled:
            targets[one] = random(names[one] + "label", CLASSES).round()
        latents = torch.stack([random(name, *LATENT) for name in names]).half()
        views = torch.stack([random(name + "views", VIEWS, *LATENT) for name in names], dim=1)
        self.data = LatentSet(
            latents, views[:, labelled].half(), targets, True, turns_and_flips=turned
        )
        pixels = torch.stack([random(name + "image", SIDE, SIDE, 1) for name in names])
        self.images = ImageSet((255 * pixels).byte().numpy(), np.arange(len(names)), targets)
        self.streams = UnitStreams(self.index.names, SECRET)
        self.known = {unit for unit, of in held.items() if any(of)}

    def drawn(self, units: list[str]) -> tuple[list[str], Tensor]:
        """Names and numbers of some units, in the order of their numbers."""
        names = [name for name in self.index.names if name in units]
        return names, torch.tensor([self.index.names.index(name) for name in names])

    def joint(self, units: list[str], multiplicity: int) -> Rows:
        names, numbers = self.drawn(units)
        batch = self.rows.joint(STEP, numbers, multiplicity, WEIGHTS)
        labelled = [name for name in names if name in self.known]
        order = labelled + [name for name in names if name not in self.known]
        found = {name: [one.take(torch.tensor([row])) for one in batch.denoised]
                 for row, name in enumerate(order)}  # fmt: skip
        classified = {name: [one.take(torch.tensor([row])) for one in batch.classified]
                      for row, name in enumerate(labelled)}  # fmt: skip
        return {
            name: (
                *(part for one in rows for part in (one.inputs, one.timesteps, one.target)),
                *(part for one in classified.get(name, [])
                  for part in (one.inputs, one.timesteps, one.targets)),
            )
            for name, rows in found.items()
        }  # fmt: skip

    def single(self, units: list[str]) -> Rows:
        names, numbers = self.drawn(units)
        batch = self.rows.single(STEP, numbers)
        rows = {name: batch.take(torch.tensor([row])) for row, name in enumerate(names)}
        return {
            name: (one.noised.inputs, one.noised.timesteps, one.noised.target, one.targets)
            for name, one in rows.items()
        }

    def autoencoder(self, units: list[str], multiplicity: int) -> Rows:
        names, numbers = self.drawn(units)
        batch = draw_rows(
            self.images, self.index, numbers, multiplicity, LATENT, self.streams, STEP
        )
        rows = {name: batch.take(torch.tensor([row])) for row, name in enumerate(names)}
        return {name: (*one.images, *one.noise) for name, one in rows.items()}

    @property
    def rows(self) -> UnitRows:
        noised = joint_training(noised_fraction=0.5)
        return UnitRows(self.data, self.index, noised, PROCESS, self.streams)


def equal(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> bool:
    """Bit by bit, NaN included."""
    return len(one) == len(other) and all(
        a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        for a, b in zip(one, other, strict=True)
    )


@settings(max_examples=500)
@given(
    before=UNITS,
    others=UNITS,
    removed=st.sets(st.sampled_from(NAMES)),
    batches=st.tuples(st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES))),
    multiplicity=st.integers(1, 3),
    turned=st.booleans(),
)
def test_one_unit_moves_no_row_of_another(
    before: Held,
    others: Held,
    removed: set[str],
    batches: tuple[set[str], set[str]],
    multiplicity: int,
    turned: bool,
) -> None:
    """Units come and go, at the site and in the batch; the rows of those in both are the same."""
    after = {**others, **before}
    after = {unit: of for unit, of in after.items() if unit not in removed} or before
    one, other = OneSite(before, turned), OneSite(after, turned)
    first, second = (
        sorted(set(held) & (batch | set(before) & set(after)))
        for held, batch in zip((before, after), batches, strict=True)
    )
    if not first or not second:
        return
    for mine, theirs in (
        (one.joint(first, multiplicity), other.joint(second, multiplicity)),
        (one.single(first), other.single(second)),
        (one.autoencoder(first, multiplicity), other.autoencoder(second, multiplicity)),
    ):
        for unit in mine.keys() & theirs.keys():
            assert equal(mine[unit], theirs[unit])


def test_steps_rows_and_secrets_differ() -> None:
    units = torch.arange(4)
    streams = UnitStreams("abcd", SECRET)
    drawn = [
        streams.at(units, 1, 0).normal(8),
        streams.at(units, 1, 1).normal(8),
        streams.at(units, 2, 0).normal(8),
        streams.at(units, 0, 1).normal(8),
        UnitStreams("abcd", b"another").at(units, 1, 0).normal(8),
        UnitStreams("abcd").at(units, 1, 0).normal(8),
        UnitStreams("abcd").at(units, 1, 0).normal(8),
    ]
    assert len(torch.cat(drawn).flatten().unique()) == 7 * 4 * 8


def test_numbers_have_their_distributions_and_are_independent() -> None:
    streams = UnitStreams([str(number) for number in range(5000)], SECRET)
    draws = streams.at(torch.arange(5000), 3)
    levels, uniform, normal = draws.below(7), draws.uniform(), draws.normal(5, 3)
    assert chisquare(torch.bincount(levels, minlength=7).numpy()).pvalue > 1e-6
    assert kstest(uniform.numpy(), "uniform").pvalue > 1e-6 and uniform.dtype == torch.float64
    assert normal.shape == (5000, 5, 3) and normal.dtype == torch.float32
    assert kstest(normal.flatten().numpy(), "norm").pvalue > 1e-6
    later = streams.at(torch.arange(5000), 4).normal(15)
    columns = torch.cat([levels[:, None], uniform[:, None], normal.flatten(1), later], dim=1)
    off = torch.corrcoef(columns.double().T) - torch.eye(32)
    assert float(off.abs().max()) < 6 / 5000**0.5
    assert abs(float(torch.corrcoef(normal[::2].flatten(1).T.double())[0, 1])) < 0.1
    neighbours = torch.corrcoef(torch.stack([normal[:-1].flatten(), normal[1:].flatten()]))
    assert abs(float(neighbours[0, 1])) < 6 / 75_000**0.5
