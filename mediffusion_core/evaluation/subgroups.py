"""Subgroups of an evaluation, and which of them may leave a site.

A site sends sums over all its images and over subgroups by sex and by age. A subgroup of few
patients is suppressed. So is one whose sums, with all others added or subtracted, would give the
sums of few patients: the rest of an attribute, or the patients in which two unions differ.

Two attributes suffice for a proof. Every combination of the sums gives an image the weight
a(sex) + b(age). For each value v, let S be the images with a = v and A those with b = -v. Images of
weight 0 lie in some S and its A, so the others contain the images that lie in exactly one of S and
A, for each v. S and A are unions of subgroups, with the rest of an attribute as one more. If no two
unions differ in few patients, then no combination is of few patients.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, combinations, product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mediffusion_core.data.attributes import AGE, ATTRIBUTES, SEX

SUBGROUPS = tuple((name, subgroup) for name in (SEX, AGE) for subgroup in ATTRIBUTES[name])
"""Attribute and subgroup, in the order of a site's sums."""

Cell = tuple[str, str]
"""Sex and age of an image; empty where unknown."""
Patients = Mapping[frozenset[Cell], int]
"""How many patients have images in exactly these cells."""


def members(attributes: Mapping[str, NDArray[np.str_]], count: int) -> Tensor:
    """Which images are in each of `SUBGROUPS`.

    Args:
        attributes: By attribute, the subgroup of each of N images.
        count: N.

    Returns:
        (G, N) bool; false throughout for an attribute that is not given.
    """
    unknown = np.zeros(count, dtype=np.str_)
    rows = [attributes.get(name, unknown) == subgroup for name, subgroup in SUBGROUPS]
    return torch.from_numpy(np.stack(rows))


def suppressed(
    attributes: Mapping[str, NDArray[np.str_]], patients: Sequence[str], minimum: int
) -> Tensor:
    """The subgroups whose sums may not leave beside the sums over all images.

    Args:
        attributes: By attribute, the subgroup of each of N images, empty where it is unknown.
        patients: Patient or lesion of each of the N images.
        minimum: The least number of patients that sums may be of.

    Returns:
        (G,) bool, of `SUBGROUPS`; true for a subgroup without images too.
    """
    counted = _patients(attributes, patients)
    kept = {name: _large(counted, name, minimum) for name in (SEX, AGE)}
    # The bands of age give way: they are more, and so smaller.
    while kept[AGE] and not _unions_differ_enough(counted, kept, minimum):
        least = min(sorted(kept[AGE]), key=lambda subgroup: _size(counted, AGE, {subgroup}))
        kept[AGE] = _with_a_large_rest(counted, AGE, kept[AGE] - {least}, minimum)
    return torch.tensor([subgroup not in kept[name] for name, subgroup in SUBGROUPS])


def _patients(attributes: Mapping[str, NDArray[np.str_]], patients: Sequence[str]) -> Patients:
    unknown = np.zeros(len(patients), dtype=np.str_)
    sexes, ages = (attributes.get(name, unknown).tolist() for name in (SEX, AGE))
    cells: dict[str, set[Cell]] = {}
    for patient, *cell in zip(patients, sexes, ages, strict=True):
        cells.setdefault(patient, set()).add((cell[0], cell[1]))
    counted: dict[frozenset[Cell], int] = {}
    for found in cells.values():
        counted[frozenset(found)] = counted.get(frozenset(found), 0) + 1
    return counted


def _large(counted: Patients, name: str, minimum: int) -> frozenset[str]:
    """The subgroups of enough patients, as far as the rest is of enough patients or of none."""
    found = (one for one in ATTRIBUTES[name] if _size(counted, name, {one}) >= minimum)
    return _with_a_large_rest(counted, name, frozenset(found), minimum)


def _with_a_large_rest(
    counted: Patients, name: str, kept: frozenset[str], minimum: int
) -> frozenset[str]:
    """The subgroups, without the smallest as long as the other images are of few patients."""
    while kept and 0 < _size(counted, name, _others(name, kept)) < minimum:
        kept -= {min(sorted(kept), key=lambda subgroup: _size(counted, name, {subgroup}))}
    return kept


def _unions_differ_enough(
    counted: Patients, kept: Mapping[str, frozenset[str]], minimum: int
) -> bool:
    """Whether a union of sexes and a union of ages never differ in few patients."""
    unions = {name: list(_unions(name, kept[name])) for name in (SEX, AGE)}
    for sexes, ages in product(unions[SEX], unions[AGE]):
        differing = sum(
            count
            for cells, count in counted.items()
            if any((sex in sexes) != (age in ages) for sex, age in cells)
        )
        if 0 < differing < minimum:
            return False
    return True


def _unions(name: str, kept: frozenset[str]) -> Iterator[frozenset[str]]:
    parts = [*({subgroup} for subgroup in sorted(kept)), _others(name, kept)]
    sizes = range(len(parts) + 1)
    for chosen in chain.from_iterable(combinations(parts, size) for size in sizes):
        yield frozenset().union(*chosen)


def _others(name: str, kept: Collection[str]) -> set[str]:
    """The subgroups of an attribute that are not kept, the unknown ones among them."""
    return {*ATTRIBUTES[name], ""} - set(kept)


def _size(counted: Patients, name: str, subgroups: Collection[str]) -> int:
    """How many patients have an image in some of the subgroups of an attribute."""
    place = (SEX, AGE).index(name)
    return sum(
        count for cells, count in counted.items() if any(cell[place] in subgroups for cell in cells)
    )
