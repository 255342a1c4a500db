"""Copies are found, whatever was done to them; images that only look alike are not."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mediffusion_core.data import phantom
from mediffusion_core.data.store.duplicates import (
    NEAR_BITS,
    close_hashes,
    correlations,
    exact_pairs,
    find_duplicates,
    units,
)
from mediffusion_core.data.store.images import fit

SIZE = 64


def chest(patient: int) -> np.ndarray:
    findings = phantom.findings_of(0, 0, patient)
    return fit(phantom.render(0, 0, patient, findings, SIZE), SIZE, 1)


@pytest.fixture(scope="module")
def chests() -> np.ndarray:
    return np.stack([chest(patient) for patient in range(60)])


def stored_again(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0]).save(buffer, "JPEG", quality=70)
    return np.asarray(Image.open(buffer))[..., None]


def brighter(image: np.ndarray) -> np.ndarray:
    return (image * 0.8 + 30).round().astype(np.uint8)


def test_sixty_patients_are_no_duplicates(chests: np.ndarray) -> None:
    assert len(find_duplicates(chests)) == 0


@pytest.mark.parametrize("change", [np.copy, stored_again, brighter])
def test_a_copy_is_found(chests: np.ndarray, change: object) -> None:
    copied = np.concatenate([chests, change(chests[7])[None]])  # type: ignore[operator]
    assert find_duplicates(copied).tolist() == [[7, 60]]


def test_of_many_copies_each_is_tied_to_the_first(chests: np.ndarray) -> None:
    copied = np.concatenate([chests[:3], chests[:1], chests[:1]])
    assert exact_pairs(copied).tolist() == [[0, 3], [0, 4]]
    assert find_duplicates(copied).tolist() == [[0, 3], [0, 4]]


def test_plain_images_are_duplicates_only_where_they_are_equal() -> None:
    plain = np.stack([np.full((SIZE, SIZE, 3), value, np.uint8) for value in (0, 0, 120, 255)])
    assert find_duplicates(plain).tolist() == [[0, 1]]


def test_no_images_have_no_duplicates() -> None:
    assert find_duplicates(np.empty((0, 8, 8, 1), np.uint8)).shape == (0, 2)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.data())
def test_close_hashes_are_those_that_a_slow_loop_finds(
    hashes: list[int], data: st.DataObject
) -> None:
    if hashes:  # random hashes are never close, so some are made so
        flips = data.draw(st.lists(st.integers(0, 63), max_size=NEAR_BITS + 1, unique=True))
        hashes.append(hashes[0] ^ sum(1 << bit for bit in flips))
    slow = [
        [one, other]
        for one in range(len(hashes))
        for other in range(one + 1, len(hashes))
        if (hashes[one] ^ hashes[other]).bit_count() <= NEAR_BITS
    ]
    assert close_hashes(np.array(hashes, dtype=np.uint64)).tolist() == slow


def test_correlations_are_numpys() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    pairs = np.array([[0, 1], [2, 3], [1, 1]])
    slow = [np.corrcoef(images[a].ravel(), images[b].ravel())[0, 1] for a, b in pairs]
    assert correlations(images, pairs) == pytest.approx(slow)


def test_duplicates_do_not_depend_on_the_number_of_pairs_at_once(
    chests: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large images are compared in smaller blocks, so that memory does not grow with them."""
    copied = np.concatenate([chests[:9], brighter(chests[:3]), stored_again(chests[4])[None]])
    found = find_duplicates(copied)
    monkeypatch.setattr("mediffusion_core.data.store.duplicates._BLOCK", SIZE**2)
    assert np.array_equal(find_duplicates(copied), found)
    assert len(found) == 4


def test_units_join_the_groups_of_duplicates() -> None:
    groups = np.array([0, 0, 1, 2, 3])
    joined = units(groups, np.array([[1, 3], [3, 4]]))
    assert joined[0] == joined[1] == joined[3] == joined[4] != joined[2]
    assert len(set(units(groups, np.empty((0, 2), np.int64)).tolist())) == 4
