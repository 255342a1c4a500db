"""Counts of small groups leave by no combination of the counts that are sent."""

from collections.abc import Sequence

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mediffusion_core.evaluation.suppression import (
    Partition,
    give_way,
    presence_of,
    shown_cells,
)

MINIMUM = 5


def partition(cells: Sequence[int], count: int, patients: Sequence[int]) -> Partition:
    given, numbers = np.array(cells), np.array(patients)
    return Partition(given, shown_cells(presence_of(given, numbers, count), MINIMUM))


def shown(sizes: Sequence[int]) -> list[bool]:
    """The cells that leave, for cells of so many patients with one image each."""
    cells = np.repeat(np.arange(len(sizes)), sizes)
    return partition(cells.tolist(), len(sizes), range(len(cells))).shown.tolist()


def test_small_cells_take_the_smallest_other_one_along() -> None:
    assert shown([20, 30]) == [True, True]
    assert shown([20, 4]) == [False, False]
    assert shown([20, 4, 9]) == [True, False, False]
    assert shown([20, 2, 3, 9]) == [True, False, False, False]
    assert shown([4, 4, 4]) == [False, False, False]


def test_empty_cells_are_suppressed_with_small_ones_alone() -> None:
    assert shown([20, 0, 9]) == [True, True, True]
    assert shown([20, 0, 2, 9]) == [True, False, False, False]


def test_a_patient_counts_once_in_a_cell() -> None:
    cells, patients = [0] * 20 + [1] * 20, [*range(20), *[20, 21] * 10]
    assert partition(cells, 2, patients).shown.tolist() == [False, False]


def one_of(classes: NDArray[np.int64], count: int) -> list[Partition]:
    """Positive, negative and missing of each class, where each image has one class."""
    people = range(len(classes))
    return [partition(np.where(classes == one, 0, 1).tolist(), 3, people) for one in range(count)]


def test_a_rare_class_is_not_all_images_without_those_of_the_other_classes() -> None:
    classes = np.repeat(np.arange(4), [30, 20, 10, 3])
    partitions = one_of(classes, 4)
    assert [one.shown[0] for one in partitions] == [True, True, True, False]
    give_way(partitions, [], np.arange(len(classes)), MINIMUM)
    assert [one.shown[0] for one in partitions] == [True, True, False, False]


def test_a_class_gives_way_whose_missing_labels_are_known_from_another_class() -> None:
    numbers = np.arange(64)
    common = np.where(numbers < 20, 2, numbers % 2)
    rare = np.where(numbers < 20, 2, np.sign(numbers % 12))
    partitions = [partition(one.tolist(), 3, range(64)) for one in (common, rare)]
    assert partitions[1].shown.tolist() == [False, True, False]
    give_way(partitions, [], numbers, MINIMUM)
    assert partitions[0].shown.all() and not partitions[1].shown.any()


def test_counts_that_give_nothing_back_stay() -> None:
    people = np.arange(64)
    partitions = [partition((people // step % 2).tolist(), 3, people.tolist()) for step in (1, 2)]
    give_way(partitions, [], people, MINIMUM)
    assert all(one.shown.all() for one in partitions)


def test_two_rare_classes_are_not_known_together_either() -> None:
    classes = np.repeat(np.arange(5), [30, 20, 10, 2, 2])
    partitions = one_of(classes, 5)
    give_way(partitions, [], np.arange(len(classes)), MINIMUM)
    assert [one.shown[0] for one in partitions] == [True, True, False, False, False]


def follows(small: NDArray[np.bool_], sent: list[NDArray[np.bool_]]) -> bool:
    """Whether a count is a combination of the counts that are sent, image by image."""
    rows = np.stack(sent).astype(float).T
    target = small.astype(float)
    solved = np.linalg.lstsq(rows, target, rcond=None)[0]
    return bool(np.abs(rows @ solved - target).max() < 1e-8)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.integers(0, 3)),
        min_size=12,
        max_size=40,
    )
)
def test_no_suppressed_small_count_follows_from_the_counts_that_leave(
    cells: list[tuple[int, int, int, int]],
) -> None:
    columns = np.array(cells).T
    people = np.arange(len(cells)) // 2
    assume(people[-1] + 1 >= MINIMUM)
    partitions = [partition(one.tolist(), 4, people.tolist()) for one in columns]
    fixed = partitions.pop()
    give_way(partitions, [fixed], people, MINIMUM)
    every = [*partitions, fixed]
    sent = [np.ones(len(cells), dtype=np.bool_)]
    sent += [one.cells == cell for one in every for cell in np.flatnonzero(one.shown)]
    for one in every:
        for cell in np.flatnonzero(~one.shown):
            inside = one.cells == cell
            if 0 < len({*people[inside]}) < MINIMUM:
                assert not follows(inside, sent)
