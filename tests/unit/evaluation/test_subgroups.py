"""Subgroups of few patients are suppressed, and no combination of the others gives them back."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mediffusion_core.data.attributes import AGE, AGE_BANDS, ATTRIBUTES, SEX
from mediffusion_core.evaluation.subgroups import SUBGROUPS, members, suppressed

MINIMUM = 10
Counts = Mapping[tuple[str, str], int]


def people(counts: Counts) -> dict[str, NDArray[np.str_]]:
    """The attributes of so many people of each sex and age."""
    rows = [cell for cell, count in counts.items() for _ in range(count)]
    sexes, ages = zip(*rows, strict=True)
    return {SEX: np.array(sexes, dtype=np.str_), AGE: np.array(ages, dtype=np.str_)}


def kept(counts: Counts, patients: Sequence[str] | None = None) -> set[str]:
    attributes = people(counts)
    names = patients or [str(number) for number in range(len(attributes[SEX]))]
    gone = suppressed(attributes, names, MINIMUM)
    return {
        subgroup for (_, subgroup), away in zip(SUBGROUPS, gone.tolist(), strict=True) if not away
    }


def test_groups_of_enough_patients_leave() -> None:
    counts = {("female", "18-39"): 30, ("male", "18-39"): 30, ("female", "60-79"): 30}
    counts[("male", "60-79")] = 30
    assert kept(counts) == {"female", "male", "18-39", "60-79"}


def test_a_group_under_the_minimum_is_suppressed_and_so_is_its_complement() -> None:
    """All minus the other subgroup would be the suppressed one."""
    assert kept({("female", ""): 40, ("male", ""): 9}) == set()
    assert kept({("female", ""): 40, ("male", ""): 10}) == {"female", "male"}


def test_the_smallest_other_group_hides_a_suppressed_one() -> None:
    counts = {("", "18-39"): 40, ("", "40-59"): 30, ("", "60-79"): 20, ("", "80 and over"): 3}
    assert kept(counts) == {"18-39", "40-59"}


def test_people_of_unknown_sex_are_a_rest_as_well() -> None:
    assert kept({("female", ""): 40, ("male", ""): 30, ("", ""): 4}) == {"female"}
    assert kept({("female", ""): 40, ("male", ""): 30, ("", ""): 10}) == {"female", "male"}


def test_two_attributes_that_nearly_agree_are_not_both_sent() -> None:
    """All women minus the young would be two women."""
    counts = {("female", "18-39"): 40, ("female", "60-79"): 2, ("male", "60-79"): 40}
    assert kept(counts) == {"female", "male"}


def test_a_patient_counts_once_however_many_images_there_are() -> None:
    names = [str(number // 8) for number in range(72)]
    assert kept({("female", ""): 72}, names) == set()


def reveals_few(counts: Counts, shown: set[str]) -> bool:
    """Whether a combination of the sums over subgroups, and over all, is of few people.

    It is if some cells of few people stay when all others vanish: a system of equations.
    """
    cells = list(counts)
    rows = [[1.0] * len(cells)]
    rows += [[float(name in cell) for cell in cells] for name in sorted(shown)]
    matrix = np.array(rows)
    rank = np.linalg.matrix_rank(matrix)
    for chosen in product((False, True), repeat=len(cells)):
        few = np.array(chosen)
        total = sum(counts[cell] for cell, one in zip(cells, chosen, strict=True) if one)
        if 0 < total < MINIMUM and np.linalg.matrix_rank(matrix[:, ~few]) < rank:
            return True
    return False


@given(
    st.dictionaries(
        st.tuples(st.sampled_from(("female", "male", "")), st.sampled_from((*AGE_BANDS[1:4], ""))),
        st.integers(1, 25),
        min_size=1,
        max_size=10,
    )
)
def test_no_combination_of_what_leaves_is_of_fewer_than_the_minimum(counts: Counts) -> None:
    assume(sum(counts.values()) >= MINIMUM)
    assert not reveals_few(counts, kept(counts))


def test_a_combination_of_few_is_found() -> None:
    counts = {("female", "18-39"): 40, ("female", "60-79"): 2, ("male", "60-79"): 40}
    assert reveals_few(counts, {"female", "male", "18-39"})
    assert not reveals_few(counts, {"female", "male"})


def test_members_are_those_of_each_group() -> None:
    attributes = people({("female", "18-39"): 2, ("", "80 and over"): 1})
    found = {
        subgroup: row.tolist()
        for (_, subgroup), row in zip(SUBGROUPS, members(attributes, 3), strict=True)
    }
    assert found["female"] == found["18-39"] == [True, True, False]
    assert found["80 and over"] == [False, False, True]
    assert not any(found["male"]) and len(found) == sum(map(len, ATTRIBUTES.values()))
    assert not members({}, 3).any()
